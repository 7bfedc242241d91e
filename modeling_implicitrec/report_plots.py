"""Draw the plots of a report page as SVG that takes its colours and its font from the page."""

import html
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

# Stand-ins that matplotlib can draw with; the page's style sheet says what they are, light or dark.
INK, GRID, BEFORE, AFTER = "#010101", "#030303", "#040404", "#050505"
COLOURS = {INK: "--ink", GRID: "--grid", BEFORE: "--before", AFTER: "--after"}
WIDTH = 4.8  # inches at 72 a inch: about the width of a phone, so that 9 points stay 9 points there
FONT_SIZE = 9
MAX_NAME = 40
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 365 * 86_400
TIMES = {0.001: "1 ms", 0.01: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s", MINUTE: "1 min"}
TIMES |= {10 * MINUTE: "10 min", HOUR: "1 h", 6 * HOUR: "6 h", DAY: "1 day", 30 * DAY: "1 mo"}
TIMES |= {YEAR: "1 yr", 10 * YEAR: "10 yr"}
NARROW = 4  # a logarithmic axis that ends below so many times its start is made wider

Steps: TypeAlias = tuple[Sequence[float], Sequence[float]]  # edges, and the heights between them


@dataclass(frozen=True)
class Bars:
    """One row of a plot: a name and its bars before and after cleaning, either of which may miss."""

    name: str
    before: Steps | None
    after: Steps | None


def short_number(value: float, _place: int | None = None) -> str:
    """A number as an axis shows it: 1,500 is `1.5 k`."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def draw_bars(rows: Sequence[Bars], axis: str, label: str, unit: str) -> str:
    """Rows of bars on one horizontal axis; the outline is before, the filled area after cleaning.

    Args:
        axis: `time` (seconds, logarithmic), `number` (logarithmic) or `date` (days since 1970).
        label: of the horizontal axis. `unit`: of the vertical one.
    """
    figure = _figure(1.0 + 0.85 * len(rows) + (0.7 if len(rows) == 1 else 0))
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)
    for place, row in enumerate(rows):
        axes = grid[place][0]
        _draw_row(axes, row)
        if len(rows) > 1:
            title = axes.set_title(_short(row.name), loc="left", fontsize=FONT_SIZE, color=INK)
            title.set_parse_math(False)  # a name may hold dollar signs
        _style(axes, y_ticks=3 if len(rows) == 1 else 2)
    bottom = grid[-1][0]
    edges = [
        edge for row in rows for steps in (row.before, row.after) if steps for edge in steps[0]
    ]
    low, high = min(edges), max(edges)
    if axis != "date" and high < NARROW * low:
        low, high = low / NARROW, high * NARROW
    _label_ticks(bottom, axis, low, high)
    bottom.set_xlim(low, high)
    bottom.set_xlabel(label, fontsize=FONT_SIZE, color=INK)
    figure.supylabel(unit, fontsize=FONT_SIZE, color=INK)
    return _svg(figure)


def draw_popularity(
    before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], label: str, unit: str
) -> str:
    """Events of an item against its rank, both logarithmic; dashed before, solid after cleaning."""
    figure = _figure(2.7)
    axes = figure.subplots()
    for points, colour, style, width in ((before, BEFORE, "--", 2.2), (after, AFTER, "-", 1.6)):
        if points:
            ranks, events = zip(*points)
            marker = "o" if len(points) < 10 else ""
            axes.loglog(
                ranks, events, color=colour, linestyle=style, linewidth=width, marker=marker
            )
    _style(axes, y_ticks=None)
    both = [*before, *after]
    _label_ticks(axes, "number", 1, max(rank for rank, _ in both))
    low, high = min(count for _, count in both), max(count for _, count in both)
    _set_ticks(axes.yaxis, _decades(low, high))
    axes.set_xlabel(label, fontsize=FONT_SIZE, color=INK)
    axes.set_ylabel(unit, fontsize=FONT_SIZE, color=INK)
    return _svg(figure)


def embed_plot(svg: str, name: str, alt: str) -> str:
    """A drawing named for screen readers, whose ids are its own among others on the page."""
    svg = re.sub(r'(\sid="|url\(#|\shref="#)', rf"\g<1>{name}-", svg)
    label = html.escape(alt, quote=True)
    return svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1)


def _figure(height: float) -> Any:
    # matplotlib comes with the extra `report`, and nothing but a page needs it: imported where it is
    # used, so that the package opens without it.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'implicitrec[report]'") from error
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _draw_row(axes: Any, row: Bars) -> None:
    if row.after is not None:
        edges, heights = row.after
        axes.stairs(heights, edges, fill=True, color=AFTER, alpha=0.35, linewidth=0)
        axes.stairs(heights, edges, color=AFTER, linewidth=1.2)
    if row.before is not None:
        edges, heights = row.before
        axes.stairs(heights, edges, color=BEFORE, linewidth=1.4, linestyle=(0, (3, 2)))
    axes.set_ylim(bottom=0)


def _style(axes: Any, y_ticks: int | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=GRID, labelcolor=INK, labelsize=FONT_SIZE, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    if y_ticks is not None:
        axes.yaxis.set_major_locator(MaxNLocator(y_ticks, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(short_number))


def _label_ticks(axes: Any, axis: str, low: float, high: float) -> None:
    if axis == "date":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        return
    axes.set_xscale("log", base=2 if axis == "time" else 10)
    times = {at: name for at, name in TIMES.items() if low <= at <= high}
    if len(times) > 7:
        times = {at: name for at, name in times.items() if at not in (10, 10 * MINUTE, 6 * HOUR)}
    _set_ticks(axes.xaxis, times if axis == "time" else _decades(low, high))


def _decades(low: float, high: float) -> dict[float, str]:
    """Powers of ten, with their double and their half where there are few of them."""
    steps = (1,) if high / low >= 200 else (1, 2, 5)
    powers = [float(f"{step}e{power}") for power in range(-9, 16) for step in steps]
    return {power: short_number(power) for power in powers if low <= power <= high}


def _set_ticks(axis: Any, labels: dict[float, str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(labels)))
    axis.set_major_formatter(FixedFormatter(list(labels.values())))
    axis.set_minor_locator(NullLocator())


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _svg(figure: Any) -> str:
    """The drawing as text to put into a page: no XML head, colours by name, words as words."""
    import matplotlib

    # The SVG writer reads these settings from nowhere else; they are put back at once.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "implicitrec"}
    buffer = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The reader's browser draws the words, with fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for colour, name in COLOURS.items():
        svg = svg.replace(colour, f"var({name})")
    return svg.strip()
