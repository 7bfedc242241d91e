"""Sequences in outside ids -> encoded sequences: tokens, weights and targets, without per-row Python."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from .names_implicitrec import CodedNames
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
    rows also get `query_time`, where the split has it, and `target_ids`: each distinct target once, -1 for
    one that no score can reach; an event of a negative type is none. Works a batch at a time, in bounded
    memory.

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
    if "query_time" in batch.schema.names:
        columns["query_time"] = batch["query_time"]
    return pa.RecordBatch.from_pydict(columns), int((~known).sum())


def encode_splits(splits: Mapping[str, Dataset], processor: ImplicitRecProcessor) -> DatasetDict:
    """Encode every part of a split.

    Raises:
        ValueError: for rows that are not split; [`encode_sequences`] takes them.
    """
    if not isinstance(splits, Mapping):
        raise ValueError(
            "expected the parts of a split, as leave_last_out gives them; rows alone go through "
            f"encode_sequences; got {type(splits).__name__}"
        )
    return DatasetDict({name: encode_sequences(rows, processor) for name, rows in splits.items()})


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
