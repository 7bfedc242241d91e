"""Encoded sequences -> batches: a training event's label is drawn from what comes later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .configuration_implicitrec import ImplicitRecConfig
from .matrices import INPUTS
from .next_items import FlatEvents, draw_next
from .rows import check_encoded
from .weights_implicitrec import collapse

FLOATS = ("input_weights", "label_weights")


def pad_rows(
    rows: Sequence[Sequence[float] | np.ndarray], dtype: torch.dtype, value: float = 0
) -> torch.Tensor:
    """Right-pad ragged rows into `[rows, longest]` (at least one column)."""
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    padded = torch.full((len(rows), int(sizes.max(initial=1))), value, dtype=dtype)
    filled = np.arange(padded.shape[1]) < sizes[:, None]
    values = np.concatenate([np.asarray(row) for row in rows if len(row)] or [np.zeros(0)])
    padded[torch.from_numpy(filled)] = torch.from_numpy(values).to(dtype)
    return padded


@dataclass
class DataCollatorForNextItem:
    """Batch rows of encoded sequences.

    In a training row (no `target_ids`) every event gets a label, drawn from what follows it: from the
    events of the next moment, or, with `label_horizon`, from all later events at most so many seconds
    away. Events of one moment (a basket) do not label each other, since their order in the log may mean
    nothing; with `within_moments` the label is the very next event, also of the same moment: what a split
    asks for that holds out the last event of a basket. A row longer than `max_length` is cut at a random
    place. An evaluation row keeps its latest events and its `target_ids`.

    With `target_window`, a training row is cut after a random event instead, and all items of the
    window that follows are its `target_ids`: the question that a temporal split asks. With
    `collapse_repeats`, a history's events of one item (and type) become one event at the place of
    the last, whose weight is their sum; it needs `target_window`.

    Events of negative types stay in the history, but are neither label nor target: "what follows" is the
    next moment, or all of the horizon or window, without them. With `target_event_type_ids` only these
    types are labels or targets: every event is labelled with the wanted behaviour that follows it next.

    Draws depend on the seed, the epoch and the row alone: not on the batch, the process or on what
    was drawn before, so that a resumed run and one on several processes see the same labels. Give
    Trainer [`EpochCallback`] to have new draws each epoch.

    Args:
        max_length: events a row.
        label_horizon: seconds; 0 for the next moment only.
        moment_ends_only: label only the last event of every moment.
        within_moments: label every event with the next one of the log, whenever it was.
        target_window: seconds; 0 labels every event.
        collapse_repeats: one event per item, weights added up.
        negative_event_type_ids: event types that are never a label or target.
        target_event_type_ids: the only event types that are; none for all.
        negative_labels: also draw, for every event, the item of a negative event that follows it, as its
            label is drawn from the others: an explicit negative (see `negative_event_loss`).
        label_weight_power: p of a label's weight in the loss, `w^p` of the event it was drawn from;
            0 for labels that count alike.
        query_time: also give `query_time`, the moment of asking: each label's, or the start of the window;
            in evaluation the row's, where it has one.
        num_folds: groups of users; a training row's `fold_ids` is its place modulo this (0: none).
        seed: of the draws.
    """

    max_length: int
    label_horizon: float = 0.0
    moment_ends_only: bool = False
    within_moments: bool = False
    target_window: float = 0.0
    collapse_repeats: bool = False
    negative_event_type_ids: Sequence[int] = ()
    target_event_type_ids: Sequence[int] = ()
    negative_labels: bool = False
    query_time: bool = False
    num_folds: int = 0
    seed: int = 0
    label_weight_power: float = 0.0
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        if self.negative_labels and (self.target_window or not self.negative_event_type_ids):
            raise ValueError("negative_labels need negative_event_type_ids and no target_window")
        if self.label_horizon < 0 or self.target_window < 0:
            raise ValueError(
                f"label_horizon and target_window must not be negative, got {self.label_horizon:g} and "
                f"{self.target_window:g} seconds"
            )
        elsewhere = self.label_horizon or self.moment_ends_only or self.target_window
        if self.within_moments and elsewhere:
            raise ValueError(
                "within_moments labels every event with the next one, so it expects no label_horizon, "
                "moment_ends_only or target_window"
            )
        both = set(self.target_event_type_ids) & set(self.negative_event_type_ids)
        if both:
            raise ValueError(f"a type is a target or negative, both are {sorted(both)}")
        if self.label_weight_power < 0 or (self.label_weight_power and self.target_window):
            raise ValueError(
                "label_weight_power must not be negative, and 0 with a target_window, whose targets "
                f"count alike; got {self.label_weight_power}"
            )

    @classmethod
    def for_model(cls, config: ImplicitRecConfig, **options: Any) -> Self:
        """Batches as a model of this configuration reads them, with the other arguments by name.

        >>> DataCollatorForNextItem.for_model(ImplicitRecConfig(), seed=3).max_length
        50
        """
        return cls(
            max_length=config.max_position_embeddings,
            collapse_repeats=config.collapse_repeats,
            negative_event_type_ids=config.negative_event_type_ids or (),
            query_time=config.use_query_time,
            **options,
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        check_encoded(rows[0], "input_ids")
        training = "target_ids" not in rows[0]
        if training and not self.target_window:
            batch = self._with_labels(rows)
        else:
            batch = self._padded([self._row(row) for row in rows])
        batch["attention_mask"] = (batch["input_ids"] > 0).long()
        if self.num_folds and training:
            batch["fold_ids"] = torch.tensor([row["row"] % self.num_folds for row in rows])
        return batch

    def histories(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows as what a model predicts after: the latest events of each, without labels and targets."""
        batch = self([{**row, "target_ids": []} for row in rows])
        del batch["target_ids"]
        return batch

    def lengths(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """`[rows]` positions that training rows take in a batch, before it is padded.

        With a `target_window` it is what the row's draw of this epoch leaves; else the most that it can be.
        """
        check_encoded(rows[0], "input_ids")
        if self.target_window:
            return np.array([len(self._row(row)["input_ids"]) for row in rows])
        return np.array([min(len(row["input_ids"]) - 1, self.max_length) for row in rows])

    def _padded(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        batch = {
            name: pad_rows([p[name] for p in parts], torch.float if name in FLOATS else torch.long)
            for name in INPUTS
            if name in parts[0]
        }
        batch["target_ids"] = pad_rows([part["target_ids"] for part in parts], torch.long, -100)
        if self.query_time and "query_time" in parts[0]:
            batch["query_time"] = torch.tensor([int(part["query_time"]) for part in parts])
        return batch

    def _row(self, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
        part = {name: np.asarray(row[name]) for name in INPUTS if name in row}
        if "target_ids" in row:
            given = {n: np.asarray(row[n]) for n in ("target_ids", "query_time") if n in row}
            return self._latest(part) | given
        return self._with_targets(part, self._generator(row))

    def _generator(self, row: Mapping[str, Any]) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, row.get("row", 0)))

    def _latest(self, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.collapse_repeats:
            part = collapse(part)
        return {name: values[-self.max_length :] for name, values in part.items()}

    def _with_targets(
        self, part: dict[str, np.ndarray], generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The history up to a random moment, and the items of the window after it.

        Moments at which there is a history and something in the window are drawn alike: so are people
        asked in a temporal split, some of whom were last there long ago.
        """
        check_encoded(part, "input_ids", "timestamps")
        times = part["timestamps"]
        room = np.minimum(np.diff(times), self.target_window).cumsum()  # seconds to draw from
        drawn = generator.random() * room[-1] if len(room) else 0.0
        cut = int(np.searchsorted(room, drawn, side="right")) + 1
        moment = times[-1]  # of someone who was there once
        if cut < len(times):
            moment = int(times[cut] - np.ceil(room[cut - 1] - drawn))
        end = np.searchsorted(times, moment + self.target_window, side="right")
        wanted = self._wanted(part)[cut:end]
        targets = np.unique(part["input_ids"][cut:end][wanted])
        history = {name: values[:cut] for name, values in part.items()}
        return self._latest(history) | {"target_ids": targets, "query_time": moment}

    def _with_labels(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Events and their labels, a part of at most `max_length` of each row."""
        events = FlatEvents.of(rows, [name for name in INPUTS if name in rows[0]])
        columns, row = dict(events.columns), events.row
        wanted = self._wanted(columns)
        refused = self._of_types(columns, self.negative_event_type_ids)
        choices = [wanted, refused] if self.negative_labels else [wanted]
        chances, starts = self._draw(rows, events, choices)
        followed = events.in_order if self.within_moments else events
        labels, drawn = draw_next(followed, wanted, chances[0], self.label_horizon)
        if self.moment_ends_only:
            moments = events.moments(self.label_horizon)
            labels[:-1][moments[1:] == moments[:-1]] = -100
        if self.negative_labels:
            negative, _ = draw_next(followed, refused, chances[1], self.label_horizon)
            told = (labels != -100) & (negative != labels)
            columns["negative_labels"] = np.where(told, negative, -100)
        columns["labels"] = labels
        if self.label_weight_power:
            evidence = columns.get("input_weights", np.ones(len(labels)))[drawn]
            columns["label_weights"] = evidence.astype(np.float32) ** self.label_weight_power
        if self.query_time and "timestamps" in columns:
            columns["query_time"] = columns["timestamps"][drawn]
        place = events.place - starts[row]
        labelled = (place >= 0) & (place < self.max_length) & (labels != -100)
        ends = np.ones(len(rows), dtype=np.int64)  # nothing is learnt from what comes after
        np.maximum.at(ends, row[labelled], place[labelled] + 1)
        kept = (place >= 0) & (place < ends[row])
        at = (row[kept], place[kept])
        return {
            name: _scatter(values[kept], at, (len(rows), int(ends.max())), name)
            for name, values in columns.items()
        }

    def _draw(
        self, rows: Sequence[Mapping[str, Any]], events: FlatEvents, choices: Sequence[np.ndarray]
    ) -> tuple[list, np.ndarray]:
        """For each mask of choices a chance of every event, and where each row is cut."""
        some = [np.bincount(events.row[mask], minlength=len(rows)) > 0 for mask in choices]
        chances: list[list] = [[] for _mask in choices]
        starts = np.zeros(len(rows), dtype=np.int64)
        for place, (row, size) in enumerate(zip(rows, events.sizes)):
            generator = self._generator(row)
            for drawn, has in zip(chances, some):
                drawn.append(generator.random(size) if has[place] else np.zeros(size))
            if size > self.max_length + 1:
                starts[place] = generator.integers(0, size - self.max_length)
        return [np.concatenate(drawn) for drawn in chances], starts

    def _wanted(self, part: dict[str, np.ndarray]) -> np.ndarray:
        """Which events may be a label or target."""
        if self.target_event_type_ids:
            return self._of_types(part, self.target_event_type_ids)
        return ~self._of_types(part, self.negative_event_type_ids)

    def _of_types(self, part: dict[str, np.ndarray], type_ids: Sequence[int]) -> np.ndarray:
        if not type_ids:
            return np.zeros(len(part["input_ids"]), dtype=bool)
        if "event_type_ids" not in part:
            raise ValueError(
                f"event types {list(type_ids)} need event_type_ids in the rows, got none"
            )
        return np.isin(part["event_type_ids"], type_ids)


def _scatter(
    values: np.ndarray, at: tuple[np.ndarray, np.ndarray], shape: tuple[int, int], name: str
) -> torch.Tensor:
    """Values at their places of a table that is empty elsewhere."""
    empty = -100 if name in ("labels", "negative_labels") else 0
    table = np.full(shape, empty, dtype=np.float32 if name in FLOATS else np.int64)
    table[at] = values
    return torch.from_numpy(table)


class EpochCallback(TrainerCallback):
    """Tells a collator which epoch it is."""

    def __init__(self, collator: DataCollatorForNextItem) -> None:
        self.collator = collator

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)
