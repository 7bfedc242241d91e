"""Full-catalogue evaluation of any scorer, and the two hooks that `transformers.Trainer` takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction

from .baselines import Scorer
from .metrics import (
    auc,
    confidence_interval,
    coverage_at_k,
    gini_at_k,
    hit_rate_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    novelty_at_k,
    paired_accuracy,
    precision_at_k,
    recall_at_k,
)
from .ranking import Seen, pad_tokens, rank_histories, row_batches
from .rows import Row, check_encoded

USER_METRICS = {
    "recall": recall_at_k,
    "ndcg": ndcg_at_k,
    "mrr": mrr_at_k,
    "map": map_at_k,
    "precision": precision_at_k,
    "hit_rate": hit_rate_at_k,
}
IGNORED = -100
TRAINER_K = 10
TargetFilter = Literal["all", "new", "repeated"]


@dataclass(frozen=True)
class EvaluationResult:
    """What one evaluation measured.

    Attributes:
        metrics: means by report key, such as `"recall@10"`.
        intervals: `[low, high]`, 95 % over users, for the metrics that are means over users.
        per_user: `[num_users]` arrays by report key, in the order of the evaluated rows.
        num_users: users that had a target.
        user_rows: `[num_users]` positions of the evaluated rows, to pair two results by.
        num_targets: held-out items of these users.
        num_unknown: those among them that the vocabulary does not have: no list can hold them.
    """

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    per_user: dict[str, np.ndarray]
    num_users: int
    user_rows: np.ndarray
    num_targets: int
    num_unknown: int

    def to_dict(self) -> dict[str, Any]:
        """Metrics, intervals and numbers of users and targets as plain JSON values."""
        return {
            "metrics": dict(self.metrics),
            "intervals": {key: list(pair) for key, pair in self.intervals.items()},
            "num_users": self.num_users,
            "num_targets": self.num_targets,
            "num_unknown": self.num_unknown,
        }

    def by_group(self, groups: np.ndarray) -> dict[str, dict[str, Any]]:
        """Means over the users of each group, as [`~EvaluationResult.to_dict`] has those of all.

        Args:
            groups: `[num_users]` name of each user's group, in the order of `user_rows`.

        Raises:
            ValueError: for another number of names.
        """
        if len(groups) != self.num_users:
            raise ValueError(f"expected a group for {self.num_users} users, got {len(groups)}")
        found = {}
        for name in dict.fromkeys(sorted(groups.tolist())):
            values = {key: column[groups == name] for key, column in self.per_user.items()}
            bounds = {key: confidence_interval(column) for key, column in values.items()}
            found[name] = {
                "metrics": {key: bound[0] for key, bound in bounds.items()},
                "intervals": {key: list(bound[1:]) for key, bound in bounds.items()},
                "num_users": int((groups == name).sum()),
            }
        return found


def evaluate(
    scorer: Scorer,
    rows: Sequence[Row] | Dataset,
    *,
    ks: Sequence[int] = (10,),
    seen: Seen,
    num_items: int,
    item_counts: np.ndarray | None = None,
    target_filter: TargetFilter = "all",
    batch_size: int = 256,
    progress: bool = True,
) -> EvaluationResult:
    """Ranks the whole catalogue for every row and measures the lists against its targets.

    Args:
        scorer: a name and `score(rows) -> [batch, vocab_size]`.
        rows: encoded rows with `input_ids` and `target_ids`; a target of -1 is unknown to the
            vocabulary and counts as a relevant item that no list can hold.
        ks: list lengths.
        seen: `"exclude"` never recommends an item of the history, `"keep"` may.
        num_items: size of the catalogue, `vocab_size - 1`.
        item_counts: `[vocab_size]` training events a token, for novelty; without, no novelty.
        target_filter: `"all"`; `"new"` keeps targets that are not in the history and goes with
            `seen="exclude"`; `"repeated"` keeps those that are and goes with `seen="keep"`.
        batch_size: rows whose scores exist at one time.
        progress: shows a progress bar.

    Users left without a target are not evaluated.

    Raises:
        ValueError: if options contradict each other, a target is invalid or none is left; for a model in
            the place of a scorer, or rows without targets.
    """
    _check_given(scorer, rows)
    _check_options(ks, seen, target_filter)
    targets, kept = _read_targets(rows, num_items, target_filter, batch_size)
    chosen = rows.select(kept) if isinstance(rows, Dataset) else [rows[i] for i in kept]
    ranked = rank_histories(
        scorer.score, chosen, k=max(ks), seen=seen, batch_size=batch_size, progress=progress
    )
    hits = _find_hits(ranked, targets)
    num_relevant = np.array([len(tokens) for tokens in targets])
    per_user = {
        f"{name}@{k}": metric(hits, num_relevant, k=k)
        for k in ks
        for name, metric in USER_METRICS.items()
    }
    bounds = {key: confidence_interval(values) for key, values in per_user.items()}
    metrics = {key: bound[0] for key, bound in bounds.items()}
    for k in ks:
        metrics[f"coverage@{k}"] = coverage_at_k(ranked, num_items, k=k)
        metrics[f"gini@{k}"] = gini_at_k(ranked, num_items, k=k)
        if item_counts is not None:
            metrics[f"novelty@{k}"] = novelty_at_k(ranked, item_counts, k=k)
    intervals = {key: list(bound[1:]) for key, bound in bounds.items()}
    asked = np.concatenate(targets)
    numbers = (len(asked), int((asked < 0).sum()))
    return EvaluationResult(metrics, intervals, per_user, len(kept), np.array(kept), *numbers)


def _check_given(scorer: Scorer, rows: Sequence[Row] | Dataset) -> None:
    if isinstance(scorer, torch.nn.Module):
        raise ValueError("expected a scorer, such as ModelScorer(model), got the model itself")
    if len(rows):
        check_encoded(rows[0], "input_ids", "target_ids")


def _check_options(ks: Sequence[int], seen: Seen, target_filter: TargetFilter) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must hold positive list lengths, got {ks}")
    needed = {"all": seen, "new": "exclude", "repeated": "keep"}
    if target_filter not in needed:
        raise ValueError(f"target_filter must be one of {list(needed)}, got {target_filter!r}")
    if needed[target_filter] != seen:
        raise ValueError(
            f"target_filter={target_filter!r} goes with seen={needed[target_filter]!r}, "
            f"got {seen!r}"
        )


def _read_targets(
    rows: Sequence[Row] | Dataset, num_items: int, target_filter: TargetFilter, batch_size: int
) -> tuple[list[np.ndarray], list[int]]:
    """The targets of every row that has one, and the positions of these rows."""
    targets, kept, position = [], [], 0
    for batch in row_batches(rows, batch_size):
        for row in batch:
            tokens = np.asarray(row["target_ids"], dtype=np.int64)
            _check_targets(tokens, num_items)
            if target_filter != "all":
                repeated = np.isin(tokens, np.asarray(row["input_ids"], dtype=np.int64))
                tokens = tokens[repeated if target_filter == "repeated" else ~repeated]
            if len(tokens):
                targets.append(tokens)
                kept.append(position)
            position += 1
    if not kept:
        raise ValueError(f"no row has a target (target_filter={target_filter!r})")
    return targets, kept


def _check_targets(tokens: np.ndarray, num_items: int) -> None:
    known = tokens[tokens != -1]
    if known.size and not 1 <= known.min() <= known.max() <= num_items:
        raise ValueError(f"target_ids must be -1 or in 1..{num_items}, got {tokens.tolist()}")
    if len(np.unique(known)) < len(known):
        raise ValueError(f"known target_ids of a row must be distinct, got {tokens.tolist()}")


def _find_hits(ranked: np.ndarray, targets: list[np.ndarray], chunk: int = 1024) -> np.ndarray:
    """bool `[users, k]`: is the j-th ranked item one of the user's targets?"""
    hits = np.zeros(ranked.shape, dtype=bool)
    for start in range(0, len(ranked), chunk):
        part = slice(start, start + chunk)
        padded = pad_tokens(targets[part], padding=-1)  # [users, most targets]
        for j in range(ranked.shape[1]):
            hits[part, j] = (ranked[part, j, None] == padded).any(1)
    return hits


def did_it_happen(
    scorer: Scorer,
    rows: Sequence[Row] | Dataset,
    *,
    item_counts: np.ndarray,
    generator: np.random.Generator,
    negatives: Literal["uniform", "popularity"] = "uniform",
    batch_size: int = 256,
) -> dict[str, float]:
    """The pointwise question: is the held-out item scored above an item that did not happen?

    Every row with a known target gives one pair: one of its known targets, drawn evenly, and one
    item that is neither in its history nor among its targets. A target may repeat the history,
    which makes the pair easy where people buy or play things again.

    Args:
        scorer: a name and `score(rows)`.
        rows: encoded rows with `input_ids` and `target_ids`.
        item_counts: `[vocab_size]` training events a token.
        generator: draws targets and negatives.
        negatives: `"uniform"` over the catalogue or in proportion to `item_counts`.
        batch_size: rows whose scores exist at one time.

    Returns:
        `"auc"` over all positives and negatives together, `"paired_accuracy"` within the pairs
        (ties half) and `"num_pairs"`.
    """
    if negatives not in ("uniform", "popularity"):
        raise ValueError(f"negatives must be 'uniform' or 'popularity', got {negatives!r}")
    counts = np.asarray(item_counts, dtype=np.float64)
    chances = np.ones(len(counts)) if negatives == "uniform" else counts.copy()
    chances[0] = 0.0
    positive, negative = [], []
    for batch in row_batches(rows, batch_size):
        check_encoded(batch[0], "input_ids", "target_ids")
        known = [row for row in batch if any(token > 0 for token in row["target_ids"])]
        if not known:
            continue
        targets = [
            generator.choice([token for token in row["target_ids"] if token > 0]) for row in known
        ]
        others = [_draw_unseen(row, chances, generator) for row in known]
        scores = np.asarray(scorer.score(known))
        positive.append(scores[np.arange(len(known)), targets])
        negative.append(scores[np.arange(len(known)), others])
    if not positive:
        raise ValueError("no row has a known target")
    happened, did_not = np.concatenate(positive), np.concatenate(negative)
    return {
        "auc": auc(happened, did_not),
        "paired_accuracy": float(paired_accuracy(happened, did_not).mean()),
        "num_pairs": float(len(happened)),
    }


def _draw_unseen(row: Row, chances: np.ndarray, generator: np.random.Generator) -> int:
    """A token outside the row's history and targets, drawn in proportion to `chances`."""
    taken = np.concatenate([row["input_ids"], row["target_ids"]]).astype(np.int64)
    left = chances.copy()
    left[taken[taken > 0]] = 0.0
    cumulative = np.cumsum(left)
    if cumulative[-1] <= 0:
        raise ValueError("a row has no unseen item to draw as a negative")
    drawn = generator.random() * cumulative[-1]
    return int(np.searchsorted(cumulative, drawn, side="right"))


def results_table(results: Mapping[str, EvaluationResult], columns: Sequence[str]) -> str:
    """A Markdown table with aligned columns, one row a model, four decimals.

    Raises:
        ValueError: if a result lacks a column.
    """
    lines = [["model", *columns]]
    for name, result in results.items():
        missing = [column for column in columns if column not in result.metrics]
        if missing:
            raise ValueError(f"{name} has no {missing}, only {sorted(result.metrics)}")
        lines.append([name, *(f"{result.metrics[column]:.4f}" for column in columns)])
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(columns) + 1)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def reduce_logits_to_hits(
    logits: torch.Tensor | tuple[torch.Tensor, ...], target_ids: torch.Tensor
) -> torch.Tensor:
    """Trainer's `preprocess_logits_for_metrics`: what metrics at 10 need, int64 `[batch, 11]`.

    Column 0 is the number of targets, then whether each of the ten best items is one. So no
    catalogue-sized scores are kept. Token 0 and items whose score is NaN or `-inf` are no hits.

    Args:
        logits: scores `[batch, vocab_size]`, or a tuple that starts with them.
        target_ids: `[batch, targets]`, -1 for a target that cannot be hit, -100 for padding.

    >>> scores = torch.tensor([[9.0, 1.0, 3.0, 2.0]])
    >>> reduce_logits_to_hits(scores, torch.tensor([[3, -1, -100]]))[0, :4].tolist()
    [2, 0, 1, 0]
    """
    scores = logits[0] if isinstance(logits, tuple) else logits
    if scores.ndim != 2 or target_ids.ndim != 2 or len(scores) != len(target_ids):
        raise ValueError(
            f"expected scores [batch, vocab_size] and target_ids [batch, targets], "
            f"got {tuple(scores.shape)} and {tuple(target_ids.shape)}"
        )
    items = scores[:, 1:].nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    best, places = items.topk(min(TRAINER_K, items.shape[1]), dim=1)
    hits = ((places + 1)[:, :, None] == target_ids[:, None, :]).any(2) & (best > -torch.inf)
    hits = torch.nn.functional.pad(hits.long(), (0, TRAINER_K - hits.shape[1]))
    return torch.cat([(target_ids != IGNORED).sum(1, keepdim=True), hits], dim=1)


def compute_hit_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Trainer's `compute_metrics` on the output of [`reduce_logits_to_hits`]: means over users."""
    predictions = eval_prediction.predictions
    table = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    table = table[table[:, 0] > 0]
    if not len(table):
        raise ValueError("no row has a target: do the evaluation rows have target_ids?")
    hits, num_relevant = table[:, 1:].astype(bool), table[:, 0]
    return {
        f"{name}@{TRAINER_K}": float(USER_METRICS[name](hits, num_relevant, k=TRAINER_K).mean())
        for name in ("ndcg", "recall", "mrr")
    }
