"""Ranking metrics for `evaluate.load`: recommended lists against the items that happened."""

import datasets
import evaluate
import numpy as np

from modeling_implicitrec import (
    hit_rate_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
)

_DESCRIPTION = """
Means over users of recall, NDCG, MRR, MAP, precision and hit rate at k, with binary relevance.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each user the recommended item ids, best first, at least k of them.
    references: for each user the distinct ids of the items that happened, at least one.
    k: length of the list that counts.
Returns:
    a dictionary with `recall@k`, `ndcg@k`, `mrr@k`, `map@k`, `precision@k` and `hit_rate@k`.
Examples:
    >>> metric = evaluate.load("recipes/metrics/ranking_metrics")
    >>> metric.compute(predictions=[[4, 2]], references=[[2]], k=2)["mrr@2"]
    0.5
"""

_METRICS = {
    "recall": recall_at_k,
    "ndcg": ndcg_at_k,
    "mrr": mrr_at_k,
    "map": map_at_k,
    "precision": precision_at_k,
    "hit_rate": hit_rate_at_k,
}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RankingMetrics(evaluate.Metric):
    """`recall@k`, `ndcg@k`, `mrr@k`, `map@k`, `precision@k` and `hit_rate@k`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def _compute(
        self, predictions: list[list[int]], references: list[list[int]], k: int = 10
    ) -> dict[str, float]:
        short = [len(ranked) for ranked in predictions if len(ranked) < k]
        if short:
            raise ValueError(f"every list needs at least k={k} items, got one of {short[0]}")
        pairs = list(zip(predictions, references, strict=True))
        if any(len(set(ranked[:k])) < k for ranked, _ in pairs):
            raise ValueError("a recommended list holds an item twice")
        hits = np.array([np.isin(ranked[:k], relevant) for ranked, relevant in pairs])
        num_relevant = np.array([len(set(relevant)) for relevant in references])
        return {
            f"{name}@{k}": float(metric(hits, num_relevant, k=k).mean())
            for name, metric in _METRICS.items()
        }
