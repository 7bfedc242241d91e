"""Where event expressions run: DuckDB on this machine, a bucket of users at a time, or Spark."""

import glob
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import ibis
from tqdm.auto import tqdm

BUCKET_ROWS = 1_500_000  # what DuckDB cleans and sorts at a time
# A bucket is a remainder of the user's id, and a prime makes ids that go in steps spread evenly.
PRIMES = (1, 2, 3, 5, 7, 11, 17, 23, 31, 41, 53, 67, 83, 101, 127, 157, 197, 251, 313, 397, 499)
FLUSH_ROWS = 4_000_000  # that a partitioned write may hold in memory, over all buckets
WRITING = "FORMAT parquet, COMPRESSION uncompressed, DICTIONARY_SIZE_LIMIT 256"  # soon read, once


def sql_name(*names: str) -> str:
    """A name, of several parts if need be, as SQL has it."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def sql_text(value: str) -> str:
    """A string as SQL has it."""
    return "'" + value.replace("'", "''") + "'"


class DuckDBEngine:
    """An embedded DuckDB that spills to its folder and works through the users in buckets.

    Args:
        folder: for the database and what it spills.
        memory_limit: as in "1GB"; half of the machine's memory when None.
        data: the folder of the folders of shards; `folder` when None.
        buckets: of users; when None, by the number of rows.
    """

    def __init__(
        self,
        folder: str,
        memory_limit: str | None = None,
        *,
        data: str | None = None,
        buckets: int | None = None,
    ) -> None:
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
        self.folder = folder
        self.data = data or folder
        self.num_buckets = buckets
        self.connection = ibis.duckdb.connect(
            os.path.join(folder, "events.duckdb"),
            memory_limit=memory_limit or f"{half}MiB",
            temp_directory=os.path.join(folder, "spill"),
            preserve_insertion_order=True,
            # Its guesses of sizes are wrong after filters: joins are written with the small side right.
            disabled_optimizers="build_side_probe_side",
        )
        self._compiled: dict[Any, str] = {}

    def path(self, folder: str) -> str:
        """Where a folder of shards is."""
        return os.path.join(self.data, folder)

    def prepare(self, rows: int) -> None:
        """Choose the number of buckets for a log of so many rows."""
        if self.num_buckets is None:
            enough = (prime for prime in PRIMES if prime * BUCKET_ROWS >= rows)
            self.num_buckets = next(enough, PRIMES[-1])

    def number(self, table: ibis.Table) -> ibis.Table:
        """The table with `row`, the place in the source."""
        return table.mutate(row=ibis.row_number().over(ibis.window()))

    def stage(self, table: ibis.Table, name: str) -> None:
        """Write typed rows in buckets of users, as parts of that name."""
        if self.num_buckets is None:
            raise ValueError("prepare comes before stage")
        # md5 and not hash(), which may change with the version of DuckDB.
        key = "md5_number_lower(user_id)" if table.user_id.type().is_string() else "abs(user_id)"
        bucket = f"coalesce({key} % {self.num_buckets}, 0)"
        flush = max(FLUSH_ROWS // self.num_buckets, 10_000)
        self.connection.con.execute(f"SET partitioned_write_flush_threshold = {flush}")
        self._execute(
            f"COPY (SELECT *, {bucket} AS bucket FROM ({self.sql(table)})) TO '{self.path('staged')}' "
            f"({WRITING}, PARTITION_BY (bucket), APPEND, FILENAME_PATTERN '{name}-{{uuid}}')",
            "reading events",
        )

    def buckets(self, folder: str) -> Iterator[tuple[str, ibis.Table]]:
        """The name and the rows of each bucket of users, as they were staged or stored."""
        parts = sorted(glob.glob(os.path.join(self.path(folder), "bucket=*")))
        for part in tqdm(parts, "cleaning events", unit=" buckets", disable=None):
            yield os.path.basename(part), self.read("bucket", part)

    def read(self, name: str, folder: str) -> ibis.Table:
        """The shards of a folder; to read them again costs less than to keep a copy."""
        files = os.path.join(folder, "*.parquet")
        return self._view(name, f"FROM read_parquet('{files}', hive_partitioning = false)")

    def keep(self, name: str, expression: ibis.Table) -> ibis.Table:
        """Run an expression into a temporary table, in place of one of that name."""
        return self._keep(name, self.sql(expression))

    def settle(self, name: str, table: ibis.Table) -> ibis.Table:
        """The table itself: DuckDB makes one plan of many steps, and a better one than of each."""
        return table

    def _keep(self, name: str, query: str) -> ibis.Table:
        self.connection.con.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")
        return self.connection.table(name)

    def _view(self, name: str, query: str) -> ibis.Table:
        self.connection.con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {query}")
        return self.connection.table(name)

    def beside_previous(
        self, name: str, table: ibis.Table, order: list[str], columns: list[str]
    ) -> ibis.Table:
        """Each event with its place and, in `previous_` columns, the user's event before.

        Sorted, the table is read as a stream: several times faster than a window per user.
        """
        same = "user_id = lag(user_id) OVER ()"
        before = [f"CASE WHEN {same} THEN lag({c}) OVER () END AS previous_{c}" for c in columns]
        keys = ", ".join(["user_id", *map(sql_name, order)])
        query = (
            f"SELECT *, row_number() OVER () AS place, {', '.join(before)} "
            f"FROM (SELECT * FROM ({self.sql(table)}) ORDER BY {keys})"
        )
        return self._view(name, query)

    def count(self, table: ibis.Table) -> int:
        """How many rows a table has."""
        query = f"SELECT count(*) FROM ({self.sql(table)})"
        return int(self.connection.con.execute(query).fetchall()[0][0])

    def store(self, expression: ibis.Table, folder: str, bucket: str, order: list[str]) -> None:
        """Write one shard, sorted."""
        target = os.path.join(self.path(folder), bucket)
        os.makedirs(target, exist_ok=True)
        path = os.path.join(target, "shard.parquet")
        query = self.sql(expression.order_by(order))
        self.connection.con.execute(f"COPY ({query}) TO '{path}' ({WRITING})")

    def stored(self, folder: str) -> ibis.Table:
        """All shards as one table."""
        files = os.path.join(self.path(folder), "*", "*.parquet")
        return self.connection.read_parquet(files, table_name=folder, hive_partitioning=False)

    def shards(self, folder: str) -> list[str]:
        """The files of whole users."""
        return sorted(glob.glob(os.path.join(self.path(folder), "*", "*.parquet")))

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


class SparkEngine:
    """A Spark session, which partitions by user itself; shards are written where the cluster can.

    Args:
        folder: that driver and executors both reach.
        connection: an Ibis backend of PySpark.
    """

    def __init__(self, folder: str, connection: ibis.BaseBackend) -> None:
        self.folder = folder
        self.connection = connection
        self._kept = 0

    def number(self, table: ibis.Table) -> ibis.Table:
        """The table with `row`, which grows with the place in the source but leaves gaps."""
        view = f"source_{uuid4().hex}"
        self.connection.create_view(view, table)
        return self.connection.sql(f"SELECT *, monotonically_increasing_id() AS row FROM {view}")

    def prepare(self, rows: int) -> None:
        """Nothing: Spark chooses its partitions."""

    def stage(self, table: ibis.Table, name: str) -> None:
        """Write typed rows, so that the source is read once."""
        self._frame(table).write.mode("append").parquet(self.path("staged"))

    def buckets(self, folder: str) -> Iterator[tuple[str, ibis.Table]]:
        """All rows at once."""
        yield "all", self.stored(folder)

    def keep(self, name: str, expression: ibis.Table) -> ibis.Table:
        """Write an expression and read it back: the plans of what follows stay short."""
        self._kept += 1
        path = self.path(f"kept/{name}-{self._kept}")
        self._frame(expression).write.parquet(path)
        return self.connection.read_parquet(path)

    def settle(self, name: str, table: ibis.Table) -> ibis.Table:
        """The result of many steps, kept."""
        return self.keep(name, table)

    def beside_previous(
        self, name: str, table: ibis.Table, order: list[str], columns: list[str]
    ) -> ibis.Table:
        """Each event with its place and, in `previous_` columns, the user's event before."""
        window = ibis.window(group_by="user_id", order_by=order)
        before = {f"previous_{column}": table[column].lag().over(window) for column in columns}
        return table.mutate(place=ibis.row_number().over(window), **before)

    def count(self, table: ibis.Table) -> int:
        """How many rows a table has."""
        return int(table.count().execute())

    def store(self, expression: ibis.Table, folder: str, bucket: str, order: list[str]) -> None:
        """Write one shard a partition, sorted; a user is in one shard."""
        frame = self._frame(expression).repartition("user_id").sortWithinPartitions(*order)
        frame.write.mode("overwrite").parquet(self.path(folder))

    def stored(self, folder: str) -> ibis.Table:
        """All shards as one table."""
        return self.connection.read_parquet(self.path(folder))

    def shards(self, folder: str) -> list[str]:
        """The files of whole users."""
        return sorted(glob.glob(os.path.join(self.path(folder), "*.parquet")))

    def path(self, folder: str) -> str:
        """Where a folder of shards is."""
        return f"{self.folder}/{folder}"

    def _frame(self, expression: ibis.Table) -> Any:
        return self.connection._session.sql(self.connection.compile(expression))


Engine: TypeAlias = DuckDBEngine | SparkEngine


def open_engine(
    sources: Sequence[Any], memory_limit: str | None, temp_directory: str | None
) -> Engine:
    """The engine that the sources live on, in a folder that goes with it."""
    spark = [
        log.get_backend()
        for log in sources
        if isinstance(log, ibis.Table) and log.get_backend().name == "pyspark"
    ]
    if not spark:
        return open_duckdb(memory_limit, temp_directory)
    folder = tempfile.mkdtemp(prefix="events-", dir=temp_directory)
    engine = SparkEngine(folder, spark[0])
    weakref.finalize(engine, _discard, engine.connection, folder)
    return engine


def open_duckdb(
    memory_limit: str | None,
    temp_directory: str | Path | None,
    *,
    data: str | None = None,
    buckets: int | None = None,
) -> DuckDBEngine:
    """An embedded DuckDB in a temporary folder that goes with it."""
    folder = tempfile.mkdtemp(prefix=".events-", dir=temp_directory)
    engine = DuckDBEngine(folder, memory_limit, data=data, buckets=buckets)
    weakref.finalize(engine, _discard, engine.connection, folder)
    return engine


def _discard(connection: ibis.BaseBackend, folder: str) -> None:
    """Close an engine of ours and remove its folder."""
    if connection.name == "duckdb":
        connection.disconnect()
    shutil.rmtree(folder, ignore_errors=True)
