"""The processor: weights by hand, histories in every form, unknown items, and files."""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from tiny_models import tiny
from transformers import Trainer, TrainingArguments

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecProcessor,
    load_checkpoint,
)

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


def test_completion_is_the_capped_share_of_the_content_and_1_on_average(tmp_path):
    log = {
        "item_id": [*range(6)],
        "duration": [5, 10, 40, 0, 7, None],
        "item_duration": [10, 10, 20, 64, None, 10],
    }
    given = {"durations": log["duration"], "item_durations": log["item_duration"]}
    ratios = np.array([0.5, 1, 1, 1 / 64])  # capped at 1, at least 1/64
    parts = [*(ratios / ratios.mean()), 1, 1]  # unknown length, unknown duration
    fitted = ImplicitRecProcessor.fit(log, duration_weight="completion")
    np.testing.assert_allclose(fitted.weights(**given), parts, rtol=1e-6)
    twice = ImplicitRecProcessor.fit(log, duration_weight="completion", completion_cap=1.5)
    assert np.divide(*twice.weights(**given)[[2, 0]]) == pytest.approx(3)
    nothing = {"durations": [5.0], "item_durations": [0.0]}
    assert fitted.weights(**nothing).tolist() == [1]
    twice.save_pretrained(tmp_path)
    loaded = ImplicitRecProcessor.from_pretrained(tmp_path)
    assert loaded.weights(**given).tolist() == twice.weights(**given).tolist()
    served = loaded([[{"item_id": 2, "duration": 40, "item_duration": 20}]])["input_weights"]
    assert served[0, 0] == twice.weights(**given)[2]
    without = ImplicitRecProcessor.fit(
        {"item_id": [1], "duration": [3]}, duration_weight="completion"
    )
    assert without.weights(durations=[9]).tolist() == [1]
    with pytest.raises(ValueError, match="duration_weight must be one of"):
        ImplicitRecProcessor.fit(log, duration_weight="dwell")


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
    with pytest.raises(ValueError, match="item tokens are 1 to 3, got 4"):
        processor().decode_items([4])


def test_the_padding_of_a_short_list_is_no_item():
    made = processor()
    assert made.decode_items([2, 1, 0, 0]) == made.decode_items([2, 1])
    assert made.decode_items(made([["b", "c"], ["b"]])["input_ids"][1]) == ["b"]


def test_times_in_milliseconds_are_refused():
    events = [{"item_id": "b", "timestamp": 1_714_521_600_000}]
    with pytest.raises(ValueError, match="history 0: timestamps must be seconds .* 1714521600000"):
        processor()([events])


def test_a_missing_value_of_pandas_is_named():
    with pytest.raises(ValueError, match="history 0: count must be a number or None.*NAType"):
        processor()([[{"item_id": "b", "count": pd.NA}]])


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


def test_a_history_encodes_alike_alone_and_beside_one_without_times():
    fitted = processor(half_life=10.0)
    timed = {"item_ids": ["b", "é", "c"], "timestamps": [30, 10, 20], "counts": [1, 2, 3]}
    alone, beside = fitted([timed]), fitted([timed, ["b"]])
    for name in ("input_ids", "input_weights", "attention_mask", "event_type_ids"):
        assert beside[name][0].tolist() == alone[name][0].tolist()
    assert alone["timestamps"].tolist() == [[10, 20, 30]] and "timestamps" not in beside


def test_flat_columns_encode_as_the_rows_do():
    fitted = processor(half_life=10.0)
    columns = {"timestamps": np.array([1, 5, 2]), "event_types": np.array(["buy", None, "view"])}
    offsets = np.array([0, 2, 2, 3])
    flat = fitted.encode_flat(["b", "c", "é"], offsets, **columns)
    coded = fitted.encode_flat(["é", "c", "b"], offsets, codes=np.array([2, 1, 0]), **columns)
    rows = fitted(
        [
            {"item_ids": ["b", "c"], "timestamps": [1, 5], "event_types": ["buy", None]},
            {"item_ids": ["é"], "timestamps": [2], "event_types": ["view"]},
        ]
    )
    for name, values in flat.items():
        assert values.tolist() == coded[name].tolist() == rows[name].flatten()[:3].tolist()
    unknown = fitted.encode_flat(["b", "zz", "c"], np.array([0, 3]))
    assert unknown["input_ids"].tolist() == [1, -1, 2]


def test_parts_of_the_weight_can_be_left_out():
    log = LOG | {"duration": [1.0, 2.0, 3.0, None]}
    plain = ImplicitRecProcessor.fit(log, use_counts=False, duration_weight=None)
    assert plain.weights(counts=[5, 9], durations=[1, 3]).tolist() == [1, 1]
    known = processor().event_types
    only_named = ImplicitRecProcessor.fit(LOG, event_type_weights={"gift": 2})
    assert only_named.event_types == known == ["view", "buy"]
    assert np.divide(*only_named.weights(event_types=["gift", "view"])) == pytest.approx(2)


def test_a_log_is_refused_that_mixes_ids_or_can_be_read_only_once():
    for ids in (["a", 1], [1, None], [1.5]):
        with pytest.raises(ValueError, match="all integers or all strings"):
            ImplicitRecProcessor.fit({"item_id": ids})
    with pytest.raises(ValueError, match="more than once"):
        ImplicitRecProcessor.fit(batch for batch in [LOG])
    whole = ImplicitRecProcessor.fit({"item_id": [3, 1, 3, 2]})
    parts = ImplicitRecProcessor.fit([{"item_id": [3, 1]}, {"item_id": [3, 2]}])
    assert whole.fingerprint == parts.fingerprint and whole.decode_items([1, 2, 3]) == [3, 1, 2]


@pytest.mark.parametrize("part", ["order", "sorted", "offsets"])
def test_a_tampered_vocabulary_is_refused(tmp_path, part):
    processor().save_pretrained(tmp_path)
    path = tmp_path / "item_vocabulary.safetensors"
    arrays = load_file(path)
    arrays[part] = arrays[part][::-1].copy() if part != "order" else np.zeros(3, dtype=np.int64)
    save_file(arrays, path)
    with pytest.raises(ValueError, match="item_vocabulary.safetensors do not fit"):
        ImplicitRecProcessor.from_pretrained(tmp_path)


REMOTE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_implicitrec":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(processor([["b", "c"]])["input_ids"].tolist(), processor.fingerprint)
"""


def test_the_processor_loads_where_the_package_cannot_be_imported(tmp_path):
    processor().save_pretrained(tmp_path / "saved")
    command = [sys.executable, "-I", "-c", REMOTE, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"[[1, 2]] {processor().fingerprint}"


def test_many_strings_are_looked_up_fast():
    ids = [f"item-{place}" for place in range(200_000)]
    fitted = ImplicitRecProcessor.fit({"item_id": ids})
    start = time.perf_counter()
    tokens = fitted.encode_items(ids[::-1])
    assert time.perf_counter() - start < 10
    assert sorted(tokens.tolist()) == list(range(1, 200_001))
    assert fitted.decode_items(tokens[:3]) == ids[:-4:-1]


def test_an_adapted_processor_makes_the_batches_that_the_model_was_trained_on():
    made = ImplicitRecProcessor.fit({"item_id": [1, 1, 2, 3], "count": [1, 1, 1, 1]})
    config = ImplicitRecConfig(
        vocab_size=made.vocab_size, max_position_embeddings=2, collapse_repeats=True
    )
    with pytest.raises(ValueError, match="collapse_repeats is True in the model and False"):
        made.check_model(config)
    made.adapt_to(config)
    batch = made([[1, 2, 1, 3, 1], [2]])
    assert made.decode_items(batch["input_ids"][0]) == [3, 1]
    assert batch["input_weights"].tolist() == [[1, 3], [1, 0]]
    row = {"input_ids": made.encode_items([1, 2, 1, 3, 1]), "input_weights": np.ones(5)}
    collator = DataCollatorForNextItem(2, collapse_repeats=True)
    trained_on = collator([{**row, "target_ids": []}])
    assert trained_on["input_ids"].tolist() == batch["input_ids"][:1].tolist()
    assert trained_on["input_weights"].tolist() == batch["input_weights"][:1].tolist()


def test_negative_types_are_stored_and_a_model_must_know_them(tmp_path):
    fitted = processor(negative_event_types=["skip"])
    fitted.save_pretrained(tmp_path)
    loaded = ImplicitRecProcessor.from_pretrained(tmp_path)
    assert loaded.negative_event_type_ids == [3]
    assert loaded.weights(event_types=["skip"])[0] > 0
    sizes = {"vocab_size": 4, "num_event_types": 4}
    loaded.check_model(ImplicitRecConfig(**sizes, negative_event_type_ids=[3]))
    with pytest.raises(ValueError, match=r"negative_event_type_ids is \[\] in the model and \[3\]"):
        loaded.check_model(ImplicitRecConfig(**sizes))
    with pytest.raises(ValueError, match="negative event type 'buy' must be positive"):
        ImplicitRecProcessor.fit(LOG, event_type_weights={"buy": 0}, negative_event_types=["buy"])
    with pytest.raises(ValueError, match="expected names"):
        processor(negative_event_types="skip")
    with pytest.raises(ValueError, match="no item to learn"):
        ImplicitRecProcessor.fit(LOG, negative_event_types=["view", "buy"])
    with pytest.raises(ValueError, match="need a column event_type"):
        ImplicitRecProcessor.fit({"item_id": [1, 2]}, negative_event_types=["skip"])


def test_what_is_not_read_of_an_event_is_named(caplog):
    known = {"item_id": "b", "event_type": "buy"}
    processor()([[known], ["b"]])
    assert not caplog.records
    batch = processor()([[known, known | {"dwell": 3, "kind": "view"}]])
    assert "item_id, timestamp, event_type, duration" in caplog.text
    assert "not ['dwell', 'kind']" in caplog.text
    assert batch["input_ids"].tolist() == [[1, 1]]


def test_trainer_takes_a_processor_and_saves_it_with_the_weights(tmp_path):
    made = ImplicitRecProcessor.fit({"item_id": [1, 1, 2, 3]})
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "length": [3] * 4})
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        save_steps=1,
        remove_unused_columns=False,
        train_sampling_strategy="group_by_length",
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(
        tiny(vocab_size=4, vocabulary_fingerprint=made.fingerprint),
        settings,
        DataCollatorForNextItem(max_length=3),
        train_dataset=rows,
        processing_class=made,
    )
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        model, loaded = load_checkpoint(folder)
        assert loaded.fingerprint == made.fingerprint and model.config.pad_token_id == 0


def test_a_negative_type_that_never_occurs_is_named_in_the_log(caplog):
    processor(negative_event_types=["buy"])
    assert not caplog.records
    processor(negative_event_types=["bye"])
    assert "['bye']; found ['buy', 'view']" in caplog.text


def test_a_factor_of_a_type_that_never_occurs_is_named_in_the_log(caplog):
    log = {"item_id": ["a", "b"], "event_type": ["view", "buy"]}
    ImplicitRecProcessor.fit(log, event_type_weights={"view": 1, "buy": 3})
    assert not caplog.records
    ImplicitRecProcessor.fit(log, event_type_weights={"purchase": 3})
    assert "['purchase'] that have a factor; found ['buy', 'view']" in caplog.text


def test_sequences_are_pointed_to_their_columns():
    with pytest.raises(ValueError, match="through training_columns"):
        ImplicitRecProcessor.fit(Dataset.from_dict({"item_ids": [["a", "b"]]}))
