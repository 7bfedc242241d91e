"""Sequences in outside ids -> encoded sequences: tokens, weights and targets, without per-row Python."""

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from scipy import sparse

from .processing_implicitrec import ImplicitRecProcessor

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
    column = rows.with_format("arrow")[:][name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else column
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return column.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def training_columns(train: Dataset) -> dict[str, np.ndarray]:
    """The training part's events as flat columns, for `ImplicitRecProcessor.fit`."""
    names = {plural: name for plural, name in FLAT_NAMES.items() if plural in train.column_names}
    return {
        name: flat_column(train, plural)[0].to_numpy(zero_copy_only=False)
        for plural, name in names.items()
    }


def encode_sequences(rows: Dataset, processor: ImplicitRecProcessor) -> Dataset:
    """Encode one part: `user_id`, `input_ids`, `input_weights`, `length` and what else there is.

    Events of items that the processor does not know are left out and counted in the log. Evaluation
    rows also get `target_ids`: each distinct target once, -1 for one that no score can reach.
    """
    tokens, offsets = _tokens(rows, "item_ids", processor)
    known = tokens > 0
    kept = np.concatenate([[0], np.cumsum(known)])[offsets]
    if not known.all():
        logger.info("%s events of unknown items left out", f"{int((~known).sum()):,}")
    columns: dict[str, pa.Array] = {"user_id": _plain(rows, "user_id")}
    columns["input_ids"] = _lists(tokens[known], kept)
    columns["input_weights"] = _lists(_weights(rows, offsets, processor)[known], kept)
    if "timestamps" in rows.column_names:
        times = flat_column(rows, "timestamps")[0].to_numpy(zero_copy_only=False)
        columns["timestamps"] = _lists(times[known], kept)
    if "event_types" in rows.column_names:
        types = flat_column(rows, "event_types")[0].to_numpy(zero_copy_only=False)
        columns["event_type_ids"] = _lists(processor.encode_event_types(types)[known], kept)
    columns["length"] = pa.array(np.diff(kept))
    columns["row"] = pa.array(np.arange(len(kept) - 1))
    if "target_item_ids" in rows.column_names:
        columns["target_ids"] = _targets(rows, processor)
    return Dataset(pa.table(columns))


def encode_splits(splits: Mapping[str, Dataset], processor: ImplicitRecProcessor) -> DatasetDict:
    """Encode every part of a split."""
    return DatasetDict({name: encode_sequences(rows, processor) for name, rows in splits.items()})


def cooccurrence_table(
    train: Dataset, vocab_size: int, neighbours: int, *, window: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """The items that most often follow each item: tokens and counts `[vocab_size, neighbours]`.

    A pair that is `g` events apart, up to `window`, counts `1 / g`.
    """
    values, offsets = flat_column(train, "input_ids")
    tokens = values.to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    total = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for gap in range(1, window + 1):
        same = row[gap:] == row[:-gap]
        pair = (tokens[:-gap][same], tokens[gap:][same])
        weight = np.full(len(pair[0]), 1 / gap, dtype=np.float32)
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


def _plain(rows: Dataset, name: str) -> pa.Array:
    column = rows.with_format("arrow")[:][name]
    return column.combine_chunks()


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values))


def _tokens(
    rows: Dataset, name: str, processor: ImplicitRecProcessor
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens end to end (-1 unknown) and offsets; each distinct id is looked up once."""
    values, offsets = flat_column(rows, name)
    coded = values.dictionary_encode()
    unique = processor.encode_items(coded.dictionary.to_numpy(zero_copy_only=False))
    codes = coded.indices.to_numpy(zero_copy_only=False)
    return np.asarray(unique)[codes] if len(codes) else np.empty(0, np.int64), offsets


def _weights(rows: Dataset, offsets: np.ndarray, processor: ImplicitRecProcessor) -> np.ndarray:
    given = {
        name: flat_column(rows, name)[0].to_numpy(zero_copy_only=False)
        for name in ("event_types", "counts", "durations", "item_durations")
        if name in rows.column_names
    }
    if processor.half_life and "timestamps" in rows.column_names:
        times = flat_column(rows, "timestamps")[0].to_numpy(zero_copy_only=False)
        last = times[np.maximum(offsets[1:] - 1, 0)] if len(times) else times
        given["ages"] = np.repeat(last, np.diff(offsets)) - times
    if not given:
        return np.ones(int(offsets[-1]), dtype=np.float32)
    return processor.weights(**given)


def _targets(rows: Dataset, processor: ImplicitRecProcessor) -> pa.Array:
    tokens, offsets = _tokens(rows, "target_item_ids", processor)
    raw = flat_column(rows, "target_item_ids")[0].dictionary_encode().indices
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    pair = row * (int(max(raw.to_numpy(zero_copy_only=False), default=0)) + 1) + raw.to_numpy()
    first = np.sort(np.unique(pair, return_index=True)[1])
    sizes = np.bincount(row[first], minlength=len(offsets) - 1)
    return _lists(tokens[first], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
