"""Platforms reach the model from the log, and change nothing where nobody asks for them."""

import json
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset

from modeling_implicitrec import (
    DataCollatorForNextItem,
    EventSchema,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    build_sequences,
    encode_sequences,
    encode_splits,
    leave_last_out,
    load_events,
    load_sequences,
    positive_events,
    training_columns,
)

LOG = {"item_id": ["a", "b", "b", "c"], "platform": ["web", "app", "app", None]}
FINETUNE = Path(__file__).resolve().parents[1] / "recipes" / "finetune.py"


def model(num_platforms: int = 1, vocab_size: int = 4, **options) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "hidden_dropout_prob": 0.0}
    config = ImplicitRecConfig(
        vocab_size=vocab_size, num_platforms=num_platforms, **sizes | options
    )
    return ImplicitRecForScoring(config).eval()


def test_platforms_have_ids_by_falling_count_that_are_saved(tmp_path):
    fitted = ImplicitRecProcessor.fit(LOG)
    assert fitted.platforms == ["app", "web"] and fitted.num_platforms == 3
    fitted.save_pretrained(tmp_path)
    loaded = ImplicitRecProcessor.from_pretrained(tmp_path)
    assert loaded.encode_platforms(["web", None, "tv", "app"]).tolist() == [2, 0, 0, 1]
    batches = [{name: values[:2] for name, values in LOG.items()}, {"item_id": ["b"]}]
    assert ImplicitRecProcessor.fit(batches).platforms == ["app", "web"]
    assert ImplicitRecProcessor.fit({"item_id": ["a"]}).platforms == []


def test_platforms_of_new_days_get_ids_after_the_last():
    fitted = ImplicitRecProcessor.fit(LOG)
    grown = {"item_id": ["a"] * 5 + ["d"], "platform": ["tv"] * 3 + ["bus", "web", "app"]}
    assert fitted.extend(grown) == 1
    assert fitted.platforms == ["app", "web", "tv", "bus"]
    assert fitted.encode_platforms(["web", "tv"]).tolist() == [2, 3]
    plain = ImplicitRecProcessor.fit({"item_id": ["a"]})
    plain.extend(grown)
    assert plain.platforms == ["tv", "app", "bus", "web"]


def test_added_days_bring_platforms_and_leave_the_settings(tmp_path, capsys):
    log = {"user_id": [1, 2] * 6, "item_id": ["a", "b", "c"] * 4, "platform": ["web"] * 12}
    log = pd.DataFrame(log).assign(timestamp=range(1_600_000_000, 1_600_000_012))
    log.to_csv(tmp_path / "monday.csv", index=False)
    tuesday = log.assign(platform="app", timestamp=log["timestamp"] + 86_400)
    tuesday.to_csv(tmp_path / "tuesday.csv", index=False)
    options = {"columns": "{platform: platform}", "min_item_users": 1, "report_page": "false"}
    options |= {"keep_events": "true", "output_dir": tmp_path / "data"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    prepare = FINETUNE.with_name("prepare.py")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr("sys.argv", ["prepare", "--source", str(tmp_path / "monday.csv"), *words])
        runpy.run_path(str(prepare), run_name="__main__")
        assert "model.hidden_size: " in capsys.readouterr().out
        settings = tmp_path / "data" / "finetune.yaml"
        settings.write_text("seed: 7\n")
        added = ["prepare", "--append", str(tmp_path / "tuesday.csv")]
        patched.setattr("sys.argv", [*added, *words, "--split", "temporal"])
        with pytest.raises(SystemExit, match="split: leave_last_out; to go on as it was: python"):
            runpy.run_path(str(prepare), run_name="__main__")
        # What is written down is a recipe.
        added.insert(1, str(tmp_path / "data" / "prepare.json"))
        patched.setattr("sys.argv", added)
        runpy.run_path(str(prepare), run_name="__main__")
    assert "model.hidden_size" not in capsys.readouterr().out
    assert settings.read_text() == "seed: 7\n"
    processor = ImplicitRecProcessor.from_pretrained(tmp_path / "data" / "processor")
    assert processor.platforms == ["web", "app"]
    rows = load_sequences(tmp_path / "data" / "sequences")["train"]
    assert rows["platform_ids"][0] == [1] * 6 + [2] * 4


def test_a_processor_without_the_key_still_loads(tmp_path):
    fitted = ImplicitRecProcessor.fit(LOG)
    fitted.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    fields = json.loads(path.read_text())
    del fields["platforms"]
    path.write_text(json.dumps(fields))
    loaded = ImplicitRecProcessor.from_pretrained(tmp_path)
    assert loaded.platforms == []
    history = [{"item_ids": ["a", "c"], "platforms": ["web", "app"]}]
    batch, expected = loaded(history), fitted(history)
    assert set(expected) - set(batch) == {"platform_ids"}
    for name, values in batch.items():
        assert torch.equal(values, expected[name])


def test_a_checkpoint_without_the_key_still_gives_the_same(tmp_path):
    old = model()
    assert not [name for name in old.state_dict() if "platform" in name]
    old.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["num_platforms"]
    path.write_text(json.dumps(fields))
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path).eval()
    batch = ImplicitRecProcessor.fit(LOG)([["a", "b"]])
    assert loaded.state_dict().keys() == old.state_dict().keys()
    for name, values in old.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], values)
    torch.testing.assert_close(loaded(**batch).logits, old(**batch).logits)


def test_a_model_must_know_as_many_platforms_or_none():
    fitted = ImplicitRecProcessor.fit(LOG)
    for number in (1, 3):
        fitted.check_model(ImplicitRecConfig(vocab_size=4, num_platforms=number))
    with pytest.raises(ValueError, match="num_platforms is 2 in the model and 3"):
        fitted.check_model(ImplicitRecConfig(vocab_size=4, num_platforms=2))
    with pytest.raises(ValueError, match="num_platforms must be at least 1"):
        ImplicitRecConfig(num_platforms=0)


def test_a_batch_holds_what_each_history_holds_alone_in_every_form():
    fitted = ImplicitRecProcessor.fit(LOG)
    events = [
        {"item_id": "b", "timestamp": 30, "platform": "app"},
        {"item_id": "new", "timestamp": 15, "platform": "app"},
        {"item_id": "a", "timestamp": 10, "platform": "web"},
        {"item_id": "c", "timestamp": 20},
    ]
    columns = {"item_ids": ["b", "a"], "timestamps": [1, 2], "platforms": ["tv", "web"]}
    batch = fitted([events, columns, {"item_ids": ["c"], "timestamps": [5]}])
    assert batch["platform_ids"].tolist() == [[2, 0, 1], [0, 2, 0], [0, 0, 0]]
    assert fitted([columns])["platform_ids"].tolist() == [[0, 2]]
    assert fitted({n: [v] for n, v in columns.items()})["platform_ids"].tolist() == [[0, 2]]
    told = model(3)
    with torch.no_grad():
        told.model.platform_embedding.table.normal_()
    alone = torch.cat([told(**fitted([history])).logits for history in (events, columns)])
    torch.testing.assert_close(told(**batch).logits[:2], alone)
    top = told.recommend(**fitted([columns]), top_k=3, exclude_seen=False)
    torch.testing.assert_close(top.scores, alone[1:, 1:].sort(descending=True).values)
    columns["platforms"] = ["tv"]
    with pytest.raises(ValueError, match="expected platforms to be a list as long as item_ids"):
        fitted([columns])


def test_the_embedding_changes_nothing_at_first_and_learns():
    ids = {"input_ids": torch.tensor([[1, 2, 3], [3, 1, 2]])}
    platforms = torch.tensor([[1, 2, 1], [2, 2, 0]])
    plain, told = model(), model(3)
    assert torch.equal(told.model.platform_embedding.table, torch.zeros(3, 16))
    told.load_state_dict(plain.state_dict(), strict=False)
    labels = torch.tensor([[2, 3, 1], [1, 2, 3]])
    expected = plain(**ids, labels=labels).loss
    loss = told(**ids, labels=labels, platform_ids=platforms).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    ignored = plain(**ids, labels=labels, platform_ids=platforms).loss
    torch.testing.assert_close(ignored, expected, rtol=1e-6, atol=0)
    loss.backward()
    assert (told.model.platform_embedding.table.grad.abs().sum(1) > 0).all()


def test_absent_platforms_are_unknown_ones_and_the_embedding_is_saved(tmp_path):
    told = model(3)
    with torch.no_grad():
        told.model.platform_embedding.table.normal_()
    ids = torch.tensor([[1, 2, 3]])
    absent = told(ids).logits
    torch.testing.assert_close(told(ids, platform_ids=torch.zeros_like(ids)).logits, absent)
    known = told(ids, platform_ids=torch.ones_like(ids)).logits
    assert not torch.allclose(known, absent)
    told.save_pretrained(tmp_path)
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(ids, platform_ids=torch.ones_like(ids)).logits, known)


def test_two_logs_reach_the_collator_as_one_history_with_platforms():
    web = pd.DataFrame({"user_id": [1] * 3, "item_id": ["a", "b", "c"], "timestamp": [10, 30, 50]})
    app = pd.DataFrame({"user_id": [1] * 3, "item_id": ["a", "b", "b"], "timestamp": [20, 40, 60]})
    for shared, items in ((True, 3), (False, 5)):
        events = load_events({"web": web, "app": app}, EventSchema(), shared_items=shared)
        sequences = build_sequences(events)
        fitted = ImplicitRecProcessor.fit(training_columns(sequences))
        assert fitted.vocab_size - 1 == items
        splits = encode_splits(leave_last_out(sequences), fitted)
        assert fitted.platforms == ["app", "web"]
        assert splits["test"]["platform_ids"] == [[2, 1, 2, 1, 2]]
        assert DataCollatorForNextItem(3)(list(splits["test"]))["platform_ids"].tolist() == [
            [2, 1, 2]
        ]
        train = DataCollatorForNextItem(9)(list(splits["train"]))
        assert train["platform_ids"].tolist() == [[2, 1, 2]]


def test_collapsed_and_positive_events_keep_their_platforms():
    rows = Dataset.from_dict(
        {
            "user_id": [1],
            "item_ids": [["a", "b", "a", "c"]],
            "platforms": [["web", "web", "app", "app"]],
            "event_types": [["buy", "skip", "buy", "buy"]],
        }
    )
    fitted = ImplicitRecProcessor.fit(
        {"item_id": [*"aaabbc"], "platform": ["app"] * 4 + ["web"] * 2, "event_type": ["buy"] * 6},
        negative_event_types=["skip"],
    )
    encoded = encode_sequences(rows, fitted)
    assert positive_events(encoded, [2])["platform_ids"] == [[2, 1, 1]]
    collator = DataCollatorForNextItem(9, collapse_repeats=True)
    batch = collator([{**encoded[0], "target_ids": []}])
    assert fitted.decode_items(batch["input_ids"][0]) == ["b", "a", "c"]
    assert batch["platform_ids"].tolist() == [[2, 1, 1]]
    fitted.collapse_repeats = True
    assert torch.equal(fitted(rows.to_list())["platform_ids"], batch["platform_ids"])


def world(users: int = 128) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Histories of which the last item moves up by one on platform 1 and down by one on platform 2."""
    generator = np.random.default_rng(0)
    platforms = generator.integers(1, 3, (users, 1)).repeat(4, axis=1)
    items = generator.integers(0, 6, (users, 4))
    items = torch.from_numpy(np.concatenate([items, items]))
    platforms = torch.from_numpy(np.concatenate([platforms, 3 - platforms]))
    following = (items[:, -1] + torch.where(platforms[:, -1] == 1, 1, -1)) % 6
    return {"input_ids": items + 1, "platform_ids": platforms}, following + 1


def test_only_a_model_with_platforms_learns_what_differs_between_them():
    batch, answers = world()
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -1] = answers
    right = {}
    for number in (1, 3):
        learner = model(number, vocab_size=7, num_hidden_layers=1).train()
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
        for _ in range(80):
            optimizer.zero_grad()
            learner(**batch, labels=labels).loss.backward()
            optimizer.step()
        best = learner.recommend(**batch, top_k=1, exclude_seen=False).item_tokens[:, 0]
        right[number] = (best == answers).float().mean().item()
    assert right[3] > 0.95
    assert right[1] <= 0.5  # every history occurs once with either answer


def test_a_recipe_tells_platforms_apart_where_it_is_asked_to():
    recipe = runpy.run_path(str(FINETUNE))
    rows = Dataset.from_dict({"user_id": [1], "item_ids": [["a", "b", "c"]]})
    fitted = ImplicitRecProcessor.fit(LOG)
    train = encode_sequences(rows, fitted)
    for asked, number in ((False, 1), (True, 3)):
        args = recipe["FinetuneArguments"]("data", use_platforms=asked)
        made = recipe["build_model"](args, fitted, train)
        assert made.config.num_platforms == number
        fitted.check_model(made.config)
    with pytest.raises(SystemExit, match="name no platform"):
        recipe["build_model"](args, ImplicitRecProcessor.fit({"item_id": ["a"]}), train)
