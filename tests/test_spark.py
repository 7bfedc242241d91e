"""The same log through Spark and through DuckDB: the same events, row for row, and the same sequences."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_implicitrec.cleaning import CleaningOptions
from modeling_implicitrec.events import EventSchema, load_events
from modeling_implicitrec.sequences import build_sequences

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SCHEMA = EventSchema(
    event_type="kind", count="count", duration="seconds", item_duration="length", platform="device"
)
OPTIONS = CleaningOptions(
    merge_repeats=True,
    merge_seconds=30_000,
    max_events_per_day=60,
    bot_events_per_day=20,
    min_user_events=3,
    min_item_events=2,
    clip_quantile=0.95,
    latest="2024-01-01",
    negative_count_type="return",
)


def world(rows: int = 600) -> pa.Table:
    """A log with every kind of dirt in it."""
    rng = np.random.default_rng(0)
    times = rng.integers(1_699_920_000, 1_700_300_000, size=rows).astype(object)
    times[::50] = times[::50] * 1000  # milliseconds
    times[7], times[11], times[13] = 1_900_000_000, 3, None
    log = pd.DataFrame(
        {
            "user_id": rng.choice([f"u{n}" for n in range(25)] + [None], size=rows),
            "item_id": rng.choice([f"i{n}" for n in range(12)] + [None, ""], size=rows),
            "timestamp": times,
            "kind": rng.choice(["view", "view", "buy", None], size=rows),
            "count": rng.choice([1.0, 2.0, 30.0, -1.0, 0.0, np.nan], size=rows),
            "seconds": np.round(rng.lognormal(3, 1, size=rows), 3),
            "length": rng.choice([60.0, 300.0, np.nan], size=rows),
            "device": rng.choice(["web", "app"], size=rows),
        }
    )
    clock = log[:30].assign(user_id="clock", timestamp=1_700_000_000 + 60 * np.arange(30))
    crowd = log[:90].assign(user_id="crowd", timestamp=1_700_000_000 + np.arange(90) ** 2 % 9973)
    log = pd.concat([log, clock, crowd, log[::9]], ignore_index=True)
    return pa.Table.from_pandas(log.astype({"timestamp": "Int64"}), preserve_index=False)


@pytest.mark.timeout(600)
def test_spark_is_duckdb_row_for_row(spark: Any, tmp_path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(world(), path)
    ours = load_events(path, SCHEMA, cleaning=OPTIONS)
    table = spark.read_parquet(str(path))
    theirs = load_events(table, SCHEMA, cleaning=OPTIONS, temp_directory=str(tmp_path))
    assert theirs.report == ours.report
    reasons = theirs.report.dropped
    assert {"duplicate", "user like a machine", "merged into the event before"} <= set(reasons)
    order = ["user_id", "timestamp", "log_order"]
    expected, found = (
        events.to_pandas().sort_values(order, ignore_index=True).astype({"log_order": "int64"})
        for events in (ours, theirs)
    )
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    rows = build_sequences(ours).to_pandas().set_index("user_id").sort_index()
    again = build_sequences(theirs).to_pandas().set_index("user_id").sort_index()
    assert rows.index.tolist() == again.index.tolist()
    for name in rows.columns:
        pairs = zip(rows[name], again[name])
        assert all(pd.Series(a).equals(pd.Series(b)) for a, b in pairs), name
