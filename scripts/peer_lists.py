"""Splits for the peers of the benchmarks, and one scorer for everybody's ranked lists.

Peers are given token histories and never a target; what they rank comes back as Parquet, and only
`score_lists` looks at the targets.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict

from modeling_implicitrec import hit_rate_at_k, load_sequences, ndcg_at_k, recall_at_k

METRICS = {"ndcg": ndcg_at_k, "hit_rate": hit_rate_at_k, "recall": recall_at_k}
PARTS = ("validation", "test")
LISTS = {"all": "keep", "new": "exclude"}  # protocol: the column of its lists


def read_splits(folder: Path) -> DatasetDict:
    """Prepared sequences without the time of asking, for which the peers have no place."""
    splits = load_sequences(folder)
    for part, rows in splits.items():
        told = [name for name in rows.column_names if name == "query_time"]
        splits[part] = rows.remove_columns(told)
    return splits


def export_splits(
    splits: DatasetDict, folder: Path, *, vocab_size: int, train_split: str = "train"
) -> None:
    """Write what peers learn from and the histories that they rank after, as lists of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", *PARTS):
        rows = splits[train_split if part == "train" else part]
        events = rows.with_format("arrow")[:]["input_ids"]
        lists = events.combine_chunks().cast(pa.list_(pa.int64()))
        pq.write_table(pa.table({"items": lists}), folder / f"{part}.parquet")
    facts = {"vocab_size": vocab_size, "train_split": train_split}
    (folder / "facts.json").write_text(json.dumps(facts))


def write_lists(ranked: dict[str, np.ndarray], path: Path) -> None:
    """Lists `[users, k]` by column name, in the layout of the runners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: list(values) for name, values in ranked.items()}), path)


def read_lists(path: Path, column: str) -> np.ndarray:
    """Lists that a runner wrote, int64 `[users, k]`; 0 is an empty place."""
    values = pq.read_table(path, columns=[column])[column].combine_chunks()
    return values.flatten().to_numpy().reshape(len(values), -1).astype(np.int64)


def score_lists(
    ranked: np.ndarray, rows: Dataset | Sequence[dict], protocol: str, *, k: int = 10
) -> dict[str, np.ndarray]:
    """NDCG, hit rate and recall at k of every user who has a target, in the order of the rows.

    Args:
        ranked: int `[rows, >= k]` tokens, best first; 0 is an empty place.
        rows: with `input_ids` and `target_ids`; a target of -1 can not be found.
        protocol: `"all"` (repeats allowed), or `"new"`, whose targets are the items that are not in
            the history.

    Raises:
        ValueError: if lists and rows differ in number, a list holds an item twice, or one of the
            history under `"new"`.

    >>> row = {"input_ids": [1, 2], "target_ids": [4]}
    >>> score_lists(np.array([[3, 4]]), [row], "new", k=2)["hit_rate@2"].tolist()
    [1.0]
    """
    if len(ranked) != len(rows):
        raise ValueError(f"expected a list for each of {len(rows)} rows, got {len(ranked)}")
    hits, sizes = [], []
    histories, targets = (
        (rows[name] for name in ("input_ids", "target_ids"))
        if isinstance(rows, Dataset)
        else ([row[name] for row in rows] for name in ("input_ids", "target_ids"))
    )
    for place, (history, wanted, found) in enumerate(zip(histories, targets, ranked[:, :k])):
        shown = found[found > 0]
        if len(np.unique(shown)) < len(shown):
            raise ValueError(f"the list of row {place} holds an item twice: {found.tolist()}")
        wanted = np.asarray(wanted, dtype=np.int64)
        if protocol == "new":
            seen = np.asarray(history, dtype=np.int64)
            if np.isin(shown, seen).any():
                raise ValueError(f"the list of row {place} holds an item of its history")
            wanted = wanted[~np.isin(wanted, seen)]
        if len(wanted):
            hits.append(np.isin(found, wanted[wanted > 0]) & (found > 0))
            sizes.append(len(wanted))
    table, relevant = np.array(hits), np.array(sizes)
    return {f"{name}@{k}": metric(table, relevant, k=k) for name, metric in METRICS.items()}
