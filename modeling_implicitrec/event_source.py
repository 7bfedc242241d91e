"""Read a raw log from any source into typed columns, with the reason why a row cannot be used."""

import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import datasets
import ibis
import pandas as pd
import polars as pl
import pyarrow as pa
from ibis import _

IDS = ("user_id", "item_id")
STRENGTHS = ("duration", "count")
NUMBERS = ("duration", "item_duration", "count")
LABELS = ("event_type", "platform")
# A median time above the first number is in the unit beside it (1e11 s is the year 5138).
TIME_UNITS = ((1e17, 1e9, "nanoseconds"), (1e14, 1e6, "microseconds"), (1e11, 1e3, "milliseconds"))
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


class Workspace:
    """A DuckDB file database in a temporary folder, the report in the making, and named stages."""

    def __init__(self, memory_limit: str | None, temp_directory: str | None) -> None:
        folder = tempfile.mkdtemp(prefix="events-", dir=temp_directory)
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
        memory = memory_limit or f"{half}MiB"
        self.folder = folder
        self.connection = ibis.duckdb.connect(
            os.path.join(folder, "events.duckdb"), memory_limit=memory, temp_directory=folder
        )
        self.dropped: dict[str, int] = {}
        self.notes: dict[str, int | float | str] = {}
        self._stages = 0
        self.close = weakref.finalize(self, _discard, self.connection, folder)

    def materialise(self, expression: ibis.Table, replaced: ibis.Table | None = None) -> ibis.Table:
        """Write an expression to a table of its own; drop the table that it replaces."""
        self._stages += 1
        table = self.connection.create_table(f"stage_{self._stages}", expression)
        if replaced is not None:
            self.connection.con.execute(f"DROP TABLE {replaced.get_name()}")
        return table

    def keep(self, before: ibis.Table, after: ibis.Table, reason: str) -> ibis.Table:
        """Materialise `after`, made from `before`, and count the rows lost under `reason`."""
        rows_before = count_rows(before)
        table = self.materialise(after, before)
        lost = rows_before - count_rows(table)
        if lost:
            self.dropped[reason] = self.dropped.get(reason, 0) + lost
        return table


def _discard(connection: ibis.BaseBackend, folder: str) -> None:
    connection.disconnect()
    shutil.rmtree(folder, ignore_errors=True)


def count_rows(table: ibis.Table) -> int:
    return int(table.count().execute())


def describe_source(source: LogSource) -> str:
    return str(source) if isinstance(source, (str, Path, list, tuple)) else type(source).__name__


def stage_source(workspace: Workspace, source: LogSource, names: dict[str, str]) -> ibis.Table:
    """The source's columns as `names` (ours -> its) maps them, and `row`, the place there."""
    connection = workspace.connection
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
        table = _copy(workspace, source.select(wanted))
    elif table is None:
        connection.con.register("source", _arrow(source, wanted))
        table = connection.table("source")
    mapped = {name: table[column] for name, column in names.items()}
    staged = workspace.materialise(
        table.select(**mapped, row=ibis.row_number().over(ibis.window()))
    )
    connection.con.unregister("source")
    if not count_rows(staged):
        raise ValueError(f"the log {describe_source(source)} is empty")
    return staged


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


def _copy(workspace: Workspace, source: ibis.Table) -> ibis.Table:
    """An Ibis table of any engine by way of a Parquet file, written by that engine."""
    path = os.path.join(workspace.folder, "source.parquet")
    source.to_parquet(path)
    return _read_files(workspace.connection, path)


def _arrow(
    source: datasets.Dataset | pd.DataFrame | pl.DataFrame | pa.Table, columns: list[str]
) -> pa.Table | pa.RecordBatchReader:
    """The wanted columns of a table held elsewhere, streamed where its owner can stream."""
    if isinstance(source, pd.DataFrame):
        return pa.Table.from_pandas(source[columns], preserve_index=False)
    if isinstance(source, pl.DataFrame):
        return source.select(columns).to_arrow()
    if isinstance(source, pa.Table):
        return source.select(columns)
    chosen = source.select_columns(columns).with_format("arrow")
    chunks = (batch for table in chosen.iter(100_000) for batch in table.to_batches())
    return pa.RecordBatchReader.from_batches(chosen.features.arrow_schema, chunks)


def _text(column: ibis.Value) -> ibis.Value:
    """A column as strings, the empty one being null."""
    kind = column.type()
    if kind.is_json():
        column = ibis.coalesce(column.str, column.cast("string"))
    elif kind.is_nested() or kind.is_binary():
        raise ValueError(f"column {column.get_name()} must hold plain values, got {kind}")
    return column.cast("string").nullif("")


def _identifier(raw: ibis.Table, name: str, from_csv: bool) -> ibis.Value:
    """Ids as int64 where they are whole numbers (in a CSV: written as such), else as strings."""
    column, text = raw[name], _text(raw[name])
    whole = column.try_cast("int64")
    if column.type().is_floating():
        plain = column.isnan() | (whole.cast("float64") == column)
    elif column.type().is_integer():
        plain = whole.notnull()
    elif from_csv:
        plain = column.try_cast("int64").cast("string") == text
    else:
        return text
    return whole if (text.isnull() | plain.fill_null(False)).all().execute() else text


def _number(column: ibis.Value) -> ibis.Value:
    """A column as float64; what is no finite number is null."""
    if not (column.type().is_numeric() or column.type().is_string() or column.type().is_null()):
        raise ValueError(f"column {column.get_name()} must hold numbers, got {column.type()}")
    number = column.try_cast("float64")
    return ibis.ifelse(number.isnan() | number.isinf(), ibis.null("float64"), number)


def _seconds(workspace: Workspace, raw: ibis.Table) -> ibis.Value:
    """The timestamp as seconds since 1970 UTC; null where it cannot be read."""
    column, kind = raw.timestamp, raw.timestamp.type()
    if kind.is_timestamp() or kind.is_date():
        return _number(column.cast("timestamp(6)").epoch_seconds().cast("float64"))
    column = column if kind.is_numeric() else _text(column)
    number = _number(column)
    median = raw.select(value=number).value.approx_median().execute()
    for limit, factor, unit in TIME_UNITS:
        if median is not None and median > limit:
            workspace.notes["timestamp unit"] = unit
            number = number / factor
            break
    if kind.is_numeric():
        return number
    clock = column.try_cast("timestamp('UTC', 6)").epoch_seconds().cast("float64")
    return ibis.coalesce(_number(clock), number)


def type_columns(
    workspace: Workspace, raw: ibis.Table, from_csv: bool, positive: bool
) -> ibis.Table:
    """Our types, and in `reason` why a row cannot be used (null: it can)."""
    values = {name: _identifier(raw, name, from_csv) for name in IDS}
    reasons = [(values[name].isnull(), f"missing {name}") for name in IDS]
    values |= {name: _text(raw[name]) for name in LABELS if name in raw.columns}
    if "timestamp" in raw.columns:
        values["timestamp"] = _seconds(workspace, raw)
        _refuse_unreadable(raw, values["timestamp"])
        reasons += [(_text(raw.timestamp).isnull(), "missing timestamp")]
        reasons += [(values["timestamp"].isnull(), "unparsable timestamp")]
    if "order" in raw.columns:
        values["order"] = raw.order.try_cast("int64")
        reasons += [(values["order"].isnull(), "missing order")]
    for name in (name for name in NUMBERS if name in raw.columns):
        values[name] = number = _number(raw[name])
        if name in STRENGTHS:
            present = _text(raw[name]).notnull()
            reasons += [(present & number.isnull(), f"{name} not a number")]
            reasons += [(number <= 0, f"{name} not positive")] if positive else []
        else:
            values[name] = ibis.ifelse(number > 0, number, ibis.null("float64"))
    return workspace.materialise(
        raw.select(**values, row=raw.row, reason=ibis.cases(*reasons)), raw
    )


def _refuse_unreadable(raw: ibis.Table, seconds: ibis.Value) -> None:
    given = raw.select(text=_text(raw.timestamp), seconds=seconds).filter(_.text.notnull())
    examples = given.filter(_.seconds.isnull()).limit(1).to_pyarrow().to_pylist()
    if examples and not count_rows(given.filter(_.seconds.notnull())):
        raise ValueError(
            "timestamp must be a time, an ISO string or a number of seconds since 1970; "
            f"none could be read, for example {examples[0]['text']!r}"
        )
