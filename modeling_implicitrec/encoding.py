"""Sequences in outside ids -> encoded sequences: tokens, weights and targets, without per-row Python."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict
from scipy import sparse
from tqdm.auto import tqdm

from .baselines import EASE
from .names_implicitrec import CodedNames
from .pairs_implicitrec import (
    BACKWARD,
    GAP_POWER,
    SOURCE_POWER,
    TARGET_POWER,
    WINDOW,
    relative_frequency,
)
from .processing_implicitrec import ImplicitRecProcessor
from .shards import map_ahead, read_batches, write_arrow
from .weights_implicitrec import COLUMNS, is_any

logger = logging.getLogger(__name__)

FLAT_NAMES = {plural: name for name, plural in COLUMNS.items() if name != "timestamp"}
NAMED = ("event_types", "target_event_types", "platforms")
SMALL = {"input_ids": pa.int32(), "event_type_ids": pa.int16(), "platform_ids": pa.int16()}


class TrainingBatch(Mapping):
    """The events of a record batch of sequences as flat columns, each read when it is asked for."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._names = {FLAT_NAMES[n]: n for n in FLAT_NAMES if n in batch.schema.names}

    def __getitem__(self, name: str) -> np.ndarray | CodedNames:
        if name == "item_id":
            return _coded(self._batch["item_ids"].flatten())
        return _flat(self._batch, self._names[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class TrainingColumns:
    """A split's events for `ImplicitRecProcessor.fit`: batches of flat columns, in bounded memory."""

    def __init__(self, train: Dataset) -> None:
        self._train = train

    def __iter__(self) -> Iterator[TrainingBatch]:
        return (TrainingBatch(batch) for batch in read_batches(self._train))


def training_columns(train: Dataset) -> TrainingColumns:
    """The training part's events as batches of flat columns, for `ImplicitRecProcessor.fit`."""
    return TrainingColumns(train)


def flat_column(rows: Dataset, name: str) -> tuple[pa.Array, np.ndarray]:
    """The values of a list column end to end, and the row offsets into them."""
    return _flatten(_column(rows, name))


def _flatten(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return column.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _flat(batch: pa.RecordBatch, name: str) -> np.ndarray | CodedNames:
    """The values of a list column for the processor: names as codes, all else as numpy."""
    values = batch[name].flatten()
    return _coded(values) if name in NAMED else _numpy(values)


def _coded(values: pa.Array) -> CodedNames:
    coded = values.dictionary_encode()
    return CodedNames(_numpy(coded.indices.fill_null(-1)), _numpy(coded.dictionary))


def encode_sequences(
    rows: Dataset, processor: ImplicitRecProcessor, *, path: str | Path | None = None
) -> Dataset:
    """Encode one part: `user_id`, `input_ids`, `input_weights`, `length` and what else there is.

    Events of items that the processor does not know are left out and counted in the log. Evaluation
    rows also get `target_ids`: each distinct target once, -1 for one that no score can reach; an event of
    a negative type is none. Works a batch at a time, in bounded memory.

    Args:
        path: the Arrow file to write, whole or not at all; when None, a temporary file that goes when
            the process ends.
    """
    empty = pa.RecordBatch.from_pylist([], schema=rows.features.arrow_schema)
    schema = _encode(empty.replace_schema_metadata(None), processor)[0].schema
    unknown = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal unknown
        first = 0
        with tqdm(total=len(rows), desc="encoding", unit=" users", disable=None) as bar:
            for encoded, left_out in map_ahead(
                lambda batch: _encode(batch, processor), read_batches(rows)
            ):
                row = pa.array(np.arange(first, first + encoded.num_rows))
                yield encoded.set_column(encoded.schema.get_field_index("row"), "row", row)
                first, unknown = first + encoded.num_rows, unknown + left_out
                bar.update(encoded.num_rows)

    encoded = write_arrow(batches(), schema, path)
    if unknown:
        logger.info("%s events of unknown items left out", f"{unknown:,}")
    return encoded


def _encode(batch: pa.RecordBatch, processor: ImplicitRecProcessor) -> tuple[pa.RecordBatch, int]:
    """A record batch of sequences encoded, and how many events of unknown items it had."""
    weighing = ["timestamps", *(name for name in FLAT_NAMES if name != "item_ids")]
    flat: dict = {name: _flat(batch, name) for name in weighing if name in batch.schema.names}
    items, offsets = _flatten(batch["item_ids"])
    coded = _coded(items)
    encoded = processor.encode_flat(coded.names, offsets, codes=coded.codes, **flat)
    if "timestamps" in flat:
        encoded["timestamps"] = flat["timestamps"]
    known = encoded["input_ids"] > 0
    kept = np.concatenate([[0], np.cumsum(known)])[offsets]
    columns: dict[str, pa.Array] = {"user_id": batch["user_id"]}
    for name, values in encoded.items():
        columns[name] = _lists(pa.array(values[known], SMALL.get(name)), kept)
    columns["length"] = pa.array(np.diff(kept))
    columns["row"] = pa.array(np.arange(len(kept) - 1))
    if "target_item_ids" in batch.schema.names:
        columns["target_ids"] = _targets(batch, processor)
    return pa.RecordBatch.from_pydict(columns), int((~known).sum())


def encode_splits(splits: Mapping[str, Dataset], processor: ImplicitRecProcessor) -> DatasetDict:
    """Encode every part of a split."""
    return DatasetDict({name: encode_sequences(rows, processor) for name, rows in splits.items()})


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
    values, offsets = flat_column(train, "input_ids")
    tokens = _numpy(values)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    evidence = _numpy(flat_column(train, "input_weights")[0]) if weighted else np.ones(len(tokens))
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


def _lists(values: pa.Array, offsets: np.ndarray) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)


def _targets(rows: pa.RecordBatch, processor: ImplicitRecProcessor) -> pa.Array:
    """Each distinct target of a row once, in the order of the log."""
    items, offsets = _flatten(rows["target_item_ids"])
    coded = items.dictionary_encode()
    codes = _numpy(coded.indices)
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if processor.negative_event_types and "target_event_types" in rows.schema.names:
        types = _flat(rows, "target_event_types")
        wanted = ~is_any(types, processor.negative_event_types)
        codes, row = codes[wanted], row[wanted]
    first = np.sort(np.unique(row * (len(coded.dictionary) + 1) + codes, return_index=True)[1])
    tokens = processor.encode_items(_numpy(coded.dictionary))[codes[first]]
    sizes = np.bincount(row[first], minlength=len(offsets) - 1)
    return _lists(pa.array(tokens), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
