"""A behaviour to predict from events of all types: splits, labels, a world with a known answer, recipes."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from modeling_implicitrec import (
    DataCollatorForNextItem,
    EventSchema,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    SequenceRows,
    build_sequences,
    encode_splits,
    evaluate,
    leave_last_out,
    load_events,
    load_sequences,
    temporal_split,
    training_columns,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PAGES, THINGS = 6, 6


def sequences() -> Dataset:
    return Dataset.from_dict(
        {
            "user_id": [1, 2, 3, 4],
            "item_ids": [list("abcdef"), list("ghi"), list("jk"), list("lmn")],
            "event_types": [
                ["view", "buy", "view", "buy", "view", None],
                ["view", "view", "buy"],
                ["buy", "buy"],
                ["view", "buy", "buy"],
            ],
            "timestamps": [[10, 20, 30, 80, 90, 95], [10, 20, 90], [10, 20], [70, 85, 100]],
        }
    )


def test_the_last_two_of_the_wanted_type_are_held_out_with_all_before_them():
    splits = leave_last_out(sequences(), target_event_types=["buy"])
    # One purchase, or nothing before the first of two: whole in train.
    assert splits["train"]["item_ids"][:] == [["a"], list("ghi"), list("jk"), ["l"]]
    assert splits["validation"]["item_ids"][:] == [["a"], ["l"]]
    assert splits["validation"]["target_item_ids"][:] == [["b"], ["m"]]
    assert splits["test"]["item_ids"][:] == [list("abc"), list("lm")]
    assert splits["test"]["target_item_ids"][:] == [["d"], ["n"]]
    assert splits["test"]["target_event_types"][:] == [["buy"], ["buy"]]


def test_of_every_type_it_is_the_plain_split():
    log = sequences().map(lambda row: {"event_types": ["view"] * len(row["item_ids"])})
    for name, rows in leave_last_out(log, target_event_types=["view"]).items():
        wanted = leave_last_out(log)[name]
        assert rows.to_dict() == wanted.to_dict()


def test_a_period_is_asked_for_the_wanted_type_alone():
    options = {"test_seconds": 20, "validation_seconds": 65}
    splits = temporal_split(sequences(), target_event_types=["buy"], **options)
    assert splits["validation"]["target_item_ids"][:] == [["b"], ["k"]]
    assert splits["test"]["user_id"][:] == [1, 2, 4]
    assert splits["test"]["item_ids"][:] == [list("abc"), list("gh"), ["l"]]
    assert splits["test"]["target_item_ids"][:] == [["d"], ["i"], ["m", "n"]]
    assert splits["test"]["target_timestamps"][:] == [[80], [90], [85, 100]]


@pytest.mark.parametrize("split", [leave_last_out, temporal_split])
def test_types_that_are_not_there_are_refused(split):
    options = {"test_seconds": 20} if split is temporal_split else {}
    with pytest.raises(ValueError, match=r"\['buy', 'view'\]; got \['bye'\]"):
        split(sequences(), target_event_types=["buy", "bye"], **options)
    with pytest.raises(ValueError, match="need event_types"):
        split(sequences().remove_columns("event_types"), target_event_types=["buy"], **options)


def test_every_event_is_labelled_with_the_wanted_behaviour_that_follows():
    row = {"input_ids": [1, 2, 3, 4, 5], "event_type_ids": [1, 1, 2, 1, 2]}
    row |= {"input_weights": [1.0] * 5}
    batch = DataCollatorForNextItem(9, target_event_type_ids=[2])([row])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[3, 3, 5, 5]]
    with pytest.raises(ValueError, match=r"both are \[2\]"):
        DataCollatorForNextItem(9, target_event_type_ids=[2], negative_event_type_ids=[2, 3])


def test_what_is_neither_wanted_nor_negative_is_no_explicit_negative():
    row = {"input_ids": [1, 2, 3, 4], "event_type_ids": [1, 1, 3, 2], "input_weights": [1.0] * 4}
    options = {"negative_event_type_ids": [3], "negative_labels": True}
    batch = DataCollatorForNextItem(9, target_event_type_ids=[2], **options)([row])
    assert batch["labels"].tolist() == [[4, 4, 4]]
    assert batch["negative_labels"].tolist() == [[3, 3, -100]]


def shop(users: int = 300) -> pd.DataFrame:
    """Pages are viewed in turn; what is put into the cart is bought one to five pages later."""
    draw, rows = np.random.default_rng(0), []
    for user in range(users):
        page, time = draw.integers(PAGES), 1_600_000_000
        for thing in draw.integers(0, THINGS, 4):
            views = [("view", f"page {(page + n) % PAGES}") for n in range(draw.integers(1, 6))]
            page += len(views)
            for kind, item in [("cart", f"thing {thing}"), *views, ("buy", f"thing {thing}")]:
                rows.append((user, item, time := time + 100, kind))
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "kind"])


def hit_rate(target_event_types: list[str], tmp_path: Path) -> float:
    """Of the purchase that follows, at the first place, by a model that learnt labels of these types."""
    events = load_events(shop(), EventSchema(event_type="kind"))
    splits = leave_last_out(build_sequences(events), target_event_types=["buy"])
    processor = ImplicitRecProcessor.fit(training_columns(splits["train"]))
    encoded = encode_splits(splits, processor)
    sizes = {"vocab_size": processor.vocab_size, "num_event_types": processor.num_event_types}
    model = ImplicitRecForScoring(
        ImplicitRecConfig(**sizes, hidden_size=32, num_hidden_layers=1, hidden_dropout_prob=0.0)
    )
    ids = processor.encode_event_types(target_event_types).tolist()
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=160,
        learning_rate=0.02,
        per_device_train_batch_size=16,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = DataCollatorForNextItem(50, target_event_type_ids=ids)
    Trainer(model, settings, collator, train_dataset=SequenceRows(encoded["train"])).train()
    options = {"ks": (1,), "seen": "keep", "num_items": processor.vocab_size - 1}
    return evaluate(ModelScorer(model), encoded["test"], **options).metrics["hit_rate@1"]


def test_the_purchase_is_found_where_it_is_asked_for(tmp_path):
    assert hit_rate(["buy"], tmp_path) > 0.7  # it is in the cart; a guess has a sixth
    assert hit_rate([], tmp_path) < 0.2  # another page is what mostly follows


def run(name: str, *arguments: object) -> None:
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def test_the_recipes_predict_what_prepare_was_told_to(tmp_path):
    shop().to_csv(tmp_path / "log.csv", index=False)
    settings = {
        "source": str(tmp_path / "log.csv"),
        "output_dir": str(tmp_path / "data"),
        "columns": {"event_type": "kind"},
        "event_type_weights": {"buy": 3},
        "target_event_types": ["buy"],
    }
    (tmp_path / "prepare.yaml").write_text(yaml.safe_dump(settings))
    run("prepare", tmp_path / "prepare.yaml", "--report_page", "false")
    processor = ImplicitRecProcessor.from_pretrained(tmp_path / "data" / "processor")
    things = set(processor.encode_items([f"thing {n}" for n in range(THINGS)]))
    test = load_sequences(tmp_path / "data" / "sequences")["test"]
    assert set(np.concatenate(test["target_ids"][:])) <= things

    options = ["--output_dir", tmp_path / "model", "--use_cpu", "true", "--max_steps", 2]
    options += ["--eval_strategy", "steps", "--eval_steps", 2, "--save_strategy", "steps"]
    run("finetune", tmp_path / "data" / "finetune.yaml", *options, "--save_steps", 2)
    made = json.loads((tmp_path / "model" / "training.json").read_text())
    assert made["predicts events of"] == ["buy"]
    with pytest.raises(SystemExit, match=r"got also \['bye'\]"):
        run("finetune", tmp_path / "data" / "finetune.yaml", "--target_event_types", "[bye]")
    with pytest.raises(SystemExit, match="target or negative"):
        run("prepare", tmp_path / "prepare.yaml", "--negative_event_types", "[buy]")
