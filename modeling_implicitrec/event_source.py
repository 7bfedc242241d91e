"""Read a raw log from any source into a table of the engine that is to clean it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import datasets
import duckdb
import ibis
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from ibis import _

from .database_tables import is_database, read_database
from .engine import DuckDBEngine, Engine
from .event_columns import IDS, LABELS, NUMBERS, REASONS, column_of, text_of
from .source_files import Paths, find_files, hide_secrets
from .source_schema import ROW, LogFiles, missing_column

BATCH = 100_000  # rows of a Dataset in memory at a time
EXAMPLES = 3  # of each reason
PERIOD = "pandas.period"  # Arrow's name of pandas' days, weeks and months

LogSource: TypeAlias = (
    Paths
    | datasets.Dataset
    | datasets.IterableDataset
    | pd.DataFrame
    | pl.DataFrame
    | pa.Table
    | ibis.Table
)
FRAMES = (pd.DataFrame, pl.DataFrame, pa.Table)
SPLITS = (datasets.DatasetDict, datasets.IterableDatasetDict)


def describe_source(source: LogSource) -> str:
    """What to call a source in messages and reports: no password is in it.

    >>> describe_source("postgresql://me:secret@host/shop?table=events")
    'postgresql://me:***@host/shop?table=events'
    """
    if isinstance(source, (list, tuple)):
        return ", ".join(map(describe_source, source))
    return hide_secrets(str(source)) if isinstance(source, (str, Path)) else type(source).__name__


def by_platform(source: LogSource | Mapping[str, LogSource]) -> dict[str | None, LogSource]:
    """The log of each platform; of `None` where there is one log of all."""
    several = isinstance(source, Mapping) and not isinstance(source, SPLITS)
    return dict(source.items()) if several else {None: source}  # type: ignore[union-attr, dict-item]


@dataclass(frozen=True)
class RawLog:
    """A log that can be read, and where its rows come from.

    Args:
        table: our columns, untyped, and `row`, the place in the source.
        names: our name -> the source's.
        source: what to call it.
        files: where it is one of files.
        is_numbered: whether `row` counts without gaps.
    """

    table: ibis.Table
    names: dict[str, str]
    source: str
    files: LogFiles | None = None
    is_numbered: bool = True

    @property
    def is_csv(self) -> bool:
        """Whether all columns came as text."""
        return self.files is not None and self.files.kind == "CSV"

    def place(self, row: int) -> tuple[str, int | None]:
        """File (or source) and row there, the first being 1; None where rows have no number."""
        if self.files is not None:
            return self.files.locate(row)
        return self.source, row + 1 if self.is_numbered else None

    def explain(self, error: Exception) -> ValueError:
        """What went wrong while reading, and in which file."""
        if self.files is not None and isinstance(error, duckdb.Error):
            return self.files.explain(error)
        return ValueError(f"could not read {self.source}: {hide_secrets(str(error))}")


def read_log(engine: Engine, source: LogSource, names: dict[str, str]) -> RawLog:
    """The source's columns as `names` (ours -> its) maps them; files are compared before.

    Raises:
        FileNotFoundError, ImportError: as of `find_files` and `read_database`.
        ValueError: for a missing or wrongly typed column, naming the file, or no known source.
    """
    shown, files = describe_source(source), None
    try:
        if isinstance(source, (str, Path, list, tuple)) and not is_database(source):
            paths, kind = find_files(engine.connection, source)
            files = LogFiles(engine.connection.con, paths, kind, names)
            view = f"files_{uuid4().hex}"
            files.create_view(view)
            table = engine.connection.table(view)
        else:
            table = _read_table(engine, source, names)
    except (duckdb.Error, pa.ArrowException) as error:
        raise ValueError(f"could not read {shown}: {hide_secrets(str(error))}") from error
    # Ours, not the log's names: two of ours may be one column there.
    columns = {name: table[names[name]] for name in names}
    known = ROW in table.columns
    numbered = (
        table.select(**columns, row=table[ROW]) if known else engine.number(table.select(**columns))
    )
    log = RawLog(numbered, names, shown, files, isinstance(engine, DuckDBEngine))
    _check_types(log)
    return log


def refuse_unreadable(log: RawLog, names: tuple[str, ...]) -> None:
    """Raise for a column of which no value can be read, with the first one's place."""
    for name in names:
        wanted = {
            "timestamp": "a time, an ISO string or a number of seconds since 1970",
            "order": "whole numbers",
        }.get(name, "numbers")
        text = log.table.select("row", text=text_of(log.table[name])).filter(_.text.notnull())
        first = text.order_by("row").limit(1).to_pyarrow().to_pylist()[0]
        file, row = log.place(int(first["row"]))
        where = file if row is None else f"{file}, row {row}"
        raise ValueError(
            f"{where}, column {log.names[name]!r}: {name} must be {wanted}; "
            f"none could be read, for example {first['text'][:80]!r}"
        )


def find_examples(
    log: RawLog, staged: ibis.Table, first_row: int
) -> dict[str, list[dict[str, Any]]]:
    """The first rows of each reason in the staged events: file, row, column and value.

    Args:
        first_row: number of the log's first row among those staged.
    """
    bad = staged.filter(_.reason.notnull())
    window = ibis.window(group_by="reason", order_by="row")
    first = bad.select("reason", "row", place=ibis.row_number().over(window))
    places: dict[str, list[int]] = {}
    found = first.filter(first.place < EXAMPLES).order_by("reason", "row").to_pyarrow()
    for number, row in zip(found["reason"].to_pylist(), found["row"].to_pylist()):
        places.setdefault(REASONS[number], []).append(row - first_row)
    rows = sorted({row for found in places.values() for row in found})
    if not rows:
        return {}
    texts = {name: text_of(log.table[name]) for name in log.names}
    chosen = log.table.select("row", **texts).filter(_.row.isin(rows)).to_pyarrow().to_pylist()
    values = {int(one["row"]): one for one in chosen}
    return {
        reason: [
            dict(zip(("file", "row"), log.place(row)))
            | {"column": log.names[column_of(reason)]}
            | {"value": (values[row][column_of(reason)] or "")[:80] or None}
            for row in found
        ]
        for reason, found in places.items()
    }


def _check_types(log: RawLog) -> None:
    """Refuse a column whose type cannot hold what is wanted."""
    for name, column in log.names.items():
        kind = log.table[name].type()
        is_plain = not (kind.is_nested() or kind.is_binary())
        is_number = kind.is_numeric() or kind.is_string() or kind.is_null()
        if name in (*IDS, *LABELS):
            expected = "" if is_plain else "plain values"
        elif name in (*NUMBERS, "order"):
            expected = "" if is_number and not kind.is_boolean() else "numbers"
        else:
            is_time = kind.is_timestamp() or kind.is_date() or is_number and not kind.is_boolean()
            expected = "" if is_time else "times, ISO strings or numbers"
        if expected:
            place = log.source if log.files is None else log.place(0)[0]
            raise ValueError(
                f"{place}, column {column!r} (for {name}) must hold {expected}, got {kind}"
            )


def _read_table(engine: Engine, source: Any, names: dict[str, str]) -> ibis.Table:
    """The wanted columns of what is no file."""

    def choose(found: list[str]) -> list[str]:
        for name, column in names.items():
            if column not in found:
                raise missing_column(name, column, describe_source(source), found)
        return list(dict.fromkeys(names.values()))

    connection = engine.connection
    if isinstance(source, SPLITS):
        example = next(iter(source), "train")
        raise ValueError(
            f"{type(source).__name__} has the splits {list(source)}: choose one, as in "
            f"source[{example!r}]"
        )
    if is_database(source):
        return read_database(connection, engine.folder, source, choose)
    if isinstance(source, ibis.Table):
        chosen = source.select(choose(list(source.columns)))
        return chosen if source.get_backend() is connection else _copy(engine, chosen)
    if isinstance(source, datasets.Dataset):
        return _copy(engine, _batches(source.select_columns(choose(source.column_names))))
    if isinstance(source, datasets.IterableDataset):
        return _copy(engine, _stream(source, choose(_columns(source))))
    if not isinstance(source, FRAMES):
        raise ValueError(f"source must be a path, Dataset, data frame or table, got {type(source)}")
    found = source.column_names if isinstance(source, pa.Table) else list(source.columns)
    view = f"source_{uuid4().hex}"
    connection.con.register(view, _arrow(source, choose(found)))
    return connection.table(view)


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


def _batches(source: datasets.Dataset) -> pa.RecordBatchReader:
    chosen = source.with_format("arrow")
    chunks = (batch for table in chosen.iter(BATCH) for batch in table.to_batches())
    return pa.RecordBatchReader.from_batches(chosen.features.arrow_schema, chunks)


def _columns(source: datasets.IterableDataset) -> list[str]:
    """Of a stream that does not know its columns, those of its first row."""
    return source.column_names or list(next(iter(source), {}))


def _stream(source: datasets.IterableDataset, columns: list[str]) -> pa.RecordBatchReader:
    """The stream's batches, of the types of its features or of the first batch."""
    tables = source.select_columns(columns).with_format("arrow").iter(BATCH)
    first = next(tables, None)
    if first is None:
        raise ValueError("the log IterableDataset is empty")
    schema = source.features.arrow_schema if source.features else first.schema
    schema = pa.schema([schema.field(column) for column in columns])

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first.select(columns).cast(schema).to_batches()
        for table in tables:
            yield from table.select(columns).cast(schema).to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())


def _arrow(source: pd.DataFrame | pl.DataFrame | pa.Table, columns: list[str]) -> pa.Table:
    if isinstance(source, pd.DataFrame):
        table = pa.Table.from_pandas(source[columns], preserve_index=False)
    elif isinstance(source, pl.DataFrame):
        table = source.select(columns).to_arrow()
    else:
        table = source.select(columns)
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType) and field.type.extension_name == PERIOD:
            starts = table[place].to_pandas().dt.start_time  # DuckDB sees a number of days or weeks
            table = table.set_column(place, field.name, pa.array(starts))
    return table
