"""What platforms share and what stays with them, its mean, and the recipe with and without Flower."""

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    average_weights,
    load_sequences,
    load_shared_weights,
    shared_weights,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SMALL = "{hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, copy_prior: true, "
SMALL += "num_cooccurrences: 4, max_position_embeddings: 16, hidden_dropout_prob: 0.0}"
COUNTED = ("head.item_bias.weight", "item_frequency", "head.cooccurrence.items")
TABLES = ("model.item_embedding.weight", "head.copy.item_level.weight")
BODY = "model.blocks.0.mixer.qkv_proj.weight"


def tiny(seed: int, vocab_size: int = 11, **changes) -> ImplicitRecForScoring:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "copy_prior": True, "num_cooccurrences": 2}
    config = ImplicitRecConfig(vocab_size=vocab_size, num_event_types=3, **sizes | changes)
    return ImplicitRecForScoring(config).eval()


@pytest.mark.parametrize("share_items", [False, True])
def test_no_count_is_shared_and_tables_only_by_choice(share_items):
    shared = shared_weights(tiny(0), share_items=share_items)
    assert not shared.keys() & set(COUNTED)
    assert (shared.keys() >= set(TABLES)) is share_items
    assert ("model.event_type_embedding.weight" in shared) is share_items
    assert {BODY, "head.copy.power", "model.norm.weight"} <= shared.keys()
    # Nothing that has a row an item is in it, whatever it is called.
    rows = [name for name, value in shared.items() if value.shape[:1] == (11,)]
    assert rows == ([] if not share_items else [n for n in rows if n in TABLES])


def test_platforms_of_other_catalogues_share_a_body_and_keep_their_items():
    small, large = tiny(0, 11), tiny(1, 23)
    before = {name: value.clone() for name, value in large.state_dict().items()}
    weights = shared_weights(small)
    load_shared_weights(large, weights)
    for name, value in large.state_dict().items():
        assert torch.equal(value, weights.get(name, before[name])), name
    assert not torch.equal(before[BODY], weights[BODY])
    with pytest.raises(ValueError, match="same names and shapes, got head.copy.item_level"):
        load_shared_weights(large, shared_weights(small, share_items=True), share_items=True)
    with pytest.raises(ValueError, match="same names and shapes"):
        load_shared_weights(large, {BODY: weights[BODY]})


def test_a_copy_is_shared_not_the_model_itself():
    model = tiny(0)
    shared_weights(model)[BODY].zero_()
    assert model.state_dict()[BODY].abs().sum() > 0


def test_the_mean_is_by_people():
    parts = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 10.0])}]
    assert torch.equal(average_weights(parts, [3, 1])["w"], torch.tensor([2.0, 4.0]))
    for sizes in ([1], [1, 0], [1, -1], []):
        with pytest.raises(ValueError, match="positive size"):
            average_weights(parts, sizes)
    with pytest.raises(ValueError, match="same names and shapes"):
        average_weights([parts[0], {"v": torch.ones(2)}], [1, 1])
    with pytest.raises(ValueError, match="same names and shapes"):
        average_weights([parts[0], {"w": torch.ones(3)}], [1, 1])


@pytest.fixture(scope="module")
def platforms(tmp_path_factory) -> dict[str, Path]:
    """Two shops with other people and one catalogue."""
    folder = tmp_path_factory.mktemp("shops")
    items = pd.DataFrame({"item_id": range(20)})
    items.to_csv(folder / "items.csv", index=False)
    found = {}
    for place, name in enumerate(("north", "south")):
        draw = np.random.default_rng(place)
        people = 12 * (place + 1)
        log = {"user_id": draw.integers(0, people, 600), "item_id": draw.integers(0, 20, 600)}
        log["timestamp"] = 1_600_000_000 + 3600 * draw.integers(0, 2000, 600)
        pd.DataFrame(log).to_csv(folder / f"{name}.csv", index=False)
        found[name] = folder / name
        options = ["--catalogue", str(folder / "items.csv"), "--report_page", "false"]
        options += ["--cleaning", "{clip_quantile: null}", "--duration_weight", "null"]
        play(
            "prepare",
            "--source",
            f"{folder / name}.csv",
            "--output_dir",
            str(found[name]),
            *options,
        )
    return found


def play(name: str, *arguments: str) -> None:
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def options(platforms: dict[str, Path], target: Path, **more) -> list[str]:
    settings = {"platforms": json.dumps({k: str(v) for k, v in platforms.items()})}
    settings |= {"output_dir": target, "model": SMALL, "rounds": 2, "num_train_epochs": 1}
    settings |= {"use_cpu": "true", "report_to": "none", "disable_tqdm": "true", "seed": 3}
    return [word for key, value in (settings | more).items() for word in (f"--{key}", str(value))]


def test_platforms_end_with_one_body_and_items_of_their_own(platforms, tmp_path):
    play("federated", *options(platforms, tmp_path, engine="here"))
    north, south = (load_file(tmp_path / name / "model.safetensors") for name in platforms)
    shared = shared_weights(ImplicitRecForScoring.from_pretrained(tmp_path / "north"))
    for name in shared:
        assert torch.equal(north[name], south[name]), name
    assert not torch.equal(north[TABLES[0]], south[TABLES[0]])
    made = json.loads((tmp_path / "federation.json").read_text())
    assert made["numbers shared"] == sum(value.numel() for value in shared.values())
    # It learnt something, from both: neither shop alone comes to this body.
    for name in platforms:
        alone = tmp_path / "alone" / name
        play("federated", *options({name: platforms[name]}, alone, engine="here"))
        assert not torch.equal(load_file(alone / name / "model.safetensors")[BODY], north[BODY])
    play("evaluate", "--model", str(tmp_path / "south"), "--data_dir", str(platforms["south"]))


def test_one_catalogue_can_be_shared_and_two_cannot(platforms, tmp_path):
    play("federated", *options(platforms, tmp_path, engine="here", share_items="true"))
    north, south = (load_file(tmp_path / name / "model.safetensors") for name in platforms)
    assert torch.equal(north[TABLES[0]], south[TABLES[0]])
    assert not torch.equal(north["item_frequency"], south["item_frequency"])
    log = platforms["north"].parent / "north.csv"
    play("prepare", "--source", str(log), "--output_dir", str(tmp_path / "other"))
    others = platforms | {"south": tmp_path / "other"}
    with pytest.raises(SystemExit, match="share_items: prepare all platforms with one"):
        play("federated", *options(others, tmp_path / "no", engine="here", share_items="true"))


def test_refit_learns_from_all_that_came_before_the_test(platforms, tmp_path):
    with pytest.raises(SystemExit, match="refit: .*north has no temporal split"):
        play("federated", *options(platforms, tmp_path / "no", engine="here", refit="true"))
    folder = platforms["north"].parent
    log = ["--source", str(folder / "north.csv"), "--catalogue", str(folder / "items.csv")]
    log += ["--cleaning", "{clip_quantile: null}", "--duration_weight", "null"]
    log += ["--split", "temporal", "--test_days", "20", "--report_page", "false"]
    play("prepare", *log, "--output_dir", str(tmp_path / "north"))
    splits = load_sequences(tmp_path / "north" / "sequences")
    for refit, part in (("false", "train"), ("true", "before_test")):
        chosen = options({"north": tmp_path / "north"}, tmp_path / part, rounds=1)
        play("federated", *chosen, "--engine", "here", "--refit", refit)
        model = ImplicitRecForScoring.from_pretrained(tmp_path / part / "north")
        had = np.concatenate([np.unique(row) for row in splits[part]["input_ids"]])
        counts = np.bincount(had, minlength=model.config.vocab_size)
        found = model.item_frequency.numpy()
        assert np.allclose((found / found[1])[1:], (counts / counts[1])[1:], atol=1e-4), part


@pytest.mark.skipif(find_spec("flwr") is not None, reason="Flower is here")
def test_without_flower_the_recipe_says_what_to_do(platforms, tmp_path):
    with pytest.raises(SystemExit, match=r"implicitrec\[federated\].*--engine here"):
        play("federated", *options(platforms, tmp_path))


def test_flower_comes_to_the_same_weights(platforms, tmp_path):
    pytest.importorskip("flwr", reason="wants an environment of its own: implicitrec[federated]")
    play("federated", *options(platforms, tmp_path / "here", engine="here"))
    command = [
        sys.executable,
        str(RECIPES / "federated.py"),
        *options(platforms, tmp_path / "flower"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in platforms:
        ours, theirs = (
            load_file(tmp_path / engine / name / "model.safetensors")
            for engine in ("here", "flower")
        )
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-6, msg=key)
