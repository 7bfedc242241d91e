"""What a model is told before it learns: how often items were had, and which of them together."""

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from scipy import sparse

from .baselines import EASE, REGULARIZATION
from .kernels_implicitrec import SCALAR_STEP
from .matrices import first_events, flatten_column, flatten_tokens, positive_events, user_counts
from .modeling_implicitrec import ImplicitRecForScoring
from .pairs_implicitrec import (
    BACKWARD,
    GAP_POWER,
    SOURCE_POWER,
    TARGET_POWER,
    WINDOW,
    relative_frequency,
)
from .processing_implicitrec import ImplicitRecProcessor


def fit_priors(
    model: ImplicitRecForScoring,
    processor: ImplicitRecProcessor,
    train: Dataset,
    *,
    source: str = "sequence",
    regularization: float = REGULARIZATION,
    recent_days: float | None = None,
    folds: int = 0,
    weighted: bool = False,
) -> None:
    """Give an untrained model the counts of items, how much comes again, and the counts of pairs.

    Items are counted by events; by users where a history holds an item once (`collapse_repeats`), or where
    the processor comes from a catalogue, which has no counts of its own. Negative events count for nothing.

    Args:
        train: encoded rows.
        source: of the pairs, `"sequence"` ([`cooccurrence_table`]) or `"ease"` ([`ease_table`]).
        regularization: lambda of EASE.
        recent_days: counts of users tell what these last days had, and EASE counts it as [`EASE`] says;
            all days alike by default.
        folds: groups of users for cross-fitting ([`fold_tables`]); none by default.
        weighted: count pairs by their weights, which needs folds.

    Raises:
        ValueError: for another source, weights without folds, or `recent_days` where nothing reads them;
            for rows in the place of the processor.

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> processor = ImplicitRecProcessor.fit({"item_id": ["tea", "milk", "tea"]})
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=3, hidden_size=16))
    >>> fit_priors(model, processor, Dataset.from_dict({"input_ids": [[1, 2, 1]]}))
    >>> (model.item_frequency[1] / model.item_frequency[2]).item()
    2.0
    """
    if isinstance(processor, Dataset):
        raise ValueError("expected fit_priors(model, processor, rows), got rows as the processor")
    config, counts = model.config, processor.item_counts
    train = positive_events(train, processor.negative_event_type_ids)
    by_users = config.collapse_repeats or not counts.any()
    if recent_days and not by_users and source != "ease":
        raise ValueError(
            f"recent_days={recent_days:g} expects collapse_repeats in the model, or the source 'ease': "
            "else nothing reads it"
        )
    counts = user_counts(train, config.vocab_size, recent_days) if by_users else counts
    model.fit_item_counts(counts)
    fit_copy_level(model, train)
    fit_trend(model, train)
    if not config.num_cooccurrences:
        return
    _check_pairs(source, folds, weighted)

    def table(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
        sizes = (config.vocab_size, config.num_cooccurrences)
        if source == "ease":
            return ease_table(rows, *sizes, regularization=regularization, recent_days=recent_days)
        return cooccurrence_table(rows, *sizes, item_counts=counts, weighted=weighted)

    others = fold_tables(table, train, folds) if folds else None
    model.fit_cooccurrences(*table(train), folds=others)


def _check_pairs(source: str, folds: int, weighted: bool) -> None:
    if source not in ("sequence", "ease"):
        raise ValueError(f"source must be 'sequence' or 'ease', got {source!r}")
    if folds == 1 or folds < 0:
        raise ValueError(f"folds must be 0, for none, or at least 2, got {folds}")
    if weighted and folds < 2:
        raise ValueError(f"weighted pairs need folds of at least 2, got {folds}")


def fit_trend(model: ImplicitRecForScoring, train: Dataset) -> None:
    """Tell the trend prior, where there is one, what everybody had and when: also after training.

    Raises:
        ValueError: for rows without times.
    """
    if model.head.trend is None:
        return
    if "timestamps" not in train.column_names:
        raise ValueError(
            f"num_trend_events needs a log with times, the rows have {train.column_names}"
        )
    tokens, times = (flatten_column(train, c)[0].copy() for c in ("input_ids", "timestamps"))
    model.fit_trend(tokens, times)


def fit_copy_level(model: ImplicitRecForScoring, train: Dataset) -> None:
    """Start the copy prior of an untrained model with the share of events whose item comes again.

    With r that share among a person's later events, Z the sum of the background `exp(b_v)` and m the
    geometric mean of what a history weighs by then, the level is `log(r / (1 - r)) + log(Z / m)`: copies
    and background share the chance as people do. A level that was learned stays, as does one of a log
    where nothing or everything comes again.

    Args:
        model: with a copy prior and the counts of its items.
        train: encoded rows without negative events.

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=3, hidden_size=16, copy_prior=True))
    >>> fit_copy_level(model, Dataset.from_dict({"input_ids": [[1, 2, 1]]}))
    >>> level = 1 + SCALAR_STEP * model.head.copy.level.item()  # log 1 + log 2 - log(1 * 2) / 2
    >>> round(level, 3)
    0.347
    """
    head = model.head
    if head.copy is None or head.copy.level.any():
        return
    tokens, owners = flatten_tokens(train, model.config.vocab_size)
    weights = np.ones(len(tokens))
    if "input_weights" in train.column_names:
        weights = flatten_column(train, "input_weights")[0].astype(np.float64)
    known = ~first_events(tokens, owners)
    starts = np.searchsorted(owners, owners)  # of each event's history
    before = np.cumsum(weights) - weights
    before -= before[starts]
    asked = before > 0
    share = known[asked].mean() if asked.any() else 0.0
    if share in (0.0, 1.0):
        return
    background = head.item_bias.weight[1:].logsumexp(0).item() if head.item_bias else 0.0
    level = np.log(share / (1 - share)) + background - np.log(before[asked]).mean()
    with torch.no_grad():
        head.copy.level.fill_((level - 1) / SCALAR_STEP)


def cooccurrence_table(
    train: Dataset,
    vocab_size: int,
    neighbours: int,
    *,
    item_counts: np.ndarray | None = None,
    weighted: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """What goes with each item in a history: tokens and scaled counts `[vocab_size, neighbours]`.

    A pair that is `g` events apart, up to 20, counts `1 / sqrt(g)` for the later item given the earlier
    one, and 0.3 of it the other way. Counts are divided by `f_a^0.5 f_b^0.25` for the frequencies of
    the item a that is read and of the item b that it leads to, so that neither's popularity is all that
    is seen. The numbers are those of `pairs_implicitrec.py`; `scripts/tune_cooccurrences.py` compares them.

    Args:
        train: encoded rows.
        vocab_size: item tokens including 0.
        neighbours: items kept for each, those of the largest counts.
        item_counts: `[vocab_size]` what [`~ImplicitRecForScoring.fit_item_counts`] is told; by default
            the events of the rows.
        weighted: count pairs times the weights of both events, which is to be cross-fitted: the prior
            cannot take a user's own pairs out of it.
    """
    tokens, row = flatten_tokens(train, vocab_size)
    evidence = flatten_column(train, "input_weights")[0] if weighted else np.ones(len(tokens))
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for gap in range(1, WINDOW + 1):
        same = row[gap:] == row[:-gap]
        pair = (tokens[:-gap][same], tokens[gap:][same])
        weight = evidence[:-gap][same] * evidence[gap:][same] * gap**-GAP_POWER
        total = total + sparse.csr_matrix((weight.astype(np.float32), pair), shape=total.shape)
    if item_counts is None:
        item_counts = np.bincount(tokens, minlength=vocab_size)
    frequency = relative_frequency(torch.as_tensor(item_counts)).numpy()
    total = total + BACKWARD * total.T
    scale = [sparse.diags_array(frequency**-power) for power in (SOURCE_POWER, TARGET_POWER)]
    total = scale[0] @ total @ scale[1]
    coo = total.tocoo()
    order = np.lexsort((coo.col, -coo.data, coo.row))
    rows, columns, counts = coo.row[order], coo.col[order], coo.data[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    keep = place < neighbours
    items = np.zeros((vocab_size, neighbours), dtype=np.int32)
    table = np.zeros((vocab_size, neighbours), dtype=np.float32)
    items[rows[keep], place[keep]] = columns[keep]
    table[rows[keep], place[keep]] = counts[keep]
    return items, table


def fold_tables(
    table: Callable[[Dataset], tuple[np.ndarray, np.ndarray]], train: Dataset, num_folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tables without each group of users, for cross-fitting; `[folds, vocab_size, neighbours]` both.

    Args:
        table: makes tokens and counts of rows, such as [`cooccurrence_table`].
        train: encoded rows; fold f is made without those whose `row` modulo `num_folds` is f.
    """
    group = np.asarray(train["row"]) % num_folds
    tables = [table(train.select(np.flatnonzero(group != fold))) for fold in range(num_folds)]
    items, counts = zip(*tables)
    return np.stack(items), np.stack(counts)


def ease_table(
    train: Dataset,
    vocab_size: int,
    neighbours: int,
    *,
    regularization: float = REGULARIZATION,
    recent_days: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The largest weights of [`EASE`] out of each item, by size, in place of counts.

    Negative ones are kept: the prior counts the sum over a history, where it is positive.

    Returns:
        Tokens int32 and weights float32 `[vocab_size, neighbours]`, 0 where there is none.
    """
    model = EASE(train, vocab_size, regularization=regularization, recent_days=recent_days)
    weights = model.weights[:, 1:]  # nothing leads to padding
    width = min(neighbours, weights.shape[1])
    best = np.argpartition(-np.abs(weights), width - 1, axis=1)[:, :width]
    strength = np.take_along_axis(weights, best, axis=1).astype(np.float32)
    items = np.zeros((vocab_size, neighbours), dtype=np.int32)
    table = np.zeros((vocab_size, neighbours), dtype=np.float32)
    items[:, :width] = np.where(strength != 0, best + 1, 0)
    table[:, :width] = strength
    return items, table
