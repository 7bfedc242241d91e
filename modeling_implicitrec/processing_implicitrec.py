"""The processor: histories in outside ids to tokens and weights, fitted once and saved with a model."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import PROCESSOR_NAME, cached_file

from .compatibility_implicitrec import TrainerProcessor, check_together
from .histories_implicitrec import ages_in_rows, check_offsets, pad_histories, read_histories
from .integrity_implicitrec import objects_only, where
from .vocabulary_implicitrec import FILE_NAME, ItemVocabulary, count_items
from .weights_implicitrec import (
    COLUMNS,
    SpreadBatches,
    check_choices,
    collapse,
    completion_mean,
    count_types,
    duration_tables,
    frequent_platforms,
    mean_raw_weight,
    name_ids,
    positive_items,
    raw_weights,
    read_batches,
    read_strengths,
    read_times,
)


class ImplicitRecProcessor(TrainerProcessor, ProcessorMixin):
    """Turns histories into model inputs. Build one with [`ImplicitRecProcessor.fit`].

    Token 0 is padding; items are 1 to `vocab_size - 1` by falling training count. Event type 0 and
    platform 0 are "none or unknown". An event's weight is `clip(raw / mean_raw, 0, max_weight)`, where
    raw is the product of the type's factor (1 for an unknown type), `log2(1 + count)`, a part for the
    duration, and `2^(-age / half_life)`; a part that an event does not have is 1. The duration's part is
    twice its quantile among training events of like length; or, with `duration_weight="completion"`,
    `clip(duration / item_duration, 1/64, completion_cap) / mean_completion`, 1 on average.

    Events of `negative_event_types` (returns, skips, hides) are inputs with a weight and a type of their
    own, and evidence of nothing else: they count for no item and are never a label or a target. With
    `collapse_repeats` a history's events of one item (and type) become one event at the place of the
    last, weighted by their sum. Events of unknown items are left out; a history of nothing else becomes
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
        event_types: list | None = None,
        use_counts: bool = True,
        duration_weight: str | None = "quantile",
        completion_cap: float = 1.0,
        mean_completion: float | None = None,
        negative_event_types: list | None = None,
        collapse_repeats: bool = False,
        platforms: list | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        limits = {"max_weight": max_weight, "completion_cap": completion_cap}
        check_choices(duration_weight, limits | {"half_life": half_life})
        self.event_type_weights = event_type_weights or {}
        self.length_groups = length_groups or []
        self.duration_quantiles = duration_quantiles or []
        self.mean_raw_weight = mean_raw_weight
        self.max_weight = max_weight
        self.half_life = half_life
        self.max_length = max_length
        self.event_types = list(self.event_type_weights) if event_types is None else event_types
        self.use_counts = use_counts
        self.duration_weight = duration_weight
        self.completion_cap = completion_cap
        self.mean_completion = mean_completion
        self.negative_event_types = negative_event_types or []
        self.collapse_repeats = collapse_repeats
        self.platforms = platforms or []

    @classmethod
    def fit(
        cls,
        events: Any,
        *,
        event_type_weights: Mapping[str, float] | None = None,
        use_counts: bool = True,
        duration_weight: str | None = "quantile",
        completion_cap: float = 1.0,
        negative_event_types: Iterable[str] = (),
        half_life: float | None = None,
        max_weight: float = 10.0,
        min_item_count: int = 1,
        max_length: int | None = None,
    ) -> "ImplicitRecProcessor":
        """Learn vocabulary and weights from training events.

        Args:
            events: flat columns `item_id` and any of `event_type`, `count`, `duration` and
                `item_duration` (seconds), `platform`, as a mapping or DataFrame; or a list of such batches.
            event_type_weights: factor per event type, 1 where not named. A type that is named but
                not in the events keeps its factor and has id 0.
            use_counts: whether `count` has a part in the weight.
            duration_weight: `"quantile"` of the duration among events of like content length,
                `"completion"`, the share of the content that was taken, or `None` for no part.
            completion_cap: largest share that counts; above 1 where content can be taken again.
            negative_event_types: types of which an event is evidence against its item; each has an
                id, whether the events hold it or not, and needs a positive factor.
            half_life: seconds after which an event's weight has halved, before the last event.
            max_weight: weights are clipped here; the mean over training events is 1.
            min_item_count: items with fewer events are no tokens.
            max_length: most recent events of a history that are kept.

        Raises:
            ValueError: for a missing or empty `item_id`, or factors that leave no weight.
        """
        batches = read_batches(events)
        if isinstance(negative_event_types, str):
            raise ValueError(f"negative_event_types: expected names, got {negative_event_types!r}")
        negative = list(negative_event_types)
        vocabulary = count_items((positive_items(b, negative) for b in batches), min_item_count)
        types, factors = count_types(batches, event_type_weights or {}, negative)
        processor = cls(
            factors,
            max_weight=max_weight,
            half_life=half_life,
            max_length=max_length,
            event_types=types,
            use_counts=use_counts,
            duration_weight=duration_weight,
            completion_cap=completion_cap,
            negative_event_types=negative,
            platforms=frequent_platforms(batches),
        )
        processor.vocabulary = vocabulary
        batches = SpreadBatches(batches, int(vocabulary.counts.sum()))
        if duration_weight == "quantile":
            processor.length_groups, processor.duration_quantiles = duration_tables(batches)
        elif duration_weight == "completion":
            processor.mean_completion = completion_mean(batches, completion_cap)
        processor.mean_raw_weight = mean_raw_weight(processor, batches)
        return processor

    def extend(self, events: Any, *, min_item_count: int = 1) -> int:
        """Count the items of a log that has grown; new ones get the tokens after the last.

        New platforms get the ids after the last. Others and weights stay, so that a model can go on.
        `events` are all training events, old and new, as for `fit`. Returns the number of new items.
        """
        batches, negative = read_batches(events), self.negative_event_types
        found = count_items((positive_items(batch, negative) for batch in batches), 1)
        before = len(self.vocabulary)
        self.vocabulary = self.vocabulary.extended(found, min_item_count)
        self.platforms = list(dict.fromkeys([*self.platforms, *frequent_platforms(batches)]))
        return len(self.vocabulary) - before

    def add_items(self, item_ids: Iterable) -> np.ndarray:
        """Give new items the tokens after the last, with a count of 0. Returns these tokens, int64.

        The model is to be told of them too, in the same order: see
        [`~ImplicitRecForScoring.add_items`].

        Raises:
            ValueError: for an id that is known or given twice, or of another type.

        >>> processor = ImplicitRecProcessor.fit({"item_id": ["tea", "milk", "tea"]})
        >>> processor.add_items(["rice"]).tolist()
        [3]
        """
        before = len(self.vocabulary)
        self.vocabulary = self.vocabulary.with_items(item_ids)
        return np.arange(before + 1, len(self.vocabulary) + 1)

    @property
    def vocab_size(self) -> int:
        """Item tokens including padding."""
        return len(self.vocabulary) + 1

    @property
    def num_event_types(self) -> int:
        """Event type ids including 0."""
        return len(self.event_types) + 1

    @property
    def num_platforms(self) -> int:
        """Platform ids including 0."""
        return len(self.platforms) + 1

    @property
    def negative_event_type_ids(self) -> list[int]:
        """Ids of the negative event types, for `ImplicitRecConfig` and the collator."""
        return sorted(self.event_types.index(name) + 1 for name in self.negative_event_types)

    @property
    def item_counts(self) -> np.ndarray:
        """Training events of each token that are not negative, int64 `[vocab_size]`, 0 at padding."""
        return np.concatenate([[0], self.vocabulary.counts])

    @property
    def fingerprint(self) -> str:
        """Of the vocabulary, to tell whether a model belongs to it."""
        return self.vocabulary.fingerprint

    def encode_items(self, item_ids: Iterable) -> np.ndarray:
        """Tokens of outside ids, -1 for an unknown one."""
        return self.vocabulary.encode(item_ids)

    def decode_items(self, tokens: Iterable[int]) -> list:
        """Outside ids of tokens, padding left out; raises `ValueError` for a token out of range."""
        return self.vocabulary.decode(token for token in tokens if token != 0)

    def encode_event_types(self, event_types: Iterable) -> np.ndarray:
        """Event type ids `int64`, 0 for an unknown or missing one."""
        return name_ids(event_types, self.event_types)

    def encode_platforms(self, platforms: Iterable) -> np.ndarray:
        """Platform ids `int64`, 0 for an unknown or missing one."""
        return name_ids(platforms, self.platforms)

    def _encode_names(self, columns: Mapping[str, Any], size: int) -> dict[str, np.ndarray]:
        """`event_type_ids` and `platform_ids`, each where the processor knows any."""
        told = {"event_type": self.event_types, "platform": self.platforms}
        none = np.full(size, None)
        return {f"{n}_ids": name_ids(columns.get(f"{n}s", none), k) for n, k in told.items() if k}

    def adapt_to(self, config: Any) -> None:
        """From now on make batches as the model of this configuration takes them.

        Raises:
            ValueError: where the configuration belongs to another vocabulary.
        """
        self.collapse_repeats = config.collapse_repeats
        self.max_length = config.max_position_embeddings
        self.check_model(config)

    def check_model(self, config: Any) -> None:
        """Raise `ValueError` where a model's configuration does not fit this processor."""
        check_together(config, self)

    def weights(
        self,
        *,
        event_types: Any = None,
        counts: Any = None,
        durations: Any = None,
        item_durations: Any = None,
        ages: Any = None,
    ) -> np.ndarray:
        """Weights of events, float32, from columns of equal length; one that is None plays no part.

        Args:
            ages: seconds before the last event; used where the processor has a half-life.

        Raises:
            ValueError: for a negative or infinite strength or age, or unequal lengths.
        """
        columns = {"event_types": event_types, "counts": counts, "durations": durations}
        columns |= {"item_durations": item_durations, "ages": ages}
        given = {name: values for name, values in columns.items() if values is not None}
        return self._weights(given, len(next(iter(given.values()), [])))

    def _weights(self, columns: Mapping[str, Any], size: int) -> np.ndarray:
        raw = raw_weights(self, columns, size)
        if self.half_life and "ages" in columns:
            ages = np.nan_to_num(read_strengths(columns["ages"], "age"))
            raw = raw * np.exp2(-ages / self.half_life)
        return np.clip(raw / self.mean_raw_weight, 0, self.max_weight).astype(np.float32)

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
                `timestamp`, `event_type`, `duration`, `item_duration`, `count`, `platform`) or a
                mapping of list columns (`item_ids`, `timestamps`, ...); or one mapping of such columns
                with a list per history.
            max_length: events kept, the processor's by default.
            unknown_items: `"drop"` leaves their events out, `"error"` raises.

        Raises:
            ValueError: for another nesting, unequal columns, wrong id types or impossible strengths.
        """
        limit = self.max_length if max_length is None else max_length
        if limit is not None and limit < 1:
            raise ValueError(f"max_length must be at least 1, got {limit}")
        if unknown_items not in ("drop", "error"):
            raise ValueError(f"unknown_items must be 'drop' or 'error', got {unknown_items!r}")
        columns = read_histories(histories)
        timed = all("timestamps" in history for history in columns)
        rows = [self._encode(h, i, limit, unknown_items) for i, h in enumerate(columns)]
        padded = pad_histories(rows)
        if not timed:
            del padded["timestamps"]
        return BatchFeature(padded, tensor_type=return_tensors)

    def _encode(
        self, history: dict, place: int, limit: int | None, unknown_items: str
    ) -> dict[str, np.ndarray]:
        """One history, not padded. What it holds does not depend on the others of its batch."""
        try:
            times = read_times(history)
            given = {n: v for n, v in history.items() if n not in ("item_ids", "timestamps")}
            if "timestamps" in history:
                given["ages"] = times.max(initial=0) - times if len(times) else times
            tokens = self.encode_items(history["item_ids"])
            weights = self._weights(given, len(tokens))
        except ValueError as error:
            raise ValueError(f"history {place}: {error}") from error
        if unknown_items == "error" and (tokens < 0).any():
            first = history["item_ids"][int((tokens < 0).argmax())]
            raise ValueError(f"history {place}: item {first!r} is not in the vocabulary")
        order = np.argsort(times, kind="stable")
        kept = order[tokens[order] > 0]
        row = {"input_ids": tokens, "input_weights": weights, "timestamps": times}
        row |= self._encode_names(history, len(tokens))
        row = {name: values[kept] for name, values in row.items()}
        row = collapse(row) if self.collapse_repeats else row
        row = {name: values[-limit:] if limit else values for name, values in row.items()}
        return row | {"attention_mask": np.ones(len(row["input_ids"]), dtype=np.int64)}

    def encode_flat(
        self,
        item_ids: Any,
        offsets: np.ndarray,
        *,
        codes: np.ndarray | None = None,
        **columns: Any,
    ) -> dict[str, np.ndarray]:
        """Encode whole flat columns at once; rows are in time order.

        Args:
            item_ids: an id per event, or with `codes` the distinct ids.
            offsets: row r is the events `offsets[r]` to `offsets[r + 1]`, as in an Arrow list.
            codes: per event, the place of its item in `item_ids` (dictionary encoding).
            columns: `timestamps`, `event_types`, `counts`, `durations`, `item_durations`, `platforms`.

        Returns:
            Flat `input_ids` (-1 for an unknown item), `input_weights`, and `event_type_ids` and
            `platform_ids` where the processor knows event types and platforms.
        """
        if set(columns) - set(COLUMNS.values()):
            raise ValueError(f"expected columns of {list(COLUMNS.values())}, got {list(columns)}")
        tokens = self.encode_items(item_ids)
        tokens = tokens if codes is None else tokens[codes]
        size = len(tokens)
        check_offsets(offsets, size)
        given = {n: v for n, v in columns.items() if v is not None and n != "timestamps"}
        if columns.get("timestamps") is not None and size:
            times = read_times({"timestamps": columns["timestamps"], "item_ids": tokens})
            given["ages"] = ages_in_rows(times, offsets)
        encoded = {"input_ids": tokens, "input_weights": self._weights(given, size)}
        return encoded | self._encode_names(given, size)

    def save_pretrained(
        self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> list:
        """Write the processor's files, the vocabulary among them."""
        os.makedirs(save_directory, exist_ok=True)
        self.vocabulary.save(save_directory)
        if not push_to_hub:
            return super().save_pretrained(save_directory, **kwargs)
        # The inherited upload would leave out what was written before it: upload a fresh folder.
        files = super().save_pretrained(save_directory)
        repo_id = kwargs.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
        self.push_to_hub(repo_id, **kwargs)
        return files

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        fields = super().to_dict(*args, **kwargs)
        fields.pop("vocabulary", None)
        return fields

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any):  # type: ignore[override]
        """Load from a folder or a Hub repository; `ValueError` where a file does not hold what it must."""
        with objects_only(pretrained_model_name_or_path, PROCESSOR_NAME, kwargs):
            processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        options = where(kwargs) | {"force_download": kwargs.get("force_download", False)}
        path = cached_file(pretrained_model_name_or_path, FILE_NAME, **options)
        processor.vocabulary = ItemVocabulary.load(str(path))
        return processor
