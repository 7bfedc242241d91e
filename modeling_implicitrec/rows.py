"""Encoded sequences as Trainer reads them: a row is a few slices of memory-mapped columns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch.utils import data
from transformers import TrainingArguments

Row = dict[str, Any]  # an encoded sequence: by column a value, or one for each event


def check_encoded(row: Mapping[str, Any], *columns: str) -> None:
    """Raise `ValueError` where a row is no encoded sequence with these columns.

    >>> check_encoded({"user_id": 7, "item_id": "tea"}, "input_ids")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: expected encoded sequences with input_ids, as ... got rows with user_id, item_id
    """
    if not row.keys() >= set(columns):
        raise ValueError(
            f"expected encoded sequences with {' and '.join(columns)}, as recipes/prepare.py writes them "
            f"and encode_splits(splits, processor) makes them; got rows with {', '.join(row) or 'nothing'}"
        )


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


class GroupedRows(SequenceRows):
    """Rows in an order in which consecutive ones take about as many positions, so that little is padding.

    All rows are mixed anew each epoch. Then the rows of some hundred steps at a time are sorted by length,
    equal ones staying mixed, and cut into steps, which are mixed again. The order depends on the seed and
    the epoch alone, so that a resumed run goes on in it; and a step's rows do not depend on how many
    processes share them. Trainer reads the rows as they come (`train_sampling_strategy="sequential"`) and
    tells the epoch.

    A step that is one batch has histories of one length. As the loss is a mean over the step, an event of
    a short history then counts more than one of a long history. With several `batches` to a step, the
    first has short histories and the last long ones: all steps have about as many events.

    Args:
        rows: of [`SequenceRows`].
        lengths: the positions that each of a list of rows takes, as of
            [`~DataCollatorForNextItem.lengths`].
        step_rows: rows of an optimizer's step: a batch's, times processes, times accumulated batches.
        batches: that a step accumulates; divides `step_rows`.
        group_steps: steps that are sorted at once; more of them leave less padding.
        seed: of the order.

    >>> rows = Dataset.from_dict({"input_ids": [[1], [2, 3], [4], [5, 6]]})
    >>> sizes = lambda some: np.array([len(row["input_ids"]) for row in some])
    >>> sizes(GroupedRows(rows, sizes, step_rows=2)).tolist()
    [1, 1, 2, 2]
    """

    def __init__(
        self,
        rows: Dataset,
        lengths: Callable[[list[Row]], np.ndarray],
        *,
        step_rows: int,
        batches: int = 1,
        group_steps: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(rows)
        if step_rows < 1 or group_steps < 1:
            raise ValueError(f"expected positive sizes, got {step_rows} rows, {group_steps} steps")
        if batches < 1 or step_rows % batches:
            raise ValueError(f"batches must divide the {step_rows} rows of a step, got {batches}")
        self.lengths, self.step_rows, self.seed = lengths, step_rows, seed
        self.batches = batches
        steps = -(-len(rows) // step_rows)
        groups = max(1, round(steps / group_steps))
        ends = np.linspace(0, steps, groups + 1).astype(np.int64) * step_rows
        self._bounds = np.minimum(ends, len(rows))
        self.epoch = -1
        self.set_epoch(0)

    @classmethod
    def of_run(
        cls,
        rows: Dataset,
        lengths: Callable[[list[Row]], np.ndarray],
        training: TrainingArguments,
    ) -> Self:
        """In the steps of a run, whose arguments then tell Trainer to read the rows as they come."""
        training.train_sampling_strategy = "sequential"
        batches = training.gradient_accumulation_steps
        step = training.train_batch_size * training.world_size * batches
        return cls(rows, lengths, step_rows=step, batches=batches, seed=training.seed)

    def set_epoch(self, epoch: int) -> None:
        """Mix the rows for an epoch; accelerate's loader calls it."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        self._mixed = np.random.default_rng((self.seed, epoch)).permutation(len(self))
        self._group = -1

    def __getitem__(self, index: int) -> Row:
        group = int(np.searchsorted(self._bounds, index, side="right")) - 1
        if 0 <= index < len(self):
            if group != self._group:
                self._group, self._order = group, self._sorted(group)
            index = int(self._order[index - self._bounds[group]])
        return super().__getitem__(index)

    def _sorted(self, group: int) -> np.ndarray:
        """The rows of a group, step by step; a step of fewer rows comes last."""
        rows = self._mixed[self._bounds[group] : self._bounds[group + 1]]
        read = super().__getitem__
        order = np.argsort(self.lengths([read(row) for row in rows]), kind="stable")
        steps, rest = divmod(len(rows), self.step_rows)
        generator = np.random.default_rng((self.seed, self.epoch, group))
        start = generator.integers(steps + 1) * self.step_rows
        last = order[start : start + rest]
        order = np.delete(order, slice(start, start + rest))
        batches = order.reshape(self.batches, steps, self.step_rows // self.batches)
        for alike in batches:
            generator.shuffle(alike)
        return rows[np.concatenate([batches.swapaxes(0, 1).ravel(), last])]


class RowTables:
    """Columns of lists as padded tables of many rows at once, for which no row becomes an object.

    Args:
        rows: with list columns of numbers.
        names: the columns to read.

    >>> tables = RowTables(Dataset.from_dict({"input_ids": [[3], [1, 2, 4]]}), ["input_ids"])
    >>> tables.latest("input_ids", np.array([1, 0]), 2).tolist()
    [[2, 4], [3, 0]]
    """

    def __init__(self, rows: Dataset, names: Sequence[str]) -> None:
        table = rows.select_columns(list(names)).with_format("arrow")[:]
        self.columns = {name: _column(table[name].combine_chunks()) for name in names}

    def latest(self, name: str, places: np.ndarray, most: int | None = None) -> np.ndarray:
        """The last values, at most so many, of each of these rows: `[places, longest]`, 0 on the right."""
        values, offsets = self.columns[name]
        ends = offsets[places + 1].astype(np.int64)
        sizes = np.minimum(ends - offsets[places], len(values) if most is None else most)
        column = np.arange(sizes.max(initial=1))
        filled = column < sizes[:, None]
        table = np.zeros(filled.shape, dtype=values.dtype)
        table[filled] = values[((ends - sizes)[:, None] + column)[filled]]
        return table

    def changed(self, change: Callable[[dict], dict]) -> "RowTables":
        """With every row, a mapping of its lists, as `change` makes it."""
        offsets = self.columns["input_ids"][1]
        made = [
            change({name: values[start:end] for name, (values, _) in self.columns.items()})
            for start, end in zip(offsets[:-1], offsets[1:])
        ]
        starts = np.cumsum([0, *(len(row["input_ids"]) for row in made)])
        other = copy(self)
        other.columns = {
            name: (np.concatenate([row[name] for row in made]), starts) for name in self.columns
        }
        return other


Column: TypeAlias = tuple[np.ndarray, np.ndarray] | np.ndarray | pa.Array


def _column(values: pa.Array) -> Column:
    """The numbers end to end and where each row starts, or the one value of each row.

    Nothing is copied: text stays Arrow's.
    """
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return values.to_numpy(zero_copy_only=False)
    return values.values.to_numpy(zero_copy_only=False), values.offsets.to_numpy()


def _value(column: Column, place: int) -> np.ndarray | int | str:
    if isinstance(column, tuple):
        values, offsets = column
        return values[offsets[place] : offsets[place + 1]]
    value = column[place]
    if isinstance(value, pa.Scalar):
        return value.as_py()
    return value.item() if isinstance(value, np.generic) else value
