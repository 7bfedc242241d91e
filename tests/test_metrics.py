"""Metrics against hand-made tables, against `ranx`, and through `evaluate.load`."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modeling_implicitrec import metrics

RECIPES = Path(__file__).parents[1] / "recipes" / "metrics"
HITS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]], dtype=bool)
NUM_RELEVANT = np.array([3, 1, 6])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (metrics.hit_rate_at_k, [1, 0, 1]),
        (metrics.recall_at_k, [2 / 3, 0, 1 / 6]),
        (metrics.precision_at_k, [2 / 3, 0, 1 / 3]),
        (metrics.mrr_at_k, [1, 0, 1 / 2]),
        (metrics.map_at_k, [(1 + 2 / 3) / 3, 0, (1 / 2) / 3]),
        (
            metrics.ndcg_at_k,
            [1.5 / (1.5 + 1 / math.log2(3)), 0, (1 / math.log2(3)) / (1.5 + 1 / math.log2(3))],
        ),
    ],
)
def test_hand_made_table_at_three(metric: Callable, expected: list[float]) -> None:
    values = metric(HITS, NUM_RELEVANT, k=3)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def random_lists(users: int = 60, items: int = 40) -> tuple[np.ndarray, list[np.ndarray]]:
    generator = np.random.default_rng(3)
    ranked = np.stack([generator.permutation(items)[:20] + 1 for _ in range(users)])
    relevant = [
        generator.choice(items, generator.integers(1, 9), replace=False) + 1 for _ in range(users)
    ]
    return ranked, relevant


@pytest.mark.parametrize("k", [1, 5, 20])
def test_agrees_with_ranx(k: int) -> None:
    ranx = pytest.importorskip("ranx")
    ranked, relevant = random_lists()
    hits = np.array([np.isin(row, r) for row, r in zip(ranked, relevant, strict=True)])
    counts = np.array([len(r) for r in relevant])
    qrels = ranx.Qrels({f"u{u}": {str(i): 1 for i in r} for u, r in enumerate(relevant)})
    run = ranx.Run(
        {f"u{u}": {str(i): float(-j) for j, i in enumerate(row)} for u, row in enumerate(ranked)}
    )
    names = ["hit_rate", "recall", "precision", "ndcg", "mrr"]
    theirs = ranx.evaluate(qrels, run, [f"{name}@{k}" for name in names], make_comparable=True)
    for name in names:
        ours = getattr(metrics, f"{name}_at_k")(hits, counts, k=k).mean()
        reference = theirs[f"{name}@{k}"] if isinstance(theirs, dict) else theirs
        assert ours == pytest.approx(reference, abs=1e-9), name
    # ranx divides average precision by the number of relevant items, not by min(that, k).
    ours = (metrics.map_at_k(hits, counts, k=k) * np.minimum(counts, k) / counts).mean()
    assert ours == pytest.approx(ranx.evaluate(qrels, run, f"map@{k}"), abs=1e-9)


def test_coverage_novelty_and_gini_by_hand() -> None:
    recommended = np.array([[1, 2, 3], [1, 0, 4]])
    counts = np.array([99, 4, 2, 0, 2])
    assert metrics.coverage_at_k(recommended, 4, k=2) == 0.5
    assert metrics.novelty_at_k(recommended, counts, k=2) == pytest.approx((1 + 2 + 1) / 3)
    assert metrics.novelty_at_k(recommended, counts, k=3) == pytest.approx((1 + 2 + 3 + 1 + 2) / 5)
    # Exposures 2, 1, 0, 0: mean absolute difference / (2 * mean).
    exposures = np.array([2, 1, 0, 0])
    gaps = np.abs(exposures[:, None] - exposures[None, :]).mean()
    assert metrics.gini_at_k(recommended, 4, k=2) == pytest.approx(gaps / (2 * exposures.mean()))


def test_auc_counts_all_pairs_and_ties_half() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 9, 30) + 1, generator.integers(0, 9, 50)
    gaps = positive[:, None] - negative[None, :]
    expected = (gaps > 0).mean() + (gaps == 0).mean() / 2
    assert metrics.auc(positive, negative) == pytest.approx(expected)
    assert metrics.paired_accuracy([1, 2, 3], [2, 2, 2]).tolist() == [0, 0.5, 1]


def test_confidence_interval_is_the_normal_one() -> None:
    values = np.array([0.0, 1.0] * 50)
    mean, low, high = metrics.confidence_interval(values)
    half = 1.959964 * values.std(ddof=1) / 10
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert metrics.confidence_interval(values, level=0.99)[1] < low


def test_paired_bootstrap_sees_a_small_but_steady_gain() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(300)
    better = base + 0.02 + 0.01 * generator.standard_normal(300)
    mean, low, high = metrics.paired_bootstrap(better, base, generator=generator)
    assert 0 < low < mean < high and mean == pytest.approx(0.02, abs=0.003)
    first = metrics.paired_bootstrap(better, base, generator=np.random.default_rng(1))
    assert first == metrics.paired_bootstrap(better, base, generator=np.random.default_rng(1))


@pytest.mark.parametrize("k", [0, -1, 5, 2.0, True])
def test_bad_k_is_refused(k: object) -> None:
    with pytest.raises(ValueError, match="k must|shape"):
        metrics.recall_at_k(HITS, NUM_RELEVANT, k=k)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        metrics.ndcg_at_k(HITS, np.array([3, 0, 6]), k=2)
    with pytest.raises(ValueError, match="num_relevant must have shape"):
        metrics.ndcg_at_k(HITS, np.array([3, 1]), k=2)
    with pytest.raises(ValueError, match="more hits"):
        metrics.ndcg_at_k(HITS, np.array([1, 1, 6]), k=2)
    with pytest.raises(ValueError, match="tokens must lie"):
        metrics.coverage_at_k(np.array([[1, 5]]), 4, k=2)
    with pytest.raises(ValueError, match="pairs"):
        metrics.paired_accuracy([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        metrics.auc([np.nan], [1.0])
    with pytest.raises(ValueError, match="same users"):
        metrics.paired_bootstrap([1.0], [1.0, 2.0], generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="level"):
        metrics.confidence_interval([1.0], level=95)


@pytest.fixture
def load_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    return lambda name: evaluate.load(str(RECIPES / name), cache_dir=str(tmp_path))


def test_ranking_metrics_load_through_evaluate(load_metric: Callable) -> None:
    ranked, relevant = random_lists()
    metric = load_metric("ranking_metrics")
    loaded = metric.compute(
        predictions=ranked.tolist(), references=[r.tolist() for r in relevant], k=5
    )
    hits = np.array([np.isin(row, r) for row, r in zip(ranked, relevant, strict=True)])
    counts = np.array([len(r) for r in relevant])
    names = ["recall", "ndcg", "mrr", "map", "precision", "hit_rate"]
    assert sorted(loaded) == sorted(f"{name}@5" for name in names)
    for name in names:
        assert loaded[f"{name}@5"] == getattr(metrics, f"{name}_at_k")(hits, counts, k=5).mean()
    with pytest.raises(ValueError, match="at least k=10"):
        metric.compute(predictions=[[1, 2]], references=[[1]])


def test_pointwise_metrics_load_through_evaluate(load_metric: Callable) -> None:
    metric = load_metric("pointwise_metrics")
    scores, happened = [2.0, 1.0, 0.5, 1.5], [1, 0, 1, 0]
    loaded = metric.compute(predictions=scores, references=happened, paired=True)
    assert loaded == {
        "auc": metrics.auc([2.0, 0.5], [1.0, 1.5]),
        "paired_accuracy": metrics.paired_accuracy([2.0, 0.5], [1.0, 1.5]).mean(),
    }
    with pytest.raises(ValueError, match="0 or 1"):
        metric.compute(predictions=[1.0], references=[2])
