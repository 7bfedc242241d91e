"""Recency, frequency and tenure: the regression on them, and a model that starts there."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_implicitrec import (
    ActivityRegression,
    ImplicitRecConfig,
    ImplicitRecForSequenceClassification,
    Question,
    SequenceRows,
    ask,
)

DAY = 86_400
HISTORY = torch.tensor([[3, 8, 1], [2, 9, 0]])


def tiny(**changes) -> ImplicitRecForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32}
    return ImplicitRecForSequenceClassification(ImplicitRecConfig(**sizes | changes)).eval()


def test_what_is_told_ends_with_the_log_odds_of_earlier_answers():
    log = {"input_ids": [[1, 1, 1]], "timestamps": [[0, 3 * DAY, 21 * DAY]]}
    rows = SequenceRows(Dataset.from_dict(log | {"input_weights": [[1.0] * 3], "length": [3]}))
    for absent, happened in ((False, 2), (True, 2)):  # of four windows in both ways of asking
        asked = ask(rows, Question(days=7, absent=absent), [28.0 * DAY])
        assert asked.rates[0] == (happened + 1) / 6
        assert asked.features[0, -1] == pytest.approx(np.log(asked.rates[0] / (1 - asked.rates[0])))


def test_the_baseline_is_the_logistic_regression_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 3)) * [1, 5, 1] + 2
    labels = (features[:, 0] + generator.normal(size=300) > 2).astype(int)
    own = ActivityRegression(features, labels)(features)
    scaled = (features - features.mean(0)) / features.std(0)
    theirs = linear.LogisticRegression(C=1.0, tol=1e-8).fit(scaled, labels)
    np.testing.assert_allclose(own, theirs.predict_proba(scaled)[:, 1], atol=1e-3)


@pytest.mark.parametrize("kinds", [2, 3])
def test_a_model_that_is_told_the_labels_starts_at_their_regression(kinds):
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 3)) * [1, 5, 1] + 2
    labels = np.digitize(features[:, 0] + generator.normal(size=300), np.arange(1, kinds) + 0.5)
    model = tiny(num_labels=kinds, user_feature_size=3)
    model.fit_user_features(features, labels)
    histories = torch.randint(1, 11, (300, 5), generator=torch.Generator().manual_seed(0))
    told = {"user_features": torch.as_tensor(features)}
    found = model(histories, **told).logits.softmax(1).detach().numpy()
    scaled = (features - features.mean(0)) / features.std(0)
    strength = 1.0 if kinds > 2 else 2.0  # of two labels' weights each is half of the difference
    theirs = linear.LogisticRegression(C=strength, tol=1e-8).fit(scaled, labels)
    np.testing.assert_allclose(found, theirs.predict_proba(scaled), atol=1e-3)
    model(histories, labels=torch.as_tensor(labels), **told).loss.backward()
    assert model.classifier.out.weight.grad.abs().sum() > 0  # the history may learn to speak


def test_a_number_starts_at_least_squares():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(5000, 2)) + 1
    wanted = 3 * features[:, 0] - features[:, 1] + 7
    model = tiny(num_labels=1, problem_type="regression", user_feature_size=2)
    model.fit_user_features(features, wanted)
    found = model(HISTORY, user_features=torch.tensor([[0.0, 0.0], [1.0, 2.0]])).logits[:, 0]
    torch.testing.assert_close(found, torch.tensor([7.0, 8.0]), atol=0.02, rtol=0)
