"""Clean typed events: duplicates, repeats, machines, rare users and items, each under its reason."""

from dataclasses import dataclass
from datetime import UTC, datetime

import ibis
import numpy as np
from ibis import _

from .engine import Engine
from .event_columns import REASONS, SECONDS_PER_DAY, STRENGTHS

TIME_ORDER = ("timestamp", "order", "log_order", "row")


@dataclass(frozen=True)
class CleaningOptions:
    """What is dropped, clipped and merged. Each part is switched off by None, False or 1.

    Args:
        earliest: ISO time or seconds since 1970; rows before it are dropped as ancient. Neither this
            nor `latest` applies to a log most of whose times lie before it: its clock starts elsewhere.
        latest: likewise, rows after it are dropped; `"now"` is a day after the moment of reading.
        drop_nonpositive: drop rows whose duration or count is <= 0, NaN or infinite (returns, say).
            A null strength means "not recorded"; its row stays and is noted in the report.
        negative_count_type: keep rows with a negative count (returns) as events of this type, with
            the count made positive: negative evidence is evidence of its own kind.
        max_duration: seconds; a longer dwell time (a tab left open, a broken clock) counts as not
            recorded.
        drop_duplicates: keep the first of rows equal in all mapped columns.
        max_events_per_day: drop all events of users who exceed it on any UTC day.
        bot_events_per_day: also those who, on a day of at least so many events, were machines: their
            items or the gaps between their moments have less than `bot_entropy` bits of entropy
            (gaps in octaves: a clock has 0, people 2 to 4).
        merge_repeats: merge consecutive events of one user, item and event type into the first;
            durations and counts add up, a missing count being 1.
        merge_seconds: only those that start at most so long after the one before.
        min_user_events: smallest number of events a user keeps; with `min_item_events` a k-core.
        clip_quantile: clip duration and count at this quantile (a value of the log, in (0, 1]).

    Raises:
        ValueError: for an option out of its range.
    """

    earliest: str | float | None = "1990-01-01"
    latest: str | float | None = "now"
    drop_nonpositive: bool = True
    negative_count_type: str | None = None
    max_duration: float | None = SECONDS_PER_DAY
    drop_duplicates: bool = True
    max_events_per_day: int | None = 5_000
    bot_events_per_day: int | None = 300
    bot_entropy: float = 1.0
    merge_repeats: bool = False
    merge_seconds: float | None = None
    min_user_events: int = 1
    min_item_events: int = 1
    clip_quantile: float | None = 0.999

    def __post_init__(self) -> None:
        if self.clip_quantile is not None and not 0 < self.clip_quantile <= 1:
            raise ValueError(f"clip_quantile must lie in (0, 1], got {self.clip_quantile}")
        least = {"max_duration": 0, "merge_seconds": 0, "bot_entropy": 0, "max_events_per_day": 1}
        least |= {"bot_events_per_day": 1, "min_user_events": 1, "min_item_events": 1}
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise ValueError(f"{name} must be at least {limit}, got {value}")
        self.seconds("earliest"), self.seconds("latest")

    def seconds(self, name: str) -> float | None:
        """`earliest` or `latest` in seconds since 1970 UTC."""
        value = getattr(self, name)
        if value == "now":
            return datetime.now(UTC).timestamp() + SECONDS_PER_DAY
        if not isinstance(value, str):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name} must be an ISO time or seconds, got {value!r}") from None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


class Cleaner:
    """Cleaning at work: an engine, the options, and the rows dropped so far under each reason."""

    def __init__(self, engine: Engine, options: CleaningOptions) -> None:
        self.engine = engine
        self.options = options
        self.dropped: dict[str, int] = {}

    def count(self, reason: str, rows: int) -> None:
        """Add dropped rows to a reason."""
        if rows:
            self.dropped[reason] = self.dropped.get(reason, 0) + rows

    def count_unusable(self, staged: ibis.Table) -> None:
        """Count the typed rows that cannot be used."""
        counts = staged.filter(_.reason.notnull()).group_by("reason").agg(rows=_.count())
        for row in counts.order_by("reason").to_pyarrow().to_pylist():
            self.count(REASONS[row["reason"]], int(row["rows"]))

    def clean_staged(self, staged: ibis.Table) -> ibis.Table:
        """The typed rows of whole users that can be used, cleaned."""
        usable = staged.filter(staged.reason.isnull()).drop("reason")
        return self.clean_users(self.drop_duplicates(usable))

    def drop_duplicates(self, table: ibis.Table) -> ibis.Table:
        """The first of equal rows."""
        if not self.options.drop_duplicates:
            return table
        copies = self.engine.keep("copies", _copies(table))
        self.count("duplicate", self.engine.count(copies))
        return self.engine.keep("distinct_rows", table.anti_join(copies, "row"))

    def clean_users(self, table: ibis.Table) -> ibis.Table:
        """Drop machines and merge repeats; what this gives, it would leave as it is."""
        limits = (self.options.max_events_per_day, self.options.bot_events_per_day)
        least = min((limit for limit in limits if limit is not None), default=None)
        days = None
        if least is not None and "timestamp" in table.columns:
            days = self.engine.keep("busy_days", _busy_days(table, least))
            table = self._drop_machines(table, days, "before")
        if self.options.merge_repeats:
            table, repeats = merge_repeats(self.engine, table, self.options.merge_seconds)
            self.count("merged into the event before", repeats)
            if days is not None:  # fewer events may look different
                table = self._drop_machines(table, days, "after")
        return table

    def _drop_machines(self, table: ibis.Table, days: ibis.Table, stage: str) -> ibis.Table:
        """Drop the users who were machines on one of their busy days."""
        users = days.select("user_id").distinct()
        rows = table.select("user_id", "item_id", "timestamp").semi_join(users, "user_id")
        rows = self.engine.keep(f"busy_{stage}", _on_days(rows, days))
        most, least = self.options.max_events_per_day, self.options.bot_events_per_day
        found = {}
        if most is not None:
            busy = _days(rows, most + 1).select("user_id").distinct()
            found[f"user with more than {most} events a day"] = busy
        if least is not None:
            found["user like a machine"] = machine_users(rows, least, self.options.bot_entropy)
        for place, (reason, who) in enumerate(found.items()):
            machines = self.engine.keep(f"machines_{stage}_{place}", who)
            if not self.engine.count(machines):
                continue
            self.count(reason, self.engine.count(table.semi_join(machines, "user_id")))
            table = table.anti_join(machines, "user_id")
        return self.engine.settle(f"people_{stage}", table)

    def core(self, read: ibis.Table) -> dict[str, ibis.Table]:
        """The users and items of which enough is left (a k-core); empty where all rows stay."""
        least = {"user_id": self.options.min_user_events, "item_id": self.options.min_item_events}
        if max(least.values()) == 1:
            return {}
        kept: dict[str, ibis.Table] = {}
        first = rows = self.engine.count(read)
        settled = step = 0
        while settled < len(least):
            for name, other in (("user_id", "item_id"), ("item_id", "user_id")):
                counted = read.semi_join(kept[other], other) if other in kept else read
                groups = counted.group_by(name).agg(rows=_.count())
                step += 1
                found = self.engine.keep(f"rare_{step}", groups.filter(groups.rows >= least[name]))
                kept[name] = found
                left = int(found.rows.sum().execute() or 0)
                reason = f"{name.removesuffix('_id')} with fewer than {least[name]} events"
                self.count(reason, rows - left)
                settled = settled + 1 if left == rows else 0
                rows = left
        return kept if rows < first else {}


def _copies(table: ibis.Table) -> ibis.Table:
    """The rows that have an equal one before them."""
    keys = [name for name in table.columns if name != "row"]
    # Few rows share user, item and time: only those are compared in full.
    narrow = [name for name in ("user_id", "item_id", "timestamp", "order") if name in keys]
    twins = table.group_by(narrow).agg(rows=_.count()).filter(_.rows > 1)
    rows = table.semi_join(twins, narrow)
    window = ibis.window(group_by=keys, order_by="row")
    return rows.select("row", number=ibis.row_number().over(window)).filter(_.number > 0)


def _day(table: ibis.Table) -> ibis.Value:
    return (table.timestamp / SECONDS_PER_DAY).floor()


def _days(rows: ibis.Table, least: int) -> ibis.Table:
    """User and UTC day of at least so many events."""
    days = rows.group_by(rows.user_id, day=_day(rows)).agg(events=rows.count())
    return days.filter(days.events >= least).select("user_id", "day")


def _busy_days(table: ibis.Table, least: int) -> ibis.Table:
    """The same, by way of the users who have enough events in all."""
    users = table.group_by("user_id").agg(events=_.count()).filter(_.events >= least)
    return _days(table.semi_join(users, "user_id"), least)


def _on_days(rows: ibis.Table, days: ibis.Table) -> ibis.Table:
    return rows.mutate(day=_day(rows)).semi_join(days, ["user_id", "day"]).drop("day")


def machine_users(rows: ibis.Table, least: int, bits: float) -> ibis.Table:
    """Users who on a busy day took one item again and again, or kept time like a clock."""
    rows = rows.mutate(day=_day(rows)).semi_join(_days(rows, least), ["user_id", "day"])
    items = rows.group_by("user_id", "day", value=rows.item_id.cast("string")).agg(rows=_.count())
    moments = rows.select("user_id", "day", "timestamp").distinct()
    window = ibis.window(group_by=["user_id", "day"], order_by="timestamp")
    gaps = moments.mutate(gap=moments.timestamp - moments.timestamp.lag().over(window))
    gaps = gaps.filter(gaps.gap > 0)
    octave = gaps.gap.log2().floor().cast("string")
    gaps = gaps.group_by("user_id", "day", value=octave).agg(rows=_.count())
    # Few moments (a basket has one) say nothing about a clock.
    found = [_entropy(items, 1), _entropy(gaps, max(least // 3, 2))]
    low = [one.filter(one.bits < bits).select("user_id") for one in found]
    return low[0].union(low[1]).distinct()


def _entropy(counts: ibis.Table, least: int) -> ibis.Table:
    """Shannon entropy in bits of each user's day, where there is enough to tell."""
    total = counts.rows.sum()
    inner = (counts.rows * counts.rows.cast("float64").log2()).sum()
    days = counts.group_by("user_id", "day").agg(
        total=total, bits=total.cast("float64").log2() - inner / total
    )
    return days.filter(days.total >= least).mutate(bits=days.bits.round(9))


def merge_repeats(
    engine: Engine, table: ibis.Table, seconds: float | None
) -> tuple[ibis.Table, int]:
    """Consecutive events of one user, item and event type as one, at the first one's time.

    Returns:
        The events, and how many went into the one before them.
    """
    order = [name for name in TIME_ORDER if name in table.columns]
    key = order[-1]  # each row's own
    alike = ["item_id", *(name for name in ("event_type", "platform") if name in table.columns)]
    before = [key, *alike]
    narrow = table.select("user_id", *alike, *order)  # few columns are sorted, the others joined
    if "timestamp" in table.columns and seconds is not None:
        before.append("timestamp")
    placed = engine.beside_previous("placed", narrow, order, before)
    same = placed.item_id == placed.previous_item_id
    for name in alike[1:]:
        same &= placed[name].identical_to(placed[f"previous_{name}"])
    if "timestamp" in before:
        same &= placed.timestamp - placed.previous_timestamp <= seconds
    found = placed.filter(same).select("user_id", key, "place", before=placed[f"previous_{key}"])
    counted = _counted(table)
    strengths = [name for name in STRENGTHS if name in counted.columns]
    found = engine.keep("found", found)
    repeats = engine.keep("repeats", counted.select(key, *strengths).join(found, key))
    totals = engine.keep("totals", _repeat_totals(repeats))
    first = counted.anti_join(repeats, key)
    joined = first.left_join(totals, first[key] == totals.start)
    sums = {name: _sum(joined, name) for name in strengths}
    names = [name for name in table.columns if name != "count"]
    merged = engine.settle("merged", joined.mutate(**sums).select([*names, "count"]))
    return merged, engine.count(repeats)


def _counted(table: ibis.Table) -> ibis.Table:
    """The table with a count, 1 where there is none."""
    one = ibis.literal(1).cast("float64")  # 1.0 would be a decimal to DuckDB
    return table.mutate(count=table["count"].fill_null(one) if "count" in table.columns else one)


def _repeat_totals(repeats: ibis.Table) -> ibis.Table:
    """What the repeats of one event add up to, and that event's key as `start`."""
    window = ibis.window(group_by="user_id", order_by="place")
    # In a row of repeats places and row numbers grow alike.
    runs = repeats.mutate(number=ibis.row_number().over(window))
    runs = runs.mutate(run=runs.place - runs.number)
    sums = {f"more_{name}": runs[name].sum() for name in STRENGTHS if name in runs.columns}
    return runs.group_by("user_id", "run").agg(start=runs.before.argmin(runs.place), **sums)


def _sum(joined: ibis.Table, name: str) -> ibis.Value:
    own, more = joined[name], joined[f"more_{name}"]
    return ibis.coalesce(own + more, own, more)


def clip_limits(table: ibis.Table, quantile: float | None) -> dict[str, tuple[float, int]]:
    """For each strength the value at the quantile, and how many rows lie above it."""
    limits: dict[str, tuple[float, int]] = {}
    for name in (name for name in STRENGTHS if name in table.columns and quantile is not None):
        present = table.filter(table[name].notnull())
        rows = int(present.count().execute())
        if not rows or quantile is None:
            continue
        above = rows - max(int(np.ceil(quantile * rows)), 1)
        top = present.order_by(ibis.desc(name)).select(name).limit(above + 1)
        limit = float(top[name].min().execute())
        higher = int(present.filter(present[name] > limit).count().execute())
        if higher:
            limits[name] = (limit, higher)
    return limits
