"""Where event expressions run: DuckDB on this machine, a bucket of users at a time, or Spark."""

import glob
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias
from uuid import uuid4

import ibis
from tqdm.auto import tqdm

BUCKET_ROWS = 3_000_000  # what DuckDB cleans and sorts at a time
# A bucket is a remainder of the user's id, and a prime makes ids that go in steps spread evenly.
PRIMES = (
    1,
    2,
    3,
    5,
    7,
    11,
    17,
    23,
    31,
    41,
    53,
    67,
    83,
    101,
    127,
    157,
    197,
    251,
    313,
    397,
    499,
    631,
)
FLUSH_ROWS = 4_000_000  # that a partitioned write may hold in memory, over all buckets


WRITING = "FORMAT parquet, COMPRESSION uncompressed, DICTIONARY_SIZE_LIMIT 256"  # soon read, once


class DuckDBEngine:
    """An embedded DuckDB that spills to its folder and works through the users in buckets.

    Args:
        folder: for the database, what it spills and the rows in the making.
        memory_limit: as in "1GB"; half of the machine's memory when None.
    """

    def __init__(self, folder: str, memory_limit: str | None = None) -> None:
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
        self.folder = folder
        self.connection = ibis.duckdb.connect(
            os.path.join(folder, "events.duckdb"),
            memory_limit=memory_limit or f"{half}MiB",
            temp_directory=os.path.join(folder, "spill"),
            preserve_insertion_order=True,
        )
        self._compiled: dict[Any, str] = {}

    def path(self, folder: str) -> str:
        """Where a folder of shards is."""
        return os.path.join(self.folder, folder)

    def number(self, table: ibis.Table) -> ibis.Table:
        """The table with `row`, the place in the source."""
        return table.mutate(row=ibis.row_number().over(ibis.window()))

    def stage(self, table: ibis.Table, rows: int) -> None:
        """Write typed rows in buckets of users."""
        buckets = next((p for p in PRIMES if p * BUCKET_ROWS >= rows), PRIMES[-1])
        # md5 and not hash(), which may change with the version of DuckDB.
        key = "md5_number_lower(user_id)" if table.user_id.type().is_string() else "abs(user_id)"
        query = f"SELECT *, coalesce({key} % {buckets}, 0) AS bucket FROM ({self.sql(table)})"
        target = self.path("staged")
        os.makedirs(target)
        self.connection.con.execute(
            f"SET partitioned_write_flush_threshold = {max(FLUSH_ROWS // buckets, 10_000)}"
        )
        self._execute(
            f"COPY ({query}) TO '{target}' "
            f"({WRITING}, PARTITION_BY (bucket), FILENAME_PATTERN 'part-{{i}}')",
            "reading events",
        )

    def buckets(self, folder: str) -> Iterator[ibis.Table]:
        """The rows of each bucket of users, as they were staged or stored."""
        parts = sorted(glob.glob(os.path.join(self.path(folder), "*")))
        for part in tqdm(parts, "cleaning events", unit=" buckets", disable=None):
            files = os.path.join(part, "*.parquet") if os.path.isdir(part) else part
            yield self._keep("bucket", f"FROM read_parquet('{files}', hive_partitioning = false)")

    def keep(self, name: str, expression: ibis.Table) -> ibis.Table:
        """Run an expression into a temporary table, in place of one of that name."""
        return self._keep(name, self.sql(expression))

    def _keep(self, name: str, query: str) -> ibis.Table:
        self.connection.con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
        return self.connection.table(name)

    def beside_previous(
        self, name: str, table: ibis.Table, order: list[str], columns: list[str]
    ) -> ibis.Table:
        """Keep each event with its place and, in `previous_` columns, the user's event before.

        Sorted once, the table is read as a stream: several times faster than a window per user.
        """
        same = "user_id = lag(user_id) OVER ()"
        before = [f"CASE WHEN {same} THEN lag({c}) OVER () END AS previous_{c}" for c in columns]
        keys = ", ".join(["user_id", *map(_quoted, order)])
        query = (
            f"SELECT *, row_number() OVER () AS place, {', '.join(before)} "
            f"FROM (SELECT * FROM ({self.sql(table)}) ORDER BY {keys})"
        )
        return self._keep(name, query)

    def count(self, table: ibis.Table) -> int:
        """How many rows a table has."""
        query = f"SELECT count(*) FROM ({self.sql(table)})"
        return int(self.connection.con.execute(query).fetchall()[0][0])

    def store(self, expression: ibis.Table, folder: str, order: list[str]) -> None:
        """Write one shard, sorted."""
        target = self.path(folder)
        os.makedirs(target, exist_ok=True)
        place = len(os.listdir(target))
        path = os.path.join(target, f"shard-{place:05d}.parquet")
        query = self.sql(expression.order_by(order))
        self.connection.con.execute(f"COPY ({query}) TO '{path}' ({WRITING})")

    def stored(self, folder: str) -> ibis.Table:
        """All shards as one table."""
        return self.connection.read_parquet(
            os.path.join(self.path(folder), "**", "*.parquet"), table_name=folder
        )

    def rename(self, folder: str, new: str) -> ibis.Table:
        """Let the shards of one folder take the place of another's."""
        shutil.rmtree(self.path(new))
        os.rename(self.path(folder), self.path(new))
        return self.stored(new)

    def sql(self, expression: ibis.Table) -> str:
        """The expression in DuckDB's words; of one that comes again, those found before."""
        operation = expression.op()
        if operation not in self._compiled:
            self._compiled[operation] = self.connection.compile(expression)
        return self._compiled[operation]

    def _execute(self, query: str, what: str) -> None:
        """Run a long statement beside a progress bar."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self.connection.con.execute(query)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        with tqdm(total=100, desc=what, unit="%", disable=None) as bar:
            while thread.is_alive():
                thread.join(0.2)
                share = self.connection.con.query_progress()
                bar.update(max(0.0, min(share, 100) - bar.n))
        if failed:
            raise failed[0]


def _quoted(name: str) -> str:
    return f'"{name}"'


class SparkEngine:
    """A Spark session, which partitions by user itself; shards are written where the cluster can.

    Args:
        folder: that driver and executors both reach.
        connection: an Ibis backend of PySpark.
    """

    def __init__(self, folder: str, connection: ibis.BaseBackend) -> None:
        self.folder = folder
        self.connection = connection
        self._cached: dict[str, Any] = {}
        self._places: dict[str, str] = {}

    def number(self, table: ibis.Table) -> ibis.Table:
        """The table with `row`, which grows with the place in the source but leaves gaps."""
        view = f"source_{uuid4().hex}"
        self.connection.create_view(view, table)
        return self.connection.sql(f"SELECT *, monotonically_increasing_id() AS row FROM {view}")

    def stage(self, table: ibis.Table, rows: int) -> None:
        """Write typed rows, so that the source is read once."""
        self._frame(table).write.parquet(self.path("staged"))

    def buckets(self, folder: str) -> Iterator[ibis.Table]:
        """All rows at once."""
        yield self.stored(folder)

    def keep(self, name: str, expression: ibis.Table) -> ibis.Table:
        """Persist an expression, in place of one of that name."""
        table = expression.cache()
        table.count().execute()  # computed before what it came from is released
        self._cached[name] = table
        return table

    def beside_previous(
        self, name: str, table: ibis.Table, order: list[str], columns: list[str]
    ) -> ibis.Table:
        """Keep each event with its place and, in `previous_` columns, the user's event before."""
        window = ibis.window(group_by="user_id", order_by=order)
        before = {f"previous_{column}": table[column].lag().over(window) for column in columns}
        return self.keep(name, table.mutate(place=ibis.row_number().over(window), **before))

    def count(self, table: ibis.Table) -> int:
        """How many rows a table has."""
        return int(table.count().execute())

    def store(self, expression: ibis.Table, folder: str, order: list[str]) -> None:
        """Write one shard a partition, sorted; a user is in one shard."""
        frame = self._frame(expression).repartition("user_id").sortWithinPartitions(*order)
        frame.write.mode("append").parquet(self.path(folder))

    def stored(self, folder: str) -> ibis.Table:
        """All shards as one table."""
        return self.connection.read_parquet(self.path(folder))

    def rename(self, folder: str, new: str) -> ibis.Table:
        """Let the shards of one folder take the place of another's."""
        self._places[new] = self._places.pop(folder)
        return self.stored(new)

    def path(self, folder: str) -> str:
        """Where a folder of shards is: one that was renamed keeps its files."""
        return self._places.setdefault(folder, f"{self.folder}/{folder}-{uuid4().hex}")

    def _frame(self, expression: ibis.Table) -> Any:
        return self.connection._session.sql(self.connection.compile(expression))


Engine: TypeAlias = DuckDBEngine | SparkEngine
