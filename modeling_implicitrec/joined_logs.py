"""Several prepared logs as one, each catalogue in a namespace of its own, to pretrain on."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets

from .processing_implicitrec import ImplicitRecProcessor
from .shards import read_batches, write_arrow
from .vocabulary_implicitrec import ItemVocabulary


@dataclass(frozen=True)
class JoinedLogs:
    """One catalogue and one set of rows made of several.

    Attributes:
        processor: its items are `"log:id"`, and its event types those of all logs by name. The weights
            of a log's events were made by the log's own processor, so this one decodes, and is no
            substitute for it: fine-tune on a log before serving it.
        splits: `train` and `validation` of all logs; times are kept where every log has them.
        tokens: by log, `[its vocab_size]`, the token of each of its items.
    """

    processor: ImplicitRecProcessor
    splits: DatasetDict
    tokens: dict[str, np.ndarray]


def join_logs(
    logs: Mapping[str, tuple[ImplicitRecProcessor, Mapping[str, Dataset]]],
) -> JoinedLogs:
    """Join encoded logs; users of different logs are different people, even under one id.

    Args:
        logs: by name, the processor and the encoded parts `train` and `validation`.

    Raises:
        ValueError: for no log.
    """
    if not logs:
        raise ValueError("expected one or more logs, got none")
    counts = np.concatenate([own.item_counts[1:] for own, _ in logs.values()])
    ids = [
        f"{name}:{item}"
        for name, (own, _) in logs.items()
        for item in own.decode_items(range(1, own.vocab_size))
    ]
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(1, len(order) + 1)
    types = list(dict.fromkeys(t for own, _ in logs.values() for t in own.event_types))
    factors = {t: w for own, _ in logs.values() for t, w in own.event_type_weights.items()}
    negative = {t for own, _ in logs.values() for t in own.negative_event_types}
    processor = ImplicitRecProcessor(
        factors, event_types=types, negative_event_types=sorted(negative)
    )
    processor.vocabulary = ItemVocabulary.from_counts([ids[at] for at in order], counts[order])
    timed = all("timestamps" in parts["train"].column_names for _, parts in logs.values())
    tokens, start = {}, 0
    joined: dict[str, list[Dataset]] = {"train": [], "validation": []}
    for name, (own, parts) in logs.items():
        size = own.vocab_size - 1
        tokens[name] = np.concatenate([[0], place[start : start + size]])
        start += size
        type_ids = np.array([0, *(types.index(t) + 1 for t in own.event_types)])
        for part, rows in joined.items():
            rows.append(_joined(parts[part], tokens[name], type_ids, timed, len(types) > 0))
    splits = {part: _numbered(concatenate_datasets(rows)) for part, rows in joined.items()}
    return JoinedLogs(processor, DatasetDict(splits), tokens)


def _joined(
    rows: Dataset, tokens: np.ndarray, type_ids: np.ndarray, timed: bool, typed: bool
) -> Dataset:
    """Rows in the tokens and types of all logs."""

    def part(batch: pa.RecordBatch) -> pa.RecordBatch:
        lists = {name: batch[name].flatten() for name in batch.schema.names if name in LISTS}
        ids = lists["input_ids"].to_numpy()
        columns = {"input_ids": _lists(batch["input_ids"], tokens[ids], pa.int32())}
        columns["input_weights"] = _lists(batch["input_weights"], lists["input_weights"])
        if timed:
            columns["timestamps"] = _lists(batch["timestamps"], lists["timestamps"])
        if typed:
            own = np.zeros(len(ids), np.int64)
            if "event_type_ids" in lists:
                own = type_ids[lists["event_type_ids"].to_numpy()]
            columns["event_type_ids"] = _lists(batch["input_ids"], own, pa.int16())
        columns["length"] = batch["length"].cast(pa.int64())
        if "target_ids" in lists:
            wanted = lists["target_ids"].to_numpy()
            wanted = np.where(wanted > 0, tokens[wanted.clip(0)], -1)
            columns["target_ids"] = _lists(batch["target_ids"], wanted, pa.int64())
        return pa.RecordBatch.from_pydict(columns)

    empty = pa.RecordBatch.from_pylist([], schema=rows.features.arrow_schema)
    schema = part(empty.replace_schema_metadata(None)).schema
    return write_arrow((part(batch) for batch in read_batches(rows)), schema, None)


LISTS = ("input_ids", "input_weights", "timestamps", "event_type_ids", "target_ids")


def _lists(
    like: pa.Array, values: np.ndarray | pa.Array, kind: pa.DataType | None = None
) -> pa.Array:
    lengths = like.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = values if isinstance(values, pa.Array) else pa.array(values, kind)
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _numbered(rows: Dataset) -> Dataset:
    return rows.add_column("row", np.arange(len(rows)).tolist())
