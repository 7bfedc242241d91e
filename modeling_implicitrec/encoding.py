"""Sequences in outside ids -> encoded sequences: tokens, weights and targets, without per-row Python."""

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from scipy import sparse

from .baselines import EASE
from .processing_implicitrec import ImplicitRecProcessor

WEIGHING = ("timestamps", "event_types", "durations", "item_durations", "counts")
logger = logging.getLogger(__name__)

FLAT_NAMES = {
    "item_ids": "item_id",
    "event_types": "event_type",
    "durations": "duration",
    "item_durations": "item_duration",
    "counts": "count",
}


def flat_column(rows: Dataset, name: str) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column end to end, and the row offsets into them."""
    column = _column(rows, name)
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return column.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def training_columns(train: Dataset) -> dict[str, np.ndarray]:
    """The training part's events as flat columns, for `ImplicitRecProcessor.fit`."""
    names = {plural: name for plural, name in FLAT_NAMES.items() if plural in train.column_names}
    return {name: _values(train, plural) for plural, name in names.items()}


def encode_sequences(rows: Dataset, processor: ImplicitRecProcessor) -> Dataset:
    """Encode one part: `user_id`, `input_ids`, `input_weights`, `length` and what else there is.

    Events of items that the processor does not know are left out and counted in the log. Evaluation
    rows also get `target_ids`: each distinct target once, -1 for one that no score can reach.
    """
    flat = {name: _values(rows, name) for name in WEIGHING if name in rows.column_names}
    items, offsets = flat_column(rows, "item_ids")
    coded = items.dictionary_encode()
    encoded = processor.encode_flat(
        _numpy(coded.dictionary), offsets, codes=_numpy(coded.indices), **flat
    )
    if "timestamps" in flat:
        encoded["timestamps"] = flat["timestamps"]
    known = encoded["input_ids"] > 0
    kept = np.concatenate([[0], np.cumsum(known)])[offsets]
    if not known.all():
        logger.info("%s events of unknown items left out", f"{int((~known).sum()):,}")
    columns: dict[str, pa.Array] = {"user_id": _column(rows, "user_id")}
    columns |= {name: _lists(values[known], kept) for name, values in encoded.items()}
    columns["length"] = pa.array(np.diff(kept))
    columns["row"] = pa.array(np.arange(len(kept) - 1))
    if "target_item_ids" in rows.column_names:
        columns["target_ids"] = _targets(rows, processor)
    return Dataset(pa.table(columns))


def encode_splits(splits: Mapping[str, Dataset], processor: ImplicitRecProcessor) -> DatasetDict:
    """Encode every part of a split."""
    return DatasetDict({name: encode_sequences(rows, processor) for name, rows in splits.items()})


def cooccurrence_table(
    train: Dataset, vocab_size: int, neighbours: int, *, window: int = 3, weighted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The items that most often follow each item: tokens and counts `[vocab_size, neighbours]`.

    A pair that is `g` events apart, up to `window`, counts `1 / g`; `weighted`, that times the weights
    of both events, which is to be cross-fitted: the prior cannot take a label's own pair out of it.
    """
    values, offsets = flat_column(train, "input_ids")
    tokens = _numpy(values)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    evidence = _values(train, "input_weights") if weighted else np.ones(len(tokens))
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for gap in range(1, window + 1):
        same = row[gap:] == row[:-gap]
        pair = (tokens[:-gap][same], tokens[gap:][same])
        weight = (evidence[:-gap][same] * evidence[gap:][same] / gap).astype(np.float32)
        total = total + sparse.csr_matrix((weight, pair), shape=total.shape)
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


def ease_table(
    train: Dataset,
    vocab_size: int,
    neighbours: int,
    *,
    regularization: float = 1000.0,
    target_days: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The largest weights of [`EASE`] out of each item, by size, in place of counts.

    Negative ones are kept: the prior counts the sum over a history, where it is positive.

    Returns:
        Tokens int32 and weights float32 `[vocab_size, neighbours]`, 0 where there is none.
    """
    model = EASE(train, vocab_size, regularization=regularization, target_days=target_days)
    weights = model.weights[:, 1:]  # nothing leads to padding
    width = min(neighbours, weights.shape[1])
    best = np.argpartition(-np.abs(weights), width - 1, axis=1)[:, :width]
    strength = np.take_along_axis(weights, best, axis=1).astype(np.float32)
    items = np.zeros((vocab_size, neighbours), dtype=np.int32)
    table = np.zeros((vocab_size, neighbours), dtype=np.float32)
    items[:, :width] = np.where(strength != 0, best + 1, 0)
    table[:, :width] = strength
    return items, table


def _column(rows: Dataset, name: str) -> pa.Array:
    column = rows.with_format("arrow")[:][name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else column
    return column


def _numpy(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _values(rows: Dataset, name: str) -> np.ndarray:
    return _numpy(flat_column(rows, name)[0])


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def _targets(rows: Dataset, processor: ImplicitRecProcessor) -> pa.Array:
    """Each distinct target of a row once, in the order of the log."""
    items, offsets = flat_column(rows, "target_item_ids")
    coded = items.dictionary_encode()
    codes = _numpy(coded.indices)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    first = np.sort(np.unique(row * (len(coded.dictionary) + 1) + codes, return_index=True)[1])
    tokens = processor.encode_items(_numpy(coded.dictionary))[codes[first]]
    sizes = np.bincount(row[first], minlength=len(offsets) - 1)
    return _lists(tokens, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
