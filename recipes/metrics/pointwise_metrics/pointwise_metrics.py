"""Pointwise metrics for `evaluate.load`: did a scored event happen or not?"""

import datasets
import evaluate
import numpy as np

from modeling_implicitrec import auc, paired_accuracy

_DESCRIPTION = """
AUC and paired accuracy of scores of events that happened (1) and events that did not (0).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, larger means likelier.
    references: 1 for an event that happened, 0 for one that did not.
    paired: whether the i-th event that happened belongs to the i-th that did not; then there must
        be as many of either.
Returns:
    a dictionary with `auc` and, if `paired`, `paired_accuracy` (ties count half).
Examples:
    >>> metric = evaluate.load("recipes/metrics/pointwise_metrics")
    >>> metric.compute(predictions=[2.0, 1.0], references=[1, 0])
    {'auc': 1.0}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PointwiseMetrics(evaluate.Metric):
    """`auc` and `paired_accuracy`."""

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Value("float64"),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: list[float], references: list[int], paired: bool = False
    ) -> dict[str, float]:
        scores, happened = np.asarray(predictions), np.asarray(references)
        if not np.isin(happened, [0, 1]).all():
            raise ValueError("references must be 0 or 1")
        positive, negative = scores[happened == 1], scores[happened == 0]
        result = {"auc": auc(positive, negative)}
        if paired:
            result["paired_accuracy"] = float(paired_accuracy(positive, negative).mean())
        return result
