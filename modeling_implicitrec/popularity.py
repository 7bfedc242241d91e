"""Popularity, of all times, of late and at the moment, and how often a user took an item."""

from collections.abc import Sequence

import numpy as np

from .event_columns import SECONDS_PER_DAY
from .matrices import Rows, flatten_column, flatten_tokens, item_counts, recent_events
from .rows import Row

# Popularity breaks ties: at most this much is added to a score, so order among scores that differ
# by more is kept.
TIE_BREAK = 1e-4


def tie_break(rows: Rows, vocab_size: int) -> np.ndarray:
    counts = item_counts(rows, vocab_size).astype(np.float64)
    return (TIE_BREAK * counts / max(counts.max(), 1.0)).astype(np.float32)


class SameForAll:
    """A scorer that gives every history the same scores, such as counts that a model cannot know.

    Args:
        name: what tables call it.
        scores: `[vocab_size]`.
    """

    def __init__(self, name: str, scores: np.ndarray) -> None:
        self.name = name
        self.scores = np.asarray(scores, dtype=np.float32)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        return np.tile(self.scores, (len(rows), 1))


class Popularity(SameForAll):
    """`score_i = number of training events of item i`, the same for everyone."""

    def __init__(self, train_rows: Rows, vocab_size: int) -> None:
        super().__init__("popularity", item_counts(train_rows, vocab_size))


class RecentPopularity(SameForAll):
    """`score_i = number of training events of item i in the last days of the training data`.

    Args:
        train_rows: encoded rows with `timestamps` in seconds.
        vocab_size: item tokens including 0.
        days: length of the window that ends with the last training event.
    """

    def __init__(self, train_rows: Rows, vocab_size: int, *, days: float = 7.0) -> None:
        tokens, _ = flatten_tokens(train_rows, vocab_size)
        recent = tokens[recent_events(train_rows, len(tokens), days)]
        counts = np.bincount(recent, minlength=vocab_size).astype(np.float32)
        name = f"recent popularity ({days:g} days)"
        super().__init__(name, counts + tie_break(train_rows, vocab_size))


class PopularityNow:
    """`score_i = number of training events of item i in the days before the question`; popularity at a tie.

    A row is asked at its `query_time`, or where it has none at its last event; later events do not count.

    Args:
        train_rows: encoded rows with `timestamps` in seconds.
        vocab_size: item tokens including 0.
        days: length of the window that ends with the question.
    """

    def __init__(self, train_rows: Rows, vocab_size: int, *, days: float = 1.0) -> None:
        self.name, self.seconds = f"popularity now ({days:g} days)", days * SECONDS_PER_DAY
        tokens, times = (flatten_column(train_rows, c)[0] for c in ("input_ids", "timestamps"))
        order = np.argsort(times, kind="stable")
        self.tokens, self.times = tokens[order], times[order]
        self.tie_break = tie_break(train_rows, vocab_size)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        asked = np.array([row.get("query_time") or row["timestamps"][-1] for row in rows])
        first, last = (np.searchsorted(self.times, t) for t in (asked - self.seconds, asked))
        events = [self.tokens[start:stop] for start, stop in zip(first, last)]
        counts = [np.bincount(part, minlength=len(self.tie_break)) for part in events]
        return np.stack(counts).astype(np.float32) + self.tie_break


class OwnFrequency:
    """`score_i = sum of 2^(-age / half_life) over the user's own events of item i`.

    Age is the time to the last event of the history; without a half-life every event counts 1.
    Popularity breaks ties and orders the items that the user never had.

    Args:
        train_rows: encoded rows, for popularity alone.
        vocab_size: item tokens including 0.
        half_life_days: `None` counts without decay; else the rows need `timestamps` in seconds.
    """

    def __init__(
        self, train_rows: Rows, vocab_size: int, *, half_life_days: float | None = None
    ) -> None:
        if half_life_days is not None and not half_life_days > 0:
            raise ValueError(f"half_life_days must be positive or None, got {half_life_days}")
        suffix = "" if half_life_days is None else f" (half-life {half_life_days:g} days)"
        self.name = "own frequency" + suffix
        self.half_life_days = half_life_days
        self.vocab_size = vocab_size
        self.tie_break = tie_break(train_rows, vocab_size)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        tokens, owners = flatten_tokens(rows, self.vocab_size)
        weights = np.ones(len(tokens))
        if self.half_life_days is not None:
            times, lengths = flatten_column(rows, "timestamps")
            if len(times) != len(tokens):
                raise ValueError(f"expected {len(tokens)} timestamps, got {len(times)}")
            last = np.full(len(lengths), -np.inf)
            np.maximum.at(last, owners, times)
            ages = (last[owners] - times) / SECONDS_PER_DAY
            weights = np.exp2(-ages / self.half_life_days)
        cells = np.bincount(
            owners * self.vocab_size + tokens, weights, minlength=len(rows) * self.vocab_size
        )
        return cells.reshape(len(rows), -1).astype(np.float32) + self.tie_break
