"""Event table to per-user sequences in time order, and their splits without leaks."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from .events import Events
from .shards import read_batches, write_arrow
from .weights_implicitrec import COLUMNS

TARGETS = {name: f"target_{name}" for name in ("item_ids", "event_types", "timestamps", "counts")}
Bounds = tuple[np.ndarray, np.ndarray]
logger = logging.getLogger(__name__)


def build_sequences(events: Events, *, path: str | Path | None = None) -> Dataset:
    """One row a user with their history in time order, as a memory-mapped data set.

    Rows lie in buckets of users (one, up to a million and a half events), each sorted by `user_id`;
    events are in the order of time, then of the log, then of the source, never of the item. Columns:
    `user_id`, `item_ids`, and where present `timestamps` (int64 seconds since 1970 UTC), `event_types`,
    `durations`, `item_durations` (seconds), `counts`, `platforms`.

    Args:
        path: the Arrow stream file to write, whole or not at all; when None, a temporary file that
            goes when the process ends.
    """
    names = {old: new for old, new in COLUMNS.items() if old in events.columns}
    parts = (
        rows
        for shard in events.shards()
        for rows in _user_rows(_named(batch, names) for batch in shard)
    )
    first = next(parts)
    return write_arrow(chain([first], parts), first.schema, path)


def _named(batch: pa.RecordBatch, names: Mapping[str, str]) -> pa.RecordBatch:
    """Events with the names of the list columns, and times as whole seconds."""
    columns = {"user_id": batch["user_id"]} | {new: batch[old] for old, new in names.items()}
    if "timestamps" in columns:
        columns["timestamps"] = pc.floor(columns["timestamps"]).cast(pa.int64())
    return pa.RecordBatch.from_pydict(columns)


def leave_last_out(sequences: Dataset, *, target_event_types: Sequence[str] = ()) -> DatasetDict:
    """Test on each user's last event, validate on the one before, train on the rest.

    Users with fewer than three events are in train only, whole. Rows of `validation` and `test`
    hold the history before the target in the list columns, and the target in `target_item_ids` and,
    where present, `target_event_types`, `target_timestamps`, `target_counts`; with times also
    `query_time`, the moment of asking, which is the target's.

    Args:
        sequences: as `build_sequences` makes them.
        target_event_types: only events of these types are targets: the last of them is the test, the one
            before the validation, with events of all types before each as its history. Train ends before
            the validation target. Users without two such events and a history are in train only, whole.

    Raises:
        ValueError: for target types that the log does not have.

    >>> log = Dataset.from_dict({"user_id": [7], "item_ids": [[1, 2, 3, 4]]})
    >>> test = leave_last_out(log)["test"]
    >>> test[0]
    {'user_id': 7, 'item_ids': [1, 2, 3], 'target_item_ids': [4]}
    """
    _check_types(sequences, target_event_types)
    column = None if "timestamps" in sequences.column_names else _sorted_by(sequences)
    if column:
        logger.warning(
            "the log has no times, and each user's rows are sorted by %s: the last one, the test, is no "
            "later than the others, and that order is what a model learns. Mix the rows before, as by "
            "DataFrame.sample(frac=1), unless they really came so",
            column,
        )

    def train(batch: pa.RecordBatch) -> pa.RecordBatch:
        place, held = _last_place(batch, 2, target_event_types)
        return _cut(batch, (np.zeros_like(place), np.where(held, place, _lengths(batch))))

    def held_out(last: int) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        def cut(batch: pa.RecordBatch) -> pa.RecordBatch:
            held = _last_place(batch, 2, target_event_types)[1]
            batch = batch.filter(pa.array(held, pa.bool_()))
            place = _last_place(batch, last, target_event_types)[0]
            parts = _cut(batch, (np.zeros_like(place), place), (place, place + 1))
            if "timestamps" not in parts.schema.names:
                return parts
            return parts.append_column("query_time", parts["target_timestamps"].flatten())

        return cut

    return _split(sequences, {"train": train, "validation": held_out(2), "test": held_out(1)})


def temporal_split(
    sequences: Dataset,
    *,
    test_seconds: float,
    validation_seconds: float | None = None,
    target_event_types: Sequence[str] = (),
) -> DatasetDict:
    """Split all users at two moments, so that no training event is later than any target.

    With T_test = last time - `test_seconds` and T_validation = T_test - `validation_seconds`: train
    holds the events before T_validation; validation the history before T_validation and the targets
    in [T_validation, T_test); test the history before T_test and the targets from T_test on, T_test
    included; `query_time`, the moment of asking, is the start of the period. Users without history or
    without targets are not evaluated. `before_test` holds the events before T_test of everybody: what the
    final model, its settings once chosen, learns from.

    Args:
        sequences: with `timestamps` in time order, as `build_sequences` makes them.
        test_seconds: length of the test period; `validation_seconds` is the same when None.
        target_event_types: only events of these types are targets; the histories hold all types.

    Raises:
        ValueError: for no timestamps, a period that is not positive, target types that the log does not
            have, or an empty split.
    """
    if "timestamps" not in sequences.column_names:
        raise ValueError(f"temporal_split needs timestamps, columns are {sequences.column_names}")
    validation_seconds = test_seconds if validation_seconds is None else validation_seconds
    if not (test_seconds > 0 and validation_seconds > 0):
        raise ValueError(f"periods must be positive, got {test_seconds}, {validation_seconds}")
    _check_types(sequences, target_event_types)
    test_start = max(_last_times(sequences), default=0) - test_seconds
    validation_start = test_start - validation_seconds

    period = partial(_cut_period, target_event_types=target_event_types)
    cuts = {
        "train": partial(_cut_before, moment=validation_start),
        "before_test": partial(_cut_before, moment=test_start),
        "validation": partial(period, start=validation_start, end=test_start),
        "test": partial(period, start=test_start, end=np.inf),
    }
    splits = _split(sequences, cuts)
    empty = [name for name, rows in splits.items() if not len(rows)]
    if empty:
        raise ValueError(
            f"splits {empty} are empty with test_seconds={test_seconds} and "
            f"validation_seconds={validation_seconds}; choose other periods"
        )
    return splits


def collapse_repeats(sequences: Dataset) -> Dataset:
    """Merge a user's events of one item (and event type) into one, at the last occurrence.

    Counts add up, a missing one being 1, so `counts` is always present and can serve as a weight;
    durations add up too; all other columns are those of the last occurrence.

    >>> log = Dataset.from_dict({"user_id": [7], "item_ids": [[5, 6, 5]]})
    >>> collapse_repeats(log)[0]
    {'user_id': 7, 'item_ids': [6, 5], 'counts': [1.0, 2.0]}
    """
    schema = sequences.features.arrow_schema.remove_metadata()
    if "counts" not in schema.names:
        schema = schema.append(pa.field("counts", pa.list_(pa.float64())))
    return write_arrow(
        (_collapse(batch, schema) for batch in read_batches(sequences)), schema, None
    )


def _user_rows(reader: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Event rows sorted by user to one row a user; the last user of a batch waits for the next."""
    waiting: list[pa.RecordBatch] = []
    for batch in (batch for batch in reader if batch.num_rows):
        user = batch["user_id"]
        last = batch.num_rows - 1
        start = int(pc.index(user, user[last]).as_py())
        same = bool(waiting) and waiting[-1]["user_id"][0] == user[last]
        if start or not same:
            done = [*waiting, batch.slice(0, start)]
            if sum(part.num_rows for part in done):
                yield _to_lists(pa.Table.from_batches(done))
            waiting = []
        waiting.append(batch.slice(start))
    if waiting:
        yield _to_lists(pa.Table.from_batches(waiting))


def _to_lists(table: pa.Table) -> pa.RecordBatch:
    """Whole users' events to lists, the user boundaries being the offsets."""
    table = table.combine_chunks()
    user = table["user_id"].combine_chunks()
    changes = pc.not_equal(user.slice(1), user.slice(0, len(user) - 1))
    starts = np.flatnonzero(changes.to_numpy(zero_copy_only=False)) + 1
    offsets = pa.array(np.concatenate([[0], starts, [len(user)]]), pa.int32())
    lists = {
        name: pa.ListArray.from_arrays(offsets, table[name].combine_chunks())
        for name in table.column_names[1:]
    }
    users = user.take(offsets.slice(0, len(offsets) - 1))
    return pa.RecordBatch.from_pydict({"user_id": users, **lists})


def _split(
    sequences: Dataset, cuts: Mapping[str, Callable[[pa.RecordBatch], pa.RecordBatch]]
) -> DatasetDict:
    """Apply each cut to every batch of the sequences; each split is a file of its own."""
    empty = pa.RecordBatch.from_pylist([], schema=sequences.features.arrow_schema)
    splits = {}
    for name, cut in cuts.items():
        schema = cut(empty.replace_schema_metadata(None)).schema
        batches = (cut(batch) for batch in read_batches(sequences))
        splits[name] = write_arrow(batches, schema, None)
    return DatasetDict(splits)


def _lengths(batch: pa.RecordBatch) -> np.ndarray:
    return pc.list_value_length(batch["item_ids"]).to_numpy(zero_copy_only=False).astype(np.int64)


def _sorted_by(sequences: Dataset) -> str | None:
    """The column that only rises, or only falls, from event to event of nearly all users."""
    for name in [name for name in ("counts", "item_ids") if name in sequences.column_names]:
        rises, falls = 0, 0
        for batch in read_batches(sequences):
            values = batch[name].flatten()
            pairs = (values[1:], values[:-1])
            same = pa.array(np.diff(np.repeat(np.arange(batch.num_rows), _lengths(batch))) == 0)
            rises += pc.sum(pc.and_(pc.greater(*pairs), same)).as_py() or 0
            falls += pc.sum(pc.and_(pc.less(*pairs), same)).as_py() or 0
        if rises + falls > len(sequences) and max(rises, falls) >= 0.99 * (rises + falls):
            return name
    return None


def _check_types(sequences: Dataset, wanted: Sequence[str]) -> None:
    """Raise `ValueError` unless the log has events of every type."""
    if isinstance(wanted, str):
        raise ValueError(f"target_event_types: expected a list of types, got {wanted!r}")
    if not wanted:
        return
    if "event_types" not in sequences.column_names:
        raise ValueError(
            f"target_event_types need event_types, columns are {sequences.column_names}"
        )
    known: set = set()
    for batch in read_batches(sequences):
        known |= set(pc.unique(batch["event_types"].flatten()).to_pylist())
    absent = sorted(set(wanted) - known)
    if absent:
        found = sorted(name for name in known if name is not None)
        raise ValueError(f"target_event_types must be types of the log, {found}; got {absent}")


def _is_target(types: pa.Array, wanted: Sequence[str]) -> pa.Array:
    """For each event whether it is of a wanted type."""
    return pc.is_in(types.flatten(), value_set=pa.array(list(wanted), types.type.value_type))


def _last_place(
    batch: pa.RecordBatch, last: int, wanted: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the target is that is the `last` from the end, and which users have events held out."""
    length = _lengths(batch)
    if not wanted:
        return np.where(length < 3, 0, length - last), length >= 3
    target = _is_target(batch["event_types"], wanted).to_numpy(zero_copy_only=False)
    total = np.concatenate([[0], np.cumsum(target)])
    start = np.concatenate([[0], np.cumsum(length)])
    number = np.diff(total[start])
    at = np.append(np.flatnonzero(target), [0, 0])  # a user's n-th is found by those before it

    def place(distance: int) -> np.ndarray:
        return at[np.maximum(total[start[1:]] - distance, 0)] - start[:-1]

    held = (number >= 2) & (place(2) > 0)
    return np.where(held, place(last), 0), held


def _keep_targets(batch: pa.RecordBatch, wanted: Sequence[str]) -> pa.RecordBatch:
    """The rows with only those targets that are of a wanted type."""
    lists = batch["target_event_types"]
    kept = _is_target(lists, wanted)
    row = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
    size = np.bincount(row[kept.to_numpy(zero_copy_only=False)], minlength=len(lists))
    ends = np.concatenate([[0], np.cumsum(size)])
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name in TARGETS.values():
        if name in columns:
            values = columns[name].flatten().filter(kept)
            offsets = pa.array(ends, columns[name].offsets.type)
            columns[name] = type(columns[name]).from_arrays(offsets, values)
    return pa.RecordBatch.from_pydict(columns)


def _slice_lists(lists: pa.Array, bounds: Bounds) -> pa.Array:
    """The part [start, stop) of each list."""
    start, stop = bounds
    offsets = lists.offsets.to_numpy().astype(np.int64)
    values = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
    place = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))
    kept = (place >= np.repeat(start, np.diff(offsets))) & (
        place < np.repeat(stop, np.diff(offsets))
    )
    ends = np.concatenate([[0], np.cumsum(stop - start)])
    return type(lists).from_arrays(
        pa.array(ends, lists.offsets.type), values.filter(pa.array(kept))
    )


def _cut(batch: pa.RecordBatch, history: Bounds, target: Bounds | None = None) -> pa.RecordBatch:
    """List columns cut to the history, with the target's columns beside them if there is one."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        columns[name] = _slice_lists(column, history) if is_list else column
    if target is not None:
        for name, new in TARGETS.items():
            if name in batch.schema.names:
                columns[new] = _slice_lists(batch[name], target)
    return pa.RecordBatch.from_pydict(columns)


def _drop_empty(batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
    """Only the rows whose named lists hold something."""
    full = np.logical_and.reduce(
        [pc.list_value_length(batch[name]).to_numpy(zero_copy_only=False) > 0 for name in names]
    )
    return batch.filter(pa.array(full, pa.bool_()))


def _cut_before(batch: pa.RecordBatch, moment: float) -> pa.RecordBatch:
    """The events before a moment, of the users who have some."""
    stop = _events_before(batch, moment)
    return _drop_empty(_cut(batch, (np.zeros_like(stop), stop)), ["item_ids"])


def _cut_period(
    batch: pa.RecordBatch, start: float, end: float, target_event_types: Sequence[str]
) -> pa.RecordBatch:
    """Targets in [start, end) and the history before, of the users who have both."""
    first, last = _events_before(batch, start), _events_before(batch, end)
    parts = _cut(batch, (np.zeros_like(first), first), (first, last))
    parts = parts.append_column("query_time", pa.array(np.full(len(first), int(start))))
    if target_event_types:
        parts = _keep_targets(parts, target_event_types)
    return _drop_empty(parts, ["item_ids", "target_item_ids"])


def _last_times(sequences: Dataset) -> Iterator[float]:
    for batch in read_batches(sequences):
        times = batch["timestamps"].flatten()
        if len(times):
            yield pc.max(times).as_py()


def _events_before(batch: pa.RecordBatch, moment: float) -> np.ndarray:
    """How many events of each list are earlier than the moment (seconds since 1970 UTC)."""
    lists = batch["timestamps"]
    offsets = lists.offsets.to_numpy().astype(np.int64)
    earlier = lists.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]] < moment
    total = np.concatenate([[0], np.cumsum(earlier)])
    return np.diff(total[offsets - offsets[0]])


def _collapse(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """One event an item (and event type) in each row of the batch."""
    length = _lengths(batch)
    events = {
        name: column.flatten()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    }
    total = int(length.sum())
    counts = events.get("counts", pa.nulls(total, pa.float64()))
    events["counts"] = counts.fill_null(1)
    events |= {"row": pa.array(np.repeat(np.arange(len(length)), length))}
    events |= {"place": pa.array(np.arange(total))}
    keys = [name for name in ("row", "item_ids", "event_types") if name in events]
    sums = [(name, "sum") for name in ("counts", "durations") if name in events]
    groups = pa.table(events).group_by(keys, use_threads=False).aggregate([("place", "max"), *sums])
    groups = groups.sort_by("place_max").combine_chunks()
    merged = {
        name: values.take(groups["place_max"].combine_chunks()) for name, values in events.items()
    }
    merged |= {name: groups[f"{name}_sum"].combine_chunks() for name, _ in sums}
    sizes = np.bincount(groups["row"].to_numpy(), minlength=len(length))
    ends = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    lists = {
        name: pa.ListArray.from_arrays(ends, merged[name])
        for name in schema.names
        if name in merged
    }
    columns = [lists.get(name, batch[name] if name not in lists else None) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, names=schema.names)
