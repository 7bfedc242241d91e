"""Weights on another catalogue, parts that learn, logs joined, and the recipes that do it."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.numpy import load_file

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    add_lora,
    freeze_body,
    join_logs,
    match_items,
    merge_lora,
    transfer_weights,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
HISTORY = torch.tensor([[3, 8, 1], [2, 2, 9]])


def tiny(seed: int = 0, **changes) -> ImplicitRecForScoring:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "copy_prior": True}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def shop(items: str, types: tuple[str, ...] = ()) -> ImplicitRecProcessor:
    log = {"item_id": [one for place, one in enumerate(items) for _ in range(20 - place)]}
    if types:
        log["event_type"] = [types[i % len(types)] for i in range(len(log["item_id"]))]
    return ImplicitRecProcessor.fit(log)


def test_the_same_catalogue_keeps_every_score():
    source, target = tiny(0), tiny(1)
    report = transfer_weights(target, source, (shop("abcdefghij"), shop("abcdefghij")))
    torch.testing.assert_close(target(HISTORY).logits, source(HISTORY).logits, rtol=0, atol=0)
    assert sum(n for name, n in report.anew.items() if name != "item_frequency") == 0


def test_matched_items_keep_their_rows_and_others_start_anew():
    source, target = tiny(0), tiny(1, vocab_size=6)
    before = target.model.item_embedding.weight.detach().clone()
    bias = target.head.item_bias.weight.detach().clone()
    report = transfer_weights(target, source, (shop("abcdefghij"), shop("xcyad")))
    rows, theirs = target.model.item_embedding.weight, source.model.item_embedding.weight
    for token, old in ((2, 3), (4, 1), (5, 4)):
        assert torch.equal(rows[token], theirs[old])
    assert torch.equal(rows[[1, 3]], before[[1, 3]])
    assert torch.equal(target.head.item_bias.weight, bias)
    name = "model.item_embedding.weight"
    assert (report.kept[name], report.anew[name]) == (3, 2)
    assert [name, "3", "0", "2"] in [line.split() for line in str(report).splitlines()]
    own, old = target.model.blocks.state_dict(), source.model.blocks.state_dict()
    assert all(torch.equal(own[name], old[name]) for name in own)


def test_unmatched_items_start_from_those_of_their_content():
    source, target = tiny(0, item_feature_size=4), tiny(1, vocab_size=6, item_feature_size=4)
    features = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
    source.fit_item_features(features)
    target.fit_item_features(features[[0, 5, 1, 7, 8, 9]])
    report = transfer_weights(target, source, (shop("abcdefghij"), shop("vawxy")))
    assert report.by_content["model.item_embedding.weight"] == 4
    assert report.kept["model.item_embedding.weight"] == 1
    torch.testing.assert_close(
        target.item_table()[1:], source.item_table()[[5, 1, 7, 8, 9]], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("ids", [True, False])
def test_items_that_were_content_alone_start_so_and_score_as_they_did(ids):
    source = tiny(0, item_feature_size=4, use_item_ids=False)
    target = tiny(1, vocab_size=6, item_feature_size=4, use_item_ids=ids)
    features = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
    source.fit_item_features(features)
    target.fit_item_features(features[[0, 5, 1, 7, 8, 9]])
    report = transfer_weights(target, source, (shop("abcdefghij"), shop("vawxy")))
    assert report.by_content["model.item_embedding.weight"] == 5
    table = source.item_table()[[0, 5, 1, 7, 8, 9]]
    torch.testing.assert_close(target.item_table(), table)
    hidden = [m.model(ids).last_hidden_state for m, ids in (
        (source, torch.tensor([[5, 1, 7]])), (target, torch.tensor([[1, 2, 3]])))]  # fmt: skip
    torch.testing.assert_close(*hidden)


def test_event_types_are_matched_by_name():
    source, target = tiny(0, num_event_types=3), tiny(1, num_event_types=4)
    old, new = shop("abcdefghij", ("view", "buy")), shop("abcdefghij", ("buy", "gift", "view"))
    before = target.model.event_type_embedding.weight.detach().clone()
    transfer_weights(target, source, (old, new))
    rows, theirs = (
        target.model.event_type_embedding.weight,
        source.model.event_type_embedding.weight,
    )
    for name in ("view", "buy"):
        place = old.encode_event_types([name])[0], new.encode_event_types([name])[0]
        assert torch.equal(rows[place[1]], theirs[place[0]])
    gift = new.encode_event_types(["gift"])[0]
    assert torch.equal(rows[gift], before[gift])


def test_a_body_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="no block of the checkpoint"):
        transfer_weights(
            tiny(), tiny(hidden_size=8, intermediate_size=8), (shop("abcdefghij"),) * 2
        )


def test_items_of_a_namespace_are_found_and_numbers_are_not_text():
    joined = shop("abc")
    joined.vocabulary = joined.vocabulary.from_counts(["s:b", "t:a", "s:a"], np.ones(3))
    assert match_items(joined, shop("ab"), namespace="s").tolist() == [0, 3, 1]
    assert match_items(joined, ImplicitRecProcessor.fit({"item_id": [1, 2]})).tolist() == [0, 0, 0]


@pytest.mark.parametrize("mixer", ["attention", "gru"])
def test_lora_starts_where_it_was_learns_in_the_body_alone_and_merges(mixer):
    pytest.importorskip("peft", reason="LoRA is tested with the extra `lora`")
    model = tiny(sequence_mixer=mixer)
    names, before = list(model.state_dict()), model(HISTORY).logits.detach()
    add_lora(model, rank=2)
    torch.testing.assert_close(model(HISTORY).logits, before)
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora" in name for name in learning if name.startswith("model.blocks"))
    assert "model.item_embedding.weight" in learning and "model.norm.weight" not in learning
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        model(HISTORY, labels=HISTORY.roll(-1, 1)).loss.backward()
        optimizer.step()
    learnt = model.eval()(HISTORY).logits.detach()
    merge_lora(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(HISTORY).logits, learnt)
    assert all(value.requires_grad for value in model.model.blocks.parameters())


def test_a_frozen_body_leaves_the_tables_to_learn():
    model = tiny()
    freeze_body(model)
    model.train()(HISTORY, labels=HISTORY.roll(-1, 1)).loss.backward()
    assert all(value.grad is None for value in model.model.blocks.parameters())
    assert model.model.item_embedding.weight.grad.abs().sum() > 0


def test_joined_logs_decode_to_the_items_and_types_of_each():
    left, right = shop("abc", ("view", "buy")), shop("bz")
    rows = {"input_ids": [[1, 2], [3]], "input_weights": [[1.0, 2.0], [0.5]], "length": [2, 1]}
    typed = rows | {"event_type_ids": [[1, 2], [2]], "target_ids": [[3, -1], [1]]}
    plain = {"input_ids": [[2]], "input_weights": [[1.0]], "length": [1], "target_ids": [[1]]}
    logs = {
        "l": (left, dict.fromkeys(("train", "validation"), Dataset.from_dict(typed))),
        "r": (right, dict.fromkeys(("train", "validation"), Dataset.from_dict(plain))),
    }
    joined = join_logs(logs)
    assert joined.processor.decode_items(joined.tokens["r"][1:]) == ["r:b", "r:z"]
    train = joined.splits["train"]
    names = [joined.processor.decode_items(tokens) for tokens in train["input_ids"]]
    assert names == [["l:a", "l:b"], ["l:c"], ["r:z"]]
    types = [left.event_types[i - 1] for i in (1, 2)]
    assert [joined.processor.event_types[i - 1] for i in train[0]["event_type_ids"]] == types
    assert train[2]["event_type_ids"] == [0] and train["row"][:] == [0, 1, 2]
    targets = joined.splits["validation"][0]["target_ids"]
    assert joined.processor.decode_items(targets[:1]) == ["l:c"] and targets[1] == -1
    counts = joined.processor.item_counts[1:]
    assert counts.tolist() == sorted([20, 19, 18, 20, 19], reverse=True)


def run(name: str, *arguments: object) -> None:
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


SMALL = ("--max_steps", 2, "--use_cpu", "true", "--report_to", "none")


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> Path:
    """Two shops that share some items, prepared and described, and a model pretrained on both."""
    folder = tmp_path_factory.mktemp("shops")
    generator = np.random.default_rng(0)
    for name, first in (("old", 0), ("new", 8)):
        log = {"user_id": generator.integers(0, 30, 500)}
        log["item_id"] = [f"item {first + i}" for i in generator.integers(0, 16, 500)]
        log["timestamp"] = 1_600_000_000 + 3600 * generator.permutation(500)
        pd.DataFrame(log).to_csv(folder / f"{name}.csv", index=False)
        run("prepare", "--source", folder / f"{name}.csv", "--output_dir", folder / name,
            "--no-report_page")  # fmt: skip
        items = pd.DataFrame({"item_id": [f"item {i}" for i in range(24)]})
        items["kind"], items["price"] = [f"kind {i % 5}" for i in range(24)], range(24)
        items.to_csv(folder / "items.csv", index=False)
        run("describe", "--data_dir", folder / name, "--table", folder / "items.csv",
            "--categories", "[kind]", "--numbers", "[price]")  # fmt: skip
    run("pretrain", "--logs", yaml.safe_dump({n: str(folder / n) for n in ("old", "new")}),
        "--model", "{hidden_size: 16}", "--use_item_features", "--output_dir", folder / "both",
        *SMALL)  # fmt: skip
    return folder


@pytest.mark.parametrize("tune", ["full", "frozen", "lora"])
def test_finetuning_starts_from_what_was_pretrained(shops, tmp_path, capsys, tune):
    if tune == "lora":
        pytest.importorskip("peft", reason="LoRA is tested with the extra `lora`")
    run("finetune", "--data_dir", shops / "new", "--from_checkpoint", shops / "both", "--namespace",
        "new", "--use_item_features", "--tune", tune, "--output_dir", tmp_path, *SMALL)  # fmt: skip
    printed = capsys.readouterr().out
    kept = next(line for line in printed.splitlines() if line.startswith("model.item_embedding.w"))
    assert kept.split()[1:] == ["16", "0", "0"]
    made = json.loads((tmp_path / "training.json").read_text())
    assert made["tuned"] == tune
    own, theirs = (
        load_file(tmp_path / "model.safetensors"),
        load_file(shops / "both/model.safetensors"),
    )
    block = "model.blocks.0.mlp.down_proj.weight"
    assert np.array_equal(own[block], theirs[block]) == (tune == "frozen")
    assert own["model.item_embedding.weight"].shape == (17, 16)
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path)
    ImplicitRecProcessor.from_pretrained(tmp_path).check_model(loaded.config)


def test_pretraining_learns_beside_the_next_item_and_leaves_that_out(shops, tmp_path):
    run("pretrain", "--logs", yaml.safe_dump({"old": str(shops / "old")}), "--output_dir", tmp_path,
        "--model", "{hidden_size: 16, masked_loss: 0.5, gap_loss: 0.1}", *SMALL)  # fmt: skip
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path)
    assert loaded.config.masked_loss == loaded.config.gap_loss == 0 and loaded.objectives is None
    assert not any("objectives" in name for name in load_file(tmp_path / "model.safetensors"))
    with pytest.raises(SystemExit, match="have no types"):
        run("pretrain", "--logs", yaml.safe_dump({"old": str(shops / "old")}), "--output_dir",
            tmp_path, "--model", "{event_type_loss: 0.1}", *SMALL)  # fmt: skip


def test_pretraining_learns_the_question_of_the_weeks_after_a_cut(shops, tmp_path, monkeypatch):
    seen = []
    call = DataCollatorForNextItem.__call__

    def watched(self, rows):
        seen.append(call(self, rows))
        return seen[-1]

    monkeypatch.setattr(DataCollatorForNextItem, "__call__", watched)
    run("pretrain", "--logs", yaml.safe_dump({"old": str(shops / "old")}), "--output_dir", tmp_path,
        "--model", "{hidden_size: 16, collapse_repeats: true}", "--target_window_days", 7,
        *SMALL)  # fmt: skip
    assert seen and all("labels" not in batch and "target_ids" in batch for batch in seen)
    for row in seen[0]["input_ids"]:
        held = row[row > 0]
        assert len(held.unique()) == len(held)
    assert any((batch["target_ids"] > 0).sum(1).max() > 1 for batch in seen)
    with pytest.raises(SystemExit, match="num_cooccurrences must be 0"):
        run("pretrain", "--logs", yaml.safe_dump({"old": str(shops / "old")}), "--output_dir",
            tmp_path, "--target_window_days", 7, "--model", "{num_cooccurrences: 4}",
            *SMALL)  # fmt: skip


def test_evaluation_by_history_length_starts_at_none(shops, tmp_path, capsys):
    options = ("--data_dir", shops / "old", "--output_dir", tmp_path)
    run("finetune", *options, "--model", "{hidden_size: 16, copy_prior: true}", *SMALL)
    run("evaluate", "--data_dir", shops / "old", "--model", tmp_path, "--history_lengths",
        "[0, 1, 5]", "--protocols", "[all]", "--baselines",
        "[popularity, own_frequency, cooccurrence, item_knn, als, ease]")  # fmt: skip
    results = json.loads((tmp_path / "results_test.json").read_text())["all"]
    of_length = {name: r["by_history_length"]["ndcg@10"] for name, r in results.items()}
    assert list(of_length["implicitrec"]) == ["0", "1", "5"]
    assert len(set(of_length["popularity"].values())) == 1
    assert of_length["own frequency"]["0"] == of_length["popularity"]["0"]


def test_recipes_say_what_is_missing(shops, tmp_path):
    bare = shutil.copytree(
        shops / "old", tmp_path / "bare", ignore=lambda *_: ["item_features.safetensors"]
    )
    with pytest.raises(SystemExit, match=r"recipes/describe\.py"):
        run("finetune", "--data_dir", bare, "--use_item_features", "--output_dir", tmp_path)
    with pytest.raises(SystemExit, match="no prepared data"):
        run("pretrain", "--logs", "{a: nowhere}", "--output_dir", tmp_path)
    with pytest.raises(SystemExit, match="'colour'"):
        run("describe", "--data_dir", shops / "old", "--table", shops / "items.csv", "--texts",
            "[colour]")  # fmt: skip
