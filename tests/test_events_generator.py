"""The synthetic log has what it says, and the benchmark on it measures and joins its results."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
MAKE = runpy.run_path(str(SCRIPTS / "make_events.py"))
ROWS, DAY = 200_000, 86_400


def write(folder: Path, **options: int) -> Path:
    return MAKE["write_events"](MAKE["EventArguments"](output_dir=str(folder), **options))


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("log") / "events"
    return pd.read_parquet(write(folder, rows=ROWS, rows_per_file=80_000))


def test_equal_settings_give_equal_files_and_another_seed_others(tmp_path):
    one = write(tmp_path / "one", rows=30_000, rows_per_file=10_000, threads=1)
    two = write(tmp_path / "two", rows=30_000, rows_per_file=10_000, threads=3)
    other = write(tmp_path / "other", rows=30_000, rows_per_file=10_000, seed=1)
    names = [path.name for path in sorted(one.iterdir())]
    assert names == [f"events-{number:05d}.parquet" for number in range(3)]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()
        assert (one / name).read_bytes() != (other / name).read_bytes()


def test_the_rows_are_those_asked_for_in_files_of_bounded_size(tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "of an older run.parquet").touch()
    folder = write(tmp_path / "log", rows=70_001, rows_per_file=30_000)
    sizes = [pq.read_metadata(path).num_rows for path in sorted(folder.iterdir())]
    assert sizes == [30_000, 30_000, 10_001]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert str(pq.read_schema(folder / "events-00000.parquet").field("event_type").type) == "string"


@pytest.mark.parametrize("rows", [1, 2, 60, 3000])
def test_a_log_may_be_small(tmp_path, rows):
    assert len(pd.read_parquet(write(tmp_path / "log", rows=rows))) == rows


def test_the_dirt_is_there_in_the_share_that_is_named(log):
    views = log[log.event_type == "view"]
    assert log.duplicated().mean() == pytest.approx(MAKE["DUPLICATES"], rel=0.2)
    assert log.item_id.isna().mean() == pytest.approx(MAKE["MISSING_ITEMS"], rel=0.3)
    assert (views.duration <= 0).mean() == pytest.approx(MAKE["BAD_DURATIONS"], rel=0.3)
    assert 0 < (log.timestamp > 1e11).mean() < 3 * MAKE["MILLISECONDS"]
    end = MAKE["START"] + 368 * DAY
    assert 0 < log.timestamp.between(end, 1e11).mean() < 3 * MAKE["FUTURE_TIMES"]


def test_strengths_belong_to_the_kind_of_event(log):
    view, back = log.event_type == "view", log.event_type == "return"
    assert (log.duration.notna() == view).all()
    assert (log["count"].isna() == view).all()
    assert (log[back]["count"] < 0).all() and (log[~view & ~back]["count"] > 0).all()
    assert log.event_type.value_counts().index.tolist() == ["view", "cart", "purchase", "return"]
    shown = log[view & (log.duration > 0)]
    by_length = shown.duration.groupby(pd.qcut(shown.item_duration, 4).cat.codes).median()
    assert by_length[by_length.index >= 0].is_monotonic_increasing
    assert abs(np.log(shown.duration).skew()) < 0.3 < shown.duration.skew()


def test_few_users_are_bots_with_gaps_like_a_clock(log):
    log = log.drop_duplicates()
    days = log.groupby(["user_id", log.timestamp // DAY]).size()
    found = days[days > 1000].index.get_level_values("user_id").unique()
    assert len(found) == round(ROWS // 50 * MAKE["BOT_USERS"])
    people = log[~log.user_id.isin(found)]
    assert people.groupby(["user_id", people.timestamp // DAY]).size().max() < 500

    def spread(events: pd.DataFrame) -> float:
        return float(np.diff(np.sort(events.timestamp.to_numpy()[10:-10])).std())

    assert all(spread(log[(log.user_id == u) & (log.timestamp < 1.75e9)]) < 1 for u in found)


def test_people_repeat_come_in_sessions_and_are_skewed(log):
    log = log[log.timestamp < MAKE["START"] + 368 * DAY].drop_duplicates()
    sizes = log.user_id.value_counts()
    people = log[log.user_id.isin(sizes.index[sizes < 2000])]
    people = people.sort_values(["user_id", "timestamp"], kind="stable")
    before = people.groupby("user_id").shift()
    again = (people[["item_id", "event_type"]] == before[["item_id", "event_type"]]).all(axis=1)
    assert again.mean() == pytest.approx(MAKE["REPEATS"], rel=0.3)
    gaps = people.timestamp - before.timestamp
    assert gaps.median() < 120 and gaps.quantile(0.95) > DAY
    assert sizes[sizes < 2000].max() > 20 * sizes.median()
    popular = log.item_id.value_counts()
    assert popular.iloc[: len(popular) // 100].sum() > 0.08 * len(log)
    assert (np.diff(log.timestamp) < 0).mean() < 0.001  # in order of time, as logs are


def measure(tmp_path: Path, code: str, **limits: float) -> dict:
    report, script = tmp_path / "report.json", SCRIPTS / "measure_process.py"
    command = [sys.executable, script, report, json.dumps(limits), sys.executable, "-c", code]
    errors = subprocess.run(command, capture_output=True, text=True, timeout=60).stderr
    return json.loads(report.read_text()) | {"errors": errors}


def test_a_process_is_measured_by_itself_and_its_end_has_a_name(tmp_path):
    outcome = runpy.run_path(str(SCRIPTS / "benchmark_events.py"))["outcome"]
    fine = measure(tmp_path, "x = bytearray(300 * 2**20)")
    assert 300 * 2**20 < fine["peak_bytes"] < 400 * 2**20  # not the hundreds more of this process
    assert outcome(fine, fine["errors"]) == "done"
    late = measure(tmp_path, "while True: pass", seconds=0.5)
    assert outcome(late, late["errors"]) == "over the time limit"
    assert 0.5 <= late["process_seconds"] < 20
    full = measure(tmp_path, "x = bytearray(2**30)", gigabytes=0.5)
    assert outcome(full, full["errors"]) == "out of memory"
    assert outcome(measure(tmp_path, "1 / 0"), "ZeroDivisionError") == "failed"


def test_the_benchmark_measures_implicitrec_and_pandas_and_joins_runs(tmp_path):
    benchmark = runpy.run_path(str(SCRIPTS / "benchmark_events.py"))
    write(tmp_path / "work" / "log_20000_0", rows=20_000)
    write(tmp_path / "work" / "log_2000_0", rows=2000)
    folders = {"work_dir": str(tmp_path / "work"), "output_dir": str(tmp_path / "results")}
    for rows, systems in ((20_000, ["implicitrec", "pandas"]), (2000, ["pandas"])):
        args = benchmark["BenchmarkArguments"](rows=[rows], systems=systems, **folders)
        found = [benchmark["run"](args, system, rows) for system in systems]
        benchmark["write_report"](args, found)
    report = json.loads((tmp_path / "results" / "events.json").read_text())
    runs = report["runs"]
    assert [(r["rows"], r["system"], r["outcome"]) for r in runs] == [
        (2000, "pandas", "done"),
        (20_000, "implicitrec", "done"),
        (20_000, "pandas", "done"),
    ]
    for name in ("events", "users", "items"):
        assert runs[1][name] == runs[2][name]
    assert all(0 < run["seconds"] < run["process_seconds"] for run in runs)
    assert all(run["peak_bytes"] > 50 * 2**20 for run in runs)
    page = (tmp_path / "results" / "events.md").read_text()
    assert "| 20,000 | pandas |" in page and "× for 10 × the rows" in page
    assert str(tmp_path) not in page and len(report["commands"]) == 2
    assert (tmp_path / "results" / "events.svg").stat().st_size > 1000


def test_pandas_and_implicitrec_do_the_same_job(tmp_path):
    settings = runpy.run_path(str(SCRIPTS / "benchmark_events.py"))["SETTINGS"]
    log = write(tmp_path / "log", rows=20_000)
    runpy.run_path(str(SCRIPTS / "implicitrec_loader.py"))["prepare"](log, tmp_path, settings)
    ours = pq.read_table(tmp_path / "sequences" / "train")
    command = [sys.executable, SCRIPTS / "pandas_loader.py", log, tmp_path, json.dumps(settings)]
    subprocess.run(command, check=True, timeout=60)
    theirs = pq.read_table(tmp_path / "sequences.parquet")
    assert ours["user_id"].to_pylist() == theirs["user_id"].to_pylist()
    for name in ("input_ids", "input_weights", "timestamps"):
        one, two = (table[name].combine_chunks() for table in (ours, theirs))
        assert np.array_equal(one.value_lengths(), two.value_lengths())
        np.testing.assert_allclose(one.flatten(), two.flatten(), rtol=1e-6)
