"""Turn a raw behaviour log into a clean event table, with a report of every dropped row."""

import glob
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import duckdb
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from modeling_implicitrec.cleaning import Cleaner, CleaningOptions, clip_limits
from modeling_implicitrec.cleaning_report import CleaningReport
from modeling_implicitrec.engine import DuckDBEngine, Engine, SparkEngine
from modeling_implicitrec.event_columns import (
    LABELS,
    NUMBERS,
    ColumnRules,
    find_rules,
    type_columns,
)
from modeling_implicitrec.event_source import (
    LogSource,
    describe_source,
    find_examples,
    read_log,
    refuse_unreadable,
)

COLUMNS = ("user_id", "item_id", "event_type", "timestamp", *NUMBERS, "platform", "log_order")
SORTED = ("user_id", "timestamp", "log_order", "row")


@dataclass(frozen=True)
class EventSchema:
    """The source's column name for each of ours; `None` where the log has no such column.

    Args:
        timestamp: time type, date, ISO string, or a number since 1970 in seconds, ms, us or ns (each
            value by its size). `order` gives the order in time where there is no clock (whole numbers).
        duration: dwell time in seconds. `item_duration`: content length in seconds.
        count: plays or quantity.
    """

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str | None = "timestamp"
    order: str | None = None
    event_type: str | None = None
    duration: str | None = None
    item_duration: str | None = None
    count: str | None = None
    platform: str | None = None

    def mapped(self) -> dict[str, str]:
        """Our name -> source name, of the columns that are present."""
        return {name: column for name, column in asdict(self).items() if column is not None}


class Events:
    """A clean event table in sorted Parquet shards of whole users, and the report of its cleaning.

    Attributes:
        table: Ibis table on the engine that cleaned it: `user_id` and `item_id` (int64 or string), those
            present of `event_type`, `timestamp` (float64, seconds since 1970 UTC), `duration`,
            `item_duration`, `count` (float64), `platform`, and `log_order` (int64).
        report: the `CleaningReport`.

    The files live as long as this object does.
    """

    def __init__(self, engine: Engine, report: CleaningReport, limits: dict[str, float]) -> None:
        stored = engine.stored("clean")
        clipped = {
            name: ibis.ifelse(stored[name] > limit, limit, stored[name])
            for name, limit in limits.items()
        }
        self._engine = engine
        self._limits = limits
        self._rows = stored.mutate(**clipped)
        self.table = self._rows.select([name for name in COLUMNS if name in stored.columns])
        self.report = report

    @property
    def columns(self) -> list[str]:
        """Names of the columns present."""
        return list(self.table.columns)

    def __len__(self) -> int:
        return self.report.rows_out

    def to_pandas(self) -> pd.DataFrame:
        """All events in memory, in the order of the source."""
        place = "row" if "row" in self._rows.columns else "log_order"
        return self._rows.order_by(place).select(self.columns).to_pandas()

    def shards(self, rows: int = 1_000_000) -> Iterator[Iterator[pa.RecordBatch]]:
        """For each shard its events, sorted by user, time and log order, as Arrow record batches."""
        for path in sorted(glob.glob(os.path.join(self._engine.path("clean"), "*.parquet"))):
            yield self._batches(path, rows)

    def _batches(self, path: str, rows: int) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=self.columns):
                for name, limit in self._limits.items():
                    values = pc.min_element_wise(batch[name], limit, skip_nulls=False)
                    batch = batch.set_column(batch.schema.get_field_index(name), name, values)
                yield batch


def load_events(
    source: LogSource,
    schema: EventSchema = EventSchema(),  # noqa: B008 (frozen)
    *,
    cleaning: CleaningOptions = CleaningOptions(),  # noqa: B008 (frozen)
    memory_limit: str | None = None,
    temp_directory: str | None = None,
) -> Events:
    """Read a raw log and clean it; every row that does not come out is counted under a reason.

    Args:
        source: path, glob, folder or URL (whatever fsspec reads) of Parquet, CSV or JSON lines, also
            gzipped, or a list of them; `duckdb://`, `sqlite://` or `postgresql://` with `?table=`; a
            `datasets.Dataset` or `IterableDataset`, a pandas or polars frame, a pyarrow table or an
            Ibis table. Folders `key=value` give columns. Files are read in the order of their paths,
            rows in the order of the source. A table of Ibis's PySpark backend is cleaned by its Spark
            session, all else by an embedded DuckDB.
        memory_limit: DuckDB's limit, as in "1GB"; half of the machine's memory when None. Beyond it
            DuckDB spills to disk.
        temp_directory: folder for what is written on the way, and for the events; the system's own
            when None. On a cluster the executors must reach it too.

    Raises:
        FileNotFoundError: if no file matches.
        ImportError: if a URL needs a package that is not installed; the message names it.
        ValueError: for a missing column, an unreadable or wrongly typed source (naming the file, and
            column, row or line of what is wrong), an empty log, or a log of which cleaning leaves nothing.

    >>> log = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", None], "timestamp": [3, 4]})
    >>> load_events(log).report.dropped
    {'missing item_id': 1}
    """
    engine = _engine(source, memory_limit, temp_directory)
    log = read_log(engine, source, schema.mapped())
    try:
        rules = ColumnRules(
            from_csv=log.is_csv,
            positive=cleaning.drop_nonpositive,
            negative_type=cleaning.negative_count_type,
            earliest=cleaning.seconds("earliest"),
            latest=cleaning.seconds("latest"),
            max_duration=cleaning.max_duration,
        )
        rules, rows = find_rules(log.table, rules)
        if not rows:
            raise ValueError(f"the log {describe_source(source)} is empty")
        refuse_unreadable(log, rules.unreadable)
        engine.stage(type_columns(log.table, rules), rows)
        examples = find_examples(log, engine.stored("staged"))
    except (duckdb.Error, pa.ArrowException) as error:
        raise log.explain(error) from error
    return _clean(engine, cleaning, rows, rules.notes, examples)


def _engine(source: LogSource, memory_limit: str | None, temp_directory: str | None) -> Engine:
    """The engine that the source lives on, in a folder that goes with it."""
    folder = tempfile.mkdtemp(prefix="events-", dir=temp_directory)
    engine: Engine
    if isinstance(source, ibis.Table) and source.get_backend().name == "pyspark":
        engine = SparkEngine(folder, source.get_backend())
    else:
        engine = DuckDBEngine(folder, memory_limit)
    weakref.finalize(engine, _discard, engine.connection, folder)
    return engine


def _discard(connection: ibis.BaseBackend, folder: str) -> None:
    if connection.name == "duckdb":
        connection.disconnect()
    shutil.rmtree(folder, ignore_errors=True)


def _clean(
    engine: Engine, options: CleaningOptions, rows_in: int, notes: dict, examples: dict
) -> Events:
    cleaner = Cleaner(engine, options)
    cleaner.count_unusable(engine.stored("staged"))
    for bucket in engine.buckets("staged"):
        usable = bucket.filter(bucket.reason.isnull()).drop("reason", "value")
        _store(engine, cleaner.clean_users(cleaner.drop_duplicates(usable)), "clean")
    stored = engine.stored("clean")
    while kept := cleaner.core(stored):
        rows = 0
        for bucket in engine.buckets("clean"):
            for name, values in kept.items():
                bucket = bucket.semi_join(values, name)
            rows += engine.count(bucket)
            _store(engine, cleaner.clean_users(bucket), "core")
        stored = engine.rename("core", "clean")
        if rows == engine.count(stored):
            break
    rows_out = engine.count(stored)
    limits = clip_limits(stored, options.clip_quantile)
    for name, (limit, higher) in limits.items():
        notes |= {f"{name} clipped": higher, f"{name} clipped at": limit}
    report = CleaningReport(rows_in, rows_out, cleaner.dropped, notes | _missing(stored), examples)
    if not rows_out:
        raise ValueError(f"nothing is left of the log after cleaning:\n{report}")
    return Events(engine, report, {name: limit for name, (limit, _) in limits.items()})


def _store(engine: Engine, table: ibis.Table, folder: str) -> None:
    """Write a bucket's clean events, sorted."""
    if "log_order" not in table.columns:
        table = table.rename(log_order="order" if "order" in table.columns else "row")
    names = [name for name in (*COLUMNS, "row") if name in table.columns]
    engine.store(table.select(names), folder, [name for name in SORTED if name in names])


def _missing(table: ibis.Table) -> dict[str, int]:
    """How many rows lack an optional value."""
    optional = [name for name in (*LABELS, *NUMBERS) if name in table.columns]
    if not optional:
        return {}
    sums = table.aggregate(**{name: table[name].isnull().sum() for name in optional})
    found = sums.to_pyarrow().to_pylist()[0]
    return {f"{name} not recorded": int(rows) for name, rows in found.items() if rows}
