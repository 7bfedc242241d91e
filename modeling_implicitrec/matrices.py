"""Encoded rows as flat arrays and user-item matrices."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from scipy import sparse

from .event_columns import SECONDS_PER_DAY
from .rows import Row

Rows: TypeAlias = Sequence[Row] | Dataset

# The columns of an encoded row that have a value for each event: inputs of a model.
INPUTS = ("input_ids", "input_weights", "timestamps", "event_type_ids", "platform_ids")


def flatten_column(rows: Rows, column: str) -> tuple[np.ndarray, np.ndarray]:
    """All values of a list column in one array, and the length of each row's list.

    Args:
        rows: a `datasets.Dataset`, read as Arrow without a loop, or a sequence of dicts.
        column: name of a list column.

    Raises:
        ValueError: if the column is missing.

    >>> flatten_column([{"input_ids": [3]}, {"input_ids": [1, 2]}], "input_ids")
    (array([3, 1, 2]), array([1, 2]))
    """
    if isinstance(rows, Dataset):
        if column not in rows.column_names:
            raise ValueError(f"rows need the column {column!r}, got {rows.column_names}")
        lists = rows.select_columns(column).with_format("arrow")[:].column(column)
        lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
        return pc.list_flatten(lists).to_numpy(), lengths
    missing = [index for index, row in enumerate(rows) if column not in row]
    if missing:
        raise ValueError(f"rows need the column {column!r}: row {missing[0]} has none")
    lists = [np.asarray(row[column]) for row in rows]
    lengths = np.array([len(values) for values in lists], dtype=np.int64)
    filled = [values for values in lists if len(values)]
    return (np.concatenate(filled) if filled else np.zeros(0, dtype=np.int64)), lengths


def flatten_tokens(rows: Rows, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """`input_ids` of all rows in one int64 array, and the row that each belongs to.

    Raises:
        ValueError: if a token is not in `1..vocab_size - 1`.

    >>> flatten_tokens([{"input_ids": [3]}, {"input_ids": [1, 2]}], 4)
    (array([3, 1, 2]), array([0, 1, 1]))
    """
    tokens, lengths = flatten_column(rows, "input_ids")
    tokens = tokens.astype(np.int64)
    if tokens.size and not 1 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(
            f"input_ids must lie in 1..{vocab_size - 1}, got {tokens.min()}..{tokens.max()}"
        )
    return tokens, np.repeat(np.arange(len(lengths)), lengths)


def first_events(tokens: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Which events are their row's first of their item, bool `[events]`; both as [`flatten_tokens`] gives.

    >>> first_events(np.array([3, 1, 3, 3]), np.array([0, 0, 0, 1])).tolist()
    [True, True, False, True]
    """
    first = np.zeros(len(tokens), dtype=bool)
    pairs = owners * (tokens.max(initial=0) + 1) + tokens
    first[np.unique(pairs, return_index=True)[1]] = True
    return first


def positive_events(rows: Rows, negative_event_type_ids: Sequence[int]) -> Rows:
    """The rows without their events of negative types: what counts, tables and baselines read.

    >>> rows = [{"input_ids": [3, 1], "event_type_ids": [1, 2], "target_ids": [4]}]
    >>> positive_events(rows, [2])
    [{'input_ids': [3], 'event_type_ids': [1], 'target_ids': [4]}]
    """
    if not negative_event_type_ids:
        return rows
    types, lengths = flatten_column(rows, "event_type_ids")
    kept = ~np.isin(types, negative_event_type_ids)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if not isinstance(rows, Dataset):
        masks = [kept[start:end] for start, end in zip(ends[:-1], ends[1:])]
        return [_kept_events(row, mask) for row, mask in zip(rows, masks)]
    sizes = np.concatenate([[0], np.cumsum(kept)])[ends]
    table = rows.with_format("arrow")[:]
    columns = {name: table[name] for name in table.column_names}
    for name in set(INPUTS) & set(columns):
        values = pc.list_flatten(columns[name]).combine_chunks().filter(pa.array(kept))
        columns[name] = pa.LargeListArray.from_arrays(pa.array(sizes, pa.int64()), values)
    columns["length"] = pa.array(np.diff(sizes))
    return Dataset(pa.table(columns))


def _kept_events(row: Row, kept: np.ndarray) -> Row:
    lists = {n: [v for v, k in zip(row[n], kept) if k] for n in INPUTS if n in row}
    return {**row, **lists}


def item_counts(rows: Rows, vocab_size: int) -> np.ndarray:
    """How many events each token has, int64 `[vocab_size]`.

    >>> item_counts([{"input_ids": [3, 3]}, {"input_ids": [1]}], 4).tolist()
    [0, 1, 0, 2]
    """
    return np.bincount(flatten_tokens(rows, vocab_size)[0], minlength=vocab_size)


def user_item_matrix(rows: Rows, vocab_size: int, days: float | None = None) -> sparse.csr_matrix:
    """How often each row holds each token, float32 `[rows, vocab_size]`, in the last days only if given."""
    tokens, owners = flatten_tokens(rows, vocab_size)
    if days is not None:
        recent = recent_events(rows, len(tokens), days)
        tokens, owners = tokens[recent], owners[recent]
    ones = np.ones(len(tokens), dtype=np.float32)
    matrix = sparse.csr_matrix((ones, (owners, tokens)), shape=(len(rows), vocab_size))
    matrix.sum_duplicates()
    return matrix


def binary_matrix(rows: Rows, vocab_size: int, days: float | None = None) -> sparse.csr_matrix:
    """Whether each row holds each token, float32 `[rows, vocab_size]`, in the last days only if given."""
    matrix = user_item_matrix(rows, vocab_size, days)
    matrix.data[:] = 1.0
    return matrix


def user_counts(rows: Rows, vocab_size: int, days: float | None = None) -> np.ndarray:
    """How many rows hold each token, int64 `[vocab_size]`, in the last days only if given.

    >>> user_counts([{"input_ids": [3, 3]}, {"input_ids": [1]}], 4).tolist()
    [0, 1, 0, 1]
    """
    return binary_matrix(rows, vocab_size, days).getnnz(0).astype(np.int64)


def recent_events(rows: Rows, num_events: int, days: float) -> np.ndarray:
    """Which events are of the last days, bool `[num_events]`."""
    if not days > 0:
        raise ValueError(f"days must be positive, got {days}")
    times, _ = flatten_column(rows, "timestamps")
    if len(times) != num_events:
        raise ValueError(f"expected {num_events} timestamps, got {len(times)}")
    return times > times.max(initial=0) - days * SECONDS_PER_DAY
