"""Turn a raw behaviour log into a clean event table, with a report of every dropped row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import duckdb
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .cleaning import Cleaner, CleaningOptions, clip_limits
from .cleaning_report import CleaningReport
from .engine import Engine, open_engine
from .event_columns import (
    IDS,
    LABELS,
    NUMBERS,
    STRENGTHS,
    ColumnRules,
    align_columns,
    find_rules,
    name_reasons,
    type_columns,
)
from .event_source import (
    EXAMPLES,
    LogSource,
    RawLog,
    by_platform,
    describe_source,
    find_examples,
    read_log,
    refuse_unreadable,
)

COLUMNS = ("user_id", "item_id", "event_type", "timestamp", *NUMBERS, "platform", "log_order")
SORTED = ("user_id", "timestamp", "log_order", "row")
STAGED = ("user_id", "item_id", *LABELS, "timestamp", "order", *NUMBERS, "row", "reason")


@dataclass(frozen=True)
class EventSchema:
    """The source's column name for each of ours; `None` where the log has no such column.

    Args:
        timestamp: time type, date, ISO string, a number since 1970 in seconds, ms, us or ns (each
            value by its size), or a column of dates such as 20240501.
            `order` gives the order in time where there is no clock (whole numbers).
        duration: dwell time in seconds. `item_duration`: content length in seconds.
        count: plays or quantity.
        clock_offset: seconds to add to every time, where this log's clock is not UTC.
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
    clock_offset: float = 0.0

    def mapped(self) -> dict[str, str]:
        """Our name -> source name, of the columns that are present."""
        names = asdict(self) | {"clock_offset": None}
        return {name: column for name, column in names.items() if column is not None}


@dataclass(frozen=True)
class Origin:
    """How one log was read: its columns and what was found about them."""

    schema: EventSchema
    rules: ColumnRules


@dataclass(frozen=True)
class Provenance:
    """How events were made, which is what it takes to add to them.

    Args:
        dropped: rows per reason, before rare users and items were.
    """

    origins: list[Origin]
    cleaning: CleaningOptions
    rows_in: int
    dropped: dict[str, int]
    examples: dict[str, list] = field(default_factory=dict)

    @property
    def ordered(self) -> bool:
        """Whether a column says what came after what."""
        columns = {name for origin in self.origins for name in origin.schema.mapped()}
        return not columns.isdisjoint({"timestamp", "order"})


class Events:
    """A clean event table in sorted Parquet shards of whole users, and the report of its cleaning.

    Attributes:
        table: Ibis table on the engine that cleaned it: `user_id` and `item_id` (int64 or string), those
            present of `event_type`, `timestamp` (float64, seconds since 1970 UTC), `duration`,
            `item_duration`, `count` (float64), `platform`, and `log_order` (int64).
        typed: Ibis table of all rows of the log as they were read, before cleaning; `reason` says why a
            row could not be used.
        report: the `CleaningReport`.

    The files live as long as this object does; [`save_events`] keeps them.
    """

    def __init__(
        self, engine: Engine, folder: str, report: CleaningReport, *, made: Provenance
    ) -> None:
        stored = engine.stored(folder)
        self.engine = engine
        self.folder = folder
        clipped_at = {name: report.notes.get(f"{name} clipped at") for name in STRENGTHS}
        self.limits = {name: float(at) for name, at in clipped_at.items() if at is not None}
        clipped = {
            name: ibis.ifelse(stored[name] > limit, limit, stored[name])
            for name, limit in self.limits.items()
        }
        self._rows = stored.mutate(**clipped)
        self.table = self._rows.select([name for name in COLUMNS if name in stored.columns])
        self.typed = name_reasons(engine.stored("staged"))
        self.report = report
        self.made = made

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
        for path in self.engine.shards(self.folder):
            yield self._batches(path, rows)

    def _batches(self, path: str, rows: int) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=self.columns):
                for name, limit in self.limits.items():
                    values = pc.min_element_wise(batch[name], limit, skip_nulls=False)
                    batch = batch.set_column(batch.schema.get_field_index(name), name, values)
                yield batch


def load_events(
    source: LogSource | Mapping[str, LogSource],
    schema: EventSchema | Mapping[str, EventSchema] = EventSchema(),  # noqa: B008 (frozen)
    *,
    cleaning: CleaningOptions = CleaningOptions(),  # noqa: B008 (frozen)
    shared_items: bool | None = None,
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
            session, all else by an embedded DuckDB. A mapping
            of platform names to such logs makes one history per user of all of them.
        schema: the log's columns; for several logs also a mapping of platform names to schemas.
        shared_items: whether the same item id on two platforms is the same item. Otherwise ids become
            `platform:item`. When None, shared in one log, and not among several.
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
    logs = by_platform(source)
    own_items = None not in logs if shared_items is None else not shared_items
    engine = open_engine(list(logs.values()), memory_limit, temp_directory)
    origins = []
    for platform in logs:
        one = schema if isinstance(schema, EventSchema) else _schema_of(schema, platform)
        origins.append(Origin(one, _rules_of(cleaning, one, platform, own_items=own_items)))
    staged = stage_logs(engine, list(logs.values()), origins)
    cleaner = Cleaner(engine, cleaning)
    cleaner.count_unusable(engine.stored("staged"))
    for bucket, table in engine.buckets("staged"):
        store_events(engine, cleaner.clean_staged(table), "clean", bucket)
    dropped = dict(cleaner.dropped)
    made = Provenance(staged.origins, cleaning, staged.rows, dropped, staged.examples)
    return finish_events(cleaner, made)


def _schema_of(schemas: Mapping[str, EventSchema], platform: str | None) -> EventSchema:
    if platform is None or platform not in schemas:
        raise ValueError(f"no schema for the log {platform!r}, there are {sorted(schemas)}")
    return schemas[platform]


def _rules_of(
    cleaning: CleaningOptions, schema: EventSchema, platform: str | None, *, own_items: bool
) -> ColumnRules:
    """The rules that do not depend on what the log holds."""
    return ColumnRules(
        positive=cleaning.drop_nonpositive,
        negative_type=cleaning.negative_count_type,
        earliest=cleaning.seconds("earliest"),
        latest=cleaning.seconds("latest"),
        max_duration=cleaning.max_duration,
        clock_offset=schema.clock_offset,
        platform=platform,
        own_items=own_items,
    )


@dataclass(frozen=True)
class Staged:
    """How logs were read, how many rows they have, and examples of those that cannot be used."""

    origins: list[Origin]
    rows: int
    examples: dict[str, list]


def stage_logs(
    engine: Engine,
    logs: list[LogSource],
    origins: list[Origin],
    *,
    first_row: int = 0,
    columns: Sequence[str] = (),
    whole_ids: frozenset[str] = frozenset(IDS),
) -> Staged:
    """Type the rows of all logs and write them in buckets of users.

    Args:
        columns: to have beside those of the logs.
        whole_ids: the id columns that may be whole numbers.
    """
    found, raws, rows = [], [], []
    for log, origin in zip(logs, origins):
        raw = read_log(engine, log, origin.schema.mapped())
        with _explained(raw):
            rules, size = find_rules(raw.table, replace(origin.rules, from_csv=raw.is_csv))
        if not size:
            raise ValueError(f"the log {describe_source(log)} is empty")
        refuse_unreadable(raw, rules.unreadable)
        found.append(rules)
        raws.append(raw)
        rows.append(size)
    whole = whole_ids.intersection(*(rules.whole_ids for rules in found))
    found = [replace(rules, whole_ids=whole) for rules in found]
    tables = [type_columns(raw.table, rules) for raw, rules in zip(raws, found)]
    present = {name for table in tables for name in table.columns} | set(columns)
    engine.prepare(sum(rows))
    examples: dict[str, list] = {}
    for raw, table, size in zip(raws, tables, rows):
        placed = table.mutate(row=table.row + first_row)
        name = f"rows-{first_row}"
        with _explained(raw):
            engine.stage(align_columns(placed, [n for n in STAGED if n in present]), name)
        staged = engine.stored("staged")
        own = staged if len(raws) == 1 else staged.filter(staged.row >= first_row)
        examples = join_examples(examples, find_examples(raw, own, first_row))
        first_row += size
    origins = [replace(origin, rules=rules) for origin, rules in zip(origins, found)]
    return Staged(origins, sum(rows), examples)


@contextmanager
def _explained(raw: RawLog) -> Iterator[None]:
    """Errors of reading as those of the log."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        raise raw.explain(error) from error


def join_examples(first: dict[str, list], second: dict[str, list]) -> dict[str, list]:
    """A few examples of each reason, the first ones."""
    reasons = [*first, *(reason for reason in second if reason not in first)]
    return {name: [*first.get(name, []), *second.get(name, [])][:EXAMPLES] for name in reasons}


def with_log_order(table: ibis.Table) -> ibis.Table:
    """Clean events with `log_order`: the log's own order, or the place in the source."""
    if "log_order" in table.columns:
        return table
    return table.rename(log_order="order" if "order" in table.columns else "row")


def store_events(engine: Engine, table: ibis.Table, folder: str, bucket: str) -> None:
    """Write a bucket's clean events, sorted."""
    table = with_log_order(table)
    names = [name for name in (*COLUMNS, "row") if name in table.columns]
    engine.store(table.select(names), folder, bucket, [name for name in SORTED if name in names])


def add_notes(first: Mapping, second: Mapping[str, int]) -> dict[str, int]:
    """The second's notes, each with what the first has under its name."""
    return {name: first.get(name, 0) + value for name, value in second.items()}


def finish_events(cleaner: Cleaner, made: Provenance) -> Events:
    """What concerns all users together: rare users and items, clipping, and the report."""
    engine = cleaner.engine
    folder = _drop_rare(cleaner)
    stored = engine.stored(folder)
    limits = clip_limits(stored, made.cleaning.clip_quantile)
    notes: dict[str, int | float | str] = {}
    for origin in made.origins:
        notes |= add_notes(notes, origin.rules.notes)
    for name, (limit, higher) in limits.items():
        notes |= {f"{name} clipped": higher, f"{name} clipped at": limit}
    notes |= _missing(stored)
    if not made.ordered:
        notes["order of events"] = "that of the rows, there are no times"
    rows_out = engine.count(stored)
    report = CleaningReport(made.rows_in, rows_out, cleaner.dropped, notes, made.examples)
    if not rows_out:
        raise ValueError(f"nothing is left of the log after cleaning:\n{report}")
    return Events(engine, folder, report, made=made)


def _drop_rare(cleaner: Cleaner) -> str:
    """Where the events of a k-core are: dropping may bring repeats together, whose merging drops more."""
    engine, folder, step = cleaner.engine, "clean", 0
    while kept := cleaner.core(engine.stored(folder)):
        step += 1
        rows = 0
        for bucket, table in engine.buckets(folder):
            for name, values in kept.items():
                table = table.semi_join(values, name)
            rows += engine.count(table)
            store_events(engine, cleaner.clean_users(table), f"core_{step}", bucket)
        folder = f"core_{step}"
        if rows == engine.count(engine.stored(folder)):
            break
    return folder


def _missing(table: ibis.Table) -> dict[str, int]:
    """How many rows lack an optional value."""
    optional = [name for name in (*LABELS, *NUMBERS) if name in table.columns]
    if not optional:
        return {}
    sums = table.aggregate(**{name: table[name].isnull().sum() for name in optional})
    found = sums.to_pyarrow().to_pylist()[0]
    return {f"{name} not recorded": int(rows) for name, rows in found.items() if rows}
