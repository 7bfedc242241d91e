"""Losses against their plain formulas, and chunking against the whole."""

import pytest
import torch
from torch.nn import functional as F

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring
from modeling_implicitrec.loss_implicitrec import (
    chunked_loss,
    gbce_beta,
    gbce_loss,
    normalised_label_weights,
    sampled_softmax_loss,
)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_give_the_loss_and_gradients_of_the_whole(chunk_size):
    torch.manual_seed(0)
    hidden = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels, share = torch.randint(0, 6, (10,)), torch.rand(10, dtype=torch.float64)

    def one_chunk(rows, states, items):
        losses = F.cross_entropy(states @ items.T, labels[rows], reduction="none")
        return (losses * share[rows]).sum()

    whole = one_chunk(slice(None), hidden, table)
    expected = torch.autograd.grad(whole, [hidden, table])
    chunked = chunked_loss(one_chunk, [hidden], [table], chunk_size)
    found = torch.autograd.grad(chunked * 2, [hidden, table])
    torch.testing.assert_close(chunked.double(), whole, rtol=1e-6, atol=1e-6)
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, 2 * reference)


def test_sampled_softmax_over_every_item_is_the_full_softmax():
    logits, labels = torch.randn(5, 7), torch.tensor([0, 3, 6, 2, 2])
    own = F.one_hot(labels, 7).bool()
    negatives = logits.masked_fill(own, -torch.inf)
    positive = logits.gather(1, labels[:, None])[:, 0]
    found = sampled_softmax_loss(positive, negatives, torch.zeros(7))
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="none"))


def test_gbce_without_calibration_is_bce():
    assert gbce_beta(10, 1001, 0.0) == pytest.approx(1.0)
    assert gbce_beta(10, 1001, 1.0) == pytest.approx(0.01)
    positive, negatives = torch.randn(4), torch.randn(4, 3)
    logits = torch.cat([positive[:, None], negatives], dim=1)
    labels = torch.zeros(4, 4)
    labels[:, 0] = 1
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    torch.testing.assert_close(gbce_loss(positive, negatives, 1.0), expected)


def test_label_weights_sum_to_one_and_all_zero_means_even():
    weights = normalised_label_weights(torch.tensor([1.0, 3.0]), 2, torch.zeros(1))
    assert weights.tolist() == [0.25, 0.75]
    even = normalised_label_weights(torch.zeros(2), 2, torch.zeros(1))
    assert even.tolist() == [0.5, 0.5]


def test_a_label_of_weight_zero_is_an_ignored_one():
    torch.manual_seed(0)
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=9, hidden_size=8)).eval()
    ids, labels = torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])
    weighted = model(ids, labels=labels, label_weights=torch.tensor([[1.0, 0.0, 1.0]])).loss
    ignored = model(ids, labels=torch.tensor([[2, -100, 4]])).loss
    torch.testing.assert_close(weighted, ignored)
