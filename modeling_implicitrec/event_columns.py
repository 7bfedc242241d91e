"""Raw columns of a log to typed ones, with the reason why a row cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import ibis

IDS = ("user_id", "item_id")
STRENGTHS = ("duration", "count")
NUMBERS = ("duration", "item_duration", "count")
LABELS = ("event_type", "platform")
SECONDS_PER_DAY = 86_400
# Why a row cannot be used, by the number under which that is stored: the first that holds.
REASONS = (
    "missing user_id",
    "missing item_id",
    "missing timestamp",
    "unparsable timestamp",
    "ancient timestamp",
    "future timestamp",
    "missing order",
    "duration not a number",
    "duration not positive",
    "count not a number",
    "count not positive",
)
# A number above the first is a time in the unit beside it (1e11 s is the year 5138).
TIME_UNITS = ((1e17, 1e9, "nanoseconds"), (1e14, 1e6, "microseconds"), (1e11, 1e3, "milliseconds"))
# A date as one number, 20240501: of these years. As seconds they would be days of 1970.
DAY_NUMBERS = (1990_01_01, 2100_12_31)
# Milliseconds since 1970 of 1995 to 2068, read by somebody as microseconds: days of January 1970.
MISREAD_SECONDS = (788_918_400 / 1e3, 3_100_000_000 / 1e3)


@dataclass(frozen=True)
class ColumnRules:
    """How raw columns are read, as one scan of the log has found.

    Args:
        whole_ids: the id columns that are whole numbers throughout.
        from_csv: all columns came as text.
        positive: a strength that is not positive drops its row.
        negative_type: the event type of rows with a negative count, which loses its sign.
        earliest: in seconds; rows before it are dropped. `latest` likewise.
        max_duration: seconds; a longer dwell time is not believed, and counts as not recorded.
        clock_offset: seconds added to every time.
        platform: of all rows, where the log has no such column.
        own_items: whether each platform has item ids of its own, which are then called
            `platform:item`.
        unreadable: the columns that hold text of which none is a time or a number.
        day_numbers: times are dates that are written as one number, 20240501.
    """

    whole_ids: frozenset[str] = frozenset()
    from_csv: bool = False
    positive: bool = True
    negative_type: str | None = None
    earliest: float | None = None
    latest: float | None = None
    max_duration: float | None = None
    clock_offset: float = 0.0
    platform: str | None = None
    own_items: bool = False
    notes: dict[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    day_numbers: bool = False


def text_of(column: ibis.Value) -> ibis.Value:
    """A column as strings, the empty one being null."""
    kind = column.type()
    if kind.is_json():
        column = ibis.coalesce(column.str, column.cast("string"))
    elif kind.is_nested() or kind.is_binary():
        raise ValueError(f"column {column.get_name()} must hold plain values, got {kind}")
    return column.cast("string").nullif("")


def is_missing(column: ibis.Value) -> ibis.Value:
    """Whether there is no value; text may be empty."""
    kind = column.type()
    plain = kind.is_numeric() or kind.is_timestamp() or kind.is_date()
    return column.isnull() if plain else text_of(column).isnull()


def is_whole(column: ibis.Value, from_csv: bool) -> ibis.Value | None:
    """Whether each id is a whole number (in a CSV: written as such); None for no integer at all."""
    kind, whole = column.type(), column.try_cast("int64")
    if kind.is_floating():
        return column.isnull() | column.isnan() | (whole.cast("float64") == column)
    if kind.is_decimal():
        return column.isnull() | (whole.notnull() & (column % 1 == 0))
    if kind.is_integer():
        return column.isnull() | whole.notnull()
    if not from_csv:
        return None
    # 17.0 is what pandas writes for a 17 beside a missing value.
    text, plain = text_of(column), whole.cast("string")
    return text.isnull() | text.isin([plain, plain + ".0"]).fill_null(False)


def number_of(column: ibis.Value) -> ibis.Value:
    """A column as float64; what is no finite number is null."""
    kind = column.type()
    if not (kind.is_numeric() or kind.is_string() or kind.is_null()):
        raise ValueError(f"column {column.get_name()} must hold numbers, got {kind}")
    if kind.is_integer():
        return column.cast("float64")
    number = column.try_cast("float64") if kind.is_string() else column.cast("float64")
    # What is infinite or no number is not itself less itself.
    return ibis.ifelse(number - number == 0, number, ibis.null("float64"))


def raw_time(column: ibis.Value) -> ibis.Value:
    """A time column as the number that it holds; null where it cannot be read."""
    kind = column.type()
    if kind.is_timestamp() or kind.is_date():
        seconds = number_of(column.cast("timestamp(6)").epoch_seconds().cast("float64"))
        low, high = MISREAD_SECONDS
        return ibis.ifelse(seconds.between(low, high), seconds * 1e3, seconds)
    if kind.is_numeric():
        return number_of(column)
    text = text_of(column)
    clock = text.try_cast("timestamp('UTC', 6)").epoch_seconds().cast("float64")
    return ibis.coalesce(number_of(clock), number_of(text))


def seconds_of(number: ibis.Value) -> ibis.Value:
    """A time in seconds since 1970 UTC, whatever the unit of each."""
    limits = [limit for limit, *_ in TIME_UNITS]
    branches = [(number <= limits[-1], number)]  # first what nearly all are
    branches += [(number > limit, number / factor) for limit, factor, _unit in TIME_UNITS]
    return ibis.cases(*branches)


def is_day_number(number: ibis.Value) -> ibis.Value:
    """Whether a number may be a date such as 20240501."""
    return (
        number.between(*DAY_NUMBERS)
        & (number % 1 == 0)
        & (number % 100).between(1, 31)
        & (number % 10_000).between(100, 1_231)
    )


def seconds_of_days(number: ibis.Value) -> ibis.Value:
    """Seconds since 1970 UTC of dates such as 20240501, and of all else as of `seconds_of`."""
    digits = number.try_cast("int64").cast("string")
    parts = (digits.substr(0, 4), digits.substr(4, 2), digits.substr(6, 2))
    clock = (parts[0] + "-" + parts[1] + "-" + parts[2]).try_cast("timestamp('UTC', 6)")
    day = ibis.ifelse(is_day_number(number), clock, ibis.null("timestamp('UTC', 6)"))
    return ibis.coalesce(day.epoch_seconds().cast("float64"), seconds_of(number))


def column_of(reason: str) -> str:
    """Our name of the column that a reason of `type_columns` speaks of."""
    return next(word for word in reason.split() if word in (*IDS, "timestamp", "order", *NUMBERS))


def type_columns(raw: ibis.Table, rules: ColumnRules) -> ibis.Table:
    """Our columns of our types, `row`, and in `reason` the number of why a row cannot be used, if so."""
    values: dict[str, ibis.Value] = {
        name: raw[name].try_cast("int64") if name in rules.whole_ids else text_of(raw[name])
        for name in IDS
    }
    values |= {name: text_of(raw[name]) for name in LABELS if name in raw.columns}
    if rules.platform is not None:
        values["platform"] = ibis.literal(rules.platform)
    if rules.own_items and "platform" in values:
        values["item_id"] = values["platform"].fill_null("") + ":" + text_of(raw.item_id)
    reasons = [(values[name].isnull(), f"missing {name}") for name in IDS]
    if "timestamp" in raw.columns:
        number = raw_time(raw.timestamp)
        seconds = seconds_of_days(number) if rules.day_numbers else seconds_of(number)
        seconds = seconds + rules.clock_offset if rules.clock_offset else seconds
        values["timestamp"] = seconds
        reasons += [(is_missing(raw.timestamp), "missing timestamp")]
        reasons += [(seconds.isnull(), "unparsable timestamp")]
        if rules.earliest is not None:
            reasons += [(seconds < rules.earliest, "ancient timestamp")]
        if rules.latest is not None:
            reasons += [(seconds > rules.latest, "future timestamp")]
    if "order" in raw.columns:
        values["order"] = raw.order.try_cast("int64")
        reasons += [(values["order"].isnull(), "missing order")]
    strengths, more = _strengths(raw, values, rules)
    reasons += more
    numbers = [(holds, ibis.literal(REASONS.index(reason), "int8")) for holds, reason in reasons]
    return raw.select(**values | strengths, row=raw.row, reason=ibis.cases(*numbers))


def name_reasons(table: ibis.Table) -> ibis.Table:
    """Typed rows with the reason in words."""
    names = ((table.reason == number, reason) for number, reason in enumerate(REASONS))
    return table.mutate(reason=ibis.cases(*names))


def _strengths(
    raw: ibis.Table, values: dict[str, ibis.Value], rules: ColumnRules
) -> tuple[dict[str, ibis.Value], list[tuple]]:
    """The number columns, and the reasons that lie in them."""
    strengths: dict[str, ibis.Value] = {}
    reasons: list[tuple] = []
    for name in (name for name in NUMBERS if name in raw.columns):
        number = number_of(raw[name])
        if name == "item_duration":
            strengths[name] = ibis.ifelse(number > 0, number, ibis.null("float64"))
            continue
        reasons += [(~is_missing(raw[name]) & number.isnull(), f"{name} not a number")]
        if name == "count" and rules.negative_type is not None:
            negative = ibis.literal(rules.negative_type)
            own = values.get("event_type", ibis.null("string"))
            strengths["event_type"] = ibis.ifelse(number < 0, negative, own)
            number = number.abs()
        if rules.positive:
            reasons += [(number <= 0, f"{name} not positive")]
        if name == "duration" and rules.max_duration is not None:
            number = ibis.ifelse(number > rules.max_duration, ibis.null("float64"), number)
        strengths[name] = number
    return strengths, reasons


def find_rules(raw: ibis.Table, given: ColumnRules) -> tuple[ColumnRules, int]:
    """What one scan of the raw log tells about its columns, and how many rows it has."""
    parts: dict[str, ibis.Value] = {"rows": raw.count()}
    for name in IDS:
        whole = is_whole(raw[name], given.from_csv)
        if whole is not None:
            parts[name] = whole.all()
    if "timestamp" in raw.columns:
        number = raw_time(raw.timestamp)
        parts["times"] = number.count()
        limit = float("inf")
        for above, _factor, unit in TIME_UNITS:
            parts[unit] = ((number > above) & (number <= limit)).sum()
            limit = above
        kind = raw.timestamp.type()
        if not (kind.is_timestamp() or kind.is_date()):
            parts["days"] = is_day_number(number).sum()
        if kind.is_timestamp():
            epoch = raw.timestamp.cast("timestamp(6)").epoch_seconds()
            parts["misread"] = epoch.between(*MISREAD_SECONDS).sum()
        if given.earliest is not None:
            parts["modern"] = (seconds_of(number) >= given.earliest).sum()
    if "duration" in raw.columns and given.max_duration is not None:
        parts["long"] = (number_of(raw.duration) > given.max_duration).sum()
    parts |= _texts(raw)
    found = raw.aggregate(**parts).to_pyarrow().to_pylist()[0]
    return _rules(given, found), int(found["rows"])


def _texts(raw: ibis.Table) -> dict[str, ibis.Value]:
    """Of each column of text that should be no text, how many values there are and can be read."""
    parts = {}
    for name in ("timestamp", "order", *NUMBERS):
        if name in raw.columns and raw[name].type().is_string():
            column = raw[name]
            readers = {"timestamp": raw_time, "order": lambda order: order.try_cast("int64")}
            parts[f"given {name}"] = text_of(column).count()
            parts[f"read {name}"] = readers.get(name, number_of)(column).count()
    return parts


def _rules(given: ColumnRules, found: dict) -> ColumnRules:
    """The rules with what was found."""
    notes = {f"timestamps in {unit}": found[unit] for *_rest, unit in TIME_UNITS if found.get(unit)}
    dates = found.get("days") or 0
    day_numbers = 2 * dates > (found.get("times") or 0)  # of seconds, hardly one in thirty is
    if day_numbers:
        notes["timestamps that are days, such as 20240501"] = dates
    if found.get("misread"):
        notes["timestamps a thousand times too small"] = found["misread"]
    unread = (found.get("given item_duration") or 0) - (found.get("read item_duration") or 0)
    if unread:
        notes["item_duration not a number"] = unread
    if found.get("long"):
        notes["duration not believed"] = found["long"]
    # A log whose clock starts at 0, or another date of its own, has no ancient and no future.
    modern = (found.get("modern") or 0) + day_numbers * dates
    is_dated = given.earliest is None or 2 * modern >= (found.get("times") or 0)
    given = given if is_dated else replace(given, earliest=None, latest=None)
    whole = frozenset(name for name in IDS if found.get(name))
    unreadable = tuple(
        name
        for name in ("timestamp", "order", *NUMBERS)
        if found.get(f"given {name}") and not found[f"read {name}"]
    )
    return replace(
        given, whole_ids=whole, notes=notes, unreadable=unreadable, day_numbers=day_numbers
    )


def align_columns(table: ibis.Table, columns: Sequence[str]) -> ibis.Table:
    """A typed table with all of the columns, null where it has none."""
    types = dict.fromkeys(LABELS, "string") | dict.fromkeys((*NUMBERS, "timestamp"), "float64")
    types["order"] = "int64"
    lacking = [name for name in columns if name not in table.columns]
    return table.mutate(**{name: ibis.null(types[name]) for name in lacking}).select(columns)
