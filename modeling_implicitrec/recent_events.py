"""Everybody's last events in order of time, in arrays with room: a new one at the end moves nothing."""

import numpy as np


class RecentEvents:
    """A bounded number of events, the latest; changed in place, by one thread.

    Args:
        tokens: `[events]` items, in order of time; as many events are held from then on.
        times: `[events]` seconds.

    >>> recent = RecentEvents(np.array([0, 3, 4]), np.array([0, 10, 20]))
    >>> recent.add(5, 30, place=1), recent.add(6, 15, place=2), recent.add(7, 5, place=3)
    (None, None, None)
    >>> recent.tokens.tolist(), recent.times.tolist()
    ([6, 4, 5], [15, 20, 30])
    >>> recent.remove(np.array([1]))
    >>> recent.tokens.tolist()
    [0, 6, 4]
    """

    def __init__(self, tokens: np.ndarray, times: np.ndarray) -> None:
        self.size, self.start = len(tokens), 0
        room = np.zeros(self.size, dtype=np.int64)
        self._columns = [
            np.concatenate([tokens.astype(np.int64), room]),
            np.concatenate([times.astype(np.int64), room]),
            np.concatenate([room, room]),  # places, 0 for those of the checkpoint
        ]

    @property
    def tokens(self) -> np.ndarray:
        """`[events]` items, 0 where there is no event."""
        return self._held(0)

    @property
    def times(self) -> np.ndarray:
        """`[events]` seconds, rising."""
        return self._held(1)

    @property
    def latest(self) -> int:
        """The time of the last event, 0 where there is none."""
        return int(self.times[-1])

    def add(self, token: int, time: int, place: int) -> None:
        """Let an event in, after those of its time; the oldest one goes, which may be the same.

        Args:
            place: a number of its own, to find it by.
        """
        at = int(np.searchsorted(self.times, time, side="right"))
        if at == 0:
            return
        if self.start == self.size:
            for column in self._columns:
                column[: self.size] = column[self.size :]
            self.start = 0
        end, at = self.start + self.size, self.start + at
        for column, value in zip(self._columns, (token, time, place)):
            column[at + 1 : end + 1] = column[at:end]  # nothing where the event is the last
            column[at] = value
        self.start += 1

    def remove(self, places: np.ndarray) -> None:
        """Take out the events of these places."""
        kept = ~np.isin(self._held(2), places)
        gone = self.size - int(kept.sum())
        for number, column in enumerate(self._columns):
            held = self._held(number)
            held[:] = np.concatenate([np.zeros(gone, dtype=column.dtype), held[kept]])

    def _held(self, number: int) -> np.ndarray:
        return self._columns[number][self.start : self.start + self.size]
