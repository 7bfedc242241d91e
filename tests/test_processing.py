"""The processor: weights by hand, histories in every form, unknown items, and files."""

import numpy as np
import pytest

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecProcessor

LOG = {
    "item_id": ["é", "b", "b", "c"],
    "event_type": ["view", "view", "buy", "view"],
    "count": [1, 3, 1, None],
}


def processor(**options) -> ImplicitRecProcessor:
    return ImplicitRecProcessor.fit(LOG, event_type_weights={"buy": 3}, **options)


def test_weights_are_those_computed_by_hand():
    # raw: 1 * log2(2), 1 * log2(4), 3 * log2(2), 1 (no count); their mean is 7 / 4
    weights = processor().weights(event_types=LOG["event_type"], counts=LOG["count"])
    np.testing.assert_allclose(weights, np.array([1, 2, 3, 1]) / 1.75, rtol=1e-6)
    assert weights.mean() == pytest.approx(1)
    assert processor(max_weight=1.5).weights(event_types=["buy"]).tolist() == [1.5]
    faded = processor(half_life=10.0).weights(event_types=["view"], ages=[20])
    assert faded.tolist() == pytest.approx([0.25 / 1.75])


def test_dwell_is_a_quantile_among_items_of_like_length():
    log = {
        "item_id": [*range(8)],
        "duration": [1, 2, 3, 4, 10, 20, 30, 40],
        "item_duration": [5] * 4 + [50] * 4,
    }
    weights = ImplicitRecProcessor.fit(log).weights(
        durations=log["duration"], item_durations=log["item_duration"]
    )
    np.testing.assert_allclose(weights[:4], weights[4:])
    assert (np.diff(weights[:4]) > 0).all()


def test_every_form_of_a_history_gives_the_same_tensors():
    events = [
        [{"item_id": "b", "count": 2, "timestamp": 5}, {"item_id": "é", "count": 1, "timestamp": 9}]
    ]
    columns = [{"item_ids": ["b", "é"], "counts": [2, 1], "timestamps": [5, 9]}]
    batch = {name: [values] for name, values in columns[0].items()}
    results = [processor()(form) for form in (events, columns, batch)]
    for result in results[1:]:
        assert {k: v.tolist() for k, v in result.items()} == {
            k: v.tolist() for k, v in results[0].items()
        }
    assert results[0]["input_ids"].tolist() == [processor().encode_items(["b", "é"]).tolist()]
    assert results[0]["timestamps"].tolist() == [[5, 9]]


def test_a_batch_pads_on_the_right_and_keeps_the_latest():
    batch = processor()([["b", "c", "é"], ["c"]], max_length=2)
    tokens = processor().encode_items(["c", "é"])
    assert batch["input_ids"].tolist() == [tokens.tolist(), [tokens[0], 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_unknown_items_are_left_out_and_unknown_types_are_type_zero():
    batch = processor()([["nothing"], ["b", "nothing"]])
    assert batch["input_ids"].tolist() == [[0], [processor().encode_items(["b"])[0]]]
    assert batch["input_weights"][0].tolist() == [0]
    assert processor().encode_event_types(["swim", None, "view"]).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="'nothing' is not in the vocabulary"):
        processor()([["nothing"]], unknown_items="error")


@pytest.mark.parametrize("histories", [[], "abc", ["abc"], {"items": []}, [[{"count": 1}]]])
def test_another_nesting_is_refused(histories):
    with pytest.raises(ValueError, match="expected"):
        processor()(histories)


@pytest.mark.parametrize("count", [-1, float("inf")])
def test_impossible_strengths_are_refused_by_place(count):
    with pytest.raises(ValueError, match="history 1: count must be finite and not negative"):
        processor()([["b"], [{"item_id": "b", "count": count}]])


def test_wrong_id_types_and_tokens_are_refused():
    with pytest.raises(ValueError, match="are strings, got 3"):
        processor()([[3]])
    with pytest.raises(ValueError, match="item tokens are 1 to 3, got 0"):
        processor().decode_items([0])


def test_logs_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="no item to learn"):
        ImplicitRecProcessor.fit({"item_id": []})
    with pytest.raises(ValueError, match="all weights"):
        ImplicitRecProcessor.fit(LOG, event_type_weights={"buy": 0, "view": 0})
    with pytest.raises(ValueError, match="factor of 'buy'"):
        ImplicitRecProcessor.fit(LOG, event_type_weights={"buy": float("nan")})


@pytest.mark.parametrize("ids", [["é", "b", "b"], [7, 2**40, 7]])
def test_saving_and_loading_keeps_everything(tmp_path, ids):
    fitted = ImplicitRecProcessor.fit({"item_id": ids, "count": [1, 2, 3]}, half_life=5.0)
    fitted.save_pretrained(tmp_path)
    loaded = ImplicitRecProcessor.from_pretrained(tmp_path)
    assert loaded.decode_items([1, 2]) == fitted.decode_items([1, 2])
    assert loaded.fingerprint == fitted.fingerprint
    assert loaded.item_counts.tolist() == fitted.item_counts.tolist() == [0, 2, 1]
    assert loaded.weights(counts=[3], ages=[1]) == fitted.weights(counts=[3], ages=[1])


def test_equal_hashes_are_told_apart(monkeypatch):
    monkeypatch.setattr(
        "modeling_implicitrec.vocabulary_implicitrec._hashes",
        lambda texts: np.full(len(texts), 5, dtype=np.uint64),
    )
    fitted = ImplicitRecProcessor.fit({"item_id": ["a", "b", "c"]})
    assert fitted.encode_items(["c", "a", "b", "d"]).tolist() == [3, 1, 2, -1]


def test_a_truncated_vocabulary_is_refused(tmp_path):
    processor().save_pretrained(tmp_path)
    path = tmp_path / "item_vocabulary.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="item_vocabulary.safetensors"):
        ImplicitRecProcessor.from_pretrained(tmp_path)


def test_a_model_of_another_vocabulary_is_refused():
    fitted = processor()
    sizes = {"vocab_size": 4, "num_event_types": 3}
    fitted.check_model(ImplicitRecConfig(**sizes, vocabulary_fingerprint=fitted.fingerprint))
    with pytest.raises(ValueError, match="vocab_size is 9 in the model and 4"):
        fitted.check_model(ImplicitRecConfig(vocab_size=9, num_event_types=3))
    with pytest.raises(ValueError, match="vocabulary_fingerprint"):
        fitted.check_model(ImplicitRecConfig(**sizes, vocabulary_fingerprint="other"))
