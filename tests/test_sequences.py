"""Sequences keep every event in time order; splits never leak."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling_implicitrec import sequences as module
from modeling_implicitrec.events import EventSchema, load_events
from modeling_implicitrec.sequences import (
    build_sequences,
    collapse_repeats,
    leave_last_out,
    temporal_split,
)


def random_log(rows: int = 5_000, users: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user_id": rng.integers(users, size=rows),
            "item_id": rng.integers(50, size=rows),
            "timestamp": rng.integers(1_000, size=rows),
            "kind": rng.choice(["view", "buy"], size=rows),
            "count": rng.integers(1, 9, size=rows).astype(float),
        }
    )


def random_events():
    return load_events(random_log(), EventSchema(event_type="kind", count="count"))


def test_ties_are_broken_by_log_order() -> None:
    log = pd.DataFrame(
        {"user_id": [2, 1, 1, 1], "item_id": ["z", "c", "b", "a"], "timestamp": [5, 7, 7, 3]}
    )
    sequences = build_sequences(load_events(log))
    assert sequences.to_dict() == {
        "user_id": [1, 2],
        "item_ids": [["a", "c", "b"], ["z"]],
        "timestamps": [[3, 7, 7], [5]],
    }


def test_order_column_without_a_clock_and_its_ties() -> None:
    log = pd.DataFrame({"user_id": 1, "item_id": ["d", "c", "b", "a"], "pos": [2, 1, 1, 0]})
    events = load_events(log, EventSchema(timestamp=None, order="pos"))
    assert build_sequences(events)["item_ids"][0] == ["a", "c", "b", "d"]


def test_sequences_equal_a_plain_group_by(tmp_path) -> None:
    events = random_events()
    sequences = build_sequences(events, path=tmp_path / "sequences.arrow")
    assert [path.name for path in tmp_path.iterdir()] == ["sequences.arrow"]
    frame = events.to_pandas().sort_values(["user_id", "timestamp", "log_order"])
    groups = frame.groupby("user_id")
    assert sequences["user_id"][:] == list(groups.groups)
    for new, old in (("item_ids", "item_id"), ("event_types", "event_type"), ("counts", "count")):
        assert sequences[new][:] == groups[old].agg(list).tolist()


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_users_crossing_batches(rows: int) -> None:
    users = np.sort(np.random.default_rng(1).integers(6, size=60))
    table = module.pa.table({"user_id": users, "item_ids": np.arange(60)})
    parts = [module.pa.Table.from_batches([b]) for b in module._user_rows(table.to_batches(rows))]
    found = module.pa.concat_tables(parts).to_pydict()
    assert found["user_id"] == np.unique(users).tolist()
    assert found["item_ids"] == [np.flatnonzero(users == u).tolist() for u in np.unique(users)]


def test_leave_last_out_on_a_known_world() -> None:
    sequences = Dataset.from_dict(
        {
            "user_id": [1, 2],
            "item_ids": [["a", "b", "c", "d"], ["e", "f"]],
            "counts": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0]],
        }
    )
    splits = leave_last_out(sequences)
    assert splits["train"]["item_ids"][:] == [["a", "b"], ["e", "f"]]
    assert splits["validation"].to_dict() == {
        "user_id": [1],
        "item_ids": [["a", "b"]],
        "counts": [[1.0, 2.0]],
        "target_item_ids": [["c"]],
        "target_counts": [[3.0]],
    }
    assert splits["test"]["item_ids"][:] == [["a", "b", "c"]]
    assert splits["test"]["target_item_ids"][:] == [["d"]]


def test_one_user_with_one_event() -> None:
    log = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    splits = leave_last_out(build_sequences(load_events(log)))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 1,
        "validation": 0,
        "test": 0,
    }


def test_temporal_split_on_a_known_world() -> None:
    sequences = Dataset.from_dict(
        {
            "user_id": [1, 2, 3],
            "item_ids": [[1, 2, 3, 4], [5, 6], [7]],
            "timestamps": [[10, 80, 90, 100], [20, 85], [95]],
        }
    )
    splits = temporal_split(sequences, test_seconds=10)
    assert splits["train"]["item_ids"][:] == [[1], [5]]
    assert splits["before_test"]["item_ids"][:] == [[1, 2], [5, 6]]
    assert splits["validation"]["item_ids"][:] == [[1], [5]]
    assert splits["validation"]["target_item_ids"][:] == [[2], [6]]
    assert splits["test"]["user_id"][:] == [1]
    assert splits["test"]["item_ids"][:] == [[1, 2]]
    assert splits["test"]["target_item_ids"][:] == [[3, 4]]
    assert splits["test"]["target_timestamps"][:] == [[90, 100]]


def test_temporal_split_never_leaks() -> None:
    splits = temporal_split(build_sequences(random_events()), test_seconds=100)
    latest = {name: max(map(max, rows["timestamps"])) for name, rows in splits.items()}
    earliest = {
        name: min(map(min, splits[name]["target_timestamps"])) for name in ("validation", "test")
    }
    assert latest["train"] < earliest["validation"] <= earliest["test"]
    assert earliest["validation"] <= latest["before_test"] < earliest["test"]
    assert latest["validation"] < earliest["validation"] and latest["test"] < earliest["test"]
    assert max(map(max, splits["validation"]["target_timestamps"])) < earliest["test"]


def test_temporal_split_refuses_what_it_cannot_do() -> None:
    sequences = Dataset.from_dict({"user_id": [1], "item_ids": [[1, 2]], "timestamps": [[1, 2]]})
    with pytest.raises(ValueError, match="needs timestamps"):
        temporal_split(sequences.remove_columns("timestamps"), test_seconds=1)
    with pytest.raises(ValueError, match="are empty"):
        temporal_split(sequences, test_seconds=100)
    with pytest.raises(ValueError, match="must be positive"):
        temporal_split(sequences, test_seconds=0)


def test_splits_respect_selected_rows() -> None:
    sequences = build_sequences(random_events())
    chosen = sequences.select([5, 3])
    splits = leave_last_out(chosen)
    assert splits["test"]["user_id"][:] == chosen["user_id"][:]
    assert [row[-1] for row in chosen["item_ids"]] == [
        row[0] for row in splits["test"]["target_item_ids"]
    ]


def test_collapse_repeats_keeps_the_last_and_adds_counts() -> None:
    sequences = Dataset.from_dict(
        {
            "user_id": [1, 2],
            "item_ids": [["a", "b", "a", "a"], ["a"]],
            "event_types": [["view", "view", "view", "buy"], ["buy"]],
            "timestamps": [[1, 2, 3, 4], [9]],
        }
    )
    assert collapse_repeats(sequences).to_dict() == {
        "user_id": [1, 2],
        "item_ids": [["b", "a", "a"], ["a"]],
        "event_types": [["view", "view", "buy"], ["buy"]],
        "timestamps": [[2, 3, 4], [9]],
        "counts": [[1.0, 2.0, 1.0], [1.0]],
    }


def test_collapse_repeats_loses_no_count() -> None:
    sequences = build_sequences(random_events())
    collapsed = collapse_repeats(sequences)
    assert [sum(row) for row in collapsed["counts"]] == [sum(row) for row in sequences["counts"]]
    assert all(
        len(set(zip(row["item_ids"], row["event_types"], strict=True))) == len(row["item_ids"])
        for row in collapsed
    )


@pytest.mark.parametrize("column", ["count", "item_id"])
def test_rows_that_are_sorted_are_no_order_in_time(column, caplog) -> None:
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(20), 6)
    items = [
        f"i{item}" for item in generator.permuted(np.tile(np.arange(6), (20, 1)), axis=1).ravel()
    ]
    log = pd.DataFrame({"user_id": users, "item_id": items})
    log["count"] = generator.integers(1, 1000, len(log))
    schema = EventSchema(timestamp=None, count="count")
    leave_last_out(build_sequences(load_events(log, schema)))
    assert not caplog.records
    fallen = log.sort_values(["user_id", column], ascending=[True, False])
    leave_last_out(build_sequences(load_events(fallen, schema)))
    assert "sorted by " + {"count": "counts", "item_id": "item_ids"}[column] in caplog.text
    caplog.clear()
    timed = fallen.assign(timestamp=np.arange(len(log)) + 1e9)  # in that order indeed
    leave_last_out(build_sequences(load_events(timed, EventSchema(count="count"))))
    assert not caplog.records


def test_target_types_are_a_list() -> None:
    log = Dataset.from_dict({"user_id": [1], "item_ids": [[1, 2]], "event_types": [["a", "buy"]]})
    with pytest.raises(ValueError, match="expected a list of types, got 'buy'"):
        leave_last_out(log, target_event_types="buy")
