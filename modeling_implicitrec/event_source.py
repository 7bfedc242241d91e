"""Read a raw log from any source into a table of the engine that is to clean it."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import datasets
import ibis
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_implicitrec.engine import Engine

READERS = {
    ".parquet": ("read_parquet", {"union_by_name": True}),
    ".csv": ("read_csv", {"all_varchar": True, "header": True, "union_by_name": True}),
    ".tsv": ("read_csv", {"all_varchar": True, "header": True, "union_by_name": True}),
    ".jsonl": ("read_json", {"format": "newline_delimited", "sample_size": -1}),
    ".ndjson": ("read_json", {"format": "newline_delimited", "sample_size": -1}),
    ".json": ("read_json", {"format": "newline_delimited", "sample_size": -1}),
}

LogSource: TypeAlias = (
    str
    | Path
    | Sequence[str | Path]
    | datasets.Dataset
    | pd.DataFrame
    | pl.DataFrame
    | pa.Table
    | ibis.Table
)


def describe_source(source: LogSource) -> str:
    return str(source) if isinstance(source, (str, Path, list, tuple)) else type(source).__name__


def read_log(engine: Engine, source: LogSource, names: dict[str, str]) -> ibis.Table:
    """The source's columns as `names` (ours -> its) maps them, and `row`, the place there."""
    connection = engine.connection
    if isinstance(source, (str, Path, list, tuple)):
        table = _read_files(connection, source)
        found = list(table.columns)
    elif isinstance(source, (datasets.Dataset, pa.Table)):
        table, found = None, source.column_names
    elif isinstance(source, (pd.DataFrame, pl.DataFrame, ibis.Table)):
        table, found = None, list(source.columns)
    else:
        raise ValueError(f"source must be a path, Dataset, data frame or table, got {type(source)}")
    for name, column in names.items():
        if column not in found:
            raise ValueError(
                f"no column {column!r} (for {name}) in {describe_source(source)}; it has {found}"
            )
    wanted = list(dict.fromkeys(names.values()))
    if isinstance(source, ibis.Table):
        local = source.get_backend() is connection
        table = source if local else _copy(engine, source.select(wanted))
    elif isinstance(source, datasets.Dataset):
        table = _copy(engine, _batches(source, wanted))
    elif table is None:
        view = f"source_{uuid4().hex}"
        connection.con.register(view, _arrow(source, wanted))
        table = connection.table(view)
    return engine.number(table.select(**{name: table[column] for name, column in names.items()}))


def is_csv(source: LogSource) -> bool:
    first = source[0] if isinstance(source, (list, tuple)) and source else source
    return isinstance(first, (str, Path)) and str(first).removesuffix(".gz").endswith(
        (".csv", ".tsv")
    )


def _read_files(
    connection: ibis.BaseBackend, source: str | Path | Sequence[str | Path]
) -> ibis.Table:
    patterns = [source] if isinstance(source, (str, Path)) else source
    paths = [
        path
        for pattern in map(str, patterns)
        for path in ([pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern)))
    ]
    if not paths:
        raise FileNotFoundError(f"no file matches {describe_source(source)}")
    endings = {Path(path.removesuffix(".gz")).suffix.lower() for path in paths}
    if len(endings) > 1 or not endings <= READERS.keys():
        raise ValueError(
            f"files must be all of one kind of {sorted(READERS)}, got {sorted(endings)}"
        )
    reader, options = READERS[endings.pop()]
    return getattr(connection, reader)(paths, **options)  # type: ignore[arg-type]


def _copy(engine: Engine, source: ibis.Table | pa.RecordBatchReader) -> ibis.Table:
    """What lies on another engine, or can be streamed only once, by way of a Parquet file."""
    path = os.path.join(engine.folder, f"source-{uuid4().hex}.parquet")
    if isinstance(source, ibis.Table):
        source.to_parquet(path)
    else:
        with pq.ParquetWriter(path, source.schema, compression="lz4") as writer:
            for batch in source:
                writer.write_batch(batch)
    return engine.connection.read_parquet(path)


def _batches(source: datasets.Dataset, columns: list[str]) -> pa.RecordBatchReader:
    chosen = source.select_columns(columns).with_format("arrow")
    chunks = (batch for table in chosen.iter(100_000) for batch in table.to_batches())
    return pa.RecordBatchReader.from_batches(chosen.features.arrow_schema, chunks)


def _arrow(source: pd.DataFrame | pl.DataFrame | pa.Table, columns: list[str]) -> pa.Table:
    if isinstance(source, pd.DataFrame):
        return pa.Table.from_pandas(source[columns], preserve_index=False)
    if isinstance(source, pl.DataFrame):
        return source.select(columns).to_arrow()
    return source.select(columns)
