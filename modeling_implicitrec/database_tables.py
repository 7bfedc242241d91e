"""Read a table of a DuckDB, SQLite or PostgreSQL database, as a stream, into the engine."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from .engine import sql_name, sql_text
from .source_files import hide_secrets, scheme_of

DATABASES = ("duckdb", "sqlite", "postgresql", "postgres")
BATCH = 50_000  # rows in memory at a time

Choose: TypeAlias = Callable[[list[str]], list[str]]


def is_database(source: Any) -> bool:
    return scheme_of(source) in DATABASES


def read_database(
    connection: ibis.BaseBackend, folder: str, url: str, choose: Choose
) -> ibis.Table:
    """The table that `?table=` names, or `?table=schema.table`.

    Args:
        connection: DuckDB, which is to read the table.
        folder: for a copy of the columns, where the table is not DuckDB's own.
        url: `duckdb:///folder/shop.duckdb?table=events` and `sqlite:///folder/shop.db?table=events`
            (two slashes before a relative path), `postgresql://user:password@host:5432/shop?table=events`
            (all of libpq's parameters, `PGPASSWORD` and `~/.pgpass`).
        choose: from the names of all columns to those wanted.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if PostgreSQL's driver is not installed.
        ValueError: if there is no such table, or the database cannot be read.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    name = options.pop("table", "")
    shown = hide_secrets(url)
    if parts.scheme in ("postgresql", "postgres"):
        server = urlunsplit(parts._replace(query=urlencode(options, quote_via=quote)))
        return _read_postgres(connection, folder, server, name, shown, choose)
    path = unquote(parts.netloc + parts.path)
    if not os.path.isfile(path):
        hint = "; three slashes begin an absolute path, two a relative one"
        raise FileNotFoundError(f"no database {path}{hint} (for {shown})")
    try:
        if parts.scheme == "duckdb":
            return _read_duckdb(connection, path, name, shown, choose)
        return _read_sqlite(connection, folder, path, name, shown, choose)
    except (duckdb.Error, sqlite3.Error) as error:
        raise ValueError(f"could not read {shown}: {error}") from error


def _find_table(name: str, tables: list[tuple[str, str]], usual: str, shown: str) -> tuple:
    """Schema and table of a name, which may have both."""
    for wanted in ((usual, name), tuple(name.split(".", 1))):
        if wanted in tables:
            return wanted
    names = [table if schema == usual else f"{schema}.{table}" for schema, table in tables]
    problem = f"has no table {name!r}" if name else "names no table: append ?table=…"
    raise ValueError(f"{shown} {problem}; the tables are {sorted(names)}")


# DuckDB


def _read_duckdb(
    connection: ibis.BaseBackend, path: str, name: str, shown: str, choose: Choose
) -> ibis.Table:
    connection.con.execute(f"ATTACH {sql_text(path)} AS source_database (READ_ONLY)")
    tables = connection.con.execute(
        "SELECT table_schema, table_name FROM information_schema.tables "
        "WHERE table_catalog = 'source_database'"
    ).fetchall()
    schema, table = _find_table(name, tables, "main", shown)
    found = connection.table(table, database=("source_database", schema))
    return found.select(choose(list(found.columns)))


# SQLite


def _read_sqlite(
    connection: ibis.BaseBackend, folder: str, path: str, name: str, shown: str, choose: Choose
) -> ibis.Table:
    database = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
    try:
        listed = "SELECT name, type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%' FROM sqlite_master"
        rows = database.execute(f"{listed} WHERE type IN ('table', 'view')").fetchall()
        _, table = _find_table(name, [("main", row[0]) for row in rows], "main", shown)
        source = sql_name(table)
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({source})")]
        wanted = choose(columns)
        names = [sql_name(column) for column in wanted]
        # Any value may be of any type there, whatever the column was declared to be.
        kinds = ", ".join(f"group_concat(DISTINCT typeof({column}))" for column in names)
        found = database.execute(f"SELECT {kinds} FROM {source}").fetchone()
        types = [_sqlite_type(set((text or "").split(",")) - {"null", ""}) for text in found]
        order = " ORDER BY rowid" if dict(rows)[table] else ""
        cursor = database.execute(f"SELECT {', '.join(names)} FROM {source}{order}")
        schema = pa.schema(list(zip(wanted, types)))
        target = os.path.join(folder, "source.parquet")
        with pq.ParquetWriter(target, schema, compression="lz4") as writer:
            for batch in _batches(cursor, schema):
                writer.write_batch(batch)
    finally:
        database.close()
    return connection.read_parquet(target)


def _sqlite_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"blob"}:
        return pa.binary()
    if not kinds:
        return pa.null()
    if kinds == {"integer"}:
        return pa.int64()
    return pa.float64() if kinds <= {"integer", "real"} else pa.string()


def _batches(cursor: sqlite3.Cursor, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    while rows := cursor.fetchmany(BATCH):
        columns = []
        for values, field in zip(zip(*rows), schema):
            if pa.types.is_string(field.type):
                values = tuple(None if value is None else str(value) for value in values)
            elif pa.types.is_floating(field.type):
                values = tuple(None if value is None else float(value) for value in values)
            columns.append(pa.array(values, field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


# PostgreSQL

POSTGRES_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'v', 'm', 'f', 'p')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""
POSTGRES_COLUMNS = """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typcategory
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
POSTGRES_TYPES = {"smallint": "BIGINT", "integer": "BIGINT", "bigint": "BIGINT"}
POSTGRES_TYPES |= {"real": "DOUBLE", "double precision": "DOUBLE"}


def _read_postgres(
    connection: ibis.BaseBackend, folder: str, server: str, name: str, shown: str, choose: Choose
) -> ibis.Table:
    try:
        import psycopg
    except ImportError as error:
        raise ImportError(
            "postgresql:// needs a package: pip install 'implicitrec[postgres]'"
        ) from error
    path = os.path.join(folder, "source.csv")
    try:
        # A date in ISO 8601 and a time in UTC, whatever the server's own settings are.
        with psycopg.connect(server, application_name="implicitrec") as database:
            database.read_only = True
            database.execute("SET datestyle = 'ISO'; SET timezone = 'UTC'")
            types = _copy_postgres(database, path, name, shown, choose)
    except psycopg.Error as error:
        # Not `from error`: a connection's own words may hold what it was called with.
        raise ValueError(f"could not read {shown}: {_without(server, str(error))}") from None
    dialect = "auto_detect = false, header = false, delim = ',', quote = '\"', escape = '\"'"
    columns = ", ".join(f"{sql_text(column)}: '{kind}'" for column, kind in types.items())
    query = f"FROM read_csv({sql_text(path)}, {dialect}, columns = {{{columns}}})"
    connection.con.execute(f"CREATE TEMP VIEW source_table AS {query}")
    return connection.table("source_table")


def _copy_postgres(
    database: Any, path: str, name: str, shown: str, choose: Choose
) -> dict[str, str]:
    """Stream the columns into a CSV file: the server never holds them, nor does this process."""
    tables = database.execute(POSTGRES_TABLES).fetchall()
    usual = database.execute("SELECT current_schema()").fetchone()[0]
    source = sql_name(*_find_table(name, tables, usual, shown))
    kinds = {row[0]: row[1:] for row in database.execute(POSTGRES_COLUMNS, [source])}
    wanted = choose(list(kinds))
    for column in wanted:
        kind, category = kinds[column]
        if category in "AC" or kind == "bytea":
            raise ValueError(f"{shown}, column {column!r} must hold plain values, got {kind}")
    names = ", ".join(map(sql_name, wanted))
    copied = f"COPY (SELECT {names} FROM {source}) TO STDOUT (FORMAT csv)"
    with open(path, "wb") as file, database.cursor() as cursor, cursor.copy(copied) as copy:
        for block in copy:
            file.write(block)
    return {column: POSTGRES_TYPES.get(kinds[column][0], "VARCHAR") for column in wanted}


def _without(server: str, text: str) -> str:
    """The text without the server's password."""
    parts = urlsplit(server)
    secrets = [parts.password or "", *(v for k, v in parse_qsl(parts.query) if "password" in k)]
    for secret in secrets:
        for form in {secret, unquote(secret)} - {""}:
            text = re.sub(re.escape(form), "***", text)
    return hide_secrets(text)
