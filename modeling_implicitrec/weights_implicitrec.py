"""What the weight of an event is made of: readers of its columns, and tables learnt from a log."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np

from .names_implicitrec import CodedNames

COLUMNS = {
    "item_id": "item_ids",
    "timestamp": "timestamps",
    "event_type": "event_types",
    "duration": "durations",
    "item_duration": "item_durations",
    "count": "counts",
    "platform": "platforms",
}
UNWEIGHTED = ("item_id", "timestamp")
DURATION_WEIGHTS = ("quantile", "completion", None)
LENGTH_GROUPS = 5
QUANTILES = 64
SAMPLE = 1_000_000  # durations that the quantiles are taken from
LATEST = 2**40  # seconds: some 35,000 years; a time of our days in milliseconds is more
ENOUGH = 10_000_000  # events that a mean is taken from
logger = logging.getLogger(__name__)


def check_choices(duration_weight: str | None, limits: Mapping[str, float | None]) -> None:
    """Raise `ValueError` for an unknown `duration_weight`, or a limit that is not positive."""
    if duration_weight not in DURATION_WEIGHTS:
        raise ValueError(
            f"duration_weight must be one of {DURATION_WEIGHTS}, got {duration_weight!r}"
        )
    for name, number in limits.items():
        if number is not None and not (isinstance(number, Real) and 0 < number < np.inf):
            raise ValueError(f"{name} must be finite and positive, got {number!r}")


def read_batches(events: Any) -> list | Iterable:
    """The batches of a log, each a mapping with a column `item_id`."""
    if isinstance(events, Iterator):
        raise ValueError(
            "batches of events are read more than once: expected a list, got an iterator"
        )
    # A data frame gives the names of its columns.
    single = isinstance(events, Mapping) or isinstance(next(iter(events), None), str)
    batches = [events] if single else events
    if not all("item_id" in batch for batch in batches):
        raise ValueError(
            "events must have a column item_id (or be batches that have it); sequences of users go "
            "through training_columns"
        )
    return batches


def read_strengths(values: Any, name: str) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iuf":
        try:
            numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        except TypeError as error:
            raise ValueError(f"{name} must be a number or None for every event: {error}") from error
    numbers = numbers.astype(np.float64, copy=False)
    wrong = np.flatnonzero(np.isinf(numbers) | (numbers < 0))
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"{name} must be finite and not negative, got {numbers[first]} at event {first}"
        )
    return numbers


def read_names(event_types: Any) -> np.ndarray | CodedNames:
    """Names that `== name` compares one by one."""
    if isinstance(event_types, CodedNames):
        return event_types
    return np.asarray(event_types, dtype=object)


def count_names(batches: Any, column: str) -> Counter:
    """How often each name occurs in a column of the batches, as far as they have it."""
    total: Counter = Counter()
    for batch in batches:
        if column in batch:
            names = read_names(batch[column])
            if isinstance(names, CodedNames):
                total.update(names.counted())
            else:
                total.update(name for name in names if isinstance(name, str))
    return total


def name_ids(values: Any, known: Sequence[str]) -> np.ndarray:
    """Ids int64 of names: their place among the `known`, from 1 on; 0 for an unknown or missing one."""
    names = read_names(values)
    ids = np.zeros(len(names), dtype=np.int64)
    for place, name in enumerate(known, start=1):
        ids[names == name] = place
    return ids


def is_any(event_types: Any, wanted: Iterable[str]) -> np.ndarray:
    """Whether each name is one of those wanted."""
    names = read_names(event_types)
    found = np.zeros(len(names), dtype=bool)
    for name in wanted:
        found |= names == name
    return found


def read_times(history: Mapping[str, Any]) -> np.ndarray:
    """Seconds as int64; the places where a history has no times."""
    if "timestamps" not in history:
        return np.arange(len(history["item_ids"]))
    times = np.asarray(history["timestamps"])
    if len(times) and (times.dtype.kind not in "iuf" or not np.isfinite(times).all()):
        raise ValueError(f"timestamps must be a number of seconds for every event, got {times!r}")
    if len(times) and times.max() > LATEST:
        raise ValueError(f"timestamps must be seconds since 1970, got {times.max()}")
    return times.astype(np.int64)


def positive_items(batch: Mapping[str, Any], negative_event_types: Sequence[str]) -> Any:
    """The item ids of a batch's events that are not of a negative type."""
    items = batch["item_id"]
    if not negative_event_types or "event_type" not in batch:
        return items
    kept = ~is_any(batch["event_type"], negative_event_types)
    if isinstance(items, CodedNames):
        return items[kept]
    if isinstance(items, list | tuple):
        return [item for item, keep in zip(items, kept) if keep]
    return np.asarray(items)[kept]


def count_types(
    batches: Any, given: Mapping[str, float], negative: Sequence[str] = ()
) -> tuple[list, dict[str, float]]:
    """Event types by falling count, `negative` ones always, and the factor of each and of those `given`."""
    if negative and not any("event_type" in batch for batch in batches):
        raise ValueError(
            f"negative_event_types {list(negative)} need a column event_type, the events have none"
        )
    total = count_names(batches, "event_type")
    absent = [name for name in negative if not total[name]]
    if absent:
        logger.warning("no event is of the negative types %s; found %s", absent, sorted(total))
    unknown = sorted(given.keys() - total.keys() - set(negative))
    if unknown and total:
        logger.warning(
            "no event is of the types %s that have a factor; found %s", unknown, sorted(total)
        )
    for name, factor in given.items():
        if not (np.isfinite(factor) and factor >= 0):
            raise ValueError(
                f"the factor of {name!r} must be finite and not negative, got {factor}"
            )
        if name in negative and not factor:
            raise ValueError(
                f"the factor of the negative event type {name!r} must be positive, got 0: "
                "an event of weight 0 is not seen at all"
            )
    order = sorted({*total, *negative}, key=lambda name: (-total[name], name))
    return order, {name: float(given.get(name, 1.0)) for name in [*order, *given]}


def frequent_platforms(batches: Any) -> list[str]:
    """The platforms of a log by falling count."""
    total = count_names(batches, "platform")
    return sorted(total, key=lambda name: (-total[name], name))


def length_group(lengths: np.ndarray, cuts: np.ndarray | Sequence[float]) -> np.ndarray:
    """The group of each content length; the last one is for an unknown length."""
    group = np.searchsorted(cuts, np.nan_to_num(lengths), side="right")
    return np.where(np.isnan(lengths), len(cuts) + 1, group)


class SpreadBatches:
    """All batches, or of a log with more events than are enough every k-th one."""

    def __init__(self, batches: Iterable, events: int) -> None:
        self._batches, self._step = batches, -(-events // ENOUGH)

    def __iter__(self) -> Iterator:
        return islice(self._batches, 0, None, max(self._step, 1))


def sample_durations(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Known durations and their content lengths: all, or a seeded sample in bounded memory."""
    random = np.random.default_rng(0)
    kept = np.empty((3, 0))  # the rows with the smallest keys are a uniform sample
    for batch in batches:
        if "duration" not in batch:
            continue
        duration = read_strengths(batch["duration"], "duration")
        known = batch.get("item_duration", np.full(len(duration), np.nan))
        length = read_strengths(known, "item_duration")
        timed = ~np.isnan(duration)
        drawn = np.stack([random.random(int(timed.sum())), duration[timed], length[timed]])
        kept = np.concatenate([kept, drawn], axis=1)
        if kept.shape[1] > SAMPLE:
            kept = kept[:, np.argpartition(kept[0], SAMPLE)[:SAMPLE]]
    return kept[1], kept[2]


def duration_tables(batches: Any) -> tuple[list, list]:
    """Content-length cuts, and per group the duration thresholds, from a seeded sample."""
    duration, length = sample_durations(batches)
    if not len(duration):
        return [], []
    known = length[~np.isnan(length)]
    shares = np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS
    cuts = np.unique(np.quantile(known, shares)) if len(known) else np.empty(0)
    group = length_group(length, cuts)
    steps = (np.arange(QUANTILES) + 1) / QUANTILES
    owns = [duration[group == place] for place in range(len(cuts) + 1)]
    # An unknown length, and a group with no duration to learn from, take all durations together.
    tables = [own if len(own) else duration for own in [*owns, duration]]
    return cuts.tolist(), [np.quantile(t, steps, method="inverted_cdf").tolist() for t in tables]


def completion_mean(batches: Any, cap: float) -> float | None:
    """The mean completion ratio of the events whose duration and length are known; `None` without one."""
    total, size = 0.0, 0
    for batch in batches:
        if "duration" in batch and "item_duration" in batch:
            durations = read_strengths(batch["duration"], "duration")
            ratio = completion_ratio(
                durations, read_strengths(batch["item_duration"], "item_duration"), cap
            )
            total, size = total + float(np.nansum(ratio)), size + int((~np.isnan(ratio)).sum())
    return total / size if size else None


def completion_ratio(durations: np.ndarray, lengths: np.ndarray, cap: float) -> np.ndarray:
    """`clip(duration / item_duration, 1/64, cap)`; nan where one is unknown or the length is 0.

    The floor is the smallest dwell quantile: an event of weight 0 would be a masked one.
    """
    known = np.where(lengths > 0, lengths, np.nan)
    return np.clip(durations / known, min(1 / QUANTILES, cap), cap)


def quantile_factor(
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


def raw_weights(fitted: Any, columns: Mapping[str, Any], size: int) -> np.ndarray:
    """Weights before scaling, decay and clipping, float64 `[size]`.

    Args:
        fitted: the processor, whose tables and choices are read.
        columns: `event_types`, `counts`, `durations`, `item_durations`, as far as there are any.
    """
    for name, values in columns.items():
        if len(values) != size:
            raise ValueError(f"{name} must have {size} values like the others, got {len(values)}")
    raw = np.ones(size)
    if "event_types" in columns and fitted.event_type_weights:
        names = read_names(columns["event_types"])
        for name, factor in fitted.event_type_weights.items():
            raw[names == name] = factor
    if "counts" in columns:
        counts = read_strengths(columns["counts"], "count")
        if fitted.use_counts:
            raw = raw * np.where(np.isnan(counts), 1.0, np.log2(1 + counts))
    if "durations" in columns:
        durations = read_strengths(columns["durations"], "duration")
        unknown = np.full(size, np.nan)
        lengths = read_strengths(columns.get("item_durations", unknown), "item_duration")
        raw = raw * duration_part(fitted, durations, lengths)
    return raw


def duration_part(fitted: Any, durations: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The part of the weight that the duration has; 1 where it is unknown."""
    if fitted.duration_weight == "quantile" and fitted.duration_quantiles:
        tables = (fitted.length_groups, fitted.duration_quantiles)
        return quantile_factor(durations, lengths, *tables)
    if fitted.duration_weight == "completion" and fitted.mean_completion:
        ratio = completion_ratio(durations, lengths, fitted.completion_cap)
        return np.where(np.isnan(ratio), 1.0, ratio / fitted.mean_completion)
    return np.ones(len(durations))


def mean_raw_weight(fitted: Any, batches: Any) -> float:
    """The mean of the raw weights of the training events; raises `ValueError` where all are zero."""
    total, size = 0.0, 0
    for batch in batches:
        columns = {COLUMNS[n]: batch[n] for n in COLUMNS if n in batch and n not in UNWEIGHTED}
        raw = raw_weights(fitted, columns, len(batch["item_id"]))
        total, size = total + float(raw.sum()), size + len(raw)
    if not total > 0:
        raise ValueError("all weights of the training events are zero: no evidence to learn from")
    return total / size


def collapse(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One event per item and event type, at the place of the last, with the sum of the weights.

    All else that the event has, its platform too, is the last one's.
    """
    types = part.get("event_type_ids", np.zeros_like(part["input_ids"]))
    key = part["input_ids"].astype(np.int64) * (int(types.max(initial=0)) + 1) + types
    distinct, place, group = np.unique(key[::-1], return_index=True, return_inverse=True)
    last = len(key) - 1 - place
    order = np.argsort(last)
    collapsed = {name: values[last[order]] for name, values in part.items()}
    weights = np.bincount(group, part["input_weights"][::-1], minlength=len(distinct))
    return collapsed | {"input_weights": weights[order].astype(np.float32)}
