"""Baselines on a checkerboard world whose right answer is known, and against direct formulas."""

import sys
from collections.abc import Callable

import numpy as np
import pytest
from datasets import Dataset

from modeling_implicitrec import BPR, baselines
from modeling_implicitrec.ranking import rank_histories

DAY = 86_400
ITEMS = 20
VOCAB = ITEMS + 1


def checkerboard() -> tuple[list[dict], list[int]]:
    """User u likes the items of parity u % 2, in turn, all but one; returns rows and that one."""
    rows, withheld = [], []
    for user in range(ITEMS):
        group = [item for item in range(1, VOCAB) if item % 2 == user % 2]
        missing = group[user // 2]
        start = group.index(missing) + 1
        rows.append({"input_ids": [i for i in group[start:] + group[:start] if i != missing]})
        withheld.append(missing)
    return rows, withheld


PERSONAL: list[Callable] = [
    baselines.Cooccurrence,
    baselines.EASE,
    lambda rows, size: baselines.ItemKNN(rows, size, neighbours=ITEMS),
    lambda rows, size: baselines.ALS(rows, size, factors=2, regularization=0.1),
]


@pytest.mark.parametrize("build", PERSONAL, ids=["cooccurrence", "ease", "knn", "als"])
@pytest.mark.parametrize("as_dataset", [True, False])
def test_withheld_item_of_the_own_group_ranks_first(build: Callable, as_dataset: bool) -> None:
    rows, withheld = checkerboard()
    scorer = build(Dataset.from_list(rows) if as_dataset else rows, VOCAB)
    ranked = rank_histories(scorer.score, rows, k=1, seen="exclude", progress=False)
    assert ranked[:, 0].tolist() == withheld
    scores = scorer.score(rows[:3])
    assert scores.shape == (3, VOCAB) and scores.dtype == np.float32


@pytest.mark.parametrize("build", PERSONAL, ids=["cooccurrence", "ease", "knn", "als"])
def test_scores_follow_the_history_given_not_the_trained_user(build: Callable) -> None:
    rows, _ = checkerboard()
    scorer = build(rows, VOCAB)
    together = scorer.score([rows[1], rows[0], {"input_ids": []}])
    np.testing.assert_allclose(together[0], scorer.score([rows[1]])[0], atol=1e-5)
    assert np.isfinite(together).all()
    new_user = scorer.score([{"input_ids": [2, 4, 6]}])[0]
    even, odd = new_user[8::2], new_user[7::2]
    assert even.min() > odd.max() or even.mean() > odd.mean() + 1e-3


def test_bpr_knows_users_and_gives_others_the_popular() -> None:
    rows, withheld = checkerboard()
    named = [dict(row, user_id=f"user {place}") for place, row in enumerate(rows)]
    for data in (named, Dataset.from_list(named)):
        scorer = BPR(data, VOCAB, factors=4, learning_rate=0.1, iterations=200)
        ranked = rank_histories(scorer.score, data, k=1, seen="exclude", progress=False)
        assert ranked[:, 0].tolist() == withheld
    stranger = scorer.score([{"user_id": "nobody", "input_ids": [1]}, named[0]])
    counts = np.bincount(np.concatenate([row["input_ids"] for row in rows]), minlength=VOCAB)
    assert stranger[0].tolist() == counts.tolist()
    np.testing.assert_allclose(stranger[1], scorer.score(named[:1])[0], atol=1e-5)
    for data in (rows, Dataset.from_list(rows)):
        with pytest.raises(ValueError, match="user_id"):
            BPR(data, VOCAB)


def test_popularity_counts_events() -> None:
    rows = [{"input_ids": [1, 1, 3]}, {"input_ids": [3]}, {"input_ids": []}]
    for data in (rows, Dataset.from_list(rows)):
        scores = baselines.Popularity(data, 5).score(rows[:2])
        assert scores.tolist() == [[0, 2, 0, 2, 0]] * 2


def test_recent_popularity_reads_the_last_days_only() -> None:
    rows = [{"input_ids": [1, 1, 1, 2], "timestamps": [0, 1, 2, 20 * DAY]}]
    rows.append({"input_ids": [3, 2], "timestamps": [13 * DAY, 19 * DAY]})
    scores = baselines.RecentPopularity(rows, 5, days=7).score(rows)[0]
    np.testing.assert_allclose(scores, [0, 0, 2, 0, 0], atol=2e-4)
    assert np.argsort(-scores[1:])[:3].tolist() == [1, 0, 2]


def test_own_frequency_counts_decay_and_break_ties_by_popularity() -> None:
    train = [{"input_ids": [4, 4, 3]}]
    row = {"input_ids": [1, 2, 1], "timestamps": [0, 10 * DAY, 10 * DAY]}
    plain = baselines.OwnFrequency(train, 5).score([row])[0]
    np.testing.assert_allclose(plain, [0, 2, 1, 0, 0], atol=2e-4)
    assert plain[4] > plain[3] > 0
    decayed = baselines.OwnFrequency(train, 5, half_life_days=5).score([row, row])
    np.testing.assert_allclose(decayed[1], [0, 1.25, 1, 0, 0], atol=2e-4)


def test_cooccurrence_against_counting_by_hand() -> None:
    train = [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [2, 3]}]
    scorer = baselines.Cooccurrence(train, 6, last=2, window=2)
    expected = np.zeros((6, 6))
    expected[1, 2], expected[1, 3], expected[2, 3] = 1, 0.5, 2
    expected[2, 4], expected[3, 4] = 0.5, 1
    np.testing.assert_allclose(scorer.counts.toarray(), expected)
    scores = scorer.score([{"input_ids": [3, 1, 2]}, {"input_ids": []}, {"input_ids": [3]}])
    np.testing.assert_allclose(scores[0], expected[2] + expected[1] / 2, atol=2e-4)
    np.testing.assert_allclose(scores[1], 0, atol=2e-4)
    np.testing.assert_allclose(scores[2], expected[3], atol=2e-4)


def test_ease_against_the_formula() -> None:
    generator = np.random.default_rng(0)
    rows = [{"input_ids": generator.integers(1, 9, 6).tolist()} for _ in range(40)]
    x = np.zeros((40, 9))
    for user, row in enumerate(rows):
        x[user, row["input_ids"]] = 1
    inverse = np.linalg.inv(x.T @ x + 5.0 * np.eye(9))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = baselines.EASE(rows, 9, regularization=5.0).score(rows)
    np.testing.assert_allclose(scores, x @ weights, atol=1e-4)


def test_ease_towards_the_last_days_is_the_best_fit_with_an_empty_diagonal() -> None:
    generator = np.random.default_rng(0)
    rows = [
        {
            "input_ids": generator.integers(1, 9, 6).tolist(),
            "timestamps": [0, 0, 0, 0, 86_400, 86_400],
        }
        for _ in range(40)
    ]
    x, y = np.zeros((40, 9)), np.zeros((40, 9))
    for user, row in enumerate(rows):
        x[user, row["input_ids"]] = 1
        y[user, row["input_ids"][4:]] = 1
    y = x + 2 * y  # a day of log, of which the half day at its end has the same say as all of it
    weights = baselines.EASE(rows, 9, regularization=5.0, recent_days=0.5).weights
    for item in range(1, 9):  # ridge of each column on all other items
        others = np.delete(np.arange(9), item)
        gram = x[:, others].T @ x[:, others] + 5.0 * np.eye(8)
        best = np.linalg.solve(gram, x[:, others].T @ y[:, item])
        np.testing.assert_allclose(weights[others, item], best, atol=1e-5)
    assert not np.diag(weights).any()


def test_fit_baselines_in_the_order_named() -> None:
    rows = [dict(row, timestamps=list(range(9))) for row in checkerboard()[0]]
    names = ["ease", "popularity", "recent_popularity", "own_frequency", "cooccurrence", "item_knn"]
    fitted = baselines.fit_baselines(names, rows, VOCAB)
    assert [type(scorer).__name__ for scorer in fitted] == [
        "EASE",
        "Popularity",
        "RecentPopularity",
        "OwnFrequency",
        "Cooccurrence",
        "ItemKNN",
    ]
    assert len({scorer.name for scorer in fitted}) == len(names)
    with pytest.raises(ValueError, match="unknown baselines"):
        baselines.fit_baselines(["random"], rows, VOCAB)


def test_a_baseline_takes_settings() -> None:
    rows = checkerboard()[0]
    named = ["popularity", {"ease": {"regularization": 3.0}}]
    assert [scorer.name for scorer in baselines.fit_baselines(named, rows, VOCAB)] == [
        "popularity",
        "EASE (lambda 3)",
    ]
    with pytest.raises(ValueError, match="baseline ease: .*'lambda'"):
        baselines.fit_baselines([{"ease": {"lambda": 3.0}}], rows, VOCAB)


def test_missing_implicit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    monkeypatch.setitem(sys.modules, "implicit.bpr", None)
    monkeypatch.setitem(sys.modules, "implicit.nearest_neighbours", None)
    for build in (baselines.ALS, baselines.ItemKNN, BPR):
        with pytest.raises(ImportError, match=r"pip install implicitrec\[demo\]"):
            build([{"input_ids": [1]}], 2)


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a list, such as \['ease'\], got 'ease'"):
        baselines.fit_baselines("ease", [{"input_ids": [1]}], 2)
    rows = [{"input_ids": [1, 4]}]
    with pytest.raises(ValueError, match=r"1\.\.3"):
        baselines.Popularity(rows, 4)
    with pytest.raises(ValueError, match="timestamps"):
        baselines.RecentPopularity(rows, 5)
    with pytest.raises(ValueError, match="timestamps"):
        baselines.RecentPopularity(Dataset.from_list(rows), 5)
    with pytest.raises(ValueError, match="days"):
        baselines.RecentPopularity(rows, 5, days=0)
    with pytest.raises(ValueError, match="half_life"):
        baselines.OwnFrequency(rows, 5, half_life_days=-1)
    with pytest.raises(ValueError, match="window"):
        baselines.Cooccurrence(rows, 5, window=0)
    with pytest.raises(ValueError, match="regularization"):
        baselines.EASE(rows, 5, regularization=0)
