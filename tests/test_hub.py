"""The card says what was measured and nothing else; a checkpoint is saved whole or not at all."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    save_checkpoint,
    write_model_card,
)

HOSTILE = [
    "```\n---\nlicense: mit\n---",
    "a|b <script>alert(1)</script> {{ name }} {% raw %}",
    "\\`'\"\u202e\r\n# title: [x](y)",
    "plain",
]
REPORT = {"rows_in": 12_345, "rows_out": 12_000, "dropped": {"duplicate": 345}, "notes": {}}


def result(ndcg: float, coverage: float) -> dict:
    return {
        "metrics": {"ndcg@10": ndcg, "recall@10": ndcg * 2, "coverage@10": coverage},
        "intervals": {"ndcg@10": [ndcg - 0.01, ndcg + 0.01], "recall@10": [0.0, 1.0]},
        "num_users": 4321,
    }


RESULTS = {
    "all": {"implicitrec": result(0.1234, 0.61), "popularity": result(0.0567, 0.02)},
    "new": {"implicitrec": result(0.0811, 0.52), "co|occurrence": result(0.0322, 0.33)},
}


def checkpoint(items: list | None = None) -> dict:
    processor = ImplicitRecProcessor.fit({"item_id": items or [*"teammate"]})
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        vocabulary_fingerprint=processor.fingerprint,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
    )
    return {"model": ImplicitRecForScoring(config), "processor": processor}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def run_example(folder: Path, monkeypatch, capsys) -> list[list]:
    """What the card's Python prints, run in the folder as a reader would."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.S | re.M)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    return [ast.literal_eval(line) for line in capsys.readouterr().out.strip().splitlines()]


def test_the_metadata_holds_the_models_own_results(tmp_path):
    path = write_model_card(tmp_path / ".", **checkpoint(), results=RESULTS, license="mit")
    assert path == tmp_path / "README.md"
    card = ModelCard.load(path)
    found = {(e.dataset_config, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert found == {
        (protocol, key): value
        for protocol, scorers in RESULTS.items()
        for key, value in scorers["implicitrec"]["metrics"].items()
    }
    assert card.data.license == "mit"
    assert "implicit-feedback" in card.data.tags
    assert os.listdir(tmp_path) == ["README.md"]


def test_the_text_holds_baselines_intervals_data_and_settings(tmp_path):
    training = {"users": 987, "epochs": 3, "learning_rate": 0.001, "seconds": 12.5}
    training["period"] = ["2020-09-13", "2020-12-08"]
    group = result(0.05, 0.1)
    groups = {"groups": {"up to 3 events": {**group, "num_users": 1234}, "over 3 events": group}}
    of_model = {name: {"implicitrec": RESULTS[name]["implicitrec"] | groups} for name in RESULTS}
    given = {
        "results": {name: RESULTS[name] | of_model[name] for name in RESULTS},
        "data_report": REPORT,
        "training": training,
    }
    text = write_model_card(tmp_path, **checkpoint(), **given).read_text()
    row = r"| ndcg@10 | 0.1234 [0.1134, 0.1334] | 0.0567 [0.0467, 0.0667] |"
    assert f"| metric | implicitrec | popularity |\n| --- | ---: | ---: |\n{row}" in text
    assert r"| metric | implicitrec | co\|occurrence |" in text
    assert "| coverage@10 | 0.5200 | 0.3300 |" in text.split("## Limits and biases")[1]
    for line in ("events in the log | 12,345", "dropped: duplicate | 345", "events kept | 12,000"):
        assert f"| {line} |" in text
    for line in (
        "users trained on | 987",
        "events that vocabulary and weights are fitted on | 8",
        "items | 4",
        "epochs | 3",
    ):
        assert f"| {line} |" in text
    assert r"| learning\_rate | 0.001 |" in text
    assert "Users: 4,321." in text
    assert "| days of the training events | 2020-09-13 to 2020-12-08 |" in text
    assert "| history | up to 3 events | over 3 events |" in text
    assert "| users | 1,234 | 4,321 |" in text
    assert "not measured" not in text


def test_what_was_not_measured_is_said_to_be(tmp_path):
    card = ModelCard.load(write_model_card(tmp_path, **checkpoint(), results={}))
    assert card.data.eval_results is None
    assert "license" not in card.content  # nobody gave one
    for line in ("Results: not measured.", "Training settings: not measured."):
        assert line in card.text
    for line in ("| events in the log | not measured |", "| users trained on | not measured |"):
        assert line in card.text
    assert "Coverage, novelty and Gini: not measured." in card.text
    assert "Results by group of users: not measured." in card.text
    odd = {"new": {"implicitrec": {"metrics": {"ndcg@10": float("nan"), "mrr@10": 0.5}}}}
    card = ModelCard.load(write_model_card(tmp_path, **checkpoint(), results=odd))
    assert [e.metric_type for e in card.data.eval_results] == ["mrr@10"]
    assert "| ndcg@10 | not measured |\n| mrr@10 | 0.5000 |" in card.text


@pytest.mark.parametrize("items", [None, HOSTILE, [7, 7, 8, 9, -3, 10]])
def test_the_code_of_the_card_runs(tmp_path, monkeypatch, capsys, items):
    made = checkpoint(items)
    save_checkpoint(tmp_path / "shop", **made)
    write_model_card(tmp_path / "shop", **made, results=RESULTS)
    (printed,) = run_example(tmp_path / "shop", monkeypatch, capsys)
    known = made["processor"].decode_items(range(1, made["processor"].vocab_size))
    assert sorted(printed) == sorted(known)  # repeats are allowed, so the whole catalogue


def test_new_items_only_leaves_the_history_out(tmp_path, monkeypatch, capsys):
    made = checkpoint()
    save_checkpoint(tmp_path, **made)
    write_model_card(tmp_path, **made, results={"new": RESULTS["new"]})
    (printed,) = run_example(tmp_path, monkeypatch, capsys)
    assert printed == made["processor"].decode_items([4])


def test_hostile_names_do_no_harm(tmp_path):
    names = {text: result(0.1, 0.2) for text in ["implicitrec", *HOSTILE]}
    report = {**REPORT, "dropped": {HOSTILE[0]: 345}, "notes": {HOSTILE[1]: HOSTILE[2]}}
    path = write_model_card(
        tmp_path,
        **checkpoint(HOSTILE),
        results={"new": names},
        data_report=report,
        training={HOSTILE[2]: HOSTILE[0]},
    )
    card = ModelCard.load(path)
    assert card.data.license is None
    assert len(card.data.eval_results) == 3
    outside = re.sub(r"^```python\n.*?^```$", "", card.text, flags=re.S | re.M)
    assert "```" not in outside and "<script" not in outside.replace("\\<", "")
    assert not re.search(r"^(---|license:|# title)", outside, re.M)
    assert "\u202e" not in card.content
    tables = [line for line in outside.splitlines() if line.startswith("| ndcg")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in tables] == [len(names) + 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"results": {"warm": RESULTS["all"]}}, "protocols must be among .* got 'warm'"),
        ({"results": {"new": {}}}, "must have the model's result"),
        ({"results": {}, "data_report": {"rows_in": 3, "rows_out": 1}}, "add up to 1"),
        ({"results": {}, "processor": checkpoint([1, 2])["processor"]}, "do not belong together"),
    ],
)
def test_a_wrong_card_is_refused_and_the_old_one_stays(tmp_path, given, message):
    (tmp_path / "README.md").write_text("old")
    with pytest.raises(ValueError, match=message):
        write_model_card(tmp_path, **{**checkpoint(), **given})
    assert contents(tmp_path) == {"README.md": b"old"}


def test_a_saved_checkpoint_loads_and_other_files_are_kept(tmp_path):
    folder = tmp_path / "deep" / "shop"
    save_checkpoint(folder, **checkpoint())
    (folder / "checkpoint-5").mkdir()
    kept = {"results_test.json": b"{}", "checkpoint-5/model.safetensors": b"5"}
    stale = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"{}"}
    for name, text in {**kept, **stale}.items():
        (folder / name).write_bytes(text)
    made = checkpoint([*"other things"])
    assert save_checkpoint(folder, **made) == folder
    model = ImplicitRecForScoring.from_pretrained(folder)
    ImplicitRecProcessor.from_pretrained(folder).check_model(model.config)
    for name, values in made["model"].state_dict().items():
        assert torch.equal(values, model.state_dict()[name])
    found = contents(folder)
    assert kept.items() <= found.items() and not stale.keys() & found.keys()
    assert json.loads(found["config.json"])["auto_map"]
    assert os.listdir(folder.parent) == ["shop"]


def test_a_processor_of_another_vocabulary_is_refused(tmp_path):
    save_checkpoint(tmp_path / "shop", **checkpoint())
    before = contents(tmp_path)
    other = checkpoint([*"mateteax"])["processor"]
    with pytest.raises(ValueError, match="do not belong together"):
        save_checkpoint(tmp_path / "shop", model=checkpoint()["model"], processor=other)
    assert contents(tmp_path) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="got the file 'file'"):
        save_checkpoint(tmp_path / "file", **checkpoint())


@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, existing):
    if existing:
        save_checkpoint(tmp_path / "shop", **checkpoint())
    before = contents(tmp_path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(ImplicitRecProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "shop", **checkpoint([*"other things"]))
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["shop"] * existing


def test_a_failure_at_any_move_brings_the_earlier_checkpoint_back(tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    save_checkpoint(folder, **checkpoint())
    before, rename, moves, seen = contents(tmp_path), os.rename, 0, []
    made = checkpoint([*"other things"])
    for failing in range(1, 100):
        moves = 0

        def move(source, target, failing=failing):
            nonlocal moves
            moves += 1
            if moves == failing:
                seen.append((folder / "config.json").exists())
                raise OSError("interrupted")
            rename(source, target)

        monkeypatch.setattr(os, "rename", move)
        try:
            save_checkpoint(folder, **made)
            break
        except OSError:
            assert contents(tmp_path) == before
    assert failing > 10
    assert seen == [True] + [False] * (failing - 2)  # nothing half-replaced can be loaded
    assert ImplicitRecProcessor.from_pretrained(folder).fingerprint == made["processor"].fingerprint
