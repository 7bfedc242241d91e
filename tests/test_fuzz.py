"""Damaged and made-up files of every kind that is read: an answer or a `ValueError`, nothing else.

The HTTP service has a test of its own, `test_service_fuzz.py`.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_implicitrec import (
    EventSchema,
    ImplicitRecConfig,
    ImplicitRecProcessor,
    ItemFeatures,
    build_sequences,
    encode_splits,
    leave_last_out,
    load_events,
    load_sequences,
    parse_arguments,
    save_sequences,
    training_columns,
)

LOG = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 2, 2, 2, 3, 3, 3],
        "item_id": list("abcabcbca"),
        "timestamp": [1.7e9 + 60 * place for place in range(9)],
        "count": [1, 2, 1, 1, 3, 1, 1, 1, 2],
    }
)
SCHEMA = EventSchema(count="count")
few = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# A place in the file, how many bytes of it go, and what comes instead.
WOUNDS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4
)


def damaged(whole: bytes, wounds: list) -> bytes:
    for share, gone, instead in wounds:
        place = int(share * len(whole))
        whole = whole[:place] + instead + whole[place + gone :]
    return whole


def written(folder: Path, kind: str) -> Path:
    path = folder / f"log.{kind}"
    if kind == "csv":
        LOG.to_csv(path, index=False)
    elif kind == "jsonl":
        LOG.to_json(path, orient="records", lines=True)
    else:
        LOG.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@given(wounds=WOUNDS)
@few
def test_a_damaged_log_is_read_or_refused(kind, wounds, tmp_path):
    path = written(tmp_path, kind)
    path.write_bytes(damaged(path.read_bytes(), wounds))
    try:
        report = load_events(str(path), SCHEMA).report
    except ValueError:
        return
    assert report.rows_in == report.rows_out + sum(report.dropped.values())


@given(text=st.text(st.sampled_from("data_dirmodelepochs:{}[]&*!|>-# \n\t'\"0123.~"), max_size=80))
@settings(few, max_examples=200)
def test_any_yaml_is_arguments_or_refused(text, tmp_path):
    @dataclass
    class Arguments:
        data_dir: str = ""
        model: dict = field(default_factory=dict)
        epochs: float = 1.0

    path = tmp_path / "any.yaml"
    path.write_text(text)
    try:
        (found,) = parse_arguments(Arguments, args=[str(path)])
    except ValueError:
        return
    assert isinstance(found.data_dir, str) and isinstance(found.model, dict)


@given(wounds=WOUNDS)
@few
def test_a_damaged_vocabulary_is_refused(wounds, tmp_path):
    processor = ImplicitRecProcessor.fit(LOG[["item_id", "count"]])
    processor.save_pretrained(tmp_path)
    path = tmp_path / "item_vocabulary.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, wounds))
    try:
        loaded = ImplicitRecProcessor.from_pretrained(tmp_path)
    except ValueError:
        return
    assert loaded.decode_items([1, 2, 3]) is not None


KEYS = (
    "event_type_weights",
    "length_groups",
    "duration_quantiles",
    "mean_raw_weight",
    "max_weight",
)
KEYS += ("half_life", "max_length", "event_types", "use_counts", "duration_weight")
KEYS += ("completion_cap", "negative_event_types", "collapse_repeats", "platforms")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats(-2, 2), max_size=2),
)


@given(key=st.sampled_from(KEYS), value=VALUES)
@settings(few, max_examples=60)
def test_a_strange_processor_config_is_used_or_refused(key, value, tmp_path):
    ImplicitRecProcessor.fit(LOG[["item_id", "count"]]).save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    try:
        processor = ImplicitRecProcessor.from_pretrained(tmp_path)
        batch = processor([[{"item_id": "a", "count": 2, "timestamp": 5}]])
    except (ValueError, TypeError):
        return
    weights = batch["input_weights"].numpy()
    assert np.isfinite(weights).all() and (weights >= 0).all()


@given(
    options=st.dictionaries(
        st.sampled_from(sorted(ImplicitRecConfig.__annotations__)), VALUES, max_size=3
    )
)
@settings(few, max_examples=60)
def test_a_strange_model_config_is_a_config_or_refused(options):
    try:
        config = ImplicitRecConfig(**{"vocab_size": 4} | options)
    except (ValueError, TypeError, StrictDataclassError):
        return
    assert config.vocab_size > 0


@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.none(), st.text(max_size=4), st.integers()),
            st.one_of(st.none(), st.floats(), st.text(max_size=3)),
        ),
        min_size=1,
        max_size=6,
    )
)
@few
def test_strange_item_features_are_finite_or_refused(rows):
    table = pd.DataFrame({"item_id": range(len(rows)), "kind": [row[0] for row in rows]})
    table["price"] = [row[1] for row in rows]
    try:
        features = ItemFeatures.fit(table, categories=["kind"], numbers=["price"])
        found = features(table, list(range(len(rows))))
    except (ValueError, TypeError):
        return
    assert np.isfinite(found).all()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    splits = leave_last_out(build_sequences(load_events(LOG, SCHEMA)))
    processor = ImplicitRecProcessor.fit(training_columns(splits["train"]))
    save_sequences(encode_splits(splits, processor), folder)
    return folder


@given(wounds=WOUNDS)
@few
def test_damaged_sequences_are_read_or_refused(prepared, wounds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "sequences"
    shutil.copytree(prepared, folder)
    path = sorted(folder.rglob("*.parquet"))[0]
    path.write_bytes(damaged(path.read_bytes(), wounds))
    try:
        loaded = load_sequences(folder)
    except ValueError as error:
        assert str(path.parent) in str(error)
        return
    assert isinstance(loaded, DatasetDict)


def test_an_event_that_is_delivered_twice_counts_once():
    once = load_events(LOG, SCHEMA)
    late = pd.concat([LOG, LOG.sample(frac=1, random_state=0), LOG.iloc[::-1]])
    again = load_events(late, SCHEMA)
    assert again.report.dropped == {"duplicate": 2 * len(LOG)}
    columns = ["user_id", "item_id", "timestamp", "count"]
    here, there = (one.table.to_pandas()[columns] for one in (once, again))
    order = ["user_id", "timestamp"]
    pd.testing.assert_frame_equal(
        here.sort_values(order, ignore_index=True), there.sort_values(order, ignore_index=True)
    )


def test_a_platform_whose_clock_is_off_is_put_right():
    web, app = LOG.iloc[::2], LOG.iloc[1::2].assign(timestamp=lambda rows: rows["timestamp"] + 3600)
    schemas = {"web": SCHEMA, "app": EventSchema(count="count", clock_offset=-3600)}
    merged = load_events({"web": web, "app": app}, schemas, shared_items=True)
    whole = build_sequences(load_events(LOG, SCHEMA))
    put_right = build_sequences(merged)
    assert put_right["item_ids"] == whole["item_ids"]
    assert put_right["timestamps"] == whole["timestamps"]
    skewed = {"web": SCHEMA, "app": SCHEMA}  # not told of it, the order is another
    wrong = build_sequences(load_events({"web": web, "app": app}, skewed, shared_items=True))
    assert wrong["item_ids"] != whole["item_ids"]


def test_events_of_the_future_and_of_the_distant_past_are_dropped_and_counted():
    times = LOG["timestamp"].to_numpy().copy()
    times[0], times[1] = 4e9, 1e5  # 2096 and 1970
    report = load_events(LOG.assign(timestamp=times), SCHEMA).report
    assert sum(report.dropped.values()) == 2 and report.rows_out == len(LOG) - 2
