"""The report page: one valid file that says every number, escapes every name and needs no network."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_implicitrec.event_profile import EventProfile, Histogram, profile_events
from modeling_implicitrec.events import CleaningOptions, CleaningReport, EventSchema, load_events
from modeling_implicitrec.report_page import write_report_page
from modeling_implicitrec.report_plots import short_number

pytest.importorskip("matplotlib")

VOID = {"meta", "br", "link", "img", "input", "hr"}
EVIL = "<script>alert('$x$ & \"y\"')</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the words; an unclosed tag is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def plots(self) -> list[str]:
        """What a screen reader says of each plot."""
        return [attrs["aria-label"] or "" for tag, attrs in self.tags if attrs.get("role") == "img"]


def busy_log(size: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "user_id": rng.integers(0, 30, size).astype(float),
            "item_id": rng.zipf(1.6, size) % 40,
            "event_type": rng.choice(["view", "buy", EVIL], size, p=[0.6, 0.3, 0.1]),
            "timestamp": 1.6e12 + rng.integers(0, 40 * 86_400, size) * 1e3,
            "duration": rng.exponential(40, size),
            "count": rng.integers(1, 5, size).astype(float),
        }
    )
    log.loc[::40, "user_id"] = None
    log.loc[::57, "count"] = -1.0
    log.loc[5, "count"] = 1e6
    log.loc[::31, "duration"] = None
    return pd.concat([log, log.iloc[:9]])


BUSY = EventSchema(event_type="event_type", duration="duration", count="count")
STRICT = CleaningOptions(
    clip_quantile=0.98,
    max_events_per_day=3,
    merge_repeats=True,
    min_user_events=5,
    min_item_events=3,
)


def write(folder: Path, report: CleaningReport, **parts) -> tuple[str, Page]:
    path = folder / "report.html"
    write_report_page(path, report, **parts)
    text = path.read_text(encoding="utf-8")
    assert [other.name for other in folder.iterdir()] == ["report.html"]
    return text, Page(text)


def profile(**columns: list) -> EventProfile:
    return profile_events(ibis.memtable(pa.table(columns)))


@pytest.fixture(scope="module")
def busy() -> dict:
    log = busy_log()
    events = load_events(log, BUSY, cleaning=STRICT)
    before = log.assign(timestamp=log.timestamp / 1e3)
    weights = {"view": Histogram((0.5, 1.0, 2.0), (3, 4), 2, 0.9), EVIL: Histogram((), (), 1)}
    return {
        "report": events.report,
        "before": profile_events(ibis.memtable(before)),
        "after": profile_events(events.table),
        "weights": weights,
    }


@pytest.fixture(scope="module")
def written(busy, tmp_path_factory) -> tuple[str, Page]:
    return write(tmp_path_factory.mktemp("page"), **busy, title=EVIL)


def test_every_number_of_the_report_is_on_the_page_and_explained(busy, written) -> None:
    _, page = written
    report = busy["report"]
    assert len(report.dropped) >= 5 and len(report.notes) >= 3
    for name, number in {**report.dropped, **report.notes}.items():
        shown = number if isinstance(number, str) else f"{number:,}"
        assert re.search(
            rf"{re.escape(name)} [A-Z][^.:;]+[.:;].*? {re.escape(shown)} ", page.text
        ), name
    assert f"{report.rows_out:,} of {report.rows_in:,} rows were kept" in page.text
    assert report.example("count not positive") == "DataFrame, row 58, column 'count': '-1.0'"
    assert f"First seen: {report.example('count not positive')}." in page.text
    largest = max(report.dropped, key=lambda name: report.dropped[name])
    assert f"most of all “{largest}” ({report.dropped[largest]:,})" in page.text


@pytest.mark.parametrize(
    "reason",
    [
        "missing user_id",
        "missing timestamp",
        "missing order",
        "unparsable timestamp",
        "duration not a number",
        "count not positive",
        "duplicate",
        "user with more than 500 events a day",
        "merged into the event before",
        "user with fewer than 3 events",
        "item with fewer than 50 events",
    ],
)
def test_each_reason_of_the_pipeline_is_explained(tmp_path, reason: str) -> None:
    small = profile(user_id=[1], item_id=[1])
    text, page = write(tmp_path, CleaningReport(2, 1, {reason: 1}), before=small, after=small)
    assert re.search(rf"{reason} [A-Z].* 1 50.0 %", page.text)
    assert "<small></small>" not in text


def test_the_page_needs_no_network_and_runs_nothing(written) -> None:
    text, page = written
    assert "http" not in text and "//" not in text and "@import" not in text
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "image", "foreignobject"})
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert (attrs.get("href") or "#").startswith("#")
        assert re.findall(r"url\((?!#)", attrs.get("style") or "") == []


def test_names_are_escaped_everywhere(written) -> None:
    text, page = written
    assert "<script" not in text
    assert page.text.count(f"{EVIL} ") >= 4  # both titles, a table and plots
    assert "alert('$x$" in page.text


def test_every_plot_says_its_finding_in_numbers(busy, written) -> None:
    _, page = written
    titles = ["Events a day", "How popular items are", "How much each user did"]
    titles += ["Time between a user's events", "Duration", "Count", "Weight of an event"]
    assert [label.split(". ")[0] for label in page.plots] == [f"Plot: {name}" for name in titles]
    for label in page.plots:
        finding = label.split(". ", 1)[1]
        assert re.search(r"\d", finding)
        assert re.sub(r"\s+", " ", finding) in page.text
    after = busy["after"]
    assert f"{after.median_length} events after cleaning" in page.plots[2]


def test_ids_are_unique_and_every_reference_has_its_target(written) -> None:
    text, page = written
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = {*re.findall(r"url\(#([^)]+)\)", text), *re.findall(r'href="#([^"]+)"', text)}
    assert references <= set(ids)


def test_colours_come_from_the_page(written) -> None:
    text, _ = written
    drawn = "".join(re.findall(r"<svg class.*?</svg>", text, flags=re.DOTALL))
    assert drawn and re.findall(r"#[0-9a-f]{6}\b", drawn) == []
    used = set(re.findall(r"var\((--\w+)\)", drawn))
    assert used == {"--ink", "--grid", "--before", "--after"}
    assert "stroke-dasharray" in drawn  # before and after differ without colour too


def test_the_same_log_gives_the_same_bytes(tmp_path, busy, written) -> None:
    assert write(tmp_path, **busy, title=EVIL)[0] == written[0]


def test_a_log_of_ids_alone_says_what_is_missing(tmp_path) -> None:
    small = profile(user_id=[1, 1, 2], item_id=[1, 2, 1])
    _, page = write(tmp_path, CleaningReport(3, 3), before=small, after=small)
    assert "All 3 of 3 rows were read and kept" in page.text
    assert "No row was dropped" in page.text
    assert "no times and no event types and no durations and no counts" in page.text
    assert len(page.plots) == 2


def test_a_sample_of_users_is_said(tmp_path) -> None:
    log = ibis.memtable(pd.DataFrame({"user_id": range(90), "item_id": 1, "timestamp": 0.0}))
    sampled = profile_events(log, sample_events=30)
    _, page = write(tmp_path, CleaningReport(90, 90), before=sampled, after=sampled)
    assert "one in 3 before and one in 3 after cleaning" in page.text


def test_a_few_wrong_dates_do_not_stretch_the_plot(tmp_path) -> None:
    days = [18_000 + day for day in range(20) for _ in range(100)]
    times = [day * 86_400.0 for day in [0, *days]]
    before = profile(user_id=[1] * 2001, item_id=[1] * 2001, timestamp=times)
    after = profile(user_id=[1] * 2000, item_id=[1] * 2000, timestamp=times[1:])
    report = CleaningReport(2001, 2000, {"unparsable timestamp": 1})
    _, page = write(tmp_path, report, before=before, after=after)
    assert "100 events on a typical (median) day from 14 Apr 2019 to 3 May 2019" in page.plots[0]
    assert "Outside the days shown: 1 event before cleaning." in page.plots[0]


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 3),
            st.floats(-5e10, 5e10),
            st.one_of(st.none(), st.floats(-10, 1e20)),
            st.one_of(st.none(), st.text(max_size=8)),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_log_has_a_page(tmp_path, rows: list[tuple]) -> None:
    users, items, times, durations, kinds = map(list, zip(*rows))
    found = profile(
        user_id=users,
        item_id=items,
        timestamp=times,
        duration=pa.array(durations, pa.float64()),
        event_type=pa.array(kinds, pa.string()),
    )
    report = CleaningReport(len(rows), len(rows))
    write(tmp_path, report, before=found, after=found)


def test_a_profile_of_other_events_is_refused(tmp_path) -> None:
    small = profile(user_id=[1], item_id=[1])
    with pytest.raises(ValueError, match="profile of 1 events, the report keeps 2"):
        write_report_page(tmp_path / "x.html", CleaningReport(2, 2), before=small, after=small)


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    small = profile(user_id=[1], item_id=[1])
    with pytest.raises(ImportError, match=r"pip install 'implicitrec\[report\]'"):
        write_report_page(tmp_path / "x.html", CleaningReport(1, 1), before=small, after=small)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.25, "0.25"), (999, "999"), (1500, "1.5 k"), (2e6, "2 M"), (3e9, "3 G")],
)
def test_short_numbers(value: float, shown: str) -> None:
    assert short_number(value) == shown
