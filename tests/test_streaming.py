"""Data sets larger than memory: mapped and streamed rows, shared by nodes, found again after a break."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, IterableDataset, load_dataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from modeling_implicitrec import (
    DataCollatorForNextItem,
    EpochCallback,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    SequenceRows,
    save_sequences,
)

USERS = 64


def histories(users: int, events: int = 6) -> Dataset:
    generator = np.random.default_rng(0)
    starts = pa.array(np.arange(users + 1) * events, pa.int32())
    lists = {
        "input_ids": generator.integers(1, 50, users * events).astype(np.int32),
        "input_weights": np.ones(users * events, np.float32),
    }
    columns = {n: pa.ListArray.from_arrays(starts, pa.array(v)) for n, v in lists.items()}
    columns["user_id"] = pa.array([f"user {n}" for n in range(users)])
    columns["row"] = pa.array(np.arange(users))
    columns["length"] = pa.array(np.full(users, events))
    return Dataset(pa.table(columns))


def stream(folder: Path, seed: int = 3) -> IterableDataset:
    """Parquet shards, read as they come and mixed in a buffer."""
    files = sorted(str(path) for path in (folder / "train").glob("*.parquet"))
    rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
    return rows.shuffle(seed=seed, buffer_size=16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for part in range(4):
        rows = histories(USERS).select(range(part * 16, part * 16 + 16))
        save_sequences({"train": rows}, folder / "part")
        (folder / "train").mkdir(exist_ok=True)
        (folder / "part/train/00000.parquet").rename(folder / "train" / f"{part}.parquet")
    return folder


def train(shards: Path, output: Path, stop: int, resume: bool = False) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    config = ImplicitRecConfig(vocab_size=50, hidden_size=8, num_attention_heads=1)
    model = ImplicitRecForScoring(config)
    collator = DataCollatorForNextItem(10)
    arguments = TrainingArguments(
        str(output),
        max_steps=stop,  # eight read all rows once
        per_device_train_batch_size=8,
        save_steps=2,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="constant",
    )
    # Trainer takes a stream to be as long as the run, and skips within it: so it must not end.
    rows = split_dataset_by_node(stream(shards).repeat(None), rank=0, world_size=1)
    trainer = Trainer(
        model, arguments, collator, train_dataset=rows, callbacks=[EpochCallback(collator)]
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_trainer_streams_shards_and_goes_on_in_the_same_order(shards, tmp_path):
    whole = train(shards, tmp_path / "whole", 12)
    train(shards, tmp_path / "cut", 10)
    resumed = train(shards, tmp_path / "cut", 12, resume=True)
    for (name, left), right in zip(resumed.named_parameters(), whole.parameters()):
        assert torch.equal(left, right), name


def read(rows: IterableDataset, epoch: int = 0) -> list[int]:
    rows.set_epoch(epoch)
    collator = DataCollatorForNextItem(10)
    loader = DataLoader(rows, batch_size=4, collate_fn=lambda some: (collator(some), some))
    found = []
    for batch, some in loader:
        assert batch["input_ids"].shape == (len(some), 5)
        found += [row["row"] for row in some]
    return found


def test_nodes_share_a_stream_and_every_row_is_read_once(shards):
    nodes = [split_dataset_by_node(stream(shards), rank, 2) for rank in range(2)]
    first, second = (read(node) for node in nodes)
    assert sorted(first + second) == list(range(USERS)) and len(first) == USERS // 2
    assert read(nodes[0]) == first and sorted(first) != first
    assert read(nodes[0], epoch=1) != first


GROWTH = """
import sys
from pathlib import Path
from datasets import Dataset
from modeling_implicitrec import DataCollatorForNextItem, SequenceRows

def own_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

collator = DataCollatorForNextItem(10)
for path in sys.argv[1:]:
    before = own_memory()
    rows = SequenceRows(Dataset.from_file(path))
    for start in range(0, len(rows), 512):
        collator(rows.__getitems__(range(start, min(start + 512, len(rows)))))
    print(own_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
def test_memory_does_not_grow_with_the_users(tmp_path):
    """Twenty times the users in a map: what the process allocates stays within a few megabytes."""
    paths = []
    for users in (5_000, 100_000):
        rows = histories(users, events=20)
        paths.append(str(tmp_path / f"{users}.arrow"))
        with pa.ipc.new_stream(paths[-1], rows.data.table.schema) as writer:
            writer.write_table(rows.data.table, max_chunksize=10_000)
    told = subprocess.run(
        [sys.executable, "-c", GROWTH, paths[0], *paths],
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    _first, small, large = map(json.loads, told.stdout.split())
    assert Path(paths[1]).stat().st_size > 16_000_000
    assert large - small < 4_000  # KiB


def test_text_columns_stay_in_the_map():
    rows = SequenceRows(histories(3))
    assert rows[1]["user_id"] == "user 1"
    assert [row["row"] for row in rows] == [0, 1, 2]
