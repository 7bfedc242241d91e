"""Scores histories against the catalogue batch by batch and keeps the k best items."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from .rows import Row

Seen = Literal["exclude", "keep"]


def top_k(
    scores: torch.Tensor, k: int, *, exclude: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best tokens of each row, best first, never the padding token 0.

    Args:
        scores: float `[batch, vocab_size]`.
        k: how many tokens, at most `vocab_size - 1`.
        exclude: bool mask `[batch, vocab_size]`, or token ids `[batch, length]` padded with 0.

    Returns:
        Tokens and scores, both `[batch, k]`. Excluded tokens come last, with a score of `-inf`;
        they appear only where fewer than k others are left.

    Raises:
        ValueError: if a shape, k or an excluded token does not fit, or a score is NaN.

    >>> top_k(torch.tensor([[9.0, 1.0, 3.0, 2.0]]), 2, exclude=torch.tensor([[2, 0]]))[0]
    tensor([[3, 1]])
    """
    if scores.ndim != 2 or not scores.is_floating_point():
        raise ValueError(f"scores must be float [batch, vocab_size], got {tuple(scores.shape)}")
    if not 1 <= k < scores.shape[1]:
        raise ValueError(f"k must lie in 1..{scores.shape[1] - 1} (the items), got {k}")
    if exclude is not None:
        scores = _without(scores, exclude.to(scores.device))
    values, positions = best_of_many(scores[:, 1:], k)
    if torch.isnan(values).any():  # it would be the best
        raise ValueError("scores must not be NaN")
    return positions + 1, values


def best_of_many(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`scores.topk(k, dim=1)`, in a fraction of the time where k is a small part.

    The k best are in the k blocks whose best is highest, or among what is left after whole blocks.

    >>> best_of_many(torch.arange(1024.0)[None], 2)
    (tensor([[1023., 1022.]]), tensor([[1023, 1022]]))
    """
    size = 1 << max(6, int(math.log2(scores.shape[1] / k) / 2))  # about the root, at least 64
    blocks, rest = divmod(scores.shape[1], size)
    if blocks <= 2 * k:
        best, places = scores.topk(k, dim=1)
        return best, places
    peaks = scores[:, : blocks * size].unflatten(1, (blocks, size)).amax(2)
    starts = size * peaks.topk(k, dim=1).indices  # [rows, k]
    within = torch.arange(size, device=scores.device)
    last = blocks * size + within[:rest].expand(len(scores), rest)
    places = torch.cat([(starts[:, :, None] + within).flatten(1), last], dim=1)
    best, chosen = scores.gather(1, places).topk(k, dim=1)
    return best, places.gather(1, chosen)


def _without(scores: torch.Tensor, exclude: torch.Tensor) -> torch.Tensor:
    """The scores, `-inf` where `exclude` says."""
    if exclude.dtype == torch.bool:
        if exclude.shape != scores.shape:
            raise ValueError(f"mask {tuple(exclude.shape)} and scores {tuple(scores.shape)} differ")
        return scores.masked_fill(exclude, -torch.inf)
    if exclude.ndim != 2 or len(exclude) != len(scores):
        raise ValueError(f"exclude must be [{len(scores)}, length], got {tuple(exclude.shape)}")
    if exclude.numel() and not 0 <= exclude.min() <= exclude.max() < scores.shape[1]:
        raise ValueError(f"excluded tokens must lie in 0..{scores.shape[1] - 1}")
    return scores.scatter(1, exclude.long(), -torch.inf)


def row_batches(rows: Sequence[Row] | Dataset, batch_size: int) -> Iterator[list[Row]]:
    """Consecutive lists of at most `batch_size` rows, read a batch at a time from a `Dataset`.

    >>> [len(batch) for batch in row_batches([{"input_ids": [1]}] * 5, 2)]
    [2, 2, 1]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    for start in range(0, len(rows), batch_size):
        stop = min(start + batch_size, len(rows))
        if isinstance(rows, Dataset):
            columns = rows[start:stop]
            names = list(columns)
            yield [
                dict(zip(names, values, strict=True))
                for values in zip(*columns.values(), strict=True)
            ]
        else:
            yield [rows[index] for index in range(start, stop)]


def pad_tokens(histories: Sequence[Sequence[int] | np.ndarray], padding: int = 0) -> np.ndarray:
    """Lists of tokens as int64 `[len(histories), longest]`, filled up on the right.

    >>> pad_tokens([[3], [1, 2]]).tolist()
    [[3, 0], [1, 2]]
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    table = np.full((len(lengths), int(lengths.max(initial=0))), padding, dtype=np.int64)
    if table.size:
        filled = np.arange(table.shape[1])[None, :] < lengths[:, None]
        table[filled] = np.concatenate([np.asarray(h, dtype=np.int64) for h in histories])
    return table


def rank_histories(
    score_batch: Callable[[list[Row]], torch.Tensor | np.ndarray],
    rows: Sequence[Row] | Dataset,
    *,
    k: int,
    seen: Seen,
    batch_size: int = 256,
    progress: bool = True,
) -> np.ndarray:
    """The k best items for every row, as int64 tokens `[users, k]`; 0 marks an empty place.

    Args:
        score_batch: maps a list of rows to float scores `[batch, vocab_size]`.
        rows: encoded rows; `input_ids` is the history that `seen` speaks of.
        k: length of the lists.
        seen: `"exclude"` never shows an item of the history again, `"keep"` may.
        batch_size: rows whose scores exist at one time.
        progress: shows a progress bar.

    Raises:
        ValueError: if `seen` is unknown, or k or the scores do not fit.

    >>> rank_histories(lambda rows: np.eye(4)[[2] * len(rows)], [{"input_ids": [1, 3]}],
    ...                k=2, seen="exclude", progress=False)
    array([[2, 0]])
    """
    if seen not in ("exclude", "keep"):
        raise ValueError(f"seen must be 'exclude' or 'keep', got {seen!r}")
    ranked = np.zeros((len(rows), k), dtype=np.int64)
    start = 0
    with tqdm(total=len(rows), unit="user", desc="ranking", disable=not progress) as bar:
        for batch in row_batches(rows, batch_size):
            scores = torch.as_tensor(score_batch(batch))
            if scores.ndim != 2 or len(scores) != len(batch):
                raise ValueError(
                    f"expected scores [{len(batch)}, vocab_size], got {tuple(scores.shape)}"
                )
            histories = pad_tokens([row["input_ids"] for row in batch])
            exclude = torch.from_numpy(histories) if seen == "exclude" else None
            tokens, values = top_k(scores, k, exclude=exclude)
            tokens = tokens.masked_fill(values == -torch.inf, 0)
            ranked[start : start + len(batch)] = tokens.cpu().numpy()
            start += len(batch)
            bar.update(len(batch))
    return ranked
