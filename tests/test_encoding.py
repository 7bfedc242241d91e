"""Encoded sequences are what the processor makes of each history alone."""

import numpy as np
import pytest
from datasets import Dataset

from modeling_implicitrec import (
    EASE,
    ImplicitRecProcessor,
    ease_table,
    encode_sequences,
    encode_splits,
    fit_baselines,
    positive_events,
    training_columns,
)

ROWS = {
    "user_id": ["u", "v", "w"],
    "item_ids": [["a", "new", "b", "a"], ["new"], ["b"]],
    "timestamps": [[10, 20, 30, 40], [5], [7]],
    "event_types": [["view", "view", "buy", "view"], ["view"], [None]],
    "counts": [[1.0, 1.0, 3.0, 2.0], [1.0], [None]],
    "target_item_ids": [["b", "b", "other", "b", "a"], ["a"], ["new"]],
}


def processor() -> ImplicitRecProcessor:
    log = {"item_id": ["a", "a", "b"], "event_type": ["view", "view", "buy"], "count": [1, 2, 3]}
    return ImplicitRecProcessor.fit(log, event_type_weights={"buy": 2}, half_life=20.0)


def test_encoding_agrees_with_the_processor_history_by_history():
    encoded = encode_sequences(Dataset.from_dict(ROWS), processor())
    for place in range(3):
        history = {name: ROWS[name][place] for name in ("item_ids", "timestamps", "event_types")}
        alone = processor()([history | {"counts": ROWS["counts"][place]}])
        size = encoded[place]["length"]
        for name in ("input_ids", "input_weights", "timestamps", "event_type_ids"):
            np.testing.assert_allclose(encoded[place][name], alone[name][0, :size], rtol=1e-6)
    assert encoded["length"] == [3, 0, 1]
    assert encoded["row"] == [0, 1, 2]


def test_targets_are_distinct_and_unknown_ones_are_kept_as_misses():
    encoded = encode_sequences(Dataset.from_dict(ROWS), processor())
    assert encoded["target_ids"] == [[2, -1, 1], [1], [-1]]


def test_rows_that_are_not_split_are_pointed_to_what_takes_them():
    rows = Dataset.from_dict({"item_ids": [["a"]]})
    processor = ImplicitRecProcessor.fit({"item_id": ["a"]})
    with pytest.raises(ValueError, match="encode_sequences; got Dataset"):
        encode_splits(rows, processor)


def test_a_part_of_the_rows_is_encoded_like_the_whole():
    rows = Dataset.from_dict(ROWS)
    part = encode_sequences(rows.select([2, 0]), processor())
    whole = encode_sequences(rows, processor())
    assert part["input_ids"] == [whole["input_ids"][2], whole["input_ids"][0]]


def test_training_columns_are_the_events_end_to_end():
    batches = training_columns(Dataset.from_dict(ROWS))
    for _ in range(2):  # they can be read again
        [columns] = list(batches)
        assert columns["item_id"].counted() == {"a": 2, "new": 2, "b": 2}
        assert set(columns) == {"item_id", "event_type", "count"}


def test_the_ease_table_holds_the_strongest_weights_of_ease():
    rng = np.random.default_rng(0)
    rows = Dataset.from_dict({"input_ids": [sorted(set(rng.integers(1, 9, 6))) for _ in range(60)]})
    items, strength = ease_table(rows, 9, 6, regularization=5.0)
    weights = EASE(rows, 9, regularization=5.0).weights
    for item in range(1, 9):
        largest = np.sort(np.abs(weights[item, 1:]))[::-1][:6]
        np.testing.assert_allclose(np.sort(np.abs(strength[item]))[::-1], largest)
        np.testing.assert_allclose(weights[item, items[item]], strength[item])
    assert (strength < 0).any()


def test_a_negative_event_is_no_target_and_counts_for_no_item():
    rows = Dataset.from_dict(
        {
            "user_id": ["u", "v"],
            "item_ids": [["a", "b", "b", "hidden"], ["b"]],
            "event_types": [["view", "view", "hide", "hide"], ["view"]],
            "target_item_ids": [["a", "b", "b"], ["a"]],
            "target_event_types": [["hide", "hide", "view"], ["hide"]],
        }
    )
    fitted = ImplicitRecProcessor.fit(training_columns(rows), negative_event_types=["hide", "skip"])
    assert fitted.item_counts.tolist() == [0, 2, 1]  # b was taken twice; "hidden" is no token
    assert fitted.event_types == ["view", "hide", "skip"]
    assert fitted.negative_event_type_ids == [2, 3]
    encoded = encode_sequences(rows, fitted)
    assert encoded["target_ids"] == [[1], []]
    assert encoded["input_ids"] == [[2, 1, 1], [1]]
    assert encoded["event_type_ids"] == [[1, 1, 2], [1]]
    assert min(encoded["input_weights"][0]) > 0
    positive = positive_events(encoded, fitted.negative_event_type_ids)
    assert positive["input_ids"] == [[2, 1], [1]]
    assert positive["length"] == [2, 1]
    assert positive["target_ids"] == encoded["target_ids"]
    listed = positive_events(list(encoded), fitted.negative_event_type_ids)
    assert [row["input_ids"] for row in listed] == positive["input_ids"]
    options = {"negative_event_type_ids": fitted.negative_event_type_ids}
    names = ["popularity", "own_frequency", "cooccurrence"]
    for scorer, plain in zip(
        fit_baselines(names, encoded, 3, **options), fit_baselines(names, positive, 3)
    ):
        assert scorer.score(list(encoded)).tolist() == plain.score(list(positive)).tolist()
