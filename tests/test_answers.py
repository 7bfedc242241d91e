"""Inputs, labels and targets that fit no model or item are refused by name, before torch trips."""

import numpy as np
import pytest
import torch
from tiny_models import tiny

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForSequenceClassification

HISTORIES = torch.tensor([[3, 4, 5], [6, 7, 0]])
SETTINGS = {"use_query_time": True, "negative_event_loss": 1.0, "num_event_types": 3}
SETTINGS["negative_event_type_ids"] = [2]


def ones(*shape: int, value: float = 1) -> torch.Tensor:
    return torch.full(shape, value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"labels": ones(2, 2)}, r"labels .* shape of input_ids \[2, 3\], got \[2, 2\]"),
        ({"labels": ones(3, 3)}, r"labels .* shape of input_ids \[2, 3\], got \[3, 3\]"),
        ({"labels": ones(2)}, r"labels .* shape of input_ids \[2, 3\], got \[2\]"),
        ({"labels": ones(2, 3, value=31)}, r"labels must lie in 1..30, or be -100; got 31 to 31"),
        ({"labels": ones(2, 3, value=0)}, r"labels must lie in 1..30, .* got 0 to 0"),
        ({"labels": ones(2, 3, value=-1)}, r"labels must lie in 1..30, .* got -1 to -1"),
        ({"labels": ones(2, 3, value=1.0)}, r"labels must be item tokens, .* got torch.float32"),
        (
            {"labels": ones(2, 3), "label_weights": ones(2, 2)},
            r"label_weights .* \[2, 3\], got \[2, 2\]",
        ),
        (
            {"labels": ones(2, 3), "negative_labels": ones(2)},
            r"negative_labels .* \[2, 3\], got \[2\]",
        ),
        (
            {"labels": ones(2, 3), "negative_labels": ones(2, 3, value=31)},
            r"negative_labels must lie in 1..30, or be -100; got 31",
        ),
        ({"labels": ones(2, 3), "fold_ids": ones(3)}, r"fold_ids must be \[2\], got \[3\]"),
        (
            {"timestamps": ones(2, 3), "query_time": ones(2, 2)},
            r"query_time must be \[2\] or \[2, 3\], got \[2, 2\]",
        ),
        ({"target_ids": ones(2)}, r"target_ids must be \[2, any number\], got \[2\]"),
        ({"target_ids": ones(1, 4)}, r"target_ids must be \[2, any number\], got \[1, 4\]"),
        ({"target_ids": ones(2, 4, value=31)}, r"target_ids must lie in 1..30, .* got 31 to 31"),
        ({"target_ids": ones(2, 4, value=0.5)}, r"target_ids must be item tokens"),
        (
            {"candidate_ids": ones(2, 4), "labels": ones(2, 3)},
            r"labels .* shape of candidate_ids \[2, 4\], got \[2, 3\]",
        ),
        (
            {"candidate_ids": ones(2, 4), "labels": ones(2, 4), "label_weights": ones(2, 3)},
            r"label_weights .* shape of candidate_ids \[2, 4\], got \[2, 3\]",
        ),
        ({"attention_mask": ones(2, 2)}, r"attention_mask .* \[2, 3\], got \[2, 2\]"),
    ],
)
def test_answers_that_fit_nothing_are_named(given, told):
    with pytest.raises(ValueError, match=told):
        tiny(**SETTINGS).train()(HISTORIES, **given)


@pytest.mark.parametrize("call", ["__call__", "recommend", "last_scores", "update"])
@pytest.mark.parametrize("kind", [list, np.asarray])
def test_what_is_no_tensor_is_named(call, kind):
    ask = getattr(tiny().eval(), call)
    told = f"must be a tensor, got {type(kind([])).__name__}: torch.tensor makes one"
    with pytest.raises(ValueError, match=f"^input_ids {told}"):
        ask(input_ids=kind([[3, 1, 4]]))
    with pytest.raises(ValueError, match=f"^timestamps {told}"):
        ask(input_ids=HISTORIES, timestamps=kind([[1, 2, 3]] * 2))
    with pytest.raises(ValueError, match="^input_ids must be of torch.long or .* torch.float32$"):
        ask(input_ids=HISTORIES.float())


@pytest.mark.parametrize("name", ["candidate_ids", "labels", "target_ids", "query_time"])
def test_what_is_asked_for_is_a_tensor_too(name):
    with pytest.raises(ValueError, match=f"^{name} must be a tensor, got list"):
        tiny(**SETTINGS).eval()(HISTORIES, timestamps=HISTORIES, **{name: [[1], [2]]})


def test_answers_that_are_ignored_are_taken():
    model = tiny(**SETTINGS).eval()
    labels = torch.tensor([[4, 5, -100], [-100] * 3])
    assert torch.isfinite(model(HISTORIES, labels=labels, negative_labels=labels).loss)
    targets = torch.tensor([[4, -1, 0], [30, -100, -100]])
    assert torch.isfinite(model(HISTORIES, target_ids=targets).loss)
    nothing = torch.full((2, 3), -100)
    assert model(HISTORIES, labels=nothing).loss == 0


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (ones(3), r"labels must be \[2\] classes, .* got \[3\] of torch.int64"),
        (ones(2, value=4), r"labels must lie in 0..3, got 4 to 4"),
        (ones(2, value=-1), r"labels must lie in 0..3, got -1 to -1"),
    ],
)
def test_classes_that_are_none_are_named(labels, told):
    config = ImplicitRecConfig(vocab_size=31, hidden_size=16, num_labels=4)
    model = ImplicitRecForSequenceClassification(config).train()
    with pytest.raises(ValueError, match=told):
        model(HISTORIES, labels=labels)
