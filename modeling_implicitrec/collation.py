"""Encoded sequences -> batches: the training rows' labels are the events of the next moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


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
    """Batch rows of encoded sequences and set the label of every event.

    A training row (no `target_ids`) is cut at a random place where it is longer than `max_length`.
    The label of an event is drawn from what follows it: from the events of the next moment, or,
    with `label_horizon`, from all events at most so many seconds later. Events of one moment (a
    basket) never label each other, since their order in the log means nothing. An evaluation row
    keeps its latest events, and its last event is labelled with the row's first target.

    Args:
        max_length: events a row.
        label_horizon: seconds; 0 for the next moment only.
        moment_ends_only: label only the last event of every moment.
        seed: of the generator that draws cuts and labels.
    """

    max_length: int
    label_horizon: float = 0.0
    moment_ends_only: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)

    def __call__(self, rows: Sequence[Mapping[str, list]]) -> dict[str, torch.Tensor]:
        parts = [self._row(row) for row in rows]
        batch = {
            "input_ids": pad_rows([part["input_ids"] for part in parts], torch.long),
            "input_weights": pad_rows([part["input_weights"] for part in parts], torch.float),
            "labels": pad_rows([part["labels"] for part in parts], torch.long, -100),
        }
        if "timestamps" in parts[0]:
            batch["timestamps"] = pad_rows([part["timestamps"] for part in parts], torch.long)
        if "event_type_ids" in parts[0]:
            batch["event_type_ids"] = pad_rows([p["event_type_ids"] for p in parts], torch.long)
        batch["attention_mask"] = (batch["input_ids"] > 0).long()
        return batch

    def _row(self, row: Mapping[str, list]) -> dict[str, np.ndarray]:
        names = [
            n for n in ("input_ids", "input_weights", "timestamps", "event_type_ids") if n in row
        ]
        part = {name: np.asarray(row[name]) for name in names}
        size = len(part["input_ids"])
        if "target_ids" in row:
            part = {name: values[-self.max_length :] for name, values in part.items()}
            labels = np.full(len(part["input_ids"]), -100)
            known = [token for token in row["target_ids"] if token > 0]
            if known and len(labels):
                labels[-1] = known[0]
            return part | {"labels": labels}
        start = 0
        if size > self.max_length + 1:
            start = int(self.generator.integers(0, size - self.max_length))
        labels = self._labels(part, size)
        window = slice(start, start + self.max_length)
        part = {name: values[window] for name, values in part.items()} | {"labels": labels[window]}
        return _without_tail(part)

    def _labels(self, part: dict[str, np.ndarray], size: int) -> np.ndarray:
        """Each event's label: an event drawn from the following moment or horizon."""
        times = part.get("timestamps")
        if times is None:
            times = np.arange(size)
        first = np.searchsorted(times, times, side="right")  # the first event of the next moment
        has_next = first < size
        if self.label_horizon > 0:
            last = np.searchsorted(times, times + self.label_horizon, side="right")
        else:
            last = np.searchsorted(times, times[np.minimum(first, size - 1)], side="right")
        last = np.maximum(last, first)
        has_next &= last > first
        drawn = first + (self.generator.random(size) * (last - first)).astype(np.int64)
        tokens = part["input_ids"]
        labels = np.where(has_next, tokens[np.minimum(drawn, size - 1)], -100)
        if self.moment_ends_only:
            labels[:-1][times[1:] == times[:-1]] = -100
        return labels


def _without_tail(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drop the events after the last label: nothing would be learnt from them."""
    labelled = np.flatnonzero(part["labels"] != -100)
    end = labelled[-1] + 1 if len(labelled) else min(1, len(part["labels"]))
    return {name: values[:end] for name, values in part.items()}
