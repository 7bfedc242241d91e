"""Every source gives the same table; what is wrong in one is named by file, column and row."""

import bz2
import functools
import gzip
import http.server
import json
import runpy
import threading
from pathlib import Path

import datasets
import duckdb
import fsspec
import ibis
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from modeling_implicitrec.events import Events, EventSchema, load_events

COUNTED = EventSchema(count="count")
PREPARE = Path(__file__).resolve().parents[1] / "recipes" / "prepare.py"


def small_log() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [2, 1, 1, 2],
            "item_id": ["b", "a", "c", "a"],
            "timestamp": [10, 20, 30, 40],
            "count": [1.0, 2.0, 3.0, 4.0],
        }
    )


def read_as_recipe(source: object) -> object:
    """What the recipe makes of a source in its YAML."""
    return runpy.run_path(str(PREPARE))["read_source"](source)[0]


@functools.cache
def expected() -> pd.DataFrame:
    return load_events(small_log(), COUNTED).to_pandas()


def check_same(source: object) -> None:
    pd.testing.assert_frame_equal(load_events(source, COUNTED).to_pandas(), expected())


def write(path: Path, frame: pd.DataFrame) -> Path:
    """A file as its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    if kinds[-1] in (".parquet", ".parq", ".pq"):
        frame.to_parquet(path)
    elif path.suffix == ".zst":
        kind = "FORMAT csv, HEADER" if kinds[-1] == ".csv" else "FORMAT json"
        duckdb.sql(f"COPY (FROM frame) TO '{path}' ({kind}, COMPRESSION zstd)")
    elif kinds[-1] in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if kinds[-1] == ".tsv" else ",")
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


FILES = [
    "log.csv",
    "log.csv.gz",
    "log.csv.zst",
    "log.tsv",
    "log.tsv.gz",
    "log.jsonl",
    "log.jsonl.gz",
]
FILES += ["log.jsonl.zst", "log.ndjson", "log.parquet", "log.parq", "log.pq", "LOG.CSV", "a[1].csv"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_kind(tmp_path, name) -> None:
    if name != "LOG.CSV":
        path = write(tmp_path / name, small_log())
    else:
        path = tmp_path / name
        small_log().to_csv(path, index=False)
    write(tmp_path / "a1.csv", small_log()[:1])  # a[1].csv is no pattern
    check_same(read_as_recipe(str(path)))


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_a_csv_tells_its_delimiter(tmp_path, delimiter) -> None:
    small_log().to_csv(tmp_path / "log.csv", index=False, sep=delimiter, encoding="utf-8-sig")
    check_same(tmp_path / "log.csv")


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "parquet"])
def test_a_folder_is_all_data_files_below_it_by_path(tmp_path, ending) -> None:
    folder = tmp_path / "logs"
    write(folder / f"b.{ending}", small_log()[3:])
    write(folder / "a" / f"2.{ending}", small_log()[1:3])
    write(folder / "a" / f"1.{ending}", small_log()[:1])
    for name in ("_SUCCESS", ".hidden.csv", f".b.{ending}.crc", f"b.{ending}.crc", "README.md"):
        (folder / name).write_text("no data")
    write(folder / "_temporary" / f"0.{ending}", small_log())
    write(folder / ".cache" / f"0.{ending}", small_log())
    check_same(read_as_recipe(str(folder)))
    check_same(str(folder / "**" / f"*.{ending}"))
    check_same([folder / "a", folder / f"b.{ending}"])
    check_same(f"file://{folder}")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_partition_keys_are_columns(tmp_path, ending) -> None:
    folder = tmp_path / "run=7"
    for place, row in small_log().iterrows():
        part = pd.DataFrame([row.drop("timestamp")])
        write(folder / f"date=2024-01-0{place + 1}" / "platform=i%20os" / f"p.{ending}", part)
    schema = EventSchema(timestamp="date", platform="platform", count="count")
    frame = load_events(str(folder), schema).to_pandas()
    days = pd.to_datetime(frame["timestamp"], unit="s").dt.strftime("%Y-%m-%d").tolist()
    assert days == ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]
    assert frame["platform"].tolist() == ["i os"] * 4
    assert frame["item_id"].tolist() == ["b", "a", "c", "a"]
    write(folder / f"late.{ending}", small_log())
    with pytest.raises(ValueError, match=r"partitions differ: .*p\..* has \['run', 'date'.*late"):
        load_events(folder, schema)
    with pytest.raises(ValueError, match=r"no column 'dat' .*did you mean 'date'"):
        load_events(folder / "date=2024-01-01", EventSchema(timestamp="dat"))


def test_headers_in_another_order_and_empty_files(tmp_path) -> None:
    write(tmp_path / "1.csv", small_log()[:2])
    (tmp_path / "2.csv").write_text("")
    write(tmp_path / "3.csv", small_log()[:0])
    write(tmp_path / "4.csv", small_log()[2:][["count", "timestamp", "item_id", "user_id"]])
    check_same(tmp_path)


def test_urls_of_any_file_system() -> None:
    files = fsspec.filesystem("memory")
    files.store.clear()
    log = small_log()
    files.pipe("/shop/a/log.csv", log[:2].to_csv(index=False).encode())
    files.pipe("/shop/b/log.csv", log[2:].to_csv(index=False).encode())
    files.pipe("/shop/_SUCCESS", b"")
    files.pipe("/one.csv.gz", gzip.compress(log.to_csv(index=False).encode()))
    files.pipe("/one.jsonl", log.to_json(orient="records", lines=True).encode())
    files.pipe("/date=3/one.parquet", log.to_parquet())
    for url in ("shop", "shop/*/*.csv", "one.csv.gz", "one.jsonl", "date=3/one.parquet"):
        check_same(read_as_recipe(f"memory://{url}"))
    check_same(["memory://shop/a/log.csv", "memory:///shop/b/log.csv"])
    schema = EventSchema(platform="date")
    frame = load_events("memory://date=3", schema).to_pandas()
    assert frame["platform"].tolist() == ["3"] * 4
    with pytest.raises(FileNotFoundError, match="memory://nothing"):
        load_events("memory://nothing")
    files.pipe("/shop/b/log.csv", b"user_id,item_id,timestamp,count\n1,a,1\n")
    with pytest.raises(ValueError, match=r"memory://.*shop/b/log.csv, line 2: missing columns"):
        load_events("memory://shop", COUNTED)


def test_a_url_that_nothing_reads(monkeypatch) -> None:
    with pytest.raises(ValueError, match="cannot read mysql://me:\\*\\*\\*@host/shop"):
        load_events("mysql://me:secret@host/shop?table=events")
    with pytest.raises(ValueError, match="chained URLs"):
        load_events("simplecache::s3://bucket/log.csv")
    known = {"class": "no_such_module.Files", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "nostore", known)
    with pytest.raises(ImportError, match="nostore:// needs a package: pip install s3fs"):
        load_events("nostore://bucket/log.csv")


def test_http(tmp_path) -> None:
    write(tmp_path / "log.csv.gz", small_log())
    write(tmp_path / "log.parquet", small_log())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            check_same(f"{url}/log.csv.gz")
            check_same(f"{url}/log.csv.gz?token=secret")
            said = refused(f"{url}/log.parquet?token=secret")  # this server has no ranges
            assert "log.parquet?token=***" in said and "range requests" in said
            with pytest.raises(FileNotFoundError, match=r"none.csv\?token=\*\*\*"):
                load_events(f"{url}/none.csv?token=secret")
        finally:
            server.shutdown()


def test_s3(monkeypatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    service.start()
    host, port = service.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    try:
        files = fsspec.filesystem("s3")
        files.mkdir("shop")
        log = small_log()
        files.pipe("shop/logs/date=1/a.csv", log[:2].to_csv(index=False).encode())
        files.pipe("shop/logs/date=2/b.csv", log[2:].to_csv(index=False).encode())
        files.pipe("shop/one.parquet", log.to_parquet())
        for url in ("s3://shop/logs/", "s3://shop/logs/*/*.csv", "s3://shop/one.parquet"):
            check_same(url)
        frame = load_events("s3://shop/logs", EventSchema(platform="date")).to_pandas()
        assert frame["platform"].tolist() == ["1", "1", "2", "2"]
    finally:
        service.stop()


def test_tables_in_memory_and_datasets(tmp_path) -> None:
    log = small_log()
    for source in (log, pl.from_pandas(log), pa.Table.from_pandas(log), ibis.memtable(log)):
        check_same(source)
    other = ibis.duckdb.connect()
    other.con.register("log", log)
    other.con.execute("CREATE TABLE events AS FROM log")
    check_same(other.table("events"))
    whole = datasets.Dataset.from_pandas(log)
    check_same(whole)
    check_same(whole.to_iterable_dataset(num_shards=2))
    rows = log.to_dict("records")
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None
    check_same(stream)
    with pytest.raises(ValueError, match="no column 'when'.*IterableDataset"):
        load_events(stream, EventSchema(timestamp="when"))
    splits = datasets.DatasetDict({"train": whole, "test": whole})
    with pytest.raises(ValueError, match=r"DatasetDict has the splits \['train', 'test'\]: choose"):
        load_events(splits)


def test_the_recipe_loads_datasets(tmp_path) -> None:
    write(tmp_path / "data" / "train.parquet", small_log())
    path = str(tmp_path / "data")
    check_same(read_as_recipe({"dataset": path, "split": "train"}))
    check_same(read_as_recipe({"dataset": path, "split": "train", "streaming": True}))
    files = {"train": f"{path}/train.parquet"}
    check_same(read_as_recipe({"dataset": "parquet", "data_files": files, "split": "train"}))
    with pytest.raises(ValueError, match=r"DatasetDict has the splits \['train'\]: choose one"):
        load_events(read_as_recipe({"dataset": path}))
    with pytest.raises(SystemExit, match=r"does not know \['spilt'\]; it takes dataset, split"):
        read_as_recipe({"dataset": path, "spilt": "train"})
    with pytest.raises(SystemExit, match="does not exist"):
        read_as_recipe(str(tmp_path / "nothing.csv"))


# What is wrong is named


def refused(source: object, schema: EventSchema = COUNTED) -> str:
    with pytest.raises(ValueError) as caught:
        load_events(source, schema)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_missing_in_one_file_is_named_with_it(tmp_path, ending) -> None:
    write(tmp_path / f"a.{ending}", small_log())
    write(tmp_path / f"b.{ending}", small_log().rename(columns={"timestamp": "Time_stamp"}))
    said = refused(tmp_path)
    assert f"no column 'timestamp' (for timestamp) in {tmp_path}/b.{ending}; it has" in said
    assert said.endswith("did you mean 'Time_stamp'?")


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
