"""Recommendations for a whole user base: Parquet shards, several processes, resumed where it stopped."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from .collation import FLOATS, INPUTS
from .configuration_implicitrec import ImplicitRecConfig
from .modeling_implicitrec import ImplicitRecForScoring
from .processing_implicitrec import ImplicitRecProcessor
from .ranking import top_k
from .retrieval import table_fingerprint
from .rows import RowTables
from .scoring import ModelScorer
from .weights_implicitrec import collapse

RECORD = ".recommendations.json"  # readers of a folder of Parquet pass over hidden files
EARLIER_RECORD = "_recommendations.json"  # which `load_dataset` takes for data


@dataclass(frozen=True)
class BatchOptions:
    """How a user base is scored.

    Args:
        top_k: length of each list.
        exclude_seen: only items that are new to the user; always so with `config.exclude_seen`.
        shard_users: users of one file; what a kill costs at most.
        batch_size: users whose scores exist at one time.
        query_time: when everybody is asked, in seconds, for a model that reads it (`use_query_time`).
    """

    top_k: int = 10
    exclude_seen: bool = False
    shard_users: int = 20_000
    batch_size: int = 256
    query_time: int | None = None


def recommend_users(
    model: ImplicitRecForScoring,
    processor: ImplicitRecProcessor,
    rows: Dataset,
    folder: str | Path,
    *,
    options: BatchOptions | None = None,
    process: int = 0,
    num_processes: int = 1,
) -> int:
    """Write `folder/00000.parquet` and so on: `user_id`, `item_ids` and `scores`, best first.

    A shard is written under another name and then renamed; one that is there is not made again, so the
    same call goes on after a kill. Process p of n makes every n-th shard.

    Args:
        folder: a new or empty one, or one of the same call.
        rows: encoded sequences with `user_id` and `input_ids`, one per user.
        process: which of `num_processes` this is.

    Returns:
        The number of shards that this process wrote.

    Raises:
        ValueError: where the folder holds the shards of another model, other users or options, or
            anything that is not of such a call.
    """
    options = options or BatchOptions()
    processor.check_model(model.config)
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"lists are written to a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _description(model, rows, options))
    starts = range(0, len(rows), options.shard_users)
    own = [(number, start) for number, start in enumerate(starts)][process::num_processes]
    missing = [(n, start) for n, start in own if not (folder / f"{n:05d}.parquet").exists()]
    scorer = ModelScorer(model)
    with tqdm(
        total=sum(min(options.shard_users, len(rows) - start) for _, start in own),
        desc=f"recommending, process {process + 1} of {num_processes}",
        unit=" users",
        position=process,
        disable=None,
    ) as bar:
        bar.update(bar.total - sum(min(options.shard_users, len(rows) - s) for _, s in missing))
        for number, start in missing:
            part = rows.select(range(start, min(start + options.shard_users, len(rows))))
            table = _shard(scorer, processor, part, options, bar)
            _write(table, folder / f"{number:05d}.parquet")
    return len(missing)


def _description(
    model: ImplicitRecForScoring, rows: Dataset, options: BatchOptions
) -> dict[str, Any]:
    """What the shards of a folder have in common."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(["user_id", "length"]).with_format("arrow").iter(100_000):
        digest.update(repr([batch["user_id"].to_pylist(), batch["length"].to_pylist()]).encode())
    return {
        "model": table_fingerprint(model),
        "users": len(rows),
        "users_sha256": digest.hexdigest(),
        **{name: value for name, value in asdict(options).items() if name != "batch_size"},
    }


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Say what the folder is of, or check that it is of the same."""
    path, earlier = folder / RECORD, folder / EARLIER_RECORD
    held = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not path.exists() and earlier.exists():
        with suppress(FileNotFoundError):  # another process was faster
            earlier.rename(path)
    if not path.exists():
        if held:  # listed before: another process may have written its record since
            raise ValueError(
                f"{folder} holds {held[0]}, and no recommendations: name a new folder for them"
            )
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(description, indent=2))
        os.replace(partial, path)
    told = json.loads(path.read_text())
    other = sorted(name for name in description if told.get(name) != description[name])
    if other:
        raise ValueError(f"{folder} holds recommendations of another {', '.join(other)}")


def _shard(
    scorer: ModelScorer,
    processor: ImplicitRecProcessor,
    rows: Dataset,
    options: BatchOptions,
    bar: Any,
) -> pa.Table:
    """The recommendations of a shard's users, in their order; like lengths are scored together."""
    names = [name for name in INPUTS if name in rows.column_names]
    histories = past = RowTables(rows, names)
    if scorer.model.config.collapse_repeats:
        past = histories.changed(collapse)
    order = np.argsort(np.diff(past.columns["input_ids"][1]), kind="stable")
    k = min(options.top_k, processor.vocab_size - 1)
    tokens = np.zeros((len(rows), k), dtype=np.int64)
    scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), options.batch_size):
        places = order[start : start + options.batch_size]
        inputs = _inputs(past, places, scorer.model.config)
        if options.query_time is not None:
            inputs["query_time"] = torch.full((len(places),), options.query_time)
        values = scorer.score_batch(inputs)
        if options.exclude_seen or scorer.model.config.exclude_seen:
            seen = torch.from_numpy(histories.latest("input_ids", places))
            values.scatter_(1, seen.long(), -torch.inf)
        best, worth = top_k(values, k)
        tokens[places], scores[places] = best.numpy(), worth.numpy()
        bar.update(len(places))
    return _table(rows, processor, tokens, scores)


def _inputs(
    past: RowTables, places: np.ndarray, config: ImplicitRecConfig
) -> dict[str, torch.Tensor]:
    """The latest events of some users as the inputs of the model."""
    batch = {
        name: torch.from_numpy(past.latest(name, places, config.max_position_embeddings)).to(
            torch.float if name in FLOATS else torch.long
        )
        for name in past.columns
    }
    return batch | {"attention_mask": (batch["input_ids"] > 0).long()}


def _table(
    rows: Dataset, processor: ImplicitRecProcessor, tokens: np.ndarray, scores: np.ndarray
) -> pa.Table:
    lowest = np.finfo(np.float32).min / 4  # what a model gives that must not be shown
    shown = scores > lowest
    used, codes = np.unique(tokens[shown], return_inverse=True)
    items = pa.array(processor.decode_items(used)).take(pa.array(codes))
    offsets = pa.array(np.concatenate([[0], np.cumsum(shown.sum(1))]), pa.int32())
    users = rows.with_format("arrow")[:]["user_id"].combine_chunks()
    return pa.table(
        {
            "user_id": users,
            "item_ids": pa.ListArray.from_arrays(offsets, items),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[shown])),
        }
    )


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(table, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
