"""A label for every event of a batch, drawn from what follows it: all rows at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FlatEvents:
    """The events of several histories end to end.

    Args:
        columns: `[events]` each.
        sizes: `[histories]` events of each.
    """

    columns: dict[str, np.ndarray]
    sizes: np.ndarray

    @classmethod
    def of(cls, rows: Sequence, names: Sequence[str]) -> "FlatEvents":
        """Of rows of a mapping of columns."""
        sizes = np.array([len(row["input_ids"]) for row in rows])
        columns = {name: np.concatenate([row[name] for row in rows]) for name in names}
        columns = {n: v if n == "input_weights" else v.astype(np.int64) for n, v in columns.items()}
        return cls(columns, sizes)

    @property
    def row(self) -> np.ndarray:
        """`[events]` number of the history."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def place(self) -> np.ndarray:
        """`[events]` place in the history."""
        return np.arange(self.sizes.sum()) - np.repeat(
            np.cumsum(self.sizes) - self.sizes, self.sizes
        )

    @property
    def in_order(self) -> "FlatEvents":
        """Without times: every event is a moment of its own, and follows the one before it in the log."""
        columns = {name: values for name, values in self.columns.items() if name != "timestamps"}
        return FlatEvents(columns, self.sizes)

    def moments(self, horizon: float) -> np.ndarray:
        """`[events]` times that lie more than the horizon apart where histories differ."""
        times = self.columns.get("timestamps", self.place)
        times = times - times.min(initial=0)
        return self.row * (int(times.max(initial=0)) + int(horizon) + 1) + times


def draw_next(
    events: FlatEvents, wanted: np.ndarray, chance: np.ndarray, horizon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each event's label, a wanted event that follows, or -100; and the label's place among the events.

    Args:
        wanted: bool `[events]`, which may be a label.
        chance: `[events]` in [0, 1), which of those in question it is.
        horizon: seconds in which they lie; 0 for those of the next moment.
    """
    moments, tokens = events.moments(horizon), events.columns["input_ids"]
    if not wanted.any():
        return np.full(len(tokens), -100), np.zeros(len(tokens), dtype=np.int64)
    known, last = moments[wanted], int(wanted.sum()) - 1
    first = np.searchsorted(known, moments, side="right")  # the first event of the next moment
    if horizon > 0:
        end = np.searchsorted(known, moments + int(horizon), side="right")
    else:
        end = np.searchsorted(known, known[np.minimum(first, last)], side="right")
    ends = np.cumsum(np.bincount(events.row[wanted], minlength=len(events.sizes)))
    end = np.minimum(end, ends[events.row])  # those of the same history
    drawn = np.minimum(first + (chance * (end - first)).astype(np.int64), last)
    told = end > first
    place = np.flatnonzero(wanted)[drawn]
    return np.where(told, tokens[place], -100), place
