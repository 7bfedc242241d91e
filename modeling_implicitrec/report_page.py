"""Write one HTML page that says in plain words and plots what cleaning did to a log."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import numpy as np

from .event_profile import ALL_TYPES, EventProfile, Histogram
from .events import CleaningReport
from .report_plots import Bars, Steps, draw_bars, draw_popularity, embed_plot, short_number

TEMPLATE = "report_page_template.html"
MAX_ROWS = 6  # event types that a plot has room for
BAR_DAYS = (1, 7, 30, 365)
MAX_BARS = 120
SHOWN = (0.001, 0.999)  # of the events before cleaning lie on the days that are shown
REASONS = {
    r"missing (\w+)": "The log gives no {0} here, so the event cannot be placed.",
    r"unparsable (\w+)": "What stands in the log as {0} could not be read.",
    r"(\w+) not a number": "What stands in the log as {0} is no finite number.",
    r"(\w+) not positive": "The {0} is zero or less: often a return, a test or an error.",
    r"duplicate": "The row equals an earlier one in every column; the first one is kept.",
    r"ancient timestamp": "The time lies before anything that such a log can hold.",
    r"future timestamp": "The time lies in the future: a wrong clock.",
    r"user like a machine": "On a busy day always the same thing, or gaps like a clock's; such users go.",
    r"user with more than (\d+) events a day": "The user did more than {0} things on one day, as "
    "robots do; all events of such users go.",
    r"merged into the event before": "The user repeated the same thing right away; it is one event, "
    "and its strength was added to the first one's.",
    r"user with fewer than (\d+) events": "A history of under {0} events says too little to learn from.",
    r"item with fewer than (\d+) events": "An item with under {0} events says too little to learn from.",
}
NOTES = {
    r"timestamps in (\w+)": "Times that were found to be in {0} and were read so.",
    r"timestamps a thousand times too small": "Times of January 1970, multiplied by a thousand.",
    r"order of events": "No column says when or in what order; the rows are taken as they stand.",
    r"duration not believed": "Longer than a day, as of a window left open: taken as not recorded.",
    r"item_duration not a number": "The content length is no number: taken as not recorded.",
    r"(\w+) clipped": "Rows whose {0} was so large that it was lowered to the limit.",
    r"(\w+) clipped at": "The limit that a very large {0} was lowered to.",
    r"(\w+) not recorded": "Rows kept that give no {0}; it has no part in their weight.",
}


@dataclass(frozen=True)
class Plot:
    """A drawing, its heading, what it shows in numbers, and whether it compares before and after."""

    title: str
    svg: str
    finding: str
    compares: bool = True


def write_report_page(
    path: str | Path,
    report: CleaningReport,
    *,
    before: EventProfile,
    after: EventProfile,
    weights: Mapping[str, Histogram] | None = None,
    title: str = "What cleaning did to the log",
) -> None:
    """Write the page as one HTML file that needs no network, whole or not at all.

    Args:
        before, after: `profile_events` of the table before and after cleaning.
        weights: `weight_histograms` of the training part.

    Raises:
        ImportError: without matplotlib, which comes with the extra `report`.
        ValueError: if `after` is not the profile of the events that the report is about.
    """
    if after.events != report.rows_out:
        raise ValueError(
            f"`after` is a profile of {after.events} events, the report keeps {report.rows_out}"
        )
    plots = _plots(before, after, weights or {})
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        title=title,
        summary=_summary(report),
        reasons=_reasons(report),
        kept={"rows": f"{report.rows_out:,}", "share": _share(report.rows_out, report.rows_in)},
        notes=_notes(report),
        facts=_facts(before, after),
        plots=plots,
        absent=_absent(before, after),
        sampled=_sampled(before, after),
    )
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)


def _share(part: float, whole: float) -> str:
    """In percent; never 0 or 100 where it only rounds to that."""
    percent = 100 * part / whole if whole else 0.0
    if percent < 0.05:
        return "under 0.1 %" if percent else "0 %"
    return "over 99.9 %" if 99.95 <= percent < 100 else f"{percent:.1f} %"


def _summary(report: CleaningReport) -> str:
    kept = f"{report.rows_out:,} of {report.rows_in:,} rows were kept"
    if report.rows_out == report.rows_in:
        return f"All {kept.replace('were', 'were read and')}." if report.rows_in else "No rows."
    lost = report.rows_in - report.rows_out
    largest = max(report.dropped, key=lambda reason: report.dropped[reason])
    return (
        f"{kept} ({_share(report.rows_out, report.rows_in)}). The other {lost:,} went for "
        f"{_count(len(report.dropped), 'reason')}, most of all “{largest}” "
        f"({report.dropped[largest]:,})."
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _explain(name: str, explanations: Mapping[str, str]) -> str:
    for pattern, text in explanations.items():
        found = re.fullmatch(pattern, name)
        if found:
            words = (word.removesuffix("_id").replace("_", " ") for word in found.groups())
            return text.format(*words)
    return ""


def _reasons(report: CleaningReport) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "explanation": _explain(name, REASONS),
            "example": report.example(name),
            "rows": f"{rows:,}",
            "share": _share(rows, report.rows_in),
        }
        for name, rows in sorted(report.dropped.items(), key=lambda pair: -pair[1])
    ]


def _notes(report: CleaningReport) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "explanation": _explain(name, NOTES),
            "value": value if isinstance(value, str) else f"{value:,}",
        }
        for name, value in report.notes.items()
    ]


def _date(seconds: float) -> str:
    """A day in UTC."""
    day = datetime.fromtimestamp(seconds, UTC)
    return f"{day.day} {day:%b} {day.year}"


def _time(seconds: float) -> str:
    for least, size, unit in (
        (2 * 31_536_000, 31_536_000, "years"),
        (2 * 86_400, 86_400, "days"),
        (2 * 3600, 3600, "hours"),
        (120, 60, "minutes"),
    ):
        if seconds >= least:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} seconds"


def _facts(before: EventProfile, after: EventProfile) -> list[dict[str, str]]:
    types = list(dict.fromkeys([*after.event_types, *before.event_types]))
    old, new = _facts_of(before, types), _facts_of(after, types)
    return [{"name": name, "before": old[name], "after": new[name]} for name in new]


def _facts_of(profile: EventProfile, types: Sequence[str]) -> dict[str, str]:
    facts = {
        "Events": f"{profile.events:,}",
        "Users": f"{profile.users:,}",
        "Items": f"{profile.items:,}",
        "First day": "–" if profile.first is None else _date(profile.first),
        "Last day": "–" if profile.last is None else _date(profile.last),
        "Events of a typical (median) user": f"{profile.median_length:,}",
        "Events that repeat an earlier item of the user": _share(profile.repeat_share, 1),
        "Events on the most popular 1 % of the items": _share(profile.top_share, 1),
    }
    return facts | {f"Events of type {n}": f"{profile.event_types.get(n, 0):,}" for n in types}


def _absent(before: EventProfile, after: EventProfile) -> str:
    columns = {"times": before.daily or after.daily, "event types": after.event_types}
    columns |= {"durations": before.durations or after.durations}
    columns |= {"counts": before.counts or after.counts}
    missing = [name for name, found in columns.items() if not found]
    return f"This log records no {' and no '.join(missing)}." if missing else ""


def _sampled(before: EventProfile, after: EventProfile) -> str:
    shares = [p.user_sample for p in (before, after)]
    if max(shares) == 1:
        return ""
    return (
        "Gaps and repeated items are those of a sample of the users, chosen by a hash of their id: "
        f"one in {shares[0]} before and one in {shares[1]} after cleaning."
    )


def _plots(
    before: EventProfile, after: EventProfile, weights: Mapping[str, Histogram]
) -> list[Plot]:
    made = [
        _daily_plot(before, after),
        _popularity_plot(before, after),
        _length_plot(before, after),
        _gap_plot(before, after),
        _strength_plot("Duration", "time", "duration", before.durations, after.durations),
        _strength_plot("Count", "number", "count (plays, quantity)", before.counts, after.counts),
        _strength_plot("Weight of an event", "number", "weight", {}, weights),
    ]
    return [plot for plot in made if plot is not None]


def _plot(title: str, svg: str, finding: str, compares: bool = True) -> Plot:
    name = re.sub(r"\W+", "-", title.lower())
    alt = f"Plot: {title}. {finding}"
    return Plot(title, embed_plot(svg, name, alt), finding, compares)


def _steps(histogram: Histogram | None, factor: int = 1) -> Steps | None:
    if histogram is None or not histogram.counts:
        return None
    return histogram.edges, [count * factor for count in histogram.counts]


def _compared(after: str | None, before: str | None) -> str:
    """`12 after cleaning (10 before)`, of what there is."""
    if after is None:
        return f"{before} before cleaning, none after"
    return f"{after} after cleaning" + (f" ({before} before)" if before is not None else "")


def _length_plot(before: EventProfile, after: EventProfile) -> Plot | None:
    bars = Bars("", _steps(before.lengths), _steps(after.lengths))
    if not (bars.before or bars.after):
        return None
    text = (
        "A typical (median) user has "
        f"{_compared(_count(after.median_length, 'event'), f'{before.median_length:,}')}; "
        f"{_share(after.lengths.counts[0] if after.lengths.edges[:1] == (1,) else 0, after.users)} "
        "of the users have a single one after cleaning."
    )
    svg = draw_bars([bars], "number", "events of a user (doubling)", "users")
    return _plot("How much each user did", svg, text)


def _gap_plot(before: EventProfile, after: EventProfile) -> Plot | None:
    gaps = [profile.gaps or Histogram((), ()) for profile in (before, after)]
    # Each sample stands for all users, so that the two can be compared.
    bars = Bars("", _steps(gaps[0], before.user_sample), _steps(gaps[1], after.user_sample))
    if not (bars.before or bars.after):
        return None
    old, new = (_time(g.quantile(0.5)) if g.counts else None for g in gaps)
    every = gaps[1].total + gaps[1].nonpositive
    text = (
        f"Half of the gaps drawn are shorter than about {_compared(new, old)}. "
        f"{_share(gaps[1].nonpositive, every)} of all gaps after cleaning are zero, events at one time, "
        "and not drawn."
    )
    if after.user_sample > 1:
        text += f" Estimated from one user in {after.user_sample}."
    svg = draw_bars([bars], "time", "time to the user's next event (doubling)", "events")
    return _plot("Time between a user's events", svg, text)


def _strength_plot(
    title: str,
    axis: str,
    label: str,
    before: Mapping[str, Histogram],
    after: Mapping[str, Histogram],
) -> Plot | None:
    """A row of bars for each event type; times are told by their medians, numbers by their means."""
    names = [
        name
        for name in dict.fromkeys([*after, *before])
        if any(name in part and part[name].counts for part in (before, after))
    ][:MAX_ROWS]
    if not names:
        return None

    def typical(histogram: Histogram | None) -> str | None:
        if histogram is None or histogram.mean is None:
            return None
        return _time(histogram.quantile(0.5)) if axis == "time" else short_number(histogram.mean)

    told = []
    for name in names:
        new, old = typical(after.get(name)), typical(before.get(name))
        told.append(
            ("" if name == ALL_TYPES else f"{name}: ")
            + (_compared(new, old) if before else f"{new}")
        )
    text = ("Median, about: " if axis == "time" else "Mean: ") + "; ".join(told) + "."
    every = len({*after, *before})
    text += f" The {MAX_ROWS} most frequent of {every} types are drawn." * (every > len(names))
    zeros = sum(histogram.nonpositive for histogram in (before or after).values())
    if zeros:
        text += f" {_count(zeros, 'value')} of zero or less" + " before cleaning" * bool(before)
        text += " cannot be drawn on this axis."
    bars = [Bars(name, _steps(before.get(name)), _steps(after.get(name))) for name in names]
    return _plot(title, draw_bars(bars, axis, label, "events"), text, bool(before))


def _popularity_plot(before: EventProfile, after: EventProfile) -> Plot | None:
    if not before.popularity and not after.popularity:
        return None
    svg = draw_popularity(
        before.popularity, after.popularity, "rank of the item, most popular first", "its events"
    )
    told = [
        f"{when} cleaning the most popular item has {_count(profile.popularity[0][1], 'event')}, the "
        f"top 1 % of {_count(profile.items, 'item')} have {_share(profile.top_share, 1)} of all"
        for when, profile in (("after", after), ("before", before))
        if profile.popularity
    ]
    return _plot("How popular items are", svg, "; ".join(told).capitalize() + ".")


def _total(daily: Mapping[str, Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for days in daily.values():
        for day, rows in days.items():
            total[day] = total.get(day, 0) + rows
    return total


def _window(total: Mapping[int, int]) -> tuple[int, int]:
    """First and last of the days that hold nearly all events: a few wrong dates stretch no plot."""
    days = np.array(sorted(total))
    below = np.cumsum([total[day] for day in days.tolist()]) / sum(total.values())
    first, last = days[np.minimum(np.searchsorted(below, SHOWN), len(days) - 1)].tolist()
    whole = int(days[0]), int(days[-1])
    return whole if whole[1] - whole[0] < 2 * (last - first + 1) else (first, last)


def _bars_of_days(days: Mapping[int, int], first: int, last: int, step: int) -> Steps:
    """Mean events a day in steps of so many days; what is left over lengthens the last step."""
    edges = [*range(first, max(last + 2 - step, first + 1), step), last + 1]
    sums = np.zeros(len(edges) - 1)
    for day, rows in days.items():
        if first <= day <= last:
            sums[min((day - first) // step, len(sums) - 1)] += rows
    return edges, (sums / np.diff(edges)).tolist()


def _daily_plot(before: EventProfile, after: EventProfile) -> Plot | None:
    if not (before.daily or after.daily):
        return None
    totals = [_total(before.daily), _total(after.daily)]
    first, last = _window(totals[0] or totals[1])
    step = next((s for s in BAR_DAYS if (last + 1 - first) / s <= MAX_BARS), BAR_DAYS[-1])
    named = [name for name in after.event_types if name in after.daily][: MAX_ROWS - 1]
    rows = [(name, before.daily.get(name, {}), after.daily[name]) for name in named]
    rows = rows if len(named) == 1 else [("All events", totals[0], totals[1]), *rows]
    bars = [
        Bars(
            name,
            _bars_of_days(old, first, last, step) if old else None,
            _bars_of_days(new, first, last, step),
        )
        for name, old, new in rows
    ]
    unit = "events a day" + (f" (mean of {step} days)" if step > 1 else "")
    text = _daily_finding(totals[1], first, last)
    outside = sum(size for day, size in totals[0].items() if not first <= day <= last)
    if outside:
        text += f" Outside the days shown: {_count(outside, 'event')} before cleaning."
    return _plot("Events a day", draw_bars(bars, "date", "day", unit), text)


def _daily_finding(total: Mapping[int, int], first: int, last: int) -> str:
    counts = [total.get(day, 0) for day in range(first, last + 1)]
    busiest = max(total, key=lambda day: total[day], default=first)
    return (
        f"After cleaning, {_count(math.floor(np.median(counts)), 'event')} on a typical (median) day "
        f"from {_date(first * 86_400)} to {_date(last * 86_400)}; the busiest, "
        f"{_date(busiest * 86_400)}, has {total.get(busiest, 0):,}."
    )
