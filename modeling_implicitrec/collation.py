"""Encoded sequences -> batches: a training event's label is drawn from what comes later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .weights_implicitrec import collapse

INPUTS = ("input_ids", "input_weights", "timestamps", "event_type_ids", "platform_ids")
FLOATS = ("input_weights",)


def pad_rows(
    rows: Sequence[Sequence[float] | np.ndarray], dtype: torch.dtype, value: float = 0
) -> torch.Tensor:
    """Right-pad ragged rows into `[rows, longest]` (at least one column)."""
    width = max(1, max((len(row) for row in rows), default=1))
    padded = torch.full((len(rows), width), value, dtype=dtype)
    for place, row in enumerate(rows):
        if len(row):
            padded[place, : len(row)] = torch.as_tensor(np.asarray(row), dtype=dtype)
    return padded


@dataclass
class DataCollatorForNextItem:
    """Batch rows of encoded sequences.

    In a training row (no `target_ids`) every event gets a label, drawn from what follows it: from the
    events of the next moment, or, with `label_horizon`, from all later events at most so many seconds
    away. Events of one moment (a basket) never label each other, since their order in the log means
    nothing. A row longer than `max_length` is cut at a random place. An evaluation row keeps its
    latest events and its `target_ids`.

    With `target_window`, a training row is cut after a random event instead, and all items of the
    window that follows are its `target_ids`: the question that a temporal split asks. With
    `collapse_repeats`, a history's events of one item (and type) become one event at the place of
    the last, whose weight is their sum; it needs `target_window`.

    Events of negative types stay in the history, but are neither label nor target: "what follows" is the
    next moment, or all of the horizon or window, without them.

    Draws depend on the seed, the epoch and the row alone: not on the batch, the process or on what
    was drawn before, so that a resumed run and one on several processes see the same labels. Give
    Trainer [`EpochCallback`] to have new draws each epoch.

    Args:
        max_length: events a row.
        label_horizon: seconds; 0 for the next moment only.
        moment_ends_only: label only the last event of every moment.
        target_window: seconds; 0 labels every event.
        collapse_repeats: one event per item, weights added up.
        negative_event_type_ids: event types that are never a label or target.
        negative_labels: also draw, for every event, the item of a negative event that follows it, as its
            label is drawn from the others: an explicit negative (see `negative_event_loss`).
        label_weight_power: p of a label's weight in the loss, `w^p` of the event it was drawn from;
            0 for labels that count alike.
        num_folds: groups of users; a training row's `fold_ids` is its place modulo this (0: none).
        seed: of the draws.
    """

    max_length: int
    label_horizon: float = 0.0
    moment_ends_only: bool = False
    target_window: float = 0.0
    collapse_repeats: bool = False
    negative_event_type_ids: Sequence[int] = ()
    negative_labels: bool = False
    num_folds: int = 0
    seed: int = 0
    label_weight_power: float = 0.0
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        if self.negative_labels and (self.target_window or not self.negative_event_type_ids):
            raise ValueError("negative_labels need negative_event_type_ids and no target_window")
        if self.label_weight_power < 0 or (self.label_weight_power and self.target_window):
            raise ValueError(
                "label_weight_power must not be negative, and 0 with a target_window, whose targets "
                f"count alike; got {self.label_weight_power}"
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        parts = [self._row(row) for row in rows]
        batch = {
            name: pad_rows([p[name] for p in parts], torch.float if name in FLOATS else torch.long)
            for name in INPUTS
            if name in parts[0]
        }
        batch["attention_mask"] = (batch["input_ids"] > 0).long()
        for name in ("target_ids", "labels", "negative_labels"):
            if name in parts[0]:
                batch[name] = pad_rows([part[name] for part in parts], torch.long, -100)
        if "label_weights" in parts[0]:
            batch["label_weights"] = pad_rows([p["label_weights"] for p in parts], torch.float)
        if self.num_folds and "target_ids" not in rows[0]:
            batch["fold_ids"] = torch.tensor([row["row"] % self.num_folds for row in rows])
        return batch

    def _row(self, row: Mapping[str, list]) -> dict[str, np.ndarray]:
        part = {name: np.asarray(row[name]) for name in INPUTS if name in row}
        if "target_ids" in row:
            return self._latest(part) | {"target_ids": np.asarray(row["target_ids"])}
        generator = np.random.default_rng((self.seed, self.epoch, row.get("row", 0)))
        if self.target_window:
            return self._with_targets(part, generator)
        return self._with_labels(part, generator)

    def _latest(self, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.collapse_repeats:
            part = collapse(part)
        return {name: values[-self.max_length :] for name, values in part.items()}

    def _with_targets(
        self, part: dict[str, np.ndarray], generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The history up to a random event, and the items of the window after it."""
        times = part["timestamps"]
        last = np.searchsorted(times, times[-1] - self.target_window, side="right")
        if last == 0:  # shorter than a window: any moment but the last
            last = max(1, np.searchsorted(times, times[-1], side="left"))
        moment = times[generator.integers(0, last)]
        cut = np.searchsorted(times, moment, side="right")
        end = np.searchsorted(times, moment + self.target_window, side="right")
        wanted = self._positive(part)[cut:end]
        targets = np.unique(part["input_ids"][cut:end][wanted])
        history = {name: values[:cut] for name, values in part.items()}
        return self._latest(history) | {"target_ids": targets}

    def _with_labels(
        self, part: dict[str, np.ndarray], generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        wanted = self._positive(part)
        labels, evidence = self._labels(part, wanted, generator)
        if self.negative_labels:
            drawn, _ = self._labels(part, ~wanted, generator)
            told = (labels != -100) & (drawn != labels)
            part["negative_labels"] = np.where(told, drawn, -100)
        part["labels"] = labels
        if self.label_weight_power:
            part["label_weights"] = evidence.astype(np.float32) ** self.label_weight_power
        size, start = len(part["labels"]), 0
        if size > self.max_length + 1:
            start = int(generator.integers(0, size - self.max_length))
        part = {name: values[start : start + self.max_length] for name, values in part.items()}
        labelled = np.flatnonzero(part["labels"] != -100)
        end = labelled[-1] + 1 if len(labelled) else 1  # nothing is learnt from what comes after
        return {name: values[:end] for name, values in part.items()}

    def _positive(self, part: dict[str, np.ndarray]) -> np.ndarray:
        """Which events may be a label or target."""
        if not self.negative_event_type_ids:
            return np.ones(len(part["input_ids"]), dtype=bool)
        if "event_type_ids" not in part:
            raise ValueError("negative_event_type_ids need event_type_ids in the rows, got none")
        return ~np.isin(part["event_type_ids"], self.negative_event_type_ids)

    def _labels(
        self, part: dict[str, np.ndarray], wanted: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each event's label and its weight: a wanted event of the following moment or horizon, or -100."""
        size = len(part["input_ids"])
        times = part.get("timestamps", np.arange(size))
        tokens, moments = part["input_ids"][wanted], times[wanted]
        if not len(tokens):
            return np.full(size, -100), np.zeros(size)
        last = len(tokens) - 1
        first = np.searchsorted(moments, times, side="right")  # the first event of the next moment
        if self.label_horizon > 0:
            end = np.searchsorted(moments, times + self.label_horizon, side="right")
        else:
            end = np.searchsorted(moments, moments[np.minimum(first, last)], side="right")
        drawn = first + (generator.random(size) * (end - first)).astype(np.int64)
        drawn = np.minimum(drawn, last)
        labels = np.where(end > first, tokens[drawn], -100)
        if self.moment_ends_only:
            labels[:-1][times[1:] == times[:-1]] = -100
        return labels, part["input_weights"][wanted][drawn]


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
