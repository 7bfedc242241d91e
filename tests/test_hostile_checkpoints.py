"""A checkpoint from anybody: what is pickled or does not fit is refused, hostile text does nothing."""

import hashlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, snapshot_download
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments, pipeline

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecModel,
    ImplicitRecProcessor,
    push_checkpoint,
    save_checkpoint,
)
from modeling_implicitrec.integrity_implicitrec import file_sha256

ROOT = Path(__file__).resolve().parents[1]


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path) -> Path:
    processor = ImplicitRecProcessor.fit({"item_id": [*"abcabdab"]})
    model = tiny(vocab_size=processor.vocab_size, vocabulary_fingerprint=processor.fingerprint)
    return save_checkpoint(tmp_path / "shop", model=model, processor=processor)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Bomb(tmp_path / "exploded")}, folder / name)
    with pytest.raises(Exception, match="(?i)safetensors|header"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(Exception, match="(?i)safetensors|header"):
        AutoModel.from_pretrained(folder, use_safetensors=False)
    assert not (tmp_path / "exploded").exists()


def test_a_pickled_vocabulary_is_refused(folder, tmp_path):
    torch.save(Bomb(tmp_path / "exploded"), folder / "item_vocabulary.safetensors")
    with pytest.raises(ValueError, match="no complete item vocabulary"):
        AutoProcessor.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()


def test_weights_that_were_changed_after_the_save_are_refused(folder):
    before = AutoModel.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.norm.weight"
    save_file(weights | {name: weights[name] * 2}, folder / "model.safetensors", {"format": "pt"})
    for cls in (AutoModel, ImplicitRecModel, ImplicitRecForScoring):
        with pytest.raises(
            ValueError, match="not those that were saved: model.safetensors must have"
        ):
            cls.from_pretrained(folder)
    with pytest.raises(ValueError, match="not those that were saved"):
        pipeline("recommendation", model=str(folder), device="cpu")
    with pytest.raises(ValueError, match="not those that were saved"):
        push_checkpoint(folder, "alice/shop")
    # Whoever changed them takes the digest out, or saves the model anew.
    edit(folder / "config.json", weights_sha256=None)
    changed = AutoModel.from_pretrained(folder)
    assert torch.equal(changed.state_dict()[name], before.state_dict()[name] * 2)
    changed.save_pretrained(folder)
    assert AutoModel.from_pretrained(folder).config.weights_sha256 is None


def test_weights_under_another_name_are_refused(folder):
    """An index that leads to other files, in place of those that were saved."""
    shards = folder.with_name("shards")
    AutoModel.from_pretrained(folder).save_pretrained(shards, max_shard_size="2KB")
    assert len(json.loads((shards / "config.json").read_text())["weights_sha256"]) > 1
    assert AutoModel.from_pretrained(shards)
    (folder / "model.safetensors").unlink()
    for path in shards.glob("model*"):
        path.rename(folder / path.name)
    with pytest.raises(ValueError, match="model.safetensors must have .* got no such file"):
        AutoModel.from_pretrained(folder)


def test_the_digest_is_that_of_the_file_and_older_checkpoints_load(folder, tmp_path):
    kept = json.loads((folder / "config.json").read_text())["weights_sha256"]
    bytes_of = (folder / "model.safetensors").read_bytes()
    assert kept == {"model.safetensors": hashlib.sha256(bytes_of).hexdigest()}
    edit(folder / "config.json", weights_sha256=None)
    model = AutoModel.from_pretrained(folder)
    Trainer(model, TrainingArguments(str(tmp_path / "out"), report_to="none")).save_model()
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["weights_sha256"]
    assert saved["model.safetensors"] == file_sha256(tmp_path / "out" / "model.safetensors")


def test_weights_that_a_hub_changed_are_refused(hub, folder):
    push_checkpoint(folder, "alice/shop")
    assert AutoModel.from_pretrained("alice/shop")
    other = AutoModel.from_pretrained(folder)
    other.model.norm.weight.data.fill_(3)
    other.save_pretrained(folder)
    config = json.loads(hub.read("alice/shop", "config.json"))
    push_checkpoint(folder, "alice/other")
    tree = hub.files("alice/other")
    changed = json.loads(hub.read("alice/other", "config.json"))
    assert changed["weights_sha256"] != config["weights_sha256"]
    tree["config.json"] = hub.files("alice/shop")["config.json"]
    with pytest.raises(ValueError, match="the weights of alice/other are not those"):
        AutoModel.from_pretrained("alice/other")


def test_weights_that_are_missing_or_of_another_shape_are_refused(folder):
    edit(folder / "config.json", weights_sha256=None)
    weights = load_file(folder / "model.safetensors")
    name = "model.blocks.0.mlp_norm.weight"
    name = name if name in weights else next(key for key in weights if "norm" in key)
    lacking = {key: value for key, value in weights.items() if key != name}
    save_file(lacking, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks the weights.*{name}"):
        AutoModel.from_pretrained(folder)
    save_file(weights | {name: torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    told = rf"the weights of .*shop do not have .*{name} must be \[16\], got \[3\]"
    with pytest.raises(ValueError, match=told):
        AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match="do not have the shapes"):
        pipeline("recommendation", model=str(folder), device="cpu")
    loaded = AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert len(loaded.state_dict()[name]) == 16


def test_another_vocabulary_under_the_same_weights_is_refused(folder, tmp_path):
    ImplicitRecProcessor.fit({"item_id": [*"wxyzwxww"]}).save_pretrained(folder)
    with pytest.raises(ValueError, match="do not belong together: vocabulary_fingerprint"):
        pipeline("recommendation", model=str(folder), device="cpu")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "name",
    ["num_hidden_layers", "hidden_size", "vocab_size", "num_cooccurrences", "num_time_buckets"],
)
def test_a_configuration_of_huge_sizes_is_refused_at_once(folder, name):
    edit(folder / "config.json", **{name: 10**12})
    with pytest.raises(ValueError, match=f"{name} must be at most .* got 1,000,000,000,000"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("text", ["[]", "null", '"item"', "3"])
@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("processor_config.json", ImplicitRecProcessor),
        ("config.json", ImplicitRecConfig),
        ("config.json", ImplicitRecForScoring),
    ],
)
def test_json_that_is_no_object_is_refused_by_the_name_of_its_file(folder, name, cls, text):
    (folder / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        cls.from_pretrained(folder)
    assert str(caught.value) == f"{name} of {folder} must hold a JSON object, got {text}"
    with pytest.raises(ValueError, match="must hold a JSON object"):
        push_checkpoint(folder, "alice/shop")


@pytest.mark.parametrize(
    ("cls", "name"),
    [(ImplicitRecConfig, "config.json"), (ImplicitRecProcessor, "processor_config.json")],
)
def test_a_load_that_goes_well_asks_the_hub_for_no_file_that_lies_here(
    hub, folder, monkeypatch, cls, name
):
    push_checkpoint(folder, "alice/shop")
    cls.from_pretrained("alice/shop")
    asked, resolve = [], LoopbackHub.resolve

    def noted(self, request):
        asked.append(request.path)
        return resolve(self, request)

    monkeypatch.setattr(LoopbackHub, "resolve", noted)
    cls.from_pretrained("alice/shop")  # what it holds lies here by now
    assert name not in asked


def test_a_processor_with_a_limit_that_is_no_number_is_refused(folder):
    edit(folder / "processor_config.json", max_weight="10")
    with pytest.raises(ValueError, match="max_weight must be finite and positive, got '10'"):
        ImplicitRecProcessor.from_pretrained(folder)


def test_a_hostile_configuration_runs_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.chdir(folder)
    evil = {
        "AutoModel": "../evil.Evil",
        "AutoConfig": "../evil.Evil",
        "AutoProcessor": "../evil.Evil",
    }
    impl = {"impl": "../evil.Evil", "pt": ["AutoModel"]}
    edit(folder / "config.json", auto_map=evil, custom_pipelines={"recommendation": impl})
    recommend = pipeline("recommendation", model=str(folder), device="cpu")
    assert recommend(["a"], top_k=1)
    assert not (tmp_path / "ran").exists()
    edit(folder / "config.json", hidden_size="1; import os")
    with pytest.raises(Exception, match="hidden_size"):
        ImplicitRecConfig.from_pretrained(folder)


def test_yaml_tags_of_a_card_run_nothing(folder, tmp_path):
    ran = tmp_path / "ran"
    card = folder / "README.md"
    card.write_text(f"---\nlicense: !!python/object/apply:pathlib.Path.touch [{ran}]\n---\n")
    with pytest.raises(yaml.YAMLError):
        ModelCard.load(card)
    assert not ran.exists()


def test_a_hostile_card_is_not_pushed(hub, folder):
    (folder / "README.md").write_text("---\nlicense: !!python/object/apply:os.getcwd []\n---\n")
    with pytest.raises(ValueError, match="(?i)invalid metadata|yaml"):
        push_checkpoint(folder, "alice/shop")
    assert set(hub.files("alice/shop")) == {".gitattributes"}


def test_names_that_lead_out_of_the_folder_write_nothing_there(hub, folder, tmp_path):
    push_checkpoint(folder, "alice/shop")
    tree = hub.files("alice/shop")
    tree["../../../../escaped.py"] = tree["config.json"]
    cache = tmp_path / "a" / "cache"
    with pytest.raises(Exception, match=r"(?i)\.\.|path|found"):
        snapshot_download("alice/shop", cache_dir=cache)
    with pytest.raises(Exception, match=r"(?i)\.\.|path|found"):
        snapshot_download("alice/shop", local_dir=tmp_path / "a" / "local")
    assert not list(tmp_path.rglob("escaped.py"))


def test_the_round_trip_runs_and_is_printed(hub, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hub_round_trip.py", "alice/round-trip"])
    runpy.run_path(str(ROOT / "scripts" / "hub_round_trip.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for line in (
        "identical scores",
        "the new revision gives",
        "the first scores again",
        "round trip done",
    ):
        assert line in printed
    assert "NOT" not in printed and "hf_alice" not in printed
    files = set(hub.files("alice/round-trip", "tuned"))
    assert {"pipeline_implicitrec.py", "item_vocabulary.safetensors", "model.safetensors"} < files
    config = json.loads(hub.read("alice/round-trip", "config.json", "tuned"))
    assert config["auto_map"]["AutoModel"] == "modeling_implicitrec.ImplicitRecForScoring"
    assert config["custom_pipelines"]["recommendation"]["pt"] == ["AutoModel"]
