"""Kept events open again as they were, and events added to are those of one whole log."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from modeling_implicitrec import engine as engine_module
from modeling_implicitrec.cleaning import CleaningOptions
from modeling_implicitrec.event_store import append_events, open_events, save_events
from modeling_implicitrec.events import Events, EventSchema, load_events

SCHEMA = EventSchema(event_type="event_type", count="count")


def log_of(rows: int, seed: int = 0, users: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    log = pd.DataFrame(
        {
            "user_id": rng.integers(users, size=rows),
            "item_id": rng.integers(8, size=rows),
            "timestamp": np.sort(rng.integers(1_700_000_000, 1_700_400_000, size=rows)),
            "event_type": rng.choice(["view", "buy"], size=rows),
            "count": rng.integers(-1, 9, size=rows).astype(float),
        }
    )
    return pd.concat([log, log[::7]], ignore_index=True)  # every seventh row twice


def rows_of(events: Events) -> pd.DataFrame:
    order = ["user_id", "timestamp", "log_order"]
    return events.table.to_pandas().sort_values(order).reset_index(drop=True)


def add(folder, log) -> Events:
    save_events(append_events(folder, log), folder)
    return open_events(folder)


def assert_same(found: Events, expected: Events) -> None:
    pd.testing.assert_frame_equal(rows_of(found), rows_of(expected))
    assert found.report == expected.report


def test_saved_events_open_again(tmp_path) -> None:
    events = load_events(log_of(500), SCHEMA)
    save_events(events, tmp_path / "kept")
    expected = rows_of(events)
    report = events.report
    del events
    found = open_events(tmp_path / "kept")
    pd.testing.assert_frame_equal(rows_of(found), expected)
    assert found.report == report


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    cut=st.floats(0.4, 0.9),
    seed=st.integers(0, 99),
    options=st.sampled_from(
        [
            CleaningOptions(),
            CleaningOptions(merge_repeats=True, clip_quantile=0.9),
            CleaningOptions(merge_repeats=True, merge_seconds=5_000, max_events_per_day=9),
            CleaningOptions(merge_repeats=True, min_user_events=2, min_item_events=6),
        ]
    ),
)
def test_adding_is_rebuilding(tmp_path_factory, cut: float, seed: int, options) -> None:
    folder = tmp_path_factory.mktemp("kept")
    log = log_of(300, seed)
    first = int(cut * len(log))
    save_events(load_events(log[:first], SCHEMA, cleaning=options), folder)
    added = append_events(folder, log[first:])
    assert_same(added, load_events(log, SCHEMA, cleaning=options))
    save_events(added, folder)
    assert_same(open_events(folder), added)


def test_adding_in_many_buckets(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "BUCKET_ROWS", 40)
    log = log_of(200).assign(user_id=lambda rows: "u" + rows["user_id"].astype(str))
    options = CleaningOptions(merge_repeats=True, min_user_events=3)
    whole = load_events(log, SCHEMA, cleaning=options)
    assert whole.engine.num_buckets >= 5
    monkeypatch.undo()
    assert_same(load_events(log, SCHEMA, cleaning=options), whole)
    monkeypatch.setattr(engine_module, "BUCKET_ROWS", 40)
    save_events(load_events(log[:150], SCHEMA, cleaning=options), tmp_path)
    add(tmp_path, log[150:155])
    assert_same(add(tmp_path, log[155:]), whole)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_dir()) == ["events.json"]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_failed_addition_leaves_what_was_there(tmp_path) -> None:
    save_events(load_events(log_of(100), SCHEMA), tmp_path)
    before = rows_of(open_events(tmp_path))
    with pytest.raises(ValueError, match="no column 'count'"):
        append_events(tmp_path, log_of(10).drop(columns="count"))
    with pytest.raises(ValueError, match="item_id is a whole number .* column is 'item_id'"):
        append_events(tmp_path, log_of(10).assign(item_id="tea"))
    with pytest.raises(ValueError, match="none called 'app'"):
        append_events(tmp_path, {"app": log_of(10)})
    pd.testing.assert_frame_equal(rows_of(open_events(tmp_path)), before)


def test_a_day_of_whole_numbers_adds_text_to_ids_that_are_text(tmp_path) -> None:
    days = [tmp_path / "1.csv", tmp_path / "2.csv"]
    for day, rows in zip(days, ("ann,tea,1\n17,7,2\n", "17,7,3\n18,8.0,4\n")):
        day.write_text("user_id,item_id,timestamp\n" + rows)
    save_events(load_events(days[0]), tmp_path / "kept")
    assert_same(add(tmp_path / "kept", days[1]), load_events(days))


def test_what_is_no_store_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved events"):
        open_events(tmp_path)
    (tmp_path / "events.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format 99, expected 2"):
        open_events(tmp_path)


def test_platforms_are_added_to(tmp_path) -> None:
    web, app = log_of(120, 1), log_of(120, 2)
    schemas = {"web": SCHEMA, "app": EventSchema(count="count", clock_offset=-3600)}
    save_events(load_events({"web": web[:100], "app": app[:100]}, schemas), tmp_path)
    add(tmp_path, {"app": app[100:]})
    added = add(tmp_path, {"web": web[100:]})
    expected = load_events({"web": web, "app": app}, schemas)
    columns = [name for name in added.columns if name != "log_order"]  # the order of arrival
    pd.testing.assert_frame_equal(
        rows_of(added)[columns].sort_values(columns, ignore_index=True),
        rows_of(expected)[columns].sort_values(columns, ignore_index=True),
    )
    assert added.report == expected.report
