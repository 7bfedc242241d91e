"""Users' events in a database, SQLite or PostgreSQL: what `add` returned from outlives a crash."""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    create_engine,
    delete,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

STRENGTHS = ("count", "duration", "item_duration")
NAMES = ("event_type", "platform")
WAIT = 10_000  # milliseconds for a lock of another process
ORDER = (
    7_411_905  # PostgreSQL's lock for commits in the order of their places; SQLite has one writer
)

TABLES = MetaData()
EVENTS = Table(
    "events",
    TABLES,
    Column("place", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("user_id", String, nullable=False),
    Column("item_id", String, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("event_id", String),
    *(Column(name, Float) for name in STRENGTHS),
    *(Column(name, String) for name in NAMES),
    Index("events_by_user", "user_id", "timestamp", "place"),
    Index("events_by_time", "timestamp", "place"),
    Index("events_once", "user_id", "event_id", unique=True),
    sqlite_autoincrement=True,  # the place of a deleted event is never another's
)


class HistoryStore:
    """The events of each user, found in order of time.

    With SQLite, a write-ahead log that is flushed at every commit; deleted rows are overwritten.

    Args:
        url: `sqlite:///folder/histories.db` or `postgresql://user:password@host/name`; the table is
            made where it is missing, and an index that an older version did not make.

    >>> store = HistoryStore("sqlite://")
    >>> store.add([{"user_id": "ann", "item_id": "tea", "timestamp": 7}])
    1
    >>> store.history("ann", limit=10)
    [{'item_id': 'tea', 'timestamp': 7}]
    >>> store.forget("ann"), store.history("ann", limit=10)
    (1, [])
    """

    def __init__(self, url: str) -> None:
        if url.startswith("postgresql://"):
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self.engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            event.listen(self.engine, "connect", _set_up_sqlite)
        self._make_tables()

    def _make_tables(self) -> None:
        """Make what is missing, once, whoever else is starting at this moment."""
        with self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(ORDER)))
            if not inspect(connection).has_table(EVENTS.name):
                connection.execute(CreateTable(EVENTS, if_not_exists=True))
            there = {index["name"] for index in inspect(connection).get_indexes(EVENTS.name)}
            for index in EVENTS.indexes:
                if index.name not in there:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    def add(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Store events, all or none; they are on disk when this returns.

        Args:
            events: with `user_id`, `item_id` and `timestamp` (seconds), and any of `event_id`,
                `event_type`, `platform`, `count`, `duration`, `item_duration`.

        Returns:
            How many were new: one whose user and `event_id` are there already is left out.
        """
        return self.add_together([events])[0]

    def add_together(self, groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
        """[`~HistoryStore.add`] for several callers at the price of one commit."""
        names = [column.name for column in EVENTS.columns if column.name != "place"]
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        adding = insert(EVENTS).on_conflict_do_nothing().returning(EVENTS.c.place)
        with self.engine.begin() as connection:
            if not self.is_sqlite:  # whoever has read up to a place has read all before it
                connection.execute(select(func.pg_advisory_xact_lock(ORDER)))
            rows = [[{name: one.get(name) for name in names} for one in group] for group in groups]
            return [len(connection.execute(adding, part).all()) if part else 0 for part in rows]

    def history(
        self, user_id: str, *, limit: int, until: int | None = None
    ) -> list[dict[str, Any]]:
        """The user's latest events, oldest first, each with the fields that it has.

        Args:
            until: place of the last event that counts, see [`~HistoryStore.version`].
        """
        latest = _events_of(user_id)
        latest = latest.order_by(EVENTS.c.timestamp.desc(), EVENTS.c.place.desc()).limit(limit)
        if until is not None:
            latest = latest.where(EVENTS.c.place <= until)
        return self._read(latest)[::-1]

    def since(self, user_id: str, place: int, *, until: int) -> list[dict[str, Any]]:
        """The user's events that were stored after a place, in the order of storing."""
        new = _events_of(user_id).where(EVENTS.c.place > place, EVENTS.c.place <= until)
        return self._read(new.order_by(EVENTS.c.place))

    def version(self, user_id: str) -> tuple[int, int]:
        """How many events the user has, and the place of the one that was stored last, 0 for none."""
        counted = select(func.count(), func.coalesce(func.max(EVENTS.c.place), 0))
        with self.engine.connect() as connection:
            events, place = connection.execute(counted.where(EVENTS.c.user_id == user_id)).one()
        return events, place

    def everybodys(
        self, *, after: int, since: int, until: int, limit: int, without: Sequence[str] = ()
    ) -> tuple[int, list[dict[str, Any]]]:
        """Everybody's events that were stored after a place, oldest first; no users.

        Args:
            since: seconds; only events later than that.
            until: seconds; only events not later than that.
            limit: only so many, the latest.
            without: event types to leave out.

        Returns:
            The place up to which the store was read, and events of `place`, `item_id` and `timestamp`.
        """
        columns = [EVENTS.c[name] for name in ("place", "item_id", "timestamp")]
        # The latest of all are found by their times; later on the few new ones by their places. The index
        # of times, which no sum can use, would lead past all that were there before.
        when = EVENTS.c.timestamp + 0 if after else EVENTS.c.timestamp
        with self.engine.connect() as connection:
            last = connection.scalar(select(func.max(EVENTS.c.place))) or 0
            if last <= after:
                return after, []
            wanted = select(*columns).where(EVENTS.c.place > after, EVENTS.c.place <= last)
            wanted = wanted.where(when > since, when <= until)
            if without:
                wanted = wanted.where(func.coalesce(EVENTS.c.event_type, "").not_in(without))
            latest = wanted.order_by(when.desc(), EVENTS.c.place.desc()).limit(limit)
            rows = connection.execute(latest).tuples().all()[::-1]
        return last, [{"place": p, "item_id": item, "timestamp": t} for p, item, t in rows]

    def places(self, user_id: str) -> list[int]:
        """The places of the user's events."""
        with self.engine.connect() as connection:
            return list(
                connection.scalars(select(EVENTS.c.place).where(EVENTS.c.user_id == user_id))
            )

    def _read(self, wanted: Select) -> list[dict[str, Any]]:
        with self.engine.connect() as connection:
            rows = connection.execute(wanted).mappings().all()
        return [{k: v for k, v in row.items() if v is not None} for row in rows]

    def items(self, user_id: str) -> list[str]:
        """Every item that the user has an event of."""
        found = select(EVENTS.c.item_id).where(EVENTS.c.user_id == user_id).distinct()
        with self.engine.connect() as connection:
            return list(connection.scalars(found))

    def forget(self, user_id: str) -> int:
        """Delete all that is known of a user; returns the number of events."""
        with self.engine.begin() as connection:
            done = connection.execute(delete(EVENTS).where(EVENTS.c.user_id == user_id))
        if self.is_sqlite and done.rowcount:  # nothing stays in the write-ahead log either
            with self.engine.connect() as connection:
                connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        return done.rowcount

    def check(self) -> None:
        """Raise where the database does not answer."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def _events_of(user_id: str) -> Select:
    wanted = [EVENTS.c[name] for name in ("item_id", "timestamp", *NAMES, *STRENGTHS)]
    return select(*wanted).where(EVENTS.c.user_id == user_id)


def _set_up_sqlite(connection: Any, record: Any) -> None:
    for setting in (f"busy_timeout={WAIT}", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}")
    late = time.monotonic() + WAIT / 1000
    while True:  # for others who are at it SQLite does not wait by itself
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > late:
                raise
            time.sleep(0.01)
