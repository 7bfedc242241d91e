"""Compare the columns of all files of a log before it is read, and name the file that is wrong."""

import csv
import difflib
import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import duckdb

from .engine import sql_name, sql_text
from .source_files import hide_secrets, partitions_of

DELIMITERS = (",", "\t", ";", "|")
OPTIONAL = ("event_type", "duration", "item_duration", "count", "platform")
LINE = "delim = '\x01', quote = '', escape = '', header = false, auto_detect = false"
LINE += ", strict_mode = false"  # cells of several lines may end them otherwise than rows
# Told, since DuckDB looks at the first 20,000 rows only, and the first quote may come later.
QUOTES = "quote = '\"', escape = '\"'"
NULLS = "nullstr = ['', '\\N', 'NULL'], allow_quoted_nulls = false"
JSON_LINES = "format = 'newline_delimited'"
NO_PARTITIONS = "hive_partitioning = false"
ROW = "implicitrec_row"  # the place of a row in the source, where the reader knows it


@dataclass(frozen=True)
class FileSchema:
    """A file's column names with DuckDB's types of them, and the delimiter and quotes of a CSV.

    Args:
        quotes: options that say what quotes are; "" leaves it to DuckDB.
    """

    path: str
    columns: dict[str, str]
    delimiter: str = ""
    quotes: str = ""


def missing_column(name: str, column: str, place: str, found: Iterable[str]) -> ValueError:
    """The error for a column that is not there, with the names that are close to it."""
    found = list(found)
    by_lower = {other.lower(): other for other in found}
    close = [by_lower[near] for near in difflib.get_close_matches(column.lower(), by_lower, n=2)]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    hint += f"; say which it is: columns {{{name}: ...}}, in Python EventSchema({name}=...)"
    if name == "timestamp":
        hint += ", null or None where the log has no times"
    return ValueError(f"no column {column!r} (for {name}) in {place}; it has {found}{hint}")


class LogFiles:
    """Files of one kind whose columns fit together.

    Args:
        connection: DuckDB's own.
        paths: in the order in which they are read.
        kind: "Parquet", "CSV" or "JSON lines".
        names: our name -> the column's.

    Raises:
        ValueError: naming the file, for one that cannot be read, lacks a column, or has a column of
            another type than the files before it.
    """

    def __init__(self, connection: Any, paths: list[str], kind: str, names: dict[str, str]) -> None:
        self.connection = connection
        self.kind = kind
        self._counts: list[int] = []
        self.partitions: dict[str, str] = {}
        self.types: dict[str, str] = {}
        schemas = [schema for path in paths if (schema := self._schema(path, names)) is not None]
        if not schemas:
            raise ValueError(f"the log {', '.join(map(hide_secrets, paths[:3]))} is empty")
        self.schemas = schemas
        own = {column for schema in schemas for column in schema.columns}
        self.partitions = _check_partitions(schemas, set(names.values()) - own)
        self._check_columns(names)
        wanted = list(dict.fromkeys(names.values()))
        if kind == "Parquet":
            self._refuse_periods(wanted)
        self.types = {column: self._common_type(column) for column in wanted}

    def create_view(self, name: str) -> None:
        """Make a view of the wanted columns of all files, one file after the other."""
        columns = ", ".join(map(sql_name, self.types))
        readers, number = self._readers(self.schemas), ""
        if self.kind == "Parquet":  # it knows its rows: counting them would be one thread's work
            self._counts = self._row_counts()
            starts = [sum(self._counts[:place]) for place in range(len(self._counts))]
            first = f"list_extract({starts}::BIGINT[], file_index::BIGINT + 1)"
            number = f", {first} + file_row_number AS {ROW}"
            readers = self._readers(self.schemas, "file_row_number = true")
        query = " UNION ALL ".join(f"SELECT {columns}{number} FROM {one}" for one in readers)
        self.connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {query}")

    def _row_counts(self) -> list[int]:
        """Rows of each Parquet file, from their footers."""
        paths = [schema.path for schema in self.schemas]
        query = f"SELECT file_name, num_rows FROM parquet_file_metadata({_listed(paths)})"
        rows = dict(self.connection.execute(query).fetchall())
        return [int(rows[path]) for path in paths]

    def locate(self, row: int) -> tuple[str, int]:
        """The file of a row, counted from 0 over all files, and the row there, counted from 1."""
        for place, schema in enumerate(self.schemas):
            if place == len(self._counts):
                reader = self._readers([schema])[0]
                self._counts += self.connection.execute(
                    f"SELECT count(*) FROM {reader}"
                ).fetchall()[0]
            if row < self._counts[place]:
                return hide_secrets(schema.path), row + 1
            row -= self._counts[place]
        raise IndexError(f"there is no row {row} after the last file")

    def explain(self, error: Exception) -> ValueError:
        """An error of reading with the file and, of a CSV, the line that is wrong."""
        named = [schema for schema in self.schemas if schema.path in str(error)]
        for schema in named or self.schemas:
            path = hide_secrets(schema.path)
            if self.kind == "CSV" and (line := self._bad_line(schema)):
                return ValueError(f"could not read {path}, {line}")
            if not named and (problem := self._try(schema)):
                return ValueError(f"could not read {path}: {problem}")
        path = hide_secrets(named[0].path if named else self.schemas[0].path)
        return ValueError(f"could not read {path}: {_first_words(error)}")

    # One file

    def _schema(self, path: str, names: dict[str, str]) -> FileSchema | None:
        """None for a file with nothing in it."""
        try:
            if self.kind == "CSV":
                return self._csv_schema(path, set(names.values()))
            if self.kind == "Parquet":
                return FileSchema(
                    path, self._describe(f"read_parquet({_listed([path])}, {NO_PARTITIONS})")
                )
            reader = (
                f"read_json({_listed([path])}, {JSON_LINES}, {NO_PARTITIONS}, sample_size = -1)"
            )
            columns = self._describe(reader)
            if set(columns) != {"json"}:  # DuckDB's name for what is no object
                return FileSchema(path, columns)
            if not self._rows(f"FROM {reader} LIMIT 1"):
                return None
        except (duckdb.Error, OSError, EOFError) as error:
            raise ValueError(
                f"could not read {hide_secrets(path)}: {_first_words(error)}"
            ) from error
        raise ValueError(
            f"{hide_secrets(path)} must hold a JSON object a line, as pandas' "
            "to_json(orient='records', lines=True) writes them"
        )

    def _csv_schema(self, path: str, wanted: set[str]) -> FileSchema | None:
        """By the header alone: rows that do not fit it shall not change what it is."""
        reader = (
            f"read_csv({_listed([path])}, {LINE}, {NO_PARTITIONS}, columns = {{'line': 'VARCHAR'}})"
        )
        lines = self._rows(f"SELECT line FROM {reader} LIMIT 1")
        if not lines:
            return None
        split = {d: next(csv.reader([lines[0][0] or ""], delimiter=d), []) for d in DELIMITERS}
        delimiter = max(split, key=lambda d: (len(wanted & set(split[d])), len(split[d])))
        schema = FileSchema(path, dict.fromkeys(split[delimiter], "VARCHAR"), delimiter)
        named = set(filter(None, schema.columns))  # of pandas' row numbers, which it has not
        # A tab hardly ever needs quotes; and some have other ones, or quotes that are none.
        for quotes in ("",) if delimiter == "\t" else (QUOTES, ""):
            schema = replace(schema, quotes=quotes)
            try:
                found = self._describe(self._readers([schema])[0])
                problem = None if named <= set(found) else "cannot tell its columns"
            except duckdb.Error as error:
                problem = _first_words(error)
            if not problem:
                return schema
        if wanted <= set(schema.columns):
            problem = f", {line}" if (line := self._bad_line(schema)) else f": {problem}"
            raise ValueError(f"could not read {hide_secrets(path)}{problem}")
        return schema

    def _bad_line(self, schema: FileSchema) -> str:
        """The first line of a CSV that is not like its header; "" for none."""
        reader = self._readers([schema], "store_rejects = true, rejects_limit = 1000")[0]
        query = (
            "SELECT e.line, lower(e.error_type), e.error_message, e.csv_line "
            "FROM reject_errors e ORDER BY e.line LIMIT 1"
        )
        try:
            self._rows(f"SELECT count(*) FROM {reader}")
            found = self._rows(query)
        except duckdb.Error:
            return ""
        finally:
            self.connection.execute("DROP TABLE IF EXISTS reject_errors")
            self.connection.execute("DROP TABLE IF EXISTS reject_scans")
        if not found:
            return ""
        line, kind, message, text = found[0]
        return f"line {line}: {kind} ({message[:100]}) in {str(text)[:80]!r}"

    def _try(self, schema: FileSchema) -> str:
        """What goes wrong when a file is read alone; "" for nothing."""
        reader = self._readers([schema])[0]
        own = [column for column in self.types if column in schema.columns]
        try:
            self._rows(
                f"SELECT {', '.join(f'max({sql_name(name)})' for name in own)} FROM {reader}"
            )
        except duckdb.Error as error:
            return _first_words(error)
        return ""

    # All files

    def _readers(self, schemas: list[FileSchema], more: str = "") -> list[str]:
        """Calls that read the files in their order: one, or of CSVs one for each change of header."""
        options = [more] if more else []
        if self.kind == "CSV":
            options += ["header = true", "skip = 0", "all_varchar = true", NULLS]
        options += [f"hive_partitioning = {bool(self.partitions)}", "hive_types_autocast = false"]
        if self.kind == "Parquet":
            options += ["union_by_name = true"]
            return [f"read_parquet({_listed(_paths(schemas))}, {_joined(options)})"]
        if self.kind == "JSON lines":
            types = {c: t for c, t in self.types.items() if any(c in s.columns for s in schemas)}
            columns = ", ".join(f"{sql_text(column)}: '{kind}'" for column, kind in types.items())
            options += [JSON_LINES, f"columns = {{{columns}}}"]
            return [f"read_json({_listed(_paths(schemas))}, {_joined(options)})"]
        readers = []
        for (_names, delimiter, quotes), alike in groupby(
            schemas, lambda schema: (tuple(schema.columns), schema.delimiter, schema.quotes)
        ):
            told = [f"delim = {sql_text(delimiter)}", *filter(None, [quotes])]
            readers += [f"read_csv({_listed(_paths(alike))}, {_joined([*options, *told])})"]
        return readers

    def _check_columns(self, names: dict[str, str]) -> None:
        """Every column in every file; JSON leaves out what is null, so there once is enough."""
        once = {column for schema in self.schemas for column in schema.columns}
        for schema in self.schemas:
            found = [*schema.columns, *self.partitions]
            for name, column in names.items():
                lenient = self.kind == "JSON lines" and name in OPTIONAL and column in once
                if column not in found and not lenient:
                    found = [*schema.columns, *partitions_of(schema.path)]
                    raise missing_column(name, column, hide_secrets(schema.path), found)

    def _refuse_periods(self, wanted: list[str]) -> None:
        """Of pandas' periods Parquet keeps a number of days, weeks or months, which seem to be seconds."""
        paths = _listed(_paths(self.schemas))
        query = f"SELECT file_name, value FROM parquet_kv_metadata({paths}) WHERE key = 'pandas'"
        for path, told in self._rows(query):
            kinds = {c["name"]: c["numpy_type"] for c in json.loads(told)["columns"]}
            for column in wanted:
                if (kind := str(kinds.get(column))).startswith("period["):
                    raise ValueError(
                        f"{hide_secrets(path)}, column {column!r} must hold times, numbers or text, got "
                        f"pandas' {kind}: write it as frame[{column!r}].dt.start_time"
                    )

    def _common_type(self, column: str) -> str:
        """The type that all files' values fit."""
        types: dict[str, str] = {}
        first: FileSchema | None = None
        for schema in self.schemas:
            kind = schema.columns.get(column, "NULL").strip('"')
            family = _family(kind, self.kind)
            if family == "any":
                types.setdefault("VARCHAR" if kind == "JSON" else kind, "any")
                continue
            if family == "nested":
                path = hide_secrets(schema.path)
                raise ValueError(f"{path}, column {column!r} must hold plain values, got {kind}")
            first = first or schema
            earlier = _family(first.columns[column], self.kind)
            if family != earlier and self._holds(schema, column) and self._holds(first, column):
                raise ValueError(
                    f"column {column!r} is {first.columns[column]} in {hide_secrets(first.path)} "
                    f"but {kind} in {hide_secrets(schema.path)}"
                )
            types[kind] = family
        kinds = {kind for kind in types if kind != "NULL"}
        if self.kind != "JSON lines" or not kinds:
            return kinds.pop() if kinds else "VARCHAR"
        if kinds <= {"BIGINT", "DOUBLE", "UBIGINT"} and "DOUBLE" in kinds:
            return "DOUBLE"
        is_one = len(kinds) == 1 and set(types.values()) != {"text"}
        return kinds.pop() if is_one else "VARCHAR"

    def _holds(self, schema: FileSchema, column: str) -> bool:
        """Whether a column has any value: an empty one has no type to speak of."""
        if self.kind == "JSON lines":
            return True
        reader = self._readers([schema])[0]
        return bool(self._rows(f"SELECT count({sql_name(column)}) > 0 FROM {reader}")[0][0])

    def _describe(self, reader: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self._rows(f"DESCRIBE SELECT * FROM {reader}")}

    def _rows(self, query: str) -> list[tuple]:
        return self.connection.execute(query).fetchall()


def _family(kind: str, file_kind: str) -> str:
    """What types can stand beside each other in one column."""
    kind = kind.strip('"')
    if kind in ("NULL", "JSON"):
        return "any"
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return "nested"
    is_text = kind in ("VARCHAR", "UUID") or kind.startswith("ENUM")
    is_time = kind.startswith(("TIME", "DATE"))
    if is_text or is_time and file_kind == "JSON lines":  # there a time is a string that looks so
        return "text"
    if is_time:
        return "time with a zone" if kind.endswith("ZONE") else "time"
    return kind if kind in ("BOOLEAN", "BLOB") else "number"


def _check_partitions(schemas: list[FileSchema], needed: set[str]) -> dict[str, str]:
    """The partition keys, where a column is needed that is in no file; the same for each."""
    first = partitions_of(schemas[0].path)
    if not any(needed & partitions_of(schema.path).keys() for schema in schemas):
        return {}
    for schema in schemas:
        found = partitions_of(schema.path)
        if found.keys() != first.keys():
            raise ValueError(
                f"partitions differ: {hide_secrets(schemas[0].path)} has {list(first)}, "
                f"{hide_secrets(schema.path)} has {list(found)}"
            )
    return first


def _paths(schemas: Iterable[FileSchema]) -> list[str]:
    return [schema.path for schema in schemas]


def _listed(paths: list[str]) -> str:
    """Paths for DuckDB, which would take a bracket in one for a pattern."""
    return f"[{', '.join(sql_text(glob.escape(path)) for path in paths)}]"


def _joined(options: list[str]) -> str:
    return ", ".join(options)


def _first_words(error: Exception) -> str:
    """What a library says, without its advice; of a traceback, what it ends with."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = [line for line in lines if line.strip()]
    said = [line for line in said if "not utf-8" in line] or said
    return hide_secrets((said[-1] if "Traceback" in said[0] else said[0]).strip()[:300])
