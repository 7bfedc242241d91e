"""What pretraining learns beside the next item, in worlds whose answer is known."""

import numpy as np
import pytest
import torch

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring

SIZES = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 32, "num_event_types": 3}


def model_of(**changes) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    return ImplicitRecForScoring(
        ImplicitRecConfig(**SIZES | {"hidden_dropout_prob": 0.0} | changes)
    )


def world(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Pairs of items: the second, one of 1..4, is drawn, and the first is the second + 4.

    Types and gaps take turns: a buy comes a day after a view, a view an hour after a buy.
    """
    second = np.random.default_rng(seed).integers(1, 5, (rows, 4))
    ids = np.stack([second + 4, second], axis=2).reshape(rows, 8)
    times = np.cumsum(np.tile([3600, 86_400], 4))
    types = np.tile([1, 2], 4)
    return {
        "input_ids": torch.as_tensor(ids),
        "timestamps": torch.as_tensor(np.tile(times, (rows, 1))),
        "event_type_ids": torch.as_tensor(np.tile(types, (rows, 1))),
    }


def learn(model: ImplicitRecForScoring, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = world(16, seed=step)
        labels = torch.nn.functional.pad(batch["input_ids"][:, 1:], (0, 1), value=-100)
        model.train()(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_a_hidden_item_is_told_from_the_one_after_it():
    model = model_of(masked_loss=1.0)
    learn(model, 250)
    batch = world(32, seed=1000)
    masked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    masked[:, 0] = True  # nothing stands before it: only the item after it tells it
    with torch.no_grad():
        hidden = model.model(**batch, masked_items=masked).last_hidden_state[:, 0]
        states = model.state_centre(hidden)
        scores = states @ model.item_table().t() + model.head.item_bias.weight[:, 0]
    assert (scores[:, 1:].argmax(1) + 1 == batch["input_ids"][:, 0]).float().mean() > 0.9


def test_the_next_type_and_gap_are_learnt():
    model = model_of(event_type_loss=0.5, gap_loss=0.5)
    learn(model, 80)
    batch = world(8, seed=1000)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state[:, :-1]
    told = model.objectives.event_type(hidden).argmax(-1)
    assert torch.equal(told, batch["event_type_ids"][:, 1:])
    gaps = model.objectives.gap(hidden).argmax(-1)
    assert gaps[0, 0] != gaps[0, 1] and torch.equal(gaps, gaps[0, :2].repeat(8, 4)[:, :7])


def test_without_them_nothing_changes_and_with_them_scores_do_not():
    plain, beside = model_of(), model_of(masked_loss=1.0, gap_loss=1.0)
    assert plain.objectives is None
    beside.load_state_dict(plain.state_dict(), strict=False)
    batch = world(4)
    assert torch.equal(plain.eval()(**batch).logits, beside.eval()(**batch).logits)
    labels = batch["input_ids"].roll(-1, 1)
    torch.testing.assert_close(
        plain(**batch, labels=labels).loss, beside(**batch, labels=labels).loss
    )
    assert beside.train()(**batch, labels=labels).loss > plain.train()(**batch, labels=labels).loss


def test_accumulated_batches_weigh_as_one():
    model = model_of(event_type_loss=0.7, gap_loss=0.3).train()
    model.state_centre.eval()  # its mean is of a batch
    batch = world(4)
    labels = batch["input_ids"].roll(-1, 1)
    whole = model(**batch, labels=labels, num_items_in_batch=labels.numel()).loss
    halves = [
        {name: value[part] for name, value in batch.items()} for part in (slice(2), slice(2, 4))
    ]
    parts = [
        model(**half, labels=labels[part], num_items_in_batch=labels.numel()).loss
        for half, part in zip(halves, (slice(2), slice(2, 4)))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_a_masked_item_does_not_reach_any_state():
    model = model_of().eval()
    batch, other = world(2), world(2)
    masked = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    masked[:, 3] = True
    other["input_ids"][:, 3] = other["input_ids"][:, 3] % 4 + 1
    first = model.model(batch["input_ids"], masked_items=masked).last_hidden_state
    assert torch.equal(
        first, model.model(other["input_ids"], masked_items=masked).last_hidden_state
    )
    other["input_ids"][:, 7] = other["input_ids"][:, 7] % 4 + 1
    later = model.model(other["input_ids"], masked_items=masked).last_hidden_state
    assert not torch.allclose(first[:, 3], later[:, 3])  # it looks ahead


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="masked_loss needs the attention mixer"):
        model_of(masked_loss=1.0, sequence_mixer="gru")
    with pytest.raises(ValueError, match="gap_loss must not be negative"):
        model_of(gap_loss=-1.0)
    with pytest.raises(ValueError, match="masked_items need the attention mixer"):
        ids = world(1)["input_ids"]
        model_of(sequence_mixer="gru").model(ids, masked_items=ids > 3)
