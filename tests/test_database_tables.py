"""A table in DuckDB, SQLite or a real PostgreSQL server gives the same events as a frame of it."""

import functools
import json
import runpy
import sqlite3
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from conftest import IN_URL, PASSWORD

from modeling_implicitrec.events import EventSchema, load_events
from modeling_implicitrec.source_files import hide_secrets

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SCHEMA = EventSchema("who", "what", "when", count="count")
ROWS = [(2, "b", 10, 1.0), (1, "a", 20, 2.0), (1, "c", 30, None), (2, "", 40, 4.0)]


@functools.cache
def expected() -> pd.DataFrame:
    log = pd.DataFrame(ROWS, columns=["who", "what", "when", "count"])
    return load_events(log, SCHEMA).to_pandas()


def check_same(url: str) -> None:
    events = load_events(url, SCHEMA)
    pd.testing.assert_frame_equal(events.to_pandas(), expected())
    example = {"file": hide_secrets(url), "row": 4, "column": "what"}
    found = events.report.examples["missing item_id"][0]
    assert {name: found[name] for name in example} == example


@pytest.fixture
def duckdb_file(tmp_path) -> Path:
    path = tmp_path / "it's a shop.duckdb"
    with duckdb.connect(str(path)) as database:
        columns = '(who BIGINT, what VARCHAR, "when" BIGINT, "count" DOUBLE)'
        database.execute(f"CREATE TABLE events {columns}")
        database.execute(f"CREATE SCHEMA old; CREATE TABLE old.events {columns}")
        database.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", ROWS)
        database.executemany("INSERT INTO old.events VALUES (?, ?, ?, ?)", ROWS)
        database.execute("CREATE VIEW seen AS FROM events")
    return path


@pytest.fixture
def sqlite_file(tmp_path) -> Path:
    path = tmp_path / "shop 1.db"
    with sqlite3.connect(path) as database:
        database.execute('CREATE TABLE events (who INT, what TEXT, "when" DATETIME, "count" REAL)')
        database.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", ROWS)
        # Covers all columns: SQLite would read the rows in this order.
        database.execute('CREATE INDEX covering ON events (what, who, "when", "count")')
        database.execute("CREATE VIEW seen AS SELECT * FROM events ORDER BY rowid")
    return path


def test_duckdb(duckdb_file, monkeypatch) -> None:
    for table in ("events", "old.events", "seen", "main.events"):
        check_same(f"duckdb://{duckdb_file}?table={table}")
    monkeypatch.chdir(duckdb_file.parent)
    check_same(f"duckdb://{duckdb_file.name}?table=events")
    with pytest.raises(ValueError, match=r"has no table 'event'; the tables are \['events', 'old"):
        load_events(f"duckdb://{duckdb_file}?table=event")
    with pytest.raises(ValueError, match=r"names no table: append \?table="):
        load_events(f"duckdb://{duckdb_file}")
    with pytest.raises(ValueError, match=r"no column 'user_id' \(for user_id\) in duckdb://"):
        load_events(f"duckdb://{duckdb_file}?table=events")
    with pytest.raises(FileNotFoundError, match="no database /nowhere.db; three slashes begin"):
        load_events("duckdb:///nowhere.db?table=events")
    duckdb_file.write_text("no database at all")
    with pytest.raises(ValueError, match="could not read duckdb://"):
        load_events(f"duckdb://{duckdb_file}?table=events")


def test_sqlite(sqlite_file) -> None:
    for table in ("events", "seen"):
        check_same(f"sqlite://{sqlite_file}?table={table}")
    with pytest.raises(ValueError, match=r"has no table 'event'; the tables are \['events', 'seen"):
        load_events(f"sqlite://{sqlite_file}?table=event")
    sqlite_file.write_text("no database at all" * 100)
    with pytest.raises(ValueError, match="could not read sqlite://.*not a database"):
        load_events(f"sqlite://{sqlite_file}?table=events")


def test_sqlite_values_of_any_type(sqlite_file) -> None:
    with sqlite3.connect(sqlite_file) as database:
        database.execute("UPDATE events SET \"when\" = 'soon', \"count\" = 'x' WHERE who = 1")
    report = load_events(f"sqlite://{sqlite_file}?table=events", SCHEMA).report
    assert report.dropped == {"missing item_id": 1, "unparsable timestamp": 2}
    assert report.examples["unparsable timestamp"][0]["value"] == "soon"
    with sqlite3.connect(sqlite_file) as database:
        database.execute("UPDATE events SET what = x'00'")
    with pytest.raises(ValueError, match=r"column 'what' \(for item_id\) must hold plain values"):
        load_events(f"sqlite://{sqlite_file}?table=events", SCHEMA)


# PostgreSQL


@pytest.fixture(scope="module")
def postgres(postgres_server):
    """The URL of a server with tables in it; its user has a password."""
    with pytest.importorskip("psycopg").connect(postgres_server) as database:
        fill_postgres(database)
    return postgres_server


def fill_postgres(database) -> None:
    columns = '(who INT, what TEXT, "when" BIGINT, "count" REAL)'
    database.execute("CREATE SCHEMA old")
    for table in ("events", "old.events", '"Log of 2024"'):
        database.execute(f"CREATE TABLE {table} {columns}")
        with database.cursor() as cursor:
            cursor.executemany(f"INSERT INTO {table} VALUES (%s, %s, %s, %s)", ROWS)
    database.execute("CREATE VIEW seen AS SELECT * FROM events")
    database.execute("CREATE MATERIALIZED VIEW kept AS SELECT * FROM events")
    database.execute(
        """CREATE TABLE kinds AS SELECT 'u1'::varchar(9) AS who, 12345678901234567890::numeric AS what,
        timestamptz '2024-01-01 02:00:00+02' AS zoned, timestamp '2024-01-01' AS naive,
        date '2024-01-01' AS day, 1.5::numeric AS plays, array[1] AS many, '\\x00'::bytea AS raw,
        E'a "b",\\nc' AS text, gen_random_uuid() AS uid"""
    )
    database.execute(
        'CREATE TABLE long AS SELECT i % 1000 AS who, i % 77 AS what, i AS "when" '
        "FROM generate_series(1, 300000) i"
    )


def test_postgresql(postgres) -> None:
    for table in ("events", "old.events", "seen", "kept", "Log%20of%202024"):
        check_same(f"{postgres}?table={table}")
    check_same(f"{postgres.replace('postgresql', 'postgres')}?connect_timeout=9&table=events")
    for time in ("zoned", "naive", "day"):
        schema = EventSchema("who", "what", time, count="plays", event_type="text", platform="uid")
        frame = load_events(f"{postgres}?table=kinds", schema).to_pandas()
        assert frame["timestamp"].tolist() == [1_704_067_200.0]
        assert frame["item_id"].tolist() == ["12345678901234567890"]
        assert frame["count"].tolist() == [1.5] and frame["event_type"].tolist() == ['a "b",\nc']
        assert len(frame["platform"][0]) == 36
    for column, kind in (("many", r"integer\[\]"), ("raw", "bytea")):
        with pytest.raises(
            ValueError, match=f"column {column!r} must hold plain values, got {kind}"
        ):
            load_events(f"{postgres}?table=kinds", EventSchema("who", column, "day"))


def test_postgresql_in_little_memory(postgres) -> None:
    events = load_events(
        f"{postgres}?table=long", EventSchema("who", "what", "when"), memory_limit="100MB"
    )
    assert len(events) == 300_000


def test_no_password_is_told(postgres, tmp_path, monkeypatch) -> None:
    wrong = postgres.replace(IN_URL, "wr%40ng-secret")
    for url in (f"{postgres}?table=nothing", f"{postgres}?table=long", f"{wrong}?table=events",
                f"{postgres.replace('/postgres', '/absent')}?table=events",
                f"{postgres}?table=events&nonsense=1"):  # fmt: skip
        with pytest.raises(ValueError, match=r"postgresql://me:\*\*\*@127.0.0.1") as caught:
            load_events(url)
        said = str(caught.value)
        assert not any(word in said for word in (PASSWORD, IN_URL, "wr@ng-secret", "wr%40ng"))
        assert caught.value.__cause__ is None
    # The environment's password will do.
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    check_same(f"{postgres.replace(':' + IN_URL, '')}?table=events")


def test_the_recipe_writes_no_password(postgres, tmp_path, monkeypatch, capsys) -> None:
    words = ["--source", f"{postgres}?table=long", "--output_dir", str(tmp_path / "data")]
    words += ["--columns", "{user_id: who, item_id: what, timestamp: when}"]
    monkeypatch.setattr(sys, "argv", ["prepare", *words])
    runpy.run_path(str(RECIPES / "prepare.py"), run_name="__main__")
    said = capsys.readouterr().out
    for path in tmp_path.rglob("*.json"):
        said += path.read_text()
    assert PASSWORD not in said and IN_URL not in said
    written = json.loads((tmp_path / "data" / "prepare.json").read_text())["source"]
    assert written.startswith("postgresql://me:***@127.0.0.1")


def test_a_missing_driver_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'implicitrec\[postgres\]'"):
        load_events("postgresql://me@host/shop?table=events")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://me:a@b/c:d@host/shop?table=t", "postgresql://me:***@host/shop?table=t"),
        ("postgresql://host/shop?user=me&password=x&table=t", "postgresql://host/shop?user=me&password=***&table=t"),
        ("https://host/log.csv?X-Amz-Signature=abc&x=1", "https://host/log.csv?X-Amz-Signature=***&x=1"),
        ("s3://bucket/a:b@c.csv", "s3://bucket/a:b@c.csv"),
        ("logs/b.csv", "logs/b.csv"),
    ],
)  # fmt: skip
def test_secrets_are_hidden(text, hidden) -> None:
    assert hide_secrets(text) == hidden
