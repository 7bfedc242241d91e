"""A small log, written as files of every kind."""

from pathlib import Path

import duckdb
import pandas as pd
import pytest

from modeling_implicitrec.events import EventSchema, load_events

COUNTED = EventSchema(count="count")


def small_log() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": [2, 1, 1, 2],
            "item_id": ["b", "a", "c", "a"],
            "timestamp": [10, 20, 30, 40],
            "count": [1.0, 2.0, 3.0, 4.0],
        }
    )


def write(path: Path, frame: pd.DataFrame) -> Path:
    """A file as its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    if kinds[-1] in (".parquet", ".parq", ".pq"):
        frame.to_parquet(path)
    elif path.suffix == ".zst":
        kind = "FORMAT csv, HEADER" if kinds[-1] == ".csv" else "FORMAT json"
        duckdb.sql(f"COPY (FROM frame) TO '{path}' ({kind}, COMPRESSION zstd)")
    elif kinds[-1] in (".csv", ".tsv", ".inter"):
        frame.to_csv(path, index=False, sep="," if kinds[-1] == ".csv" else "\t")
    else:
        frame.to_json(path, orient="records", lines=True)
    return path


def refused(source: object, schema: EventSchema = COUNTED) -> str:
    """What the error says of a source."""
    with pytest.raises(ValueError) as caught:
        load_events(source, schema)
    return str(caught.value)
