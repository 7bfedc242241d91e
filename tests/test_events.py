"""The event table: every row is accounted for, every source gives the same table."""

import json
import tempfile
from decimal import Decimal
from pathlib import Path

import datasets
import ibis
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from written_logs import COUNTED, small_log

from modeling_implicitrec.cleaning import CleaningOptions
from modeling_implicitrec.cleaning_report import CleaningReport
from modeling_implicitrec.events import EventSchema, load_events


def dirty_log() -> pa.Table:
    rows = [
        ("u1", "a", "100", 1.0),
        ("u1", "a", "100", 1.0),  # duplicate
        (None, "a", "101", 1.0),  # missing user
        ("", "a", "101", 1.0),  # missing user
        ("u1", None, "102", 1.0),  # missing item
        ("u1", "b", None, 1.0),  # missing time
        ("u1", "b", "yesterday", 1.0),  # unparsable time
        ("u1", "b", "103", -2.0),  # a return
        ("u1", "b", "104", float("nan")),
        ("u1", "b", "105", float("inf")),
        ("u1", "b", "106", 2.0),
        ("u1", "b", "107", 3.0),  # repeat
        ("bot", "a", "108", 1.0),
        ("bot", "b", "109", 1.0),
        ("bot", "a", "110", 1.0),
        ("bot", "b", "111", 1.0),
        ("u2", "a", "112", 1.0),  # a user with one event
    ]
    names = ["user_id", "item_id", "timestamp", "count"]
    return pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})


def test_every_kind_of_dirt_is_counted() -> None:
    options = CleaningOptions(max_events_per_day=3, merge_repeats=True, min_user_events=2)
    events = load_events(dirty_log(), COUNTED, cleaning=options)
    assert events.report.dropped == {
        "missing user_id": 2,
        "missing item_id": 1,
        "missing timestamp": 1,
        "unparsable timestamp": 1,
        "count not positive": 1,
        "count not a number": 2,
        "duplicate": 1,
        "user with more than 3 events a day": 4,
        "merged into the event before": 1,
        "user with fewer than 2 events": 1,
    }
    assert events.report.rows_in == 17 and len(events) == 2
    frame = events.to_pandas()
    assert frame["item_id"].tolist() == ["a", "b"]
    assert frame["count"].tolist() == [1.0, 5.0]
    assert frame["timestamp"].tolist() == [100.0, 106.0]
    assert frame["log_order"].tolist() == [0, 10]


@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, None]),
            st.sampled_from(["a", "b", "", None]),
            st.sampled_from([0.0, 1.0, 90_000.0, None]),
            st.sampled_from([1.0, 5.0, 0.0, -1.0, float("nan"), 1e300]),
        ),
        min_size=1,
        max_size=25,
    ),
    merge=st.booleans(),
    least=st.integers(1, 3),
)
def test_rows_in_are_rows_out_plus_reasons(rows: list[tuple], merge: bool, least: int) -> None:
    types = [pa.int64(), pa.string(), pa.float64(), pa.float64()]
    names = ["user_id", "item_id", "timestamp", "count"]
    log = pa.table(
        {
            n: pa.array([r[i] for r in rows], t)
            for i, (n, t) in enumerate(zip(names, types, strict=True))
        }
    )
    options = CleaningOptions(
        merge_repeats=merge, max_events_per_day=9, min_user_events=least, min_item_events=least
    )
    try:
        events = load_events(log, COUNTED, cleaning=options)
    except ValueError as error:
        assert "nothing is left" in str(error)
        return
    report = events.report
    assert report.rows_in == len(rows) == report.rows_out + sum(report.dropped.values())
    frame = events.to_pandas()
    assert len(frame) == report.rows_out
    assert np.isfinite(frame["count"]).all() and (frame["count"] > 0).all()
    assert frame.groupby("user_id").size().min() >= least
    assert frame.groupby("item_id").size().min() >= least


REPEATED = CleaningOptions(
    merge_repeats=True,
    merge_seconds=50,
    max_events_per_day=6,
    min_user_events=2,
    min_item_events=2,
    clip_quantile=0.8,
)
SPARSE = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), st.sampled_from("ab"), st.integers(1, 9)),
    min_size=1,
    max_size=30,
)


def events_of(rows: list[tuple], times: list[float]) -> pd.DataFrame:
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "count"])
    return log.assign(count=log["count"].astype(float), timestamp=times)


@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(SPARSE, st.integers(0, 2**31))
def test_cleaning_twice_is_cleaning_once(rows: list[tuple], seed: int) -> None:
    times = np.random.default_rng(seed).choice([0.0, 40.0, 80.0, 90_000.0], len(rows))
    try:
        once = load_events(events_of(rows, times), COUNTED, cleaning=REPEATED)
    except ValueError as error:
        assert "nothing is left" in str(error)
        return
    ordered = EventSchema(count="count", order="log_order")
    twice = load_events(once.to_pandas(), ordered, cleaning=REPEATED)
    assert twice.report.dropped == {}
    pd.testing.assert_frame_equal(twice.to_pandas(), once.to_pandas())


@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(SPARSE, st.integers(0, 2**31))
def test_the_order_of_files_changes_nothing(rows: list[tuple], seed: int) -> None:
    random = np.random.default_rng(seed)
    log = events_of(rows, random.permutation(len(rows)) * 30.0)
    log = pd.concat([log, log.sample(frac=0.3, random_state=seed)])  # copies, in any file
    part = random.integers(0, 3, len(log))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{name}.parquet") for name in "abc"]
        for place, file in enumerate(files):
            log[part == place].to_parquet(file)
        found = []
        for order in (files, files[::-1]):
            files_read = [str(file) for file in order]
            try:
                events = load_events(files_read, COUNTED, cleaning=REPEATED)
            except ValueError as error:
                assert "nothing is left" in str(error)
                found.append((str(error), None))
                continue
            frame = events.to_pandas().drop(columns="log_order")
            frame = frame.sort_values(["user_id", "timestamp"], ignore_index=True)
            found.append((str(events.report), frame.to_dict("list")))
    assert found[0] == found[1]


def test_all_sources_give_the_same_table(tmp_path) -> None:
    log = small_log()
    log.to_csv(tmp_path / "log.csv", index=False)
    log.to_csv(tmp_path / "log.csv.gz", index=False)
    log.to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    log.to_parquet(tmp_path / "log.parquet")
    log[:2].to_parquet(tmp_path / "part-0.parquet")
    log[2:].to_parquet(tmp_path / "part-1.parquet")
    sources = [tmp_path / name for name in ("log.csv", "log.csv.gz", "log.jsonl", "log.parquet")]
    sources += [str(tmp_path / "part-*.parquet")]
    sources += [[tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"]]
    sources += [pl.from_pandas(log), pa.Table.from_pandas(log), ibis.memtable(log)]
    sources += [datasets.Dataset.from_pandas(log)]
    expected = load_events(log, COUNTED).to_pandas()
    assert expected["item_id"].tolist() == ["b", "a", "c", "a"]
    assert expected["log_order"].tolist() == [0, 1, 2, 3]
    for source in sources:
        found = load_events(source, COUNTED).to_pandas()
        pd.testing.assert_frame_equal(found, expected, check_dtype=True)


def test_shuffled_dataset_keeps_its_own_order() -> None:
    chosen = datasets.Dataset.from_pandas(small_log()).select([3, 0, 2])
    assert load_events(chosen, COUNTED).to_pandas()["item_id"].tolist() == ["a", "b", "c"]


def test_ids_are_whole_numbers_or_strings(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\n17,007,1\n18,8,2\n")
    frame = load_events(tmp_path / "a.csv").to_pandas()
    assert frame["user_id"].tolist() == [17, 18] and frame["item_id"].tolist() == ["007", "8"]
    floats = pd.DataFrame({"user_id": [17.0, np.nan], "item_id": [1, 2], "timestamp": [1, 2]})
    events = load_events(floats)
    assert events.to_pandas()["user_id"].tolist() == [17]
    assert events.report.dropped == {"missing user_id": 1}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["17.00", "18.00", None], [17, 18]),
        (["17.50", "18.00", None], ["17.50", "18.00"]),
        (["12345678901234567890.00", "1.00", None], ["12345678901234567890.00", "1.00"]),
    ],
)
def test_decimals_that_are_whole_are_whole_ids(written, expected) -> None:
    ids = pa.array([one and Decimal(one) for one in written], pa.decimal128(38, 2))
    log = pa.table({"user_id": ids, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    assert load_events(log).to_pandas()["user_id"].tolist() == expected


def test_whole_numbers_that_pandas_wrote_as_decimals_are_whole_ids(tmp_path) -> None:
    """An integer column with a missing value."""
    log = pd.DataFrame({"user_id": [17, 18, None], "item_id": [2.0, 1.5, 1], "timestamp": 1})
    (tmp_path / "a.csv").write_text(log.to_csv(index=False) + "18,3.0,1\n007.0,3.0,1\n")
    assert load_events(tmp_path / "a.csv").to_pandas()["user_id"].tolist()[0] == "17.0"
    (tmp_path / "a.csv").write_text(log.to_csv(index=False) + "18,3.0,1\n")
    frame = load_events(tmp_path / "a.csv").to_pandas()
    assert frame["user_id"].tolist() == [17, 18, 18]
    assert frame["item_id"].tolist() == ["2.0", "1.5", "3.0"]  # 1.5 is none


@pytest.mark.parametrize(
    "times",
    [
        [1_600_000_000, 1_600_000_001],
        [1_600_000_000_000, 1_600_000_001_000],
        ["2020-09-13T12:26:40Z", "2020-09-13 14:26:41+02:00"],
        pd.to_datetime(["2020-09-13 12:26:40", "2020-09-13 12:26:41"]),
        pd.to_datetime(["2020-09-13 12:26:40", "2020-09-13 12:26:41"]).tz_localize("UTC"),
        pd.to_datetime(["2020-09-13 14:26:40", "2020-09-13 14:26:41"]).tz_localize("Europe/Paris"),
    ],
)
def test_times_of_every_kind_are_seconds(times) -> None:
    log = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": times})
    events = load_events(log)
    assert events.to_pandas()["timestamp"].tolist() == [1_600_000_000.0, 1_600_000_001.0]
    is_milliseconds = isinstance(times, list) and times[0] == 1_600_000_000_000
    assert events.report.notes == ({"timestamps in milliseconds": 2} if is_milliseconds else {})


@pytest.mark.parametrize("kind", [int, float, str])
def test_dates_written_as_numbers_are_days_not_seconds(kind) -> None:
    days = [20240229, 20240301, 20231231, 20240230, 0]
    log = pd.DataFrame({"user_id": 1, "item_id": range(5), "timestamp": [*map(kind, days)]})
    events = load_events(log)
    expected = pd.to_datetime(["2024-02-29", "2024-03-01", "2023-12-31"])
    assert pd.to_datetime(events.to_pandas()["timestamp"], unit="s").tolist() == expected.tolist()
    assert events.report.dropped == {"ancient timestamp": 2}
    assert events.report.notes == {"timestamps that are days, such as 20240501": 4}


def test_either_end_of_time_is_switched_off_by_itself() -> None:
    log = pd.DataFrame({"user_id": 1, "item_id": range(3), "timestamp": [5e8, 1.6e9, 9e9]})
    ancient, future = {"ancient timestamp": 1}, {"future timestamp": 1}
    for off, dropped in (((), ancient | future), (("earliest",), future), (("latest",), ancient)):
        options = CleaningOptions(**dict.fromkeys(off))
        assert load_events(log, cleaning=options).report.dropped == dropped
    assert len(load_events(log, cleaning=CleaningOptions(earliest=None, latest=None))) == 3


def test_seconds_of_a_clock_of_its_own_are_no_dates() -> None:
    times = [20_240_501, 20_240_592, 20_241_399]
    log = pd.DataFrame({"user_id": 1, "item_id": range(3), "timestamp": times})
    assert load_events(log).to_pandas()["timestamp"].tolist() == times


def test_strengths_are_clipped_and_missing_ones_noted() -> None:
    log = pd.DataFrame({"user_id": 1, "item_id": range(100), "timestamp": range(100)})
    log["count"] = [None, 1e300] + [float(i) for i in range(1, 99)]
    events = load_events(log, COUNTED, cleaning=CleaningOptions(clip_quantile=0.95))
    assert events.report.notes["count clipped at"] == 95.0
    assert events.report.notes["count clipped"] == 4
    assert events.report.notes["count not recorded"] == 1
    assert events.to_pandas()["count"].max() == 95.0 and len(events) == 100


def test_merging_respects_event_type_and_makes_a_count() -> None:
    log = pd.DataFrame(
        {
            "user_id": [1, 1, 1, 1],
            "item_id": ["a", "a", "a", "a"],
            "timestamp": [1, 2, 3, 4],
            "event_type": ["view", "view", "buy", "view"],
            "duration": [1.0, 2.0, 4.0, 8.0],
        }
    )
    schema = EventSchema(event_type="event_type", duration="duration")
    events = load_events(log, schema, cleaning=CleaningOptions(merge_repeats=True))
    frame = events.to_pandas()
    assert frame["event_type"].tolist() == ["view", "buy", "view"]
    assert frame["count"].tolist() == [2.0, 1.0, 1.0]
    assert frame["duration"].tolist() == [3.0, 4.0, 8.0]


def test_k_core_is_iterated_until_stable() -> None:
    # Item c goes first, which leaves user 3 with one event, which leaves item b with one.
    pairs = [(1, "a"), (2, "a"), (1, "d"), (2, "d"), (3, "b"), (3, "c"), (1, "b")]
    log = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=range(7))
    events = load_events(log, cleaning=CleaningOptions(min_user_events=2, min_item_events=2))
    assert events.to_pandas()["item_id"].tolist() == ["a", "a", "d", "d"]
    assert sum(events.report.dropped.values()) == 3


def test_order_replaces_the_clock() -> None:
    log = pd.DataFrame({"user_id": 1, "item_id": ["b", "a"], "pos": [2, 1]})
    frame = load_events(log, EventSchema(timestamp=None, order="pos")).to_pandas()
    assert frame.columns.tolist() == ["user_id", "item_id", "log_order"]
    assert frame["log_order"].tolist() == [2, 1]


def test_bad_input_is_refused_with_a_reason(tmp_path) -> None:
    log = small_log()
    with pytest.raises(
        ValueError, match=r"no column 'when' \(for timestamp\) in DataFrame.*'count'"
    ):
        load_events(log, EventSchema(timestamp="when"))
    with pytest.raises(ValueError, match="for example 'soon'"):
        load_events(log.assign(timestamp="soon"))
    with pytest.raises(ValueError, match="must hold numbers"):
        load_events(log.assign(count=pd.Timestamp("2020-01-01")), COUNTED)
    with pytest.raises(ValueError, match="is empty"):
        load_events(log[:0])
    with pytest.raises(ValueError, match="(?s)nothing is left.*count not positive.*4"):
        load_events(log.assign(count=-1), COUNTED)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        load_events(tmp_path / "none.parquet")
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match="could not read"):
        load_events(tmp_path / "broken.parquet")
    with pytest.raises(ValueError, match="source must be"):
        load_events(7)
    with pytest.raises(ValueError, match="clip_quantile"):
        CleaningOptions(clip_quantile=1.5)
    with pytest.raises(ValueError, match="add up"):
        CleaningReport(rows_in=3, rows_out=1, dropped={"x": 1})


def test_one_event_is_a_log() -> None:
    assert len(load_events(small_log()[:1], COUNTED)) == 1


def test_report_is_saved_and_readable(tmp_path) -> None:
    report = load_events(dirty_log(), COUNTED).report
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    counted = [line for line in str(report).splitlines() if "first: " not in line]
    assert len(counted) > 3 and len({len(line) for line in counted}) == 1


def test_memory_limit_holds_and_the_database_is_removed(tmp_path) -> None:
    rows = 300_000
    log = pl.DataFrame({"user_id": range(rows), "item_id": range(rows), "timestamp": range(rows)})
    events = load_events(log, memory_limit="100MB", temp_directory=str(tmp_path))
    setting = events.table.get_backend().con.execute("SELECT current_setting('memory_limit')")
    assert setting.fetchone()[0] == "95.3 MiB"
    assert len(events) == rows and list(tmp_path.iterdir())
    del events
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="empty"):
        load_events(small_log()[:0], temp_directory=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_times_the_report_says_what_the_order_is() -> None:
    log = pd.DataFrame({"user_id": [1, 1], "item_id": ["a", "b"], "place": [2, 1]})
    unordered = load_events(log, EventSchema(timestamp=None)).report
    assert unordered.notes == {"order of events": "that of the rows, there are no times"}
    assert load_events(log, EventSchema(timestamp=None, order="place")).report.notes == {}


def test_numbers_stand_under_numbers_whatever_the_examples_say() -> None:
    path = "folder/" * 20 + "log.csv"
    example = {"file": path, "row": 7, "column": "ts", "value": "soon"}
    reason = "unparsable timestamp"
    report = CleaningReport(1200, 1199, {reason: 1}, {}, {reason: [example]})
    lines = str(report).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1 and lines[0].endswith("  1,200")
    assert len(lines[0]) < len(path)
