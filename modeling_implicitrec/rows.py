"""Encoded sequences as Trainer reads them: a row is a few slices of memory-mapped columns."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch.utils import data

Row = dict[str, np.ndarray | int | str]


class SequenceRows(data.Dataset):
    """The rows of a `datasets.Dataset` of sequences, of which none becomes a Python list.

    Args:
        rows: with list columns of numbers, as `encode_sequences` makes them.

    >>> rows = SequenceRows(Dataset.from_dict({"input_ids": [[3], [1, 2]], "row": [0, 1]}))
    >>> {name: np.size(value) for name, value in rows[1].items()}
    {'input_ids': 2, 'row': 1}
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self._chosen = None if rows._indices is None else rows._indices.column(0).to_numpy()
        batches = rows.data.table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._batches = [
            {name: _column(batch[name]) for name in rows.column_names} for batch in batches
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"rows are 0 to {len(self) - 1}, got {index}")
        index = int(index if self._chosen is None else self._chosen[index])
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[part])
        return {name: _value(column, place) for name, column in self._batches[part].items()}

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        return [self[index] for index in indices]

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


Column = tuple[np.ndarray, np.ndarray] | np.ndarray


def _column(values: pa.Array) -> Column:
    """The numbers end to end and where each row starts, or the one value of each row."""
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return values.to_numpy(zero_copy_only=False)
    return values.values.to_numpy(zero_copy_only=False), values.offsets.to_numpy()


def _value(column: Column, place: int) -> np.ndarray | int | str:
    if isinstance(column, tuple):
        values, offsets = column
        return values[offsets[place] : offsets[place + 1]]
    value = column[place]
    return value.item() if isinstance(value, np.generic) else value
