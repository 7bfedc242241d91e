"""The pandas job of `benchmark_events.py`: a log to weighted sequences in a Parquet file.

`python scripts/pandas_loader.py LOG_FOLDER OUTPUT_FOLDER '{"max_events_per_day": 1000, ...}'` prints
what came out as a line of JSON. It takes the steps and formulas of implicitrec, whole columns at a
time: no Python object an event, and lists by Arrow's offsets, so it is about as fast as pandas gets.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

DAY = 86_400
EARLIEST, BUSY = 631_152_000, 300  # 1990; events of a busy day
LENGTH_GROUPS, QUANTILES, SAMPLE = 5, 64, 1_000_000


def clean(log: pd.DataFrame, settings: dict) -> pd.DataFrame:
    """The cleaned log in order of user and time."""
    log = log[log.item_id.notna()].astype({"item_id": "int64", "timestamp": "float64"})
    log.timestamp = log.timestamp.where(log.timestamp <= 1e11, log.timestamp / 1e3)
    log = log[log.timestamp.between(EARLIEST, time.time() + DAY)]
    log = log[~((log.duration <= 0) | (log["count"] <= 0))]
    log = log.assign(item_duration=log.item_duration.where(log.item_duration > 0))
    log.duration = log.duration.where(log.duration <= DAY)
    log = log.drop_duplicates()
    log = without_machines(log, settings)
    log = log.sort_values(["user_id", "timestamp"], kind="stable", ignore_index=True)
    log = without_machines(merged(log), settings)
    for name in ("duration", "count"):
        log[name] = clipped(log[name], settings["clip_quantile"])
    log.timestamp = np.floor(log.timestamp).astype("int64")
    return log.reset_index(drop=True)


def without_machines(log: pd.DataFrame, settings: dict) -> pd.DataFrame:
    """Without users of too many events a day, or of a busy day with one item or a clock's gaps."""
    day = log.timestamp // DAY
    events = log.groupby(["user_id", day], sort=False)["item_id"].transform("size")
    log = log[~log.user_id.isin(log.user_id[events > settings["max_events_per_day"]])]
    busy = log[events.reindex(log.index) >= BUSY][["user_id", "item_id", "timestamp"]]
    busy = busy.assign(day=busy.timestamp // DAY)
    moments = busy[["user_id", "day", "timestamp"]].drop_duplicates()
    moments = moments.sort_values(["user_id", "day", "timestamp"])
    gap = moments.groupby(["user_id", "day"]).timestamp.diff()
    gaps = moments.assign(octave=np.floor(np.log2(gap)))[gap > 0]
    low = [low_entropy(busy, "item_id", 1), low_entropy(gaps, "octave", BUSY // 3)]
    return log[~log.user_id.isin(np.concatenate(low))]


def low_entropy(days: pd.DataFrame, name: str, least: int) -> np.ndarray:
    """Users with a day of under one bit of entropy in the named column."""
    counts = days.groupby(["user_id", "day", name]).size()
    groups = counts.groupby(["user_id", "day"])
    total = groups.sum()
    bits = np.log2(total) - (counts * np.log2(counts)).groupby(["user_id", "day"]).sum() / total
    found = bits[(bits.round(9) < 1) & (total >= least)]
    return found.index.get_level_values("user_id").to_numpy()


def clipped(values: pd.Series, quantile: float) -> pd.Series:
    """Clipped at the value of the log that lies at the quantile."""
    known = values.dropna().to_numpy()
    if not len(known):
        return values
    place = max(int(np.ceil(quantile * len(known))), 1) - 1
    return values.clip(upper=np.partition(known, place)[place])


def merged(log: pd.DataFrame) -> pd.DataFrame:
    """Consecutive events of one user, item and type as the first, durations and counts added up."""
    keys = ["user_id", "item_id", "event_type"]
    run = (log[keys] != log[keys].shift()).any(axis=1).cumsum()
    first = log[~run.duplicated()].reset_index(drop=True)
    first["duration"] = log.duration.groupby(run).sum(min_count=1).to_numpy()
    first["count"] = log["count"].fillna(1).groupby(run).sum().to_numpy()
    return first


def tokens(items: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Tokens from 1 on by falling count, then by id, and the item of each."""
    codes, found = pd.factorize(items)
    order = np.lexsort((found, -np.bincount(codes)))
    token = np.empty(len(order), dtype=np.int64)
    token[order] = np.arange(1, len(order) + 1)
    return token[codes], np.asarray(found)[order]


def weights(log: pd.DataFrame, settings: dict) -> np.ndarray:
    """The weight of README: type factor, log2(1 + count) and dwell quantile; mean 1, clipped."""
    raw = log.event_type.map(settings["event_type_weights"]).fillna(1.0).to_numpy(np.float64)
    raw = raw * np.log2(1 + log["count"].to_numpy())
    raw = raw * dwell_factor(log.duration.to_numpy(), log.item_duration.to_numpy())
    return np.clip(raw / raw.mean(), 0, settings["max_weight"]).astype(np.float32)


def dwell_factor(duration: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Twice the quantile of the dwell among events of like content length, 1 where unknown."""
    timed = np.flatnonzero(~np.isnan(duration))
    if len(timed) > SAMPLE:
        timed = timed[np.random.default_rng(0).choice(len(timed), SAMPLE, replace=False)]
    known = length[timed][~np.isnan(length[timed])]
    cuts = np.unique(np.quantile(known, np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS))
    group = np.searchsorted(cuts, length, side="right")
    group[np.isnan(length)] = len(cuts) + 1
    steps = (np.arange(QUANTILES) + 1) / QUANTILES
    factor = np.ones(len(duration))
    for place in range(len(cuts) + 2):
        sample = duration[timed[group[timed] == place]]
        if place > len(cuts) or not len(sample):
            sample = duration[timed]
        table = np.quantile(sample, steps, method="inverted_cdf")
        own = (group == place) & ~np.isnan(duration)
        below = np.searchsorted(table, duration[own], side="right")
        factor[own] = 2 * np.maximum(below, 1) / QUANTILES
    return factor


def sequences(log: pd.DataFrame, token: np.ndarray, weight: np.ndarray) -> pa.Table:
    """One row a user; the rows of the log lie in order of user and time."""
    starts = np.flatnonzero(np.diff(log.user_id, prepend=log.user_id[0] - 1))
    offsets = pa.array(np.append(starts, len(log)))
    columns = {"input_ids": token, "input_weights": weight, "timestamps": log.timestamp}
    columns["event_type_ids"] = pd.factorize(log.event_type)[0] + 1
    lists = {
        name: pa.LargeListArray.from_arrays(offsets, pa.array(values))
        for name, values in columns.items()
    }
    return pa.table({"user_id": log.user_id.to_numpy()[starts], **lists})


def main() -> None:
    log, output, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    start = time.perf_counter()
    events = clean(pd.read_parquet(log), settings)
    token, items = tokens(events.item_id)
    table = sequences(events, token, weights(events, settings))
    pq.write_table(table, output / "sequences.parquet")
    np.save(output / "items.npy", items)
    facts = {"events": len(events), "users": table.num_rows, "items": len(items)}
    print(json.dumps(facts | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
