"""The regularisation that EASE wants for a log, told by what people took last."""

from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset

from .baselines import EASE, REGULARIZATION
from .evaluation import evaluate
from .event_columns import SECONDS_PER_DAY
from .matrices import flatten_column, user_counts
from .rows import Row, SequenceRows

CANDIDATES = (30.0, 100.0, 300.0, 1000.0)  # users
MOST_POPULAR = 3000  # items of a trial, which takes seconds
ASKED = 5000  # people of a trial


def choose_regularization(
    train: Dataset,
    vocab_size: int,
    *,
    window_days: float | None = None,
    candidates: Sequence[float] = CANDIDATES,
) -> float:
    """The lambda of [`EASE`], of some candidates, that ranks best what people took last.

    EASE learns from the rows without what was last: of everybody the events of the last `window_days`, or
    of each person the last event; at most 5,000 people who took something new to them are then asked, by
    NDCG@10. Only the 3,000 most popular items take part.

    Args:
        train: encoded rows, without negative events; with `timestamps` in seconds for a window.
        vocab_size: item tokens including 0.
        candidates: in users; the first of equally good ones is taken.

    Returns:
        The lambda; that of [`fit_priors`] where nobody took anything new last.

    >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 3], [2, 1, 3]] * 5})
    >>> choose_regularization(rows, 4, candidates=[10, 100])
    10
    """
    counts = user_counts(train, vocab_size)
    counts[0] = 0
    popular = np.argsort(-counts, kind="stable")[: min(MOST_POPULAR, vocab_size - 1)]
    tokens = np.zeros(vocab_size, dtype=np.int64)
    tokens[popular] = 1 + np.arange(len(popular))
    rows = list(_without_last(train, tokens, window_days))
    asked = [row for row in rows if not np.isin(row["target_ids"], row["input_ids"]).all()]
    if not asked:
        return REGULARIZATION
    asked = asked[:: -(-len(asked) // ASKED)]
    found, k = {}, min(10, len(popular))
    for value in candidates:
        scorer = EASE(rows, len(popular) + 1, regularization=value)
        result = evaluate(
            scorer,
            asked,
            ks=[k],
            seen="exclude",
            target_filter="new",
            num_items=len(popular),
            progress=False,
        )
        found[value] = result.metrics[f"ndcg@{k}"]
    return max(found, key=lambda value: found[value])


def _without_last(train: Dataset, tokens: np.ndarray, window_days: float | None) -> Iterator[Row]:
    """The rows in other tokens, 0 for none, up to where what was last starts: that is their targets."""
    start = np.inf
    if window_days is not None:
        start = flatten_column(train, "timestamps")[0].max() - window_days * SECONDS_PER_DAY
    for row in SequenceRows(train):
        items = tokens[row["input_ids"]]
        cut = len(items) - 1
        if window_days is not None:
            cut = int(np.searchsorted(row["timestamps"], start))
        before, after = items[: max(cut, 0)], items[max(cut, 0) :]
        yield {"input_ids": before[before > 0], "target_ids": np.unique(after[after > 0])}
