"""The database of histories: read by its indexes, opened whatever its age and by many at once."""

import threading
from collections.abc import Callable

import pytest

pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
from sqlalchemy import create_engine, event, inspect, text

from modeling_implicitrec.history_store import EVENTS, HistoryStore

INDEXES = {index.name for index in EVENTS.indexes}


def fill(store: HistoryStore, events: int = 300) -> None:
    store.add(
        [
            {"user_id": f"user {n % 7}", "item_id": str(n), "timestamp": 1000 + n - 5 * (n % 3)}
            for n in range(events)
        ]
    )


def queries(store: HistoryStore, ask: Callable) -> list[tuple]:
    """Each statement that a call sends, with its values."""
    sent: list[tuple] = []
    listening = (store.engine, "before_cursor_execute", lambda *told: sent.append(told[2:4]))
    event.listen(*listening)
    ask()
    event.remove(*listening)
    return sent


def plans(store: HistoryStore, ask: Callable) -> list[str]:
    """How SQLite finds the rows of each query that a call sends."""
    with store.engine.connect() as connection:
        told = [
            connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", values)
            for query, values in queries(store, ask)
        ]
        return ["; ".join(row.detail for row in rows) for rows in told]


def indexes(url: str) -> set[str]:
    return {index["name"] for index in inspect(create_engine(url)).get_indexes("events")}


@pytest.fixture()
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/histories.db"


def test_the_latest_are_found_by_time_and_the_new_ones_by_place(url):
    store = HistoryStore(url)
    fill(store)
    asked = {"since": 0, "until": 9999, "limit": 20, "without": ["skip"]}
    (_, first) = plans(store, lambda: store.everybodys(after=0, **asked))
    assert "INDEX events_by_time (timestamp>? AND timestamp<?)" in first
    assert "TEMP B-TREE" not in first  # nothing is sorted
    (_, later) = plans(store, lambda: store.everybodys(after=290, **asked))
    assert "INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in later
    last, found = store.everybodys(after=0, **asked)
    times = sorted(1000 + n - 5 * (n % 3) for n in range(300))
    assert last == 300 and [one["timestamp"] for one in found] == times[-20:]
    new = [one for one in found if one["place"] > 290]
    assert store.everybodys(after=290, **asked) == (300, new)


def test_no_question_about_a_user_reads_the_events_of_others(url):
    store = HistoryStore(url)
    fill(store)
    for ask in (
        lambda: store.version("user 1"),
        lambda: store.history("user 1", limit=5, until=200),
        lambda: store.since("user 1", 100, until=200),
        lambda: store.items("user 1"),
        lambda: store.places("user 1"),
        lambda: store.forget("user 1"),
    ):
        assert "(user_id=?)" in plans(store, ask)[0]


def test_a_store_of_an_older_version_gets_its_index_and_keeps_its_events(url):
    before = HistoryStore(url)
    fill(before)
    kept = before.everybodys(after=0, since=0, until=9999, limit=999)
    with before.engine.begin() as connection:
        connection.execute(text("DROP INDEX events_by_time"))
    before.close()
    assert indexes(url) == INDEXES - {"events_by_time"}
    opened = HistoryStore(url)
    assert indexes(url) == INDEXES
    assert opened.everybodys(after=0, since=0, until=9999, limit=999) == kept
    again = queries(opened, opened._make_tables)
    assert not any("CREATE" in query for query, _ in again if "PRAGMA" not in query)


def test_many_may_open_a_new_store_at_one_moment(url):
    start, failed = threading.Barrier(6), []

    def open_it() -> None:
        start.wait()
        try:
            store = HistoryStore(url)
            fill(store, 3)
            store.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and indexes(url) == INDEXES
    assert len(HistoryStore(url).history("user 1", limit=99)) == 6
