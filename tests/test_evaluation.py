"""Evaluation: targets, filters, unknown items, and the hooks that Trainer takes."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import tiny
from transformers import EvalPrediction

from modeling_implicitrec.evaluation import (
    EvaluationResult,
    compute_hit_metrics,
    did_it_happen,
    evaluate,
    reduce_logits_to_hits,
    results_table,
)
from modeling_implicitrec.scoring import ModelScorer


class Falling:
    """Scores item 1 highest, then 2, and so on; padding would win if it competed."""

    name = "falling"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def score(self, rows: list[dict]) -> np.ndarray:
        return np.tile(-np.arange(self.vocab_size, dtype=np.float32), (len(rows), 1))


ROWS = [
    {"input_ids": [1, 2], "target_ids": [3, 1]},
    {"input_ids": [5], "target_ids": [-1, 2]},
    {"input_ids": [2], "target_ids": [2]},
    {"input_ids": [], "target_ids": []},
]


def run(rows: list[dict] | Dataset, **options: object) -> EvaluationResult:
    return evaluate(Falling(7), rows, num_items=6, progress=False, **options)


@pytest.mark.parametrize("as_dataset", [True, False])
@pytest.mark.parametrize("batch_size", [1, 256])
def test_new_targets_with_seen_excluded(as_dataset: bool, batch_size: int) -> None:
    rows = Dataset.from_list(ROWS) if as_dataset else ROWS
    result = run(rows, ks=(1, 2), seen="exclude", target_filter="new", batch_size=batch_size)
    assert result.num_users == 2 and result.user_rows.tolist() == [0, 1]
    assert result.per_user["recall@1"].tolist() == [1, 0]
    assert result.per_user["recall@2"].tolist() == [1, 0.5]
    ndcg = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    np.testing.assert_allclose(result.per_user["ndcg@2"], [1, ndcg])
    assert result.metrics["mrr@2"] == 0.75 and result.metrics["coverage@2"] == 4 / 6


def test_all_targets_with_seen_kept_or_excluded() -> None:
    kept = run(ROWS, ks=(2,), seen="keep")
    assert kept.num_users == 3
    assert kept.per_user["recall@2"].tolist() == [0.5, 0.5, 1]
    excluded = run(ROWS, ks=(2,), seen="exclude")
    assert excluded.per_user["recall@2"].tolist() == [0.5, 0.5, 0]


def test_results_of_groups_are_those_of_their_users() -> None:
    result = run(ROWS, ks=(2,), seen="keep")
    groups = result.by_group(np.array(["short", "long", "short"]))
    assert {name: group["num_users"] for name, group in groups.items()} == {"long": 1, "short": 2}
    assert groups["short"]["metrics"]["recall@2"] == 0.75
    assert groups["long"]["intervals"]["recall@2"] == [0.5, 0.5]
    with pytest.raises(ValueError, match="a group for 3 users, got 1"):
        result.by_group(np.array(["short"]))


def test_repeated_targets_with_seen_kept() -> None:
    result = run(ROWS, ks=(1,), seen="keep", target_filter="repeated")
    assert result.user_rows.tolist() == [0, 2]
    assert result.per_user["recall@1"].tolist() == [1, 0]


def test_unknown_targets_lower_recall_but_never_hit() -> None:
    rows = [{"input_ids": [1, 2, 3, 4, 5], "target_ids": [-1, -1, 6]}]
    result = run(rows, ks=(3,), seen="exclude")
    assert result.metrics["recall@3"] == pytest.approx(1 / 3)
    assert result.metrics["hit_rate@3"] == 1 and result.metrics["precision@3"] == 1 / 3
    assert (result.num_targets, result.num_unknown) == (3, 2)


def test_report_keys_intervals_and_json() -> None:
    counts = np.array([0, 8, 4, 2, 1, 1, 0])
    result = run(ROWS, ks=(2, 3), seen="keep", item_counts=counts)
    names = ["recall", "ndcg", "mrr", "map", "precision", "hit_rate"]
    people = {f"{name}@{k}" for name in names for k in (2, 3)}
    lists = {f"{name}@{k}" for name in ("coverage", "novelty", "gini") for k in (2, 3)}
    assert set(result.metrics) == people | lists and set(result.intervals) == people
    assert set(result.per_user) == people
    low, high = result.intervals["recall@2"]
    assert low < result.metrics["recall@2"] < high
    assert json.loads(json.dumps(result.to_dict()))["num_users"] == 3
    assert not [key for key in run(ROWS, ks=(2,), seen="keep").metrics if "novelty" in key]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seen": "keep", "target_filter": "new"}, "goes with seen='exclude'"),
        ({"seen": "exclude", "target_filter": "repeated"}, "goes with seen='keep'"),
        ({"seen": "keep", "target_filter": "some"}, "target_filter must"),
        ({"seen": "only"}, "seen must"),
        ({"seen": "keep", "ks": ()}, "ks must"),
        ({"seen": "keep", "ks": (0,)}, "ks must"),
        ({"seen": "keep", "ks": (7,)}, "k must lie"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(ROWS, **({"ks": (2,)} | options))


@pytest.mark.parametrize("targets", [[0], [7], [-2], [3, 3]])
def test_bad_targets_are_refused(targets: list[int]) -> None:
    with pytest.raises(ValueError, match="target_ids"):
        run([{"input_ids": [1], "target_ids": targets}], ks=(2,), seen="keep")


def test_a_model_is_no_scorer_and_training_rows_have_no_targets() -> None:
    asked = {"num_items": 30, "seen": "keep", "progress": False}
    with pytest.raises(ValueError, match=r"such as ModelScorer\(model\)"):
        evaluate(tiny(), ROWS, **asked)
    with pytest.raises(ValueError, match="and target_ids.* got rows with input_ids"):
        evaluate(ModelScorer(tiny()), [{"input_ids": [1]}], **asked)


def test_no_target_left_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row has a target"):
        run(ROWS[2:], ks=(2,), seen="exclude", target_filter="new")


@pytest.mark.parametrize("negatives", ["uniform", "popularity"])
def test_did_it_happen_with_a_known_answer(negatives: str) -> None:
    counts = np.array([0, 8, 4, 2, 1, 1, 1])
    best = [{"input_ids": [2], "target_ids": [1]}] * 9 + [{"input_ids": [2], "target_ids": [-1]}]
    options = {"item_counts": counts, "negatives": negatives}
    result = did_it_happen(Falling(7), best, generator=np.random.default_rng(0), **options)
    assert result == {"auc": 1.0, "paired_accuracy": 1.0, "num_pairs": 9.0}
    worst = [{"input_ids": [2], "target_ids": [6]}]
    result = did_it_happen(Falling(7), worst, generator=np.random.default_rng(0), **options)
    assert result["auc"] == 0 and result["paired_accuracy"] == 0


def test_negatives_are_unseen_and_follow_popularity() -> None:
    class Recorder(Falling):
        def score(self, rows: list[dict]) -> np.ndarray:
            scores = np.tile(np.arange(7, dtype=np.float32), (len(rows), 1))
            scores[:, 4] = 2.5  # the target lies between negatives 2 and 3
            return scores

    rows = [{"input_ids": [1, 5, 6], "target_ids": [4, -1]}] * 2000  # negatives can only be 2 and 3
    counts = np.array([0, 50, 9, 1, 50, 50, 50])
    draw = {"item_counts": counts, "generator": np.random.default_rng(0)}
    uniform = did_it_happen(Recorder(7), rows, **draw)["paired_accuracy"]
    popular = did_it_happen(Recorder(7), rows, negatives="popularity", **draw)["paired_accuracy"]
    assert uniform == pytest.approx(0.5, abs=0.05) and popular == pytest.approx(0.9, abs=0.03)
    with pytest.raises(ValueError, match="no unseen item"):
        full = [{"input_ids": [1, 2, 3, 5, 6], "target_ids": [4]}]
        did_it_happen(Recorder(7), full, **draw)
    with pytest.raises(ValueError, match="negatives must"):
        did_it_happen(Recorder(7), rows, negatives="hard", **draw)


def test_results_table_is_aligned_markdown() -> None:
    result = run(ROWS, ks=(2,), seen="keep")
    lines = results_table({"a": result, "longer": result}, ["recall@2", "mrr@2"]).split("\n")
    assert lines[0] == "| model  | recall@2 |  mrr@2 |"
    assert lines[1] == "| ------ | -------: | -----: |"
    assert lines[2] == "| a      |   0.6667 | 0.6667 |"
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(ValueError, match="has no"):
        results_table({"a": result}, ["recall@5"])


def test_hits_of_targets_and_padding() -> None:
    scores = torch.tensor([[9.0, 1.0, 3.0, 2.0]] * 3)
    targets = torch.tensor([[3, -100], [1, 2], [-1, -100]])
    hits = reduce_logits_to_hits((scores, None), targets)
    assert hits[:, :4].tolist() == [[1, 0, 1, 0], [2, 1, 0, 1], [1, 0, 0, 0]]
    assert hits.shape == (3, 11)
    assert (hits[:, 4:] == 0).all()


def test_nan_scores_are_no_hits() -> None:
    scores = torch.full((1, 5), torch.nan)
    assert reduce_logits_to_hits(scores, torch.tensor([[2]]))[0, 1:].sum() == 0


def test_hits_agree_with_full_evaluation() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 31, generator=generator)
    targets = torch.rand(50, 31, generator=generator)[:, 1:].topk(3).indices + 1
    targets[::2, 2] = -100
    targets[::3, 1] = -1

    class Table:
        name = "table"

        def score(self, rows: list[dict]) -> np.ndarray:
            return scores[[row["number"] for row in rows]].numpy()

    rows = [
        {"number": u, "input_ids": [], "target_ids": [t for t in row if t != -100]}
        for u, row in enumerate(targets.tolist())
    ]
    full = evaluate(Table(), rows, seen="keep", num_items=30, batch_size=7, progress=False)
    hits = reduce_logits_to_hits(scores, targets).numpy()
    hits = np.concatenate([hits, np.zeros_like(hits[:1])])  # a row without a target
    hooked = compute_hit_metrics(EvalPrediction(predictions=hits, label_ids=None))
    assert set(hooked) == {"ndcg@10", "recall@10", "mrr@10"}
    for key, value in hooked.items():
        assert value == pytest.approx(full.metrics[key])


def test_hit_hooks_refuse_bad_input() -> None:
    with pytest.raises(ValueError, match="expected scores"):
        reduce_logits_to_hits(torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="no row has a target"):
        compute_hit_metrics(EvalPrediction(predictions=np.zeros((1, 11)), label_ids=None))


def test_rows_that_were_never_encoded_are_refused_by_what_they_lack() -> None:
    raw = Dataset.from_list([{"user_id": 7, "item_id": "tea"}])
    said = "input_ids and target_ids, as recipes/prepare.py .*encode_splits.*with user_id, item_id"
    with pytest.raises(ValueError, match=said):
        run(raw, seen="keep")
    with pytest.raises(ValueError, match=said):
        draw = {"item_counts": np.ones(7), "generator": np.random.default_rng(0)}
        did_it_happen(Falling(7), raw, **draw)
