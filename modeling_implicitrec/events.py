"""Turn a raw behaviour log into a clean event table, with a report of every dropped row."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import duckdb
import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
from ibis import _

from modeling_implicitrec.event_source import (
    LABELS,
    NUMBERS,
    STRENGTHS,
    LogSource,
    Workspace,
    count_rows,
    describe_source,
    is_csv,
    stage_source,
    type_columns,
)

COLUMN_ORDER = ("user_id", "item_id", "event_type", "timestamp", *NUMBERS, "platform", "log_order")
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class EventSchema:
    """The source's column name for each of ours; `None` where the log has no such column.

    Args:
        timestamp: time type, date, ISO string, or a number since 1970 (seconds, or ms, us, ns found
            by the median). `order` gives the order in time where there is no clock (whole numbers).
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


@dataclass(frozen=True)
class CleaningOptions:
    """What is dropped, clipped and merged, in this order of work.

    Args:
        drop_nonpositive: drop rows whose duration or count is <= 0, NaN or infinite (returns, say).
            A null strength means "not recorded"; its row stays and is noted in the report.
        drop_duplicates: keep the first of rows equal in all mapped columns.
        max_events_per_day: drop all events of users who exceed it on any UTC day (bots).
        clip_quantile: clip duration and count at this quantile (a value of the log, in (0, 1]).
        merge_repeats: merge consecutive events of one user, item and event type into the first;
            durations and counts add up, a missing count being 1.
        min_user_events: smallest number of events a user keeps; with `min_item_events` a k-core.

    Raises:
        ValueError: for an option out of its range.
    """

    drop_nonpositive: bool = True
    drop_duplicates: bool = True
    max_events_per_day: int | None = None
    clip_quantile: float | None = 0.999
    merge_repeats: bool = False
    min_user_events: int = 1
    min_item_events: int = 1

    def __post_init__(self) -> None:
        if self.clip_quantile is not None and not 0 < self.clip_quantile <= 1:
            raise ValueError(f"clip_quantile must lie in (0, 1], got {self.clip_quantile}")
        for name in ("max_events_per_day", "min_user_events", "min_item_events"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class CleaningReport:
    """Rows in, rows out and rows dropped per reason, which add up; `notes` holds all the rest.

    Raises:
        ValueError: if `rows_in` is not `rows_out` plus the dropped rows.
    """

    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.rows_out + sum(self.dropped.values())
        if self.rows_in != total:
            raise ValueError(
                f"rows_in is {self.rows_in}, but rows out and dropped add up to {total}"
            )

    def to_dict(self) -> dict[str, int | dict[str, int] | dict[str, int | float | str]]:
        """The report as plain JSON values."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def __str__(self) -> str:
        rows: list[tuple[str, int | float | str]] = [("rows in", self.rows_in)]
        rows += [(f"  dropped: {reason}", count) for reason, count in self.dropped.items()]
        rows += [("rows out", self.rows_out)]
        rows += [(f"  note: {name}", value) for name, value in self.notes.items()]
        cells = [(name, value if isinstance(value, str) else f"{value:,}") for name, value in rows]
        left, right = (max(len(row[side]) for row in cells) for side in (0, 1))
        return "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in cells)


class EventBatches:
    """Re-iterable batches of some event columns, each a dict of numpy arrays in log order."""

    def __init__(self, events: "Events", columns: Sequence[str], rows: int) -> None:
        self._events, self._columns, self._rows = events, list(columns), rows

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for batch in self._events.record_batches(
            self._events.table.select(self._columns), self._rows
        ):
            yield {
                name: column.to_numpy(zero_copy_only=False)
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            }


class Events:
    """A clean event table in a temporary DuckDB file, and the report of how it was cleaned.

    Attributes:
        table: Ibis table: `user_id` and `item_id` (int64 or string), those present of `event_type`,
            `timestamp` (float64, seconds since 1970 UTC), `duration`, `item_duration`, `count`
            (float64), `platform`, and `log_order` (int64). Rows lie in the order of the source.
        report: the `CleaningReport`.

    The file lives as long as this object does.
    """

    def __init__(self, workspace: Workspace, table: ibis.Table, report: CleaningReport) -> None:
        self._connection = workspace.connection
        self._workspace = workspace
        self.table = table
        self.report = report

    @property
    def columns(self) -> list[str]:
        """Names of the columns present."""
        return list(self.table.columns)

    def __len__(self) -> int:
        return self.report.rows_out

    def to_pandas(self) -> pd.DataFrame:
        """All events in memory, in log order."""
        return self.table.to_pandas()

    def batches(self, columns: Sequence[str], rows: int = 1_000_000) -> EventBatches:
        """Batches of about `rows` events; nulls are NaN in numbers and None in strings.

        Raises:
            ValueError: for a column that the events lack.
        """
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            raise ValueError(f"no event columns {unknown}; present are {self.columns}")
        return EventBatches(self, columns, rows)

    def record_batches(self, expression: ibis.Table, rows: int = 1_000_000) -> pa.RecordBatchReader:
        """Stream an Ibis expression on `table` as Arrow record batches, on a cursor of its own."""
        cursor = self._connection.con.cursor()
        return cursor.sql(self._connection.compile(expression)).to_arrow_reader(rows)


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
        source: path or glob of Parquet, CSV or JSONL (also gzipped), a list of paths, a
            `datasets.Dataset`, a pandas or polars frame, a pyarrow table or an Ibis table. Files
            are read in the order of their names, rows in the order of the source.
        memory_limit: DuckDB's limit, as in "1GB"; half of the machine's memory when None. Beyond it
            DuckDB spills to disk.
        temp_directory: folder for the temporary database; the system's own when None.

    Raises:
        FileNotFoundError: if no file matches.
        ValueError: for a missing column, an unreadable or wrongly typed source, an empty log, or a
            log of which cleaning leaves nothing.

    >>> log = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", None], "timestamp": [3, 4]})
    >>> load_events(log).report.dropped
    {'missing item_id': 1}
    """
    if cleaning.max_events_per_day is not None and schema.timestamp is None:
        raise ValueError("max_events_per_day needs a timestamp column, schema.timestamp is None")
    workspace = Workspace(memory_limit, temp_directory)
    try:
        raw = stage_source(workspace, source, schema.mapped())
        return _clean(workspace, raw, cleaning, from_csv=is_csv(source))
    except (duckdb.Error, pa.ArrowException) as error:
        workspace.close()
        raise ValueError(f"could not read {describe_source(source)}: {error}") from error
    except BaseException:
        workspace.close()
        raise


def _clean(
    workspace: Workspace, raw: ibis.Table, options: CleaningOptions, *, from_csv: bool
) -> Events:
    rows_in = count_rows(raw)
    table = type_columns(workspace, raw, from_csv, options.drop_nonpositive)
    counts = (
        table.filter(_.reason.notnull()).group_by("reason").agg(rows=_.count()).order_by("reason")
    )
    workspace.dropped |= {
        str(row["reason"]): int(row["rows"]) for row in counts.to_pyarrow().to_pylist()
    }
    table = workspace.materialise(table.filter(_.reason.isnull()).drop("reason"), table)
    if options.drop_duplicates:
        keys = [name for name in table.columns if name != "row"]
        table = workspace.keep(table, table.group_by(keys).agg(row=_.row.min()), "duplicate")
    if options.max_events_per_day is not None:
        days = table.group_by("user_id", day=(_.timestamp / SECONDS_PER_DAY).floor()).agg(
            rows=_.count()
        )
        bots = days.filter(_.rows > options.max_events_per_day)
        reason = f"user with more than {options.max_events_per_day} events a day"
        table = workspace.keep(table, table.anti_join(bots, "user_id"), reason)
    table = _clip(workspace, table, options.clip_quantile)
    if options.merge_repeats:
        table = workspace.keep(table, _merged(table), "merged into the event before")
    table = _core(workspace, table, options)
    rows_out = count_rows(table)
    report = CleaningReport(rows_in, rows_out, workspace.dropped, _notes(workspace, table))
    if not rows_out:
        raise ValueError(f"nothing is left of the log after cleaning:\n{report}")
    order = table.order if "order" in table.columns else table.row
    final = table.mutate(log_order=order.cast("int64"))
    final = final.order_by("row").select([name for name in COLUMN_ORDER if name in final.columns])
    return Events(workspace, workspace.materialise(final, table), report)


def _notes(workspace: Workspace, table: ibis.Table) -> dict[str, int | float | str]:
    """The notes so far, and how many rows kept lack an optional value."""
    optional = [name for name in (*LABELS, *NUMBERS) if name in table.columns]
    for name in optional:
        missing = int(table[name].isnull().sum().execute() or 0)
        if missing:
            workspace.notes[f"{name} not recorded"] = missing
    return workspace.notes


def _clip(workspace: Workspace, table: ibis.Table, quantile: float | None) -> ibis.Table:
    """Clip each strength at the value of the log that lies at the quantile."""
    if quantile is None:
        return table
    for name in (name for name in STRENGTHS if name in table.columns):
        present = table.filter(table[name].notnull())
        rows = count_rows(present)
        if not rows:
            continue
        above = rows - max(int(np.ceil(quantile * rows)), 1)
        limit = float(
            present.order_by(ibis.desc(name)).select(name).limit(1, offset=above).execute()[name][0]
        )
        clipped = int((table[name] > limit).sum().execute())
        if clipped:
            workspace.notes |= {f"{name} clipped": clipped, f"{name} clipped at": limit}
            table = workspace.materialise(
                table.mutate(**{name: ibis.ifelse(table[name] > limit, limit, table[name])}), table
            )
    return table


def _merged(table: ibis.Table) -> ibis.Table:
    """Consecutive events of one user, item and event type as one, at the first one's time."""
    order = [name for name in ("timestamp", "order", "row") if name in table.columns]
    window = ibis.window(group_by="user_id", order_by=order)
    same = table.item_id == table.item_id.lag().over(window)
    if "event_type" in table.columns:
        same &= table.event_type.identical_to(table.event_type.lag().over(window))
    marked = table.mutate(
        starts=ibis.ifelse(same.fill_null(False), 0, 1), place=ibis.row_number().over(window)
    )
    window = ibis.window(group_by="user_id", order_by="place", preceding=None, following=0)
    runs = marked.mutate(run=marked.starts.sum().over(window))
    first = {
        name: runs[name].argmin(runs.place)
        for name in table.columns
        if name not in ("user_id", *STRENGTHS)
    }
    counted = "count" in table.columns
    count = runs["count"].fill_null(1.0).sum() if counted else runs.place.count().cast("float64")
    totals = {"count": count}
    if "duration" in table.columns:
        totals["duration"] = runs.duration.sum()
    return runs.group_by("user_id", "run").agg(**first, **totals).drop("run")


def _core(workspace: Workspace, table: ibis.Table, options: CleaningOptions) -> ibis.Table:
    """Drop rare users and items in turn until none is left to drop (a k-core)."""
    minima = {"user_id": options.min_user_events, "item_id": options.min_item_events}
    rows = -1
    while rows != count_rows(table):
        rows = count_rows(table)
        for name, least in minima.items():
            if least > 1:
                enough = table.group_by(name).agg(rows=_.count()).filter(_.rows >= least)
                reason = f"{name.removesuffix('_id')} with fewer than {least} events"
                table = workspace.keep(table, table.semi_join(enough, name), reason)
    return table
