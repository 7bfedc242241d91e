"""What EASE wants for a log, told by what people took last: its regularisation, and how much now counts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from .baselines import EASE, REGULARIZATION, Cooccurrence, Scorer
from .evaluation import evaluate
from .event_columns import SECONDS_PER_DAY
from .matrices import flatten_column, user_counts
from .rows import Row, SequenceRows

CANDIDATES = (30.0, 100.0, 300.0, 1000.0)  # users
RECENT_WINDOWS = 1.5  # windows of a temporal test that are now
MOST_POPULAR = 3000  # items of a trial, which takes seconds
ASKED = 5000  # people of a trial


class EaseSettings(NamedTuple):
    """What [`EASE`] is told, by the names that it has there."""

    regularization: float = REGULARIZATION
    recent_days: float | None = None


def ease_candidates(
    window_days: float | None = None, lambdas: Sequence[float] = CANDIDATES
) -> list[EaseSettings]:
    """The settings of [`EASE`] that are tried for a log.

    Args:
        window_days: of a temporal test: 1.5 times as many `recent_days` are tried as well.
        lambdas: in users.

    >>> ease_candidates(28.0, [100])
    [EaseSettings(regularization=100, recent_days=None), EaseSettings(regularization=100, recent_days=42.0)]
    """
    recent = [None] if window_days is None else [None, RECENT_WINDOWS * window_days]
    return [EaseSettings(value, days) for days in recent for value in lambdas]


def choose_ease(
    train: Dataset,
    vocab_size: int,
    *,
    window_days: float | None = None,
    candidates: Sequence[float] = CANDIDATES,
) -> EaseSettings | None:
    """The settings of [`EASE`], of some, that rank best what people took last; or that it has no place.

    EASE learns from the rows without what was last: of everybody the events of the last `window_days`, or
    of each person the last event; at most 5,000 people who took something new to them are then asked, by
    NDCG@10. Only the 3,000 most popular items take part. EASE knows no order. Where people's events have
    one, counts of what follows the last three items are asked the same.

    Args:
        train: encoded rows, without negative events; with `timestamps` in seconds for a window.
        vocab_size: item tokens including 0.
        window_days: for a window; see [`ease_candidates`].
        candidates: lambdas, in users.

    Returns:
        The first of equally good settings; those of [`fit_priors`] where nobody took anything new last.
        `None` where what follows the last items ranks a window better: there the order tells.

    >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 3], [2, 1, 3]] * 5})
    >>> choose_ease(rows, 4, candidates=[10, 100])
    EaseSettings(regularization=10, recent_days=None)
    """
    trial = _Trial.of(train, vocab_size, window_days)
    if not trial.asked:
        return EaseSettings()
    tried = ease_candidates(window_days, candidates)
    found = [trial.of_ease(settings) for settings in tried]
    if window_days is not None and trial.in_order() > max(found):
        return None
    return tried[found.index(max(found))]


@dataclass(frozen=True)
class _Trial:
    """Rows to learn from, and those of them that are asked for what came last."""

    rows: list[Row]
    asked: list[Row]
    num_items: int

    @classmethod
    def of(cls, train: Dataset, vocab_size: int, window_days: float | None) -> "_Trial":
        counts = user_counts(train, vocab_size)
        counts[0] = 0
        popular = np.argsort(-counts, kind="stable")[: min(MOST_POPULAR, vocab_size - 1)]
        tokens = np.zeros(vocab_size, dtype=np.int64)
        tokens[popular] = 1 + np.arange(len(popular))
        rows = list(_without_last(train, tokens, window_days))
        asked = [row for row in rows if not np.isin(row["target_ids"], row["input_ids"]).all()]
        return cls(rows, asked[:: max(1, -(-len(asked) // ASKED))], len(popular))

    def of_ease(self, settings: EaseSettings) -> float:
        return self._ndcg(EASE(self.rows, self.num_items + 1, **settings._asdict()))

    def in_order(self) -> float:
        return self._ndcg(Cooccurrence(self.rows, self.num_items + 1))

    def _ndcg(self, scorer: Scorer) -> float:
        k = min(10, self.num_items)
        result = evaluate(
            scorer,
            self.asked,
            ks=[k],
            seen="exclude",
            target_filter="new",
            num_items=self.num_items,
            progress=False,
        )
        return result.metrics[f"ndcg@{k}"]


def _without_last(train: Dataset, tokens: np.ndarray, window_days: float | None) -> Iterator[Row]:
    """The rows in other tokens, 0 for none, up to where what was last starts: that is their targets."""
    start = np.inf
    if window_days is not None:
        start = flatten_column(train, "timestamps")[0].max() - window_days * SECONDS_PER_DAY
    for row in SequenceRows(train):
        items = tokens[row["input_ids"]]
        cut = len(items) - 1
        times = {}
        if window_days is not None:
            cut = int(np.searchsorted(row["timestamps"], start))
            times = {"timestamps": row["timestamps"][:cut][items[:cut] > 0]}
        before, after = items[: max(cut, 0)], items[max(cut, 0) :]
        yield times | {"input_ids": before[before > 0], "target_ids": np.unique(after[after > 0])}
