"""A release is pushed, pulled back and measured again; a number that differs stops it."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import pipeline

ROOT = Path(__file__).resolve().parents[1]


def release(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["release.py", "alice", *arguments])
    runpy.run_path(str(ROOT / "scripts" / "release.py"), run_name="__main__")


def test_a_quick_release_is_reproduced_from_the_hub(hub, tmp_path, monkeypatch, capsys):
    release(monkeypatch, "tiny-random", "deskdrop", "--quick", "--work", str(tmp_path))
    printed = capsys.readouterr().out
    assert "reproduced tiny-random" in printed and "reproduced deskdrop: all, new" in printed
    names = ("tiny-random", "deskdrop")
    assert set(hub.repos) == {("models", f"alice/implicitrec-{name}") for name in names}
    assert all(kept.private and len(kept.commits) == 2 for kept in hub.repos.values())
    tiny = pipeline("recommendation", model="alice/implicitrec-tiny-random", device="cpu")
    assert len(tiny([*"feed"], top_k=3)) == 3
    card = ModelCard(hub.read("alice/implicitrec-deskdrop", "README.md").decode())
    card.validate()
    assert card.data.license == "apache-2.0"
    results = json.loads(hub.read("alice/implicitrec-deskdrop", "results_test.json"))
    shown = {(e.dataset_config, e.metric_type): e.metric_value for e in card.data.eval_results}
    assert shown["new", "ndcg@10"] == results["new"]["implicitrec"]["metrics"]["ndcg@10"]
    for text in (
        r"days of the training events \| 202\d-\d\d-\d\d to",
        r"\| seed \| 0 \|",
        "hardware",
    ):
        assert re.search(text, card.text), text
    assert re.search(r"\| energy in kWh, estimated at 10 W a busy core \| [\d.e-]+ \|", card.text)
    assert re.search(r"\| command \| .*finetune.py", card.text) and str(tmp_path) not in card.text
    assert len(re.findall(r"\| history \| .*up to [\d,]+ events", card.text)) == 2

    # What is trained is used again; weights that are not those that were measured are found out.
    folder = tmp_path / "deskdrop"
    script = runpy.run_path(str(ROOT / "scripts" / "release.py"))
    again = script["Release"]("alice", tmp_path, quick=True, private=True)
    results["new"]["implicitrec"]["metrics"]["ndcg@10"] += 1e-9
    (folder / "results_test.json").write_text(json.dumps(results))
    pulled = tmp_path / "pulled"
    again.push("deskdrop", folder, pulled)
    with pytest.raises(SystemExit, match="deskdrop: the pulled checkpoint has other results, new"):
        again.check("deskdrop", folder, pulled)
