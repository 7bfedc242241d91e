"""Histories leave only under pseudonyms, after a yes, and without what tells who is who."""

import json
import re
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, load_dataset
from huggingface_hub import DatasetCard, snapshot_download
from test_recipes import run

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    load_sequences,
    pseudonymise,
    push_sequences,
    save_checkpoint,
)

ROOT = Path(__file__).resolve().parents[1]
KEY = b"k" * 32


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prepared data of users whose names are easy to find, with a bad row that the report shows."""
    folder = tmp_path_factory.mktemp("log")
    rows = [
        f"customer-{u},{'abcde'[(u + i) % 5]},{1_600_000_000 + i}"
        for u in range(9)
        for i in range(6)
    ]
    (folder / "log.csv").write_text(
        "\n".join(["user_id,item_id,timestamp", *rows, "customer-3,a,soon"])
    )
    settings = {"source": str(folder / "log.csv"), "output_dir": str(folder / "data")}
    (folder / "prepare.yaml").write_text(yaml.safe_dump(settings | {"report_page": False}))
    run("prepare", str(folder / "prepare.yaml"))
    return folder / "data"


def test_equal_users_have_equal_pseudonyms_and_no_order_is_left():
    rows = Dataset.from_dict({"user_id": [*range(50)], "row": [*range(50)], "length": [*range(50)]})
    hidden = pseudonymise(rows, KEY)
    assert hidden.column_names == rows.column_names
    names = hidden["user_id"][:]
    assert names == sorted(names) and len(set(names)) == 50
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
    assert (
        hidden["length"][:] != rows["length"][:] and sorted(hidden["length"]) == rows["length"][:]
    )
    assert hidden["row"][:] == rows["row"][:]  # numbered anew
    part = dict(zip(hidden["length"], names))
    again = pseudonymise(rows.select([7, 3]), KEY)
    assert dict(zip(again["length"], again["user_id"])) == {7: part[7], 3: part[3]}
    assert not set(pseudonymise(rows, b"o" * 32)["user_id"]) & set(names)
    with pytest.raises(ValueError, match="at least 32 bytes, got 5"):
        pseudonymise(rows, b"short")


def test_nothing_leaves_before_somebody_says_yes(hub, data):
    with pytest.raises(ValueError, match="histories of 9 users to 'alice/log'.*confirmed=True"):
        push_sequences(data, "alice/log")
    with pytest.raises(SystemExit, match="needs histories_may_leave"):
        run("prepare", str(data.parent / "prepare.yaml"), "--push_to_hub", "true")
    assert hub.used == []


def test_prepared_data_goes_up_private_and_without_the_names_of_users(hub, data, tmp_path, caplog):
    report = json.loads((data / "cleaning_report.json").read_text())
    assert "customer-3" in json.dumps(report["examples"]) or report["examples"]
    push_sequences(data, "alice/log", confirmed=True, key=KEY)
    assert "histories of 9 users leave this machine for alice/log" in caplog.text
    assert hub.repos["datasets", "alice/log"].private
    assert hub.files("alice/log", kind="datasets").keys() >= {
        "README.md",
        "cleaning_report.json",
        "processor/item_vocabulary.safetensors",
        "sequences/train/00000.parquet",
    }
    folder = Path(
        snapshot_download("alice/log", repo_type="dataset", local_dir=tmp_path / "pulled")
    )
    for path in folder.rglob("*.parquet"):
        assert not any("customer" in str(row) for row in pq.read_table(path).to_pylist())
    for content in hub.blobs.values():
        assert not any(
            secret in content for secret in (b"customer", KEY, str(data).encode(), b"soon")
        )
    here, there = load_sequences(data / "sequences"), load_sequences(folder / "sequences")
    assert {name: len(rows) for name, rows in here.items()} == {n: len(r) for n, r in there.items()}
    assert sorted(here["train"]["input_ids"]) == sorted(there["train"]["input_ids"])
    processor = ImplicitRecProcessor.from_pretrained(folder / "processor")
    assert (
        processor.fingerprint
        == ImplicitRecProcessor.from_pretrained(data / "processor").fingerprint
    )


def test_the_hub_reads_the_card_and_the_parts(hub, data):
    push_sequences(data, "alice/log", confirmed=True, key=KEY, license="mit")
    card = DatasetCard(hub.read("alice/log", "README.md", kind="datasets").decode())
    card.validate()
    assert card.data.license == "mit"
    assert "| kept | 54 |" in card.text and "2020-09-13 to 2020-09-13" in card.text
    assert "not anonymity" in card.text
    rows = load_dataset("alice/log", "test", split="test")
    assert len(rows) == 9 and len(rows[0]["target_ids"]) == 1


def test_the_python_of_the_hub_page_runs(hub, data, tmp_path, monkeypatch, capsys):
    processor = ImplicitRecProcessor.fit({"item_id": ["tea", "milk", "bread", "rice"]})
    config = ImplicitRecConfig(vocab_size=processor.vocab_size, hidden_size=8, num_hidden_layers=1)
    save_checkpoint(
        tmp_path / "my-recommender", model=ImplicitRecForScoring(config), processor=processor
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shop").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/hub.md").read_text(), re.S):
        exec(compile(block, "hub.md", "exec"), names)
    commit, recommended = capsys.readouterr().out.strip().splitlines()
    assert commit.startswith(f"{hub.url}/me/shop/commit/")
    assert recommended.count("item_id") == 2
    assert {name for _kind, name in hub.repos} == {"me/shop", "me/shop-log"}
    assert all(kept.private for kept in hub.repos.values())


def test_the_recipe_pushes_with_a_key_that_stays(hub, data, tmp_path):
    key = tmp_path / "key"
    options = [
        "--push_to_hub",
        "true",
        "--hub_dataset_id",
        "alice/shop",
        "--pseudonym_key",
        str(key),
    ]
    options += ["--histories_may_leave", "true", "--output_dir", str(tmp_path / "data")]
    run("prepare", str(data.parent / "prepare.yaml"), *options)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    first = hub.files("alice/shop", kind="datasets")
    push_sequences(data, "alice/again", confirmed=True, key=key.read_bytes())
    path = "sequences/test/00000.parquet"
    assert hub.files("alice/again", kind="datasets")[path] == first[path]
    assert not any(key.read_bytes() in content for content in hub.blobs.values())
