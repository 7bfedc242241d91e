"""What is wrong in a source is named by file, column and row."""

import bz2
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_logs import COUNTED, refused, small_log, write

from modeling_implicitrec.events import Events, EventSchema, load_events


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_missing_in_one_file_is_named_with_it(tmp_path, ending) -> None:
    write(tmp_path / f"a.{ending}", small_log())
    write(tmp_path / f"b.{ending}", small_log().rename(columns={"timestamp": "Time_stamp"}))
    said = refused(tmp_path)
    assert f"no column 'timestamp' (for timestamp) in {tmp_path}/b.{ending}; it has" in said
    assert "; did you mean 'Time_stamp'?; say which it is: columns {timestamp: ...}" in said
    assert said.endswith("null or None where the log has no times")


def test_json_may_leave_out_what_is_optional(tmp_path) -> None:
    write(tmp_path / "a.jsonl", small_log()[:2].drop(columns="count"))
    write(tmp_path / "b.jsonl", small_log()[2:])
    found = load_events(tmp_path, COUNTED).to_pandas()["count"]
    np.testing.assert_array_equal(found, [np.nan, np.nan, 3.0, 4.0])
    (tmp_path / "b.jsonl").unlink()
    assert "no column 'count' (for count)" in refused(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_column_of_two_types_is_named_with_both_files(tmp_path, ending) -> None:
    write(tmp_path / f"a.{ending}", small_log())
    write(tmp_path / f"b.{ending}", small_log().astype({"user_id": str}))
    said = refused(tmp_path)
    assert f"column 'user_id' is BIGINT in {tmp_path}/a.{ending} but VARCHAR in" in said
    assert said.endswith(f"b.{ending}")


def test_types_that_fit_are_not_two(tmp_path) -> None:
    log = small_log()
    write(tmp_path / "1.parquet", log[:1].astype({"count": int}))
    nothing = {"user_id": pa.nulls(1), "item_id": pa.nulls(1), "count": pa.nulls(1)}
    pq.write_table(pa.table(nothing | {"timestamp": [1]}), tmp_path / "2.parquet")
    write(tmp_path / "3.parquet", log[1:])
    events = load_events(tmp_path, COUNTED)
    assert events.to_pandas()["count"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert events.report.dropped == {"missing user_id": 1}
    texts = {name: pa.nulls(1, pa.string()) for name in ("user_id", "item_id", "count")}
    pq.write_table(pa.table(texts | {"timestamp": [1]}), tmp_path / "4.parquet")
    assert len(load_events(tmp_path, COUNTED)) == 4
    write(tmp_path / "5.parquet", log.assign(timestamp=pd.Timestamp("2024-01-01")))
    assert "column 'timestamp' is BIGINT" in refused(tmp_path)


def spoilt(tmp_path: Path, column: str, value: str) -> Events:
    """The events of two CSV files, the third row of the second having a wrong value."""
    log = pd.concat([small_log()] * 2, ignore_index=True).astype({column: object})
    log["timestamp"] = [*range(4), *range(4, 8)] if column != "timestamp" else log["timestamp"]
    write(tmp_path / "a.csv", small_log())
    log.loc[2, column] = value
    write(tmp_path / "b.csv", log)
    return load_events(tmp_path, COUNTED)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("timestamp", "yesterday", "unparsable timestamp"),
        ("timestamp", None, "missing timestamp"),
        ("count", "many", "count not a number"),
        ("count", -1, "count not positive"),
        ("user_id", None, "missing user_id"),
    ],
)
def test_a_wrong_value_is_counted_and_shown(tmp_path, column, value, reason) -> None:
    report = spoilt(tmp_path, column, value).report
    assert report.dropped[reason] == 1
    shown = None if value is None else str(value)
    example = {"file": f"{tmp_path}/b.csv", "row": 3, "column": column, "value": shown}
    assert report.examples == {reason: [example]}
    assert f"{tmp_path}/b.csv, row 3, column {column!r}: {shown!r}" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["examples"] == report.examples


def test_examples_are_few(tmp_path) -> None:
    log = pd.DataFrame({"user_id": 1, "item_id": range(50), "timestamp": "soon"})
    log.loc[49, "timestamp"] = "2024-01-01"
    report = load_events(log).report
    assert [example["row"] for example in report.examples["unparsable timestamp"]] == [1, 2, 3]
    assert report.examples["unparsable timestamp"][0]["file"] == "DataFrame"


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("timestamp", "timestamp must be a time, an ISO string or a number"),
        ("count", "count must be numbers"),
    ],
)
def test_a_column_that_is_wrong_throughout_is_an_error(tmp_path, ending, name, wanted) -> None:
    empty = small_log()[:1].assign(**{name: None})
    wrong = small_log().assign(**{name: "soon"})
    write(tmp_path / f"a.{ending}", empty)
    write(tmp_path / f"b.{ending}", wrong)
    said = refused(tmp_path)
    assert said.startswith(f"{tmp_path}/b.{ending}, row 1, column {name!r}: {wanted}")
    assert "for example 'soon'" in said


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_nested_ids_are_an_error(tmp_path, ending) -> None:
    log = small_log()
    log["item_id"] = [["a"], ["b"], ["c"], ["d"]]
    path = write(tmp_path / f"a.{ending}", log)
    assert refused(path).startswith(
        f"{path}, column 'item_id' must hold plain values, got VARCHAR[]"
    )
    assert "DataFrame, column 'item_id' (for item_id) must hold plain values" in refused(log)


def test_wrong_types_name_the_file(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", small_log().assign(timestamp=True))
    assert f"{path}, column 'timestamp' (for timestamp) must hold times" in refused(path)


@pytest.mark.parametrize("rows", [3, 40_000])
@pytest.mark.parametrize("line", ["1,a,5,1,9", "1,a"])
def test_a_line_of_another_length_is_named(tmp_path, rows, line) -> None:
    good = "user_id,item_id,timestamp,count\n" + "1,a,5,1\n" * rows
    (tmp_path / "a.csv").write_text(good)
    (tmp_path / "b.csv").write_text(good + line + "\n" + "1,a,5,1\n" * 3)
    said = refused(tmp_path)
    assert f"could not read {tmp_path}/b.csv, line {rows + 2}: " in said
    assert repr(line) in said and ("too many" in said or "missing columns" in said)


@pytest.mark.parametrize("name", ["b.parquet", "b.csv.gz", "b.jsonl.gz"])
@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_broken_file_is_named(tmp_path, name, keep) -> None:
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {"user_id": rng.integers(0, 10**9, 20_000), "item_id": "a", "timestamp": 5, "count": 1}
    )
    write(tmp_path / name.replace("b.", "a."), log)
    path = write(tmp_path / name, log)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))] or b"PAR1, not")
    assert f"could not read {path}" in refused(tmp_path)


def test_a_broken_page_of_parquet_is_named(tmp_path) -> None:
    log = pd.DataFrame(
        {"user_id": "u" + pd.Series(range(20_000)).astype(str), "item_id": "a", "timestamp": 5}
    )
    write(tmp_path / "a.parquet", log)
    path = write(tmp_path / "b.parquet", log)
    content = bytearray(path.read_bytes())
    content[50:5000] = b"\xff" * 4950
    path.write_bytes(content)
    assert f"could not read {path}" in refused(tmp_path, EventSchema())


def test_a_broken_line_of_json_is_named(tmp_path) -> None:
    write(tmp_path / "a.jsonl", small_log())
    (tmp_path / "b.jsonl").write_text('{"user_id": 1}\n{"user_id": \n')
    said = refused(tmp_path)
    assert f"could not read {tmp_path}/b.jsonl" in said and "line" in said


def test_files_of_several_kinds_are_refused(tmp_path) -> None:
    write(tmp_path / "a.csv", small_log())
    write(tmp_path / "b.parquet", small_log())
    said = refused(tmp_path)
    assert f"{tmp_path}/a.csv (CSV)" in said and f"{tmp_path}/b.parquet (Parquet)" in said
    (tmp_path / "log.csv.bz2").write_bytes(bz2.compress(b"user_id"))
    assert "log.csv.bz2 (unknown)" in refused(tmp_path / "log.csv.bz2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file matches .*empty"):
        load_events(tmp_path / "empty")
    (tmp_path / "empty" / "a.csv").write_text("")
    assert "is empty" in refused(tmp_path / "empty")


def test_a_json_file_that_is_one_array_says_what_is_wanted(tmp_path) -> None:
    small_log().to_json(tmp_path / "log.json", orient="records")
    assert "log.json must hold a JSON object a line, as pandas'" in refused(tmp_path / "log.json")


def test_a_csv_of_another_encoding_says_so(tmp_path) -> None:
    small_log().assign(item_id="Käse").to_csv(tmp_path / "log.csv", encoding="latin-1")
    assert re.search(r"log.csv.*not utf-8 encoded", refused(tmp_path / "log.csv"))
