"""A whole user base in shards: the lists of the model, resumed after a kill, shared by processes."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset

from modeling_implicitrec import (
    BatchOptions,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    recommend_users,
)
from modeling_implicitrec.scoring import ModelScorer

USERS = 23
OPTIONS = BatchOptions(top_k=3, exclude_seen=True, shard_users=5, batch_size=4)


@pytest.fixture(scope="module")
def world() -> tuple:
    torch.manual_seed(0)
    processor = ImplicitRecProcessor.fit({"item_id": [f"i{n}" for n in range(12)]})
    config = ImplicitRecConfig(vocab_size=13, hidden_size=8, max_position_embeddings=4)
    model = ImplicitRecForScoring(config)
    torch.nn.init.normal_(model.item_decoder.weight)
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, USERS)
    lengths[3], lengths[4] = 12, 11  # one who saw all, one who has a single item left
    rows = [
        {
            "user_id": f"u{n}",
            "input_ids": (generator.permutation(12)[:size] + 1).tolist(),
            "length": int(size),
        }
        for n, size in enumerate(lengths)
    ]
    rows = [row | {"input_weights": [1.0] * row["length"]} for row in rows]
    return model, processor, Dataset.from_list(rows)


def read(folder) -> dict:
    files = sorted(folder.glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return {row.pop("user_id"): row for row in rows}


def test_every_user_gets_the_models_list_in_order(world, tmp_path):
    model, processor, rows = world
    assert recommend_users(model, processor, rows, tmp_path, options=OPTIONS) == 5
    found = read(tmp_path)
    assert list(found) == rows["user_id"]
    for row in rows:
        inputs = processor([processor.decode_items(row["input_ids"])], max_length=4)
        scores = model(**inputs).logits[0].scatter(0, torch.tensor([0, *row["input_ids"]]), -np.inf)
        left = min(3, 12 - row["length"])
        best, tokens = scores.topk(left)
        told = found[row["user_id"]]
        assert told["item_ids"] == (processor.decode_items(tokens) if left else [])
        assert told["scores"] == pytest.approx(best.tolist(), abs=1e-5)


def test_who_takes_nothing_twice_gets_only_new_items(world, tmp_path):
    processor, rows = world[1:]
    model = ImplicitRecForScoring(
        ImplicitRecConfig(vocab_size=13, max_position_embeddings=4, exclude_seen=True)
    )
    recommend_users(model, processor, rows, tmp_path, options=BatchOptions(top_k=12))
    found = read(tmp_path)
    for row in rows:  # also of what the model, which reads four events, does not see
        seen = processor.decode_items(row["input_ids"])
        assert sorted(found[row["user_id"]]["item_ids"] + seen) == sorted(
            f"i{n}" for n in range(12)
        )


def test_histories_that_hold_an_item_once_are_ranked_as_one_by_one(world, tmp_path):
    rows = world[2]
    items = {"item_id": [f"i{n}" for n in range(12)]}
    processor = ImplicitRecProcessor.fit(items)
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "max_position_embeddings": 4, "collapse_repeats": True}
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=13, copy_prior=True, **sizes)).eval()
    torch.nn.init.normal_(model.item_decoder.weight)
    processor.adapt_to(model.config)

    def doubled(row: dict) -> dict:
        names = ("input_ids", "input_weights")
        return {name: row[name] + row[name][:2] for name in names} | {"length": row["length"] + 2}

    rows = rows.map(doubled)
    recommend_users(model, processor, rows, tmp_path, options=BatchOptions(top_k=3, batch_size=4))
    scorer = ModelScorer(model)
    for row, told in zip(rows, read(tmp_path).values()):
        scores = scorer.score([row])[0]
        best, tokens = scores[1:].topk(3)
        assert told["item_ids"] == processor.decode_items(tokens + 1)
        assert told["scores"] == pytest.approx(best.tolist(), abs=1e-5)


def test_a_killed_run_goes_on_where_it_was(world, tmp_path, monkeypatch):
    model, processor, rows = world
    recommend_users(model, processor, rows, tmp_path / "whole", options=OPTIONS)
    score, calls = type(model).last_scores, []

    def dies(self, *args, **inputs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return score(self, *args, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "last_scores", dies)
        with pytest.raises(KeyboardInterrupt):
            recommend_users(model, processor, rows, tmp_path / "cut", options=OPTIONS)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.parquet")}
    assert len(there) == 2
    assert recommend_users(model, processor, rows, tmp_path / "cut", options=OPTIONS) == 3
    assert read(tmp_path / "cut") == read(tmp_path / "whole")
    for name, time in there.items():
        assert (tmp_path / "cut" / name).stat().st_mtime_ns == time
    assert not list((tmp_path / "cut").glob("*.partial"))


def test_processes_share_the_shards(world, tmp_path):
    model, processor, rows = world
    shares = [
        recommend_users(
            model, processor, rows, tmp_path, options=OPTIONS, process=process, num_processes=2
        )
        for process in range(2)
    ]
    assert shares == [3, 2]
    assert list(read(tmp_path)) == rows["user_id"]


def test_a_folder_of_something_else_is_refused(world, tmp_path):
    model, processor, rows = world
    recommend_users(model, processor, rows, tmp_path, options=OPTIONS)
    with pytest.raises(ValueError, match="recommendations of another top_k"):
        recommend_users(model, processor, rows, tmp_path, options=BatchOptions(2, True, 5))
    with pytest.raises(ValueError, match="another users, users_sha256"):
        recommend_users(model, processor, rows.select(range(20)), tmp_path, options=OPTIONS)
    other = ImplicitRecForScoring(model.config)
    with pytest.raises(ValueError, match="another model"):
        recommend_users(other, processor, rows, tmp_path, options=OPTIONS)


def test_the_folder_is_read_as_one_table(world, tmp_path):
    model, processor, rows = world
    lists = tmp_path / "lists"
    recommend_users(model, processor, rows, lists, options=OPTIONS)
    # As it was named before, which `load_dataset` took for data; the run goes on with such a folder.
    (lists / ".recommendations.json").rename(lists / "_recommendations.json")
    (lists / "00001.parquet").unlink()
    assert recommend_users(model, processor, rows, lists, options=OPTIONS) == 1
    assert set(pd.read_parquet(lists)["user_id"]) == set(rows["user_id"])
    read = load_dataset("parquet", data_dir=str(lists), cache_dir=str(tmp_path / "cache"))
    assert read["train"]["user_id"][:] == rows["user_id"][:]


def test_a_folder_with_anything_else_is_refused(world, tmp_path):
    model, processor, rows = world
    (tmp_path / "00000.parquet").write_text("prepared data, or somebody's lists")
    with pytest.raises(ValueError, match="holds 00000.parquet, and no recommendations: name a new"):
        recommend_users(model, processor, rows, tmp_path, options=OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.parquet"]
    with pytest.raises(ValueError, match="written to a folder, got the file .*00000.parquet"):
        recommend_users(model, processor, rows, tmp_path / "00000.parquet", options=OPTIONS)
