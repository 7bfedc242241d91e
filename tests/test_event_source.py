"""Every source gives the same table."""

import functools
import gzip
import http.server
import runpy
import threading
from pathlib import Path

import datasets
import fsspec
import ibis
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from fsspec.registry import known_implementations
from written_logs import COUNTED, refused, small_log, write

from modeling_implicitrec.events import EventSchema, load_events

PREPARE = Path(__file__).resolve().parents[1] / "recipes" / "prepare.py"


def read_as_recipe(source: object) -> object:
    """What the recipe makes of a source in its YAML."""
    return runpy.run_path(str(PREPARE))["read_source"](source)[0]


@functools.cache
def expected() -> pd.DataFrame:
    return load_events(small_log(), COUNTED).to_pandas()


def check_same(source: object) -> None:
    pd.testing.assert_frame_equal(load_events(source, COUNTED).to_pandas(), expected())


FILES = [
    "log.csv",
    "log.csv.gz",
    "log.csv.zst",
    "log.tsv",
    "log.tsv.gz",
    "log.jsonl",
    "log.jsonl.gz",
]
FILES += [
    "log.inter",
    "log.jsonl.zst",
    "log.ndjson",
    "log.parquet",
    "log.parq",
    "log.pq",
    "LOG.CSV",
    "a[1].csv",
]


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


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_first_quotes_of_a_csv_may_come_late(tmp_path, newline) -> None:
    """DuckDB looks for them in the first 20,000 rows."""
    many = pd.DataFrame({"user_id": range(21_000), "item_id": "a", "timestamp": 1})
    many.to_csv(tmp_path / "log.csv", index=False, lineterminator=newline)
    quoted = ['"b"', '"c, d"', '"the ""e"""', '"two\nlines"', "'n f", '5" g']
    with (tmp_path / "log.csv").open("a", newline="") as file:
        file.writelines(f"{place},{cell},2{newline}" for place, cell in enumerate(quoted))
    events = load_events(tmp_path / "log.csv")
    found = events.to_pandas()["item_id"].tolist()[21_000:]
    assert found == ["b", "c, d", 'the "e"', "two\nlines", "'n f", '5" g']
    assert events.report.rows_in == 21_006


def test_what_databases_write_for_no_value_is_none(tmp_path) -> None:
    rows = ["1,a,2,NULL", "NULL,b,2,1", "\\N,c,2,1", '"2","NULL",2,3', '3,"",2,3']
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,count", *rows]))
    events = load_events(tmp_path / "log.csv", COUNTED)
    assert events.report.dropped == {"missing user_id": 2, "missing item_id": 1}
    frame = events.to_pandas()
    assert frame["user_id"].tolist() == [1, 2] and frame["item_id"].tolist() == ["a", "NULL"]
    assert frame["count"].isna().tolist() == [True, False]


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
    for not_a_log, kind in ((log.to_dict("list"), "int"), (log.to_dict("records"), "dict")):
        with pytest.raises(ValueError, match=rf"paths, got {kind} in a list; .*pd\.DataFrame"):
            load_events(not_a_log)
    splits = datasets.DatasetDict({"train": whole, "test": whole})
    with pytest.raises(ValueError, match=r"DatasetDict has the splits \['train', 'test'\]: choose"):
        load_events(splits)


@pytest.mark.parametrize("freq", ["D", "W-TUE", "M", "h"])
def test_periods_of_pandas_are_the_time_at_which_they_start(tmp_path, freq) -> None:
    days = pd.PeriodIndex(["2024-05-01", "2024-06-01", None], freq=freq)
    log = pd.DataFrame({"user_id": 1, "item_id": ["a", "b", "c"], "timestamp": days})
    expected = load_events(log.assign(timestamp=days.start_time))
    assert expected.to_pandas()["timestamp"].tolist()[0] == pd.Timestamp("2024-05-01").timestamp()
    for source in (log, pa.Table.from_pandas(log), pl.from_pandas(log)):
        events = load_events(source)
        pd.testing.assert_frame_equal(events.to_pandas(), expected.to_pandas())
        assert events.report.dropped == {"missing timestamp": 1}
    log.to_parquet(tmp_path / "log.parquet")  # as bare numbers
    said = refused(tmp_path, EventSchema())
    assert (
        f"log.parquet, column 'timestamp' must hold times, numbers or text, got pandas' period[{freq}"
        in said
    )
    assert load_events(tmp_path, EventSchema(timestamp=None)).report.dropped == {}


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
