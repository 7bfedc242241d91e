"""What the weight of an event is made of: readers of its columns, and tables learnt from a log."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = {
    "item_id": "item_ids",
    "timestamp": "timestamps",
    "event_type": "event_types",
    "duration": "durations",
    "item_duration": "item_durations",
    "count": "counts",
}
LENGTH_GROUPS = 5
QUANTILES = 64
SAMPLE = 1_000_000  # durations that the quantiles are taken from


def read_batches(events: Any) -> list | Iterable:
    """The batches of a log, each a mapping with a column `item_id`."""
    batches = [events] if isinstance(events, Mapping) or "item_id" in events else events
    if isinstance(batches, Iterator):
        raise ValueError(
            "batches of events are read more than once: expected a list, got an iterator"
        )
    if not all("item_id" in batch for batch in batches):
        raise ValueError("events must have a column item_id (or be batches that have it)")
    return batches


def read_strengths(values: Any, name: str) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iuf":
        numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    numbers = numbers.astype(np.float64, copy=False)
    wrong = np.flatnonzero(np.isinf(numbers) | (numbers < 0))
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"{name} must be finite and not negative, got {numbers[first]} at event {first}"
        )
    return numbers


def read_names(event_types: Any) -> np.ndarray:
    return np.asarray(event_types, dtype=object)


def read_times(history: Mapping[str, Any]) -> np.ndarray:
    """Seconds as int64; the places where a history has no times."""
    if "timestamps" not in history:
        return np.arange(len(history["item_ids"]))
    times = np.asarray(history["timestamps"])
    if len(times) and (times.dtype.kind not in "iuf" or not np.isfinite(times).all()):
        raise ValueError(f"timestamps must be a number of seconds for every event, got {times!r}")
    return times.astype(np.int64)


def count_types(batches: Any, given: Mapping[str, float]) -> tuple[list, dict[str, float]]:
    """Event types by falling count, and the factor of each and of those only `given`."""
    total: Counter = Counter()
    for batch in batches:
        if "event_type" in batch:
            total.update(name for name in batch["event_type"] if isinstance(name, str))
    for name, factor in given.items():
        if not (np.isfinite(factor) and factor >= 0):
            raise ValueError(
                f"the factor of {name!r} must be finite and not negative, got {factor}"
            )
    order = sorted(total, key=lambda name: (-total[name], name))
    return order, {name: float(given.get(name, 1.0)) for name in [*order, *given]}


def length_group(lengths: np.ndarray, cuts: np.ndarray | Sequence[float]) -> np.ndarray:
    """The group of each content length; the last one is for an unknown length."""
    group = np.searchsorted(cuts, np.nan_to_num(lengths), side="right")
    return np.where(np.isnan(lengths), len(cuts) + 1, group)


def duration_tables(batches: Any) -> tuple[list, list]:
    """Content-length cuts, and per group the duration thresholds, from a seeded sample."""
    durations, lengths = [], []
    for batch in batches:
        if "duration" in batch:
            found = read_strengths(batch["duration"], "duration")
            unknown = np.full(len(found), np.nan)
            known = batch.get("item_duration", unknown)
            durations.append(found)
            lengths.append(read_strengths(known, "item_duration"))
    duration = np.concatenate([*durations, np.empty(0)])
    length = np.concatenate([*lengths, np.empty(0)])
    timed = ~np.isnan(duration)
    duration, length = duration[timed], length[timed]
    if not len(duration):
        return [], []
    if len(duration) > SAMPLE:
        chosen = np.random.default_rng(0).choice(len(duration), SAMPLE, replace=False)
        duration, length = duration[chosen], length[chosen]
    known = length[~np.isnan(length)]
    shares = np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS
    cuts = np.unique(np.quantile(known, shares)) if len(known) else np.empty(0)
    group = length_group(length, cuts)
    steps = (np.arange(QUANTILES) + 1) / QUANTILES
    owns = [duration[group == place] for place in range(len(cuts) + 1)]
    # An unknown length, and a group with no duration to learn from, take all durations together.
    tables = [own if len(own) else duration for own in [*owns, duration]]
    return cuts.tolist(), [np.quantile(t, steps, method="inverted_cdf").tolist() for t in tables]


def duration_factor(
    durations: np.ndarray,
    lengths: np.ndarray,
    cuts: Sequence[float],
    tables: Sequence[Sequence[float]],
) -> np.ndarray:
    """Twice the quantile of each duration in its group of content lengths; 1 where unknown."""
    group = length_group(lengths, cuts)
    factor = np.ones(len(durations))
    for place, thresholds in enumerate(tables):
        own = (group == place) & ~np.isnan(durations)
        below = np.searchsorted(thresholds, durations[own], side="right")
        factor[own] = 2 * np.maximum(below, 1) / len(thresholds)
    return factor


def collapse(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One event per item and event type, at the place of the last, with the sum of the weights."""
    types = part.get("event_type_ids", np.zeros_like(part["input_ids"]))
    key = part["input_ids"].astype(np.int64) * (int(types.max(initial=0)) + 1) + types
    distinct, place, group = np.unique(key[::-1], return_index=True, return_inverse=True)
    last = len(key) - 1 - place
    order = np.argsort(last)
    collapsed = {name: values[last[order]] for name, values in part.items()}
    weights = np.bincount(group, part["input_weights"][::-1], minlength=len(distinct))
    return collapsed | {"input_weights": weights[order].astype(np.float32)}
