"""What a log looks like: small aggregates of an event table, computed inside its engine."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ibis
import numpy as np
import pyarrow as pa
from datasets import Dataset
from ibis import _

from .event_columns import SECONDS_PER_DAY
from .processing_implicitrec import ImplicitRecProcessor

ALL_TYPES = "all events"  # the one type of a log without event types
OTHER_TYPES = "other types"
NO_TYPE = "no type recorded"
LARGEST = 1e30  # not NaN and not infinite, in every engine
LAST_SECOND = 6e10  # the years 68 to 3871: a time beyond them is no time, and on no calendar
MAX_DAYS = 20_000  # a log with unreadable times may name millions of days; the fullest are kept
CURVE_POINTS = 100
WEIGHT_BINS = 4  # per doubling


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin.

    Args:
        edges: one more than there are bins, rising; bin i is `edges[i] <= value < edges[i + 1]`.
        counts: values in each bin.
        nonpositive: values <= 0, which have no place on a logarithmic axis.
        mean: of the values in the bins; None if there are none.

    Raises:
        ValueError: if edges and counts do not fit.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    nonpositive: int = 0
    mean: float | None = None

    def __post_init__(self) -> None:
        if len(self.edges) != (len(self.counts) + 1 if self.counts else 0):
            raise ValueError(
                f"expected {len(self.counts) + 1} edges for {len(self.counts)} counts, "
                f"got {len(self.edges)}"
            )

    @property
    def total(self) -> int:
        """Values in the bins."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """About the value below which this share of the binned values lies; NaN if there are none.

        Within a bin the logarithms of the values are taken to lie evenly.
        """
        if not self.total:
            return float("nan")
        below = np.concatenate([[0], np.cumsum(self.counts)]) / self.total
        place = min(int(np.searchsorted(below, share, side="right")) - 1, len(self.counts) - 1)
        part = (share - below[place]) / (below[place + 1] - below[place] or 1)
        low, high = np.log2(self.edges[place]), np.log2(self.edges[place + 1])
        return float(2 ** (low + part * (high - low)))


@dataclass(frozen=True)
class EventProfile:
    """The shape of a log in a few hundred numbers.

    Args:
        events, users, items: rows, and distinct ids that are not null.
        first, last: the earliest and latest time, seconds since 1970 UTC; None without times.
        event_types: events of each of the most frequent types, by falling count; the rest are one
            entry, `OTHER_TYPES`. Empty where the log has no types.
        daily: per event type (`ALL_TYPES` where there are none) the events of each day since 1970.
        popularity: (rank, events) of items by falling count, at ranks that are evenly spaced on a
            logarithmic axis; exact at each.
        top_share: share of the events that the most popular 1 % of the items have.
        lengths: events a user has, binned by doubling.
        median_length: half of the users have no more events than this.
        gaps: seconds between a user's consecutive events, binned by doubling, of sampled users; 0 s
            is in `nonpositive`. None without times.
        repeat_share: share of the events that the same user already had with the same item, of
            sampled users.
        durations, counts: per event type the values, binned by doubling.
        user_sample: gaps and repeats are those of one user in so many, chosen by a hash.
    """

    events: int
    users: int
    items: int
    first: float | None = None
    last: float | None = None
    event_types: dict[str, int] = field(default_factory=dict)
    daily: dict[str, dict[int, int]] = field(default_factory=dict)
    popularity: tuple[tuple[int, int], ...] = ()
    top_share: float = 0.0
    lengths: Histogram = Histogram((), ())
    median_length: int = 0
    gaps: Histogram | None = None
    repeat_share: float = 0.0
    durations: dict[str, Histogram] = field(default_factory=dict)
    counts: dict[str, Histogram] = field(default_factory=dict)
    user_sample: int = 1


def profile_events(
    table: ibis.Table, *, max_types: int = 6, sample_events: int = 10_000_000
) -> EventProfile:
    """Describe an event table, before or after cleaning, in any engine that Ibis speaks to.

    Every query is an aggregation, so no rows leave the engine. The table is read about nine times:
    give one that is stored, not a long expression.

    Args:
        table: `user_id` and `item_id`, and any of `event_type`, `timestamp` (seconds since 1970),
            `duration` and `count`. Every column may hold nulls.
        max_types: event types that are told apart.
        sample_events: what looks at each user's events in turn takes about so many events, of whole
            users. See `EventProfile.user_sample`.

    Raises:
        ValueError: for a table without user and item ids, or a bound below 1.

    >>> log = ibis.memtable({"user_id": [1, 1, 2], "item_id": ["a", "b", "a"]})
    >>> profile = profile_events(log)
    >>> profile.events, profile.users, profile.popularity
    (3, 2, ((1, 2), (2, 1)))
    """
    missing = [name for name in ("user_id", "item_id") if name not in table.columns]
    if missing:
        raise ValueError(f"no event columns {missing}; present are {list(table.columns)}")
    if max_types < 1 or sample_events < 1:
        raise ValueError(
            f"max_types and sample_events must be at least 1, got {max_types} and {sample_events}"
        )
    events = int(table.count().execute())
    types = _event_types(table, events, max_types)
    typed = table.mutate(kind=_kind(table, types))
    users, items = _events_per(table, "user_id"), _events_per(table, "item_id")
    sample = max(1, -(-events // sample_events))
    sampled = table.filter(_.user_id.notnull() & (_.user_id.hash() % sample == 0))
    first, last = _time_span(table)
    return EventProfile(
        events=events,
        users=sum(users.values()),
        items=sum(items.values()),
        first=first,
        last=last,
        event_types=types,
        daily=_daily(typed),
        popularity=_popularity(items),
        top_share=_top_share(items, 0.01),
        lengths=_bin_by_doubling(users),
        median_length=_median(users),
        gaps=_gaps(sampled),
        repeat_share=_repeat_share(sampled),
        durations=_strengths(typed, "duration"),
        counts=_strengths(typed, "count"),
        user_sample=sample,
    )


def weight_histograms(
    rows: Dataset, processor: ImplicitRecProcessor, *, batch_size: int = 10_000
) -> dict[str, Histogram]:
    """The weights of encoded sequences per event type, most frequent type first.

    Args:
        rows: as `encode_sequences` returns them: list columns `input_weights` and, where the
            processor knows event types, `event_type_ids`.
        batch_size: users that are in memory at once.

    Raises:
        ValueError: if `rows` has no weights.
    """
    if "input_weights" not in rows.column_names:
        raise ValueError(f"no column input_weights; present are {rows.column_names}")
    names = {i: name for i, name in enumerate(processor.event_types, start=1)}
    bins: dict[str, Counter[int]] = {}
    zeros: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for weights, types in _weight_batches(rows, batch_size):
        for kind in np.unique(types):
            own = weights[types == kind]
            name = names.get(int(kind), NO_TYPE) if names else ALL_TYPES
            zeros[name] += int((own <= 0).sum())
            sums[name] += own[own > 0].sum()
            place = np.floor(np.log2(own[own > 0]) * WEIGHT_BINS + 1e-9).astype(np.int64)
            bins.setdefault(name, Counter()).update(place.tolist())
    return _by_frequency(
        {n: _histogram(own, WEIGHT_BINS, zeros[n], sums[n]) for n, own in bins.items()}
    )


def _weight_batches(rows: Dataset, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Flat weights and event type ids (all 0 where there are none) of some users at a time."""
    wanted = [name for name in ("input_weights", "event_type_ids") if name in rows.column_names]
    for batch in rows.select_columns(wanted).with_format("arrow").iter(batch_size):
        weights = _flat(batch, "input_weights").astype(np.float64)
        typed = "event_type_ids" in wanted
        yield weights, _flat(batch, "event_type_ids") if typed else np.zeros(len(weights), int)


def _flat(batch: pa.Table, name: str) -> np.ndarray:
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in batch[name].chunks]
    return np.concatenate([*parts, np.empty(0)])


def _by_frequency(histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    def falling(pair: tuple[str, Histogram]) -> tuple[int, str]:
        return -pair[1].total - pair[1].nonpositive, pair[0]

    return dict(sorted(histograms.items(), key=falling))


def _histogram(
    bins: Mapping[int, int], per_doubling: int, nonpositive: int, total: float
) -> Histogram:
    """From the place of each bin on a logarithmic axis and the sum of the values in all of them."""
    if not bins:
        return Histogram((), (), nonpositive)
    places = range(min(bins), max(bins) + 1)
    edges = tuple(float(2 ** (place / per_doubling)) for place in [*places, places.stop])
    counts = tuple(bins.get(place, 0) for place in places)
    return Histogram(edges, counts, nonpositive, float(total) / sum(counts))


def _bin_by_doubling(values: Mapping[int, int]) -> Histogram:
    """Of whole numbers >= 1 -> how often each is there."""
    bins: Counter[int] = Counter()
    for value, times in values.items():
        bins[value.bit_length() - 1] += times
    return _histogram(bins, 1, 0, sum(value * times for value, times in values.items()))


def _doubling(value: ibis.Value) -> ibis.Value:
    """The place of a positive number among bins that double; a rounding error moves no power of 2."""
    return (value.log2() + 1e-9).floor().cast("int64")


def _event_types(table: ibis.Table, events: int, max_types: int) -> dict[str, int]:
    if "event_type" not in table.columns:
        return {}
    kind = table.event_type.cast("string").fill_null(NO_TYPE)
    counts = table.group_by(kind=kind).agg(rows=_.count())
    top = counts.order_by(ibis.desc("rows"), "kind").limit(max_types).to_pyarrow().to_pylist()
    found = {row["kind"]: int(row["rows"]) for row in top}
    rest = events - sum(found.values())
    return found | ({OTHER_TYPES: found.get(OTHER_TYPES, 0) + rest} if rest else {})


def _kind(table: ibis.Table, types: Mapping[str, int]) -> ibis.Value:
    """The event type of each row, as `types` tells them apart."""
    if not types:
        return ibis.literal(ALL_TYPES)
    kind = table.event_type.cast("string").fill_null(NO_TYPE)
    return ibis.ifelse(kind.isin(list(types)), kind, OTHER_TYPES)


def _events_per(table: ibis.Table, name: str) -> dict[int, int]:
    """Number of events -> how many ids have it, largest first.

    N events hold at most sqrt(2 N) different numbers, so this is small for any log.
    """
    owners = table.filter(table[name].notnull()).group_by(name).agg(rows=_.count())
    sizes = owners.group_by("rows").agg(ids=_.count()).order_by(ibis.desc("rows"))
    return {int(row["rows"]): int(row["ids"]) for row in sizes.to_pyarrow().to_pylist()}


def _popularity(items: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    if not items:
        return ()
    sizes, last_rank = np.array(list(items)), np.cumsum(list(items.values()))
    ranks = np.unique(np.geomspace(1, last_rank[-1], CURVE_POINTS).round().astype(np.int64))
    events = sizes[np.searchsorted(last_rank, ranks)]
    return tuple(zip(ranks.tolist(), events.tolist()))


def _top_share(items: Mapping[int, int], share: float) -> float:
    """Share of the events that the most popular `share` of the items have, at least one item."""
    left = max(1, round(share * sum(items.values())))
    total, top = sum(size * ids for size, ids in items.items()), 0
    for size, ids in items.items():
        top += size * min(ids, left)
        left -= min(ids, left)
    return top / total if total else 0.0


def _median(sizes: Mapping[int, int]) -> int:
    below, half = 0, sum(sizes.values()) / 2
    for size in sorted(sizes):
        below += sizes[size]
        if below >= half:
            return size
    return 0


def _timed(table: ibis.Table) -> ibis.Table | None:
    """The rows whose time can be one, as `seconds`."""
    if "timestamp" not in table.columns:
        return None
    timed = table.mutate(seconds=table.timestamp.cast("float64"))
    return timed.filter(_.seconds.between(-LAST_SECOND, LAST_SECOND))


def _time_span(table: ibis.Table) -> tuple[float | None, float | None]:
    timed = _timed(table)
    if timed is None:
        return None, None
    ((first, last),) = _rows(timed.agg(first=_.seconds.min(), last=_.seconds.max()))
    return first, last


def _daily(typed: ibis.Table) -> dict[str, dict[int, int]]:
    timed = _timed(typed)
    if timed is None:
        return {}
    dated = timed.mutate(day=(_.seconds / SECONDS_PER_DAY).floor().cast("int64"))
    cells = dated.group_by("day", "kind").agg(rows=_.count())
    found: dict[str, dict[int, int]] = {}
    kept = cells.order_by(ibis.desc("rows"), "day", "kind").limit(MAX_DAYS)
    for day, kind, rows in sorted(_rows(kept)):
        found.setdefault(kind, {})[day] = rows
    return found


def _gaps(sampled: ibis.Table) -> Histogram | None:
    timed = _timed(sampled)
    if timed is None:
        return None
    window = ibis.window(group_by="user_id", order_by="seconds")
    narrow = timed.select("user_id", "seconds")
    gaps = narrow.mutate(value=_.seconds - _.seconds.lag().over(window), kind=ibis.literal(""))
    return _binned(gaps).get("", Histogram((), ()))


def _repeat_share(sampled: ibis.Table) -> float:
    known = sampled.filter(_.item_id.notnull())
    pairs = known.group_by("user_id", "item_id").agg(rows=_.count())
    ((events, distinct),) = _rows(pairs.agg(events=_.rows.sum(), distinct=_.count()))
    return (events - distinct) / events if distinct else 0.0


def _strengths(typed: ibis.Table, name: str) -> dict[str, Histogram]:
    if name not in typed.columns:
        return {}
    return _binned(typed.select("kind", value=typed[name].cast("float64")))


def _binned(values: ibis.Table) -> dict[str, Histogram]:
    """Of columns `kind` and `value`: the values of each kind, binned by doubling."""
    known = values.filter(_.value.between(-LARGEST, LARGEST))
    positive = ibis.ifelse(known.value > 0, known.value, ibis.null("float64"))
    cells = known.group_by("kind", place=_doubling(positive)).agg(rows=_.count(), sum=_.value.sum())
    bins: dict[str, Counter[int]] = {}
    zeros: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for kind, place, rows, total in _rows(cells):
        own = bins.setdefault(kind, Counter())
        if place is None:
            zeros[kind] += rows
        else:
            own[place] += rows
            sums[kind] += total
    return _by_frequency({k: _histogram(own, 1, zeros[k], sums[k]) for k, own in bins.items()})


def _rows(expression: ibis.Table) -> Sequence[tuple]:
    return [tuple(row.values()) for row in expression.to_pyarrow().to_pylist()]
