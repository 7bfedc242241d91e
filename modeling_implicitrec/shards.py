"""Data sets in shards on disk: written whole or not at all, and read a batch at a time."""

import atexit
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.table import ConcatenationTable, MemoryMappedTable, Table
from tqdm.auto import tqdm

A = TypeVar("A")
B = TypeVar("B")
SHARD_EVENTS = 4_000_000
BATCH_ROWS = 10_000
CACHE = ".cache"


def read_batches(rows: Dataset) -> Iterator[pa.RecordBatch]:
    """The rows as record batches.

    A file that the data set maps is read anew: what was read does not stay in memory, as the pages of a
    mapping do.
    """
    if rows._indices is not None:
        for part in rows.with_format("arrow").iter(BATCH_ROWS):
            yield from part.replace_schema_metadata(None).to_batches()
        return
    for block in _blocks(rows.data):
        if isinstance(block, MemoryMappedTable) and _is_whole(block):
            with pa.OSFile(block.path) as file, pa.ipc.open_stream(file) as batches:
                for batch in batches:
                    if batch.num_rows:
                        yield batch.replace_schema_metadata(None)
        else:
            yield from block.table.replace_schema_metadata(None).to_batches()


def _is_whole(table: MemoryMappedTable) -> bool:
    """Whether a table is its file, but for what the schema says beside the types."""
    return all(name == "replace_schema_metadata" for name, *_ in table.replays)


def _blocks(table: Table) -> list[Table]:
    """The parts of a table, one below the other."""
    if not isinstance(table, ConcatenationTable):
        return [table]
    if any(len(beside) > 1 for beside in table.blocks):
        return [table.combine_chunks()] if len(table.blocks) == 1 else [table]
    return [block for beside in table.blocks for block in beside]


def map_ahead(function: Callable[[A], B], values: Iterable[A], threads: int = 2) -> Iterator[B]:
    """Results in order, a few of them computed ahead in threads; numpy and Arrow let them run."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[B]] = deque()
        for value in values:
            waiting.append(pool.submit(function, value))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write_arrow(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: str | Path | None
) -> Dataset:
    """Write record batches to an Arrow stream file under a temporary name, rename it and map it.

    Args:
        path: of the file; when None, a temporary one that goes when the process ends.
    """
    if path is None:
        folder = tempfile.mkdtemp(prefix="sequences-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / "sequences.arrow"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pa.ipc.new_stream(str(temporary), schema) as writer:
            for batch in batches:
                writer.write_batch(batch.cast(schema))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Dataset.from_file(str(path))


def save_sequences(parts: Mapping[str, Dataset], folder: str | Path) -> None:
    """Write the parts of a split as Parquet shards, `folder/<part>/00000.parquet` and so on.

    All is written to a folder beside it, which is renamed at the end.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for name, rows in parts.items():
            _write_parquet(rows, partial / name)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_parquet(rows: Dataset, folder: Path) -> None:
    folder.mkdir(parents=True)
    schema = rows.features.arrow_schema

    def write(part: tuple[int, list[pa.RecordBatch]]) -> int:
        number, batches = part
        with pq.ParquetWriter(folder / f"{number:05d}.parquet", schema, compression="lz4") as file:
            for batch in batches:
                file.write_batch(batch.cast(schema))
        return sum(batch.num_rows for batch in batches)

    with tqdm(total=len(rows), desc=f"writing {folder.name}", unit=" users", disable=None) as bar:
        for written in map_ahead(write, enumerate(_shards(rows))):
            bar.update(written)


def _shards(rows: Dataset) -> Iterator[list[pa.RecordBatch]]:
    """The batches of each file; one file at the least."""
    shard: list[pa.RecordBatch] = []
    events = 0
    for batch in read_batches(rows):
        if events > SHARD_EVENTS:
            yield shard
            shard, events = [], 0
        shard.append(batch)
        events += int(batch["length"].sum().as_py()) if "length" in batch.schema.names else 0
    yield shard


def load_sequences(folder: str | Path) -> DatasetDict:
    """What [`save_sequences`] wrote, mapped into memory from a cache beside it.

    Raises:
        FileNotFoundError: where there is no such folder.
        ValueError: where a part of it is damaged.
    """
    folder = Path(folder)
    parts = sorted(path for path in folder.glob("*") if path.is_dir() and path.name != CACHE)
    if not parts:
        raise FileNotFoundError(f"no sequences in {folder}; recipes/prepare.py writes them")
    return DatasetDict({path.name: _load_parquet(path, folder / CACHE) for path in parts})


def _load_parquet(folder: Path, cache: Path) -> Dataset:
    """One part: the others may have other columns."""
    files = {folder.name: [str(path) for path in sorted(folder.glob("*.parquet"))]}
    try:
        return load_dataset("parquet", data_files=files, split=folder.name, cache_dir=str(cache))
    except (OSError, pa.ArrowInvalid, DatasetGenerationError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        why = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{folder}: the sequences are damaged ({why})") from error
