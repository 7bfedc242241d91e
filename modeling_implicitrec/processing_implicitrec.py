"""The processor: histories in outside ids to tokens and weights, fitted once and saved with a model."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from .vocabulary_implicitrec import FILE_NAME, ItemVocabulary, count_items

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
SAMPLE = 1_000_000


class ImplicitRecProcessor(ProcessorMixin):
    """Turns histories into model inputs. Build one with [`ImplicitRecProcessor.fit`].

    Token 0 is padding; items are 1 to `vocab_size - 1` by falling training count. Event type 0 is
    "none or unknown". An event's weight is `clip(raw / mean_raw, 0, max_weight)`, where raw is the
    product of the type's factor (1 for an unknown type), `log2(1 + count)`, twice the quantile of the
    duration among training events of like content length, and `2^(-age / half_life)`; a part that an
    event does not have is 1. Events of unknown items are left out; a history of nothing else becomes
    a row of padding, for which a model ranks by its item bias.
    """

    attributes: list = []
    vocabulary: ItemVocabulary

    def __init__(
        self,
        event_type_weights: dict | None = None,
        length_groups: list | None = None,
        duration_quantiles: list | None = None,
        mean_raw_weight: float = 1.0,
        max_weight: float = 10.0,
        half_life: float | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.event_type_weights = event_type_weights or {}
        self.length_groups = length_groups or []
        self.duration_quantiles = duration_quantiles or []
        self.mean_raw_weight = mean_raw_weight
        self.max_weight = max_weight
        self.half_life = half_life
        self.max_length = max_length

    @classmethod
    def fit(
        cls,
        events: Any,
        *,
        event_type_weights: Mapping[str, float] | None = None,
        half_life: float | None = None,
        max_weight: float = 10.0,
        min_item_count: int = 1,
        max_length: int | None = None,
    ) -> "ImplicitRecProcessor":
        """Learn vocabulary and weights from training events.

        Args:
            events: flat columns `item_id` and any of `event_type`, `count`, `duration` (seconds) and
                `item_duration` (seconds), as a mapping or DataFrame; or a list of such batches.
            event_type_weights: factor per event type, 1 where not named.
            half_life: seconds after which an event's weight has halved, before the last event.
            max_weight: weights are clipped here; the mean over training events is 1.
            min_item_count: items with fewer events are no tokens.
            max_length: most recent events of a history that are kept.

        Raises:
            ValueError: for a missing or empty `item_id`, or factors that leave no weight.
        """
        batches = [events] if "item_id" in events else events
        if not isinstance(batches, Iterable) or not all("item_id" in batch for batch in batches):
            raise ValueError("events must have a column item_id (or be batches that have it)")
        vocabulary = count_items((np.asarray(b["item_id"]) for b in batches), min_item_count)
        factors = _type_factors(batches, event_type_weights or {})
        groups, quantiles = _duration_tables(batches)
        processor = cls(factors, groups, quantiles, 1.0, max_weight, half_life, max_length)
        processor.vocabulary = vocabulary
        total, size = 0.0, 0
        for batch in batches:
            columns = {
                n: p
                for n, p in COLUMNS.items()
                if n in batch and p.endswith(("types", "counts", "durations"))
            }
            raw = processor._raw(
                {plural: batch[name] for name, plural in columns.items()}, len(batch["item_id"])
            )
            total, size = total + float(raw.sum()), size + len(raw)
        if not total > 0:
            raise ValueError(
                "all weights of the training events are zero: no evidence to learn from"
            )
        processor.mean_raw_weight = total / size
        return processor

    @property
    def vocab_size(self) -> int:
        """Item tokens including padding."""
        return len(self.vocabulary) + 1

    @property
    def event_types(self) -> list[str]:
        """Known event types; the id of the first is 1."""
        return list(self.event_type_weights)

    @property
    def num_event_types(self) -> int:
        """Event type ids including 0."""
        return len(self.event_type_weights) + 1

    @property
    def item_counts(self) -> np.ndarray:
        """Training events of each token, int64 `[vocab_size]`, 0 at padding."""
        return np.concatenate([[0], self.vocabulary.counts])

    @property
    def fingerprint(self) -> str:
        """Of the vocabulary, to tell whether a model belongs to it."""
        return self.vocabulary.fingerprint

    def encode_items(self, item_ids: Iterable) -> np.ndarray:
        """Tokens of outside ids, -1 for an unknown one."""
        return self.vocabulary.encode(item_ids)

    def decode_items(self, tokens: Iterable[int]) -> list:
        """Outside ids of tokens; raises `ValueError` for padding or a token out of range."""
        return self.vocabulary.decode(tokens)

    def encode_event_types(self, event_types: Iterable) -> np.ndarray:
        """Event type ids, 0 for an unknown or missing one."""
        ids = {name: place for place, name in enumerate(self.event_type_weights, start=1)}
        return np.array([ids.get(name, 0) for name in event_types], dtype=np.int64)

    def check_model(self, config: Any) -> None:
        """Raise `ValueError` where a model's configuration belongs to another vocabulary."""
        pairs: dict[str, tuple] = {
            "vocab_size": (config.vocab_size, self.vocab_size),
            "num_event_types": (config.num_event_types, self.num_event_types),
        }
        if config.vocabulary_fingerprint is not None:
            pairs["vocabulary_fingerprint"] = (config.vocabulary_fingerprint, self.fingerprint)
        for name, (of_model, own) in pairs.items():
            if of_model != own:
                raise ValueError(
                    f"model and processor do not belong together: {name} is {of_model} in the model "
                    f"and {own} in the processor"
                )

    def weights(self, *, ages: Any = None, **columns: Any) -> np.ndarray:
        """Weights of events, float32.

        Args:
            ages: seconds before the last event; used where the processor has a half-life.
            columns: `event_types`, `counts`, `durations`, `item_durations`, of equal length.

        Raises:
            ValueError: for a negative or infinite count or duration.
        """
        given = {name: values for name, values in columns.items() if values is not None}
        size = len(next(iter(given.values()), ages if ages is not None else []))
        raw = self._raw(given, size)
        if self.half_life and ages is not None:
            raw = raw * np.exp2(-np.asarray(ages, dtype=np.float64) / self.half_life)
        return np.clip(raw / self.mean_raw_weight, 0, self.max_weight).astype(np.float32)

    def _raw(self, columns: Mapping[str, Any], size: int) -> np.ndarray:
        raw = np.ones(size)
        if "event_types" in columns:
            factors = np.array([1.0, *self.event_type_weights.values()])
            raw = raw * factors[self.encode_event_types(columns["event_types"])]
        if "counts" in columns:
            counts = _strengths(columns["counts"], "count")
            raw = raw * np.where(np.isnan(counts), 1.0, np.log2(1 + counts))
        if "durations" in columns and self.duration_quantiles:
            durations = _strengths(columns["durations"], "duration")
            lengths = _strengths(
                columns.get("item_durations", np.full(size, np.nan)), "item_duration"
            )
            raw = raw * self._duration_factor(durations, lengths)
        return raw

    def _duration_factor(self, durations: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        group = np.searchsorted(self.length_groups, np.nan_to_num(lengths), side="right")
        factor = np.ones(len(durations))
        for place, thresholds in enumerate(self.duration_quantiles):
            own = (group == place) & ~np.isnan(durations)
            below = np.searchsorted(thresholds, durations[own], side="right")
            factor[own] = 2 * np.maximum(below, 1) / len(thresholds)
        return factor

    def __call__(
        self,
        histories: Any,
        *,
        max_length: int | None = None,
        unknown_items: str = "drop",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Model inputs `[histories, longest]`, padded on the right, the latest events kept.

        Args:
            histories: a list of histories, each a list of item ids, a list of event dicts (`item_id`,
                `timestamp`, `event_type`, `duration`, `item_duration`, `count`) or a mapping of
                list columns (`item_ids`, `timestamps`, ...); or one mapping of such columns with a
                list per history.
            max_length: events kept, the processor's by default.
            unknown_items: `"drop"` leaves their events out, `"error"` raises.

        Raises:
            ValueError: for another nesting, unequal columns, wrong id types or impossible strengths.
        """
        columns = [_columns(history, place) for place, history in enumerate(_split(histories))]
        timed = all("timestamps" in history for history in columns)
        limit = max_length or self.max_length
        rows = [self._encode(h, i, limit, unknown_items, timed) for i, h in enumerate(columns)]
        width = max(1, max(len(row["input_ids"]) for row in rows))
        names = ["input_ids", "input_weights", "attention_mask"]
        names += ["event_type_ids"] * bool(self.event_type_weights) + ["timestamps"] * timed
        padded = {
            name: np.stack([np.pad(row[name], (0, width - len(row[name]))) for row in rows])
            for name in names
        }
        return BatchFeature(padded, tensor_type=return_tensors)

    def _encode(
        self, history: dict, place: int, limit: int | None, unknown_items: str, timed: bool
    ) -> dict[str, np.ndarray]:
        tokens = self.encode_items(history["item_ids"])
        if unknown_items == "error" and (tokens < 0).any():
            first = history["item_ids"][int((tokens < 0).argmax())]
            raise ValueError(f"history {place}: item {first!r} is not in the vocabulary")
        times = (
            np.asarray(history["timestamps"], dtype=np.int64) if timed else np.arange(len(tokens))
        )
        order = np.argsort(times, kind="stable")
        given = {n: v for n, v in history.items() if n not in ("item_ids", "timestamps")}
        ages = times.max(initial=0) - times if timed else None
        try:
            weights = (
                self.weights(ages=ages, **given) if given or timed else self._even(len(tokens))
            )
        except ValueError as error:
            raise ValueError(f"history {place}: {error}") from error
        types = self.encode_event_types(history.get("event_types", [None] * len(tokens)))
        kept = order[tokens[order] > 0]
        kept = kept[-limit:] if limit else kept
        return {
            "input_ids": tokens[kept],
            "input_weights": weights[kept],
            "attention_mask": np.ones(len(kept), dtype=np.int64),
            "event_type_ids": types[kept],
            "timestamps": times[kept],
        }

    def _even(self, size: int) -> np.ndarray:
        return self.weights(ages=np.zeros(size))

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> list:
        """Write the processor's files, the vocabulary among them."""
        os.makedirs(save_directory, exist_ok=True)
        self.vocabulary.save(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        fields = super().to_dict(*args, **kwargs)
        fields.pop("vocabulary", None)
        return fields

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any):  # type: ignore[override]
        """Load from a folder or a Hub repository."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        wanted = (
            "revision",
            "token",
            "cache_dir",
            "local_files_only",
            "subfolder",
            "force_download",
        )
        path = cached_file(
            pretrained_model_name_or_path,
            FILE_NAME,
            **{k: kwargs[k] for k in wanted if k in kwargs},
        )
        processor.vocabulary = ItemVocabulary.load(str(path))
        return processor


def _strengths(values: Any, name: str) -> np.ndarray:
    numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    wrong = np.isinf(numbers) | (numbers < 0)
    if wrong.any():
        raise ValueError(f"{name} must be finite and not negative, got {numbers[wrong][0]}")
    return numbers


def _type_factors(batches: Any, given: Mapping[str, float]) -> dict[str, float]:
    total: Counter = Counter()
    for batch in batches:
        if "event_type" in batch:
            total.update(str(name) for name in batch["event_type"] if name is not None)
    for name, factor in given.items():
        if not (np.isfinite(factor) and factor >= 0):
            raise ValueError(
                f"the factor of {name!r} must be finite and not negative, got {factor}"
            )
    order = sorted(total, key=lambda name: (-total[name], name))
    return {name: float(given.get(name, 1.0)) for name in order}


def _duration_tables(batches: Any) -> tuple[list, list]:
    """Content-length cuts, and per group the duration thresholds, from a seeded sample."""
    durations, lengths = [], []
    for batch in batches:
        if "duration" in batch:
            found = _strengths(batch["duration"], "duration")
            durations.append(found)
            known = (
                batch["item_duration"] if "item_duration" in batch else np.full(len(found), np.nan)
            )
            lengths.append(_strengths(known, "item_duration"))
    if not durations:
        return [], []
    duration, length = np.concatenate(durations), np.concatenate(lengths)
    if len(duration) > SAMPLE:
        chosen = np.random.default_rng(0).choice(len(duration), SAMPLE, replace=False)
        duration, length = duration[chosen], length[chosen]
    known = length[~np.isnan(length)]
    shares = np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS
    cuts = np.unique(np.quantile(known, shares)) if len(known) else np.empty(0)
    group = np.searchsorted(cuts, np.nan_to_num(length), side="right")
    steps = (np.arange(QUANTILES) + 1) / QUANTILES
    tables = []
    for place in range(len(cuts) + 1):
        own = duration[(group == place) & ~np.isnan(duration)]
        tables.append(
            np.quantile(own, steps, method="inverted_cdf").tolist() if len(own) else [0.0]
        )
    return cuts.tolist(), tables


def _split(histories: Any) -> list:
    """The single histories of a batch."""
    if isinstance(histories, Mapping):
        if "item_ids" not in histories:
            raise ValueError(f"expected a column item_ids, got {sorted(histories)}")
        names = [name for name in COLUMNS.values() if name in histories]
        return _split([dict(zip(names, values)) for values in zip(*(histories[n] for n in names))])
    if isinstance(histories, str) or not isinstance(histories, Sequence) or not len(histories):
        raise ValueError(f"expected a list of one or more histories, got {histories!r}")
    return list(histories)


def _columns(history: Any, place: int) -> dict[str, Any]:
    """One history as list columns."""
    if isinstance(history, Mapping):
        columns = {name: history[name] for name in COLUMNS.values() if name in history}
    elif isinstance(history, str) or not isinstance(history, Sequence | np.ndarray):
        raise ValueError(f"history {place}: expected a list of items or events, got {history!r}")
    elif len(history) and isinstance(history[0], Mapping):
        names = {key for event in history for key in event} & set(COLUMNS)
        columns = {COLUMNS[name]: [event.get(name) for event in history] for name in names}
    else:
        columns = {"item_ids": history}
    if "item_ids" not in columns:
        raise ValueError(f"history {place}: expected item_id in every event, got {history!r}")
    for name, values in columns.items():
        if isinstance(values, str) or len(values) != len(columns["item_ids"]):
            raise ValueError(
                f"history {place}: {name} must have the length of item_ids "
                f"{len(columns['item_ids'])}, got {values!r}"
            )
    return columns
