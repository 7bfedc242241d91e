"""Events end to end give the states, the losses and the gradients of padded histories."""

import pytest
import torch
from tiny_models import histories, tiny
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from modeling_implicitrec import ImplicitRecForScoring


def padded(*, times: bool) -> dict[str, Tensor]:
    """Histories of eight, five and no events, with one of weight 0 in between."""
    batch = histories()
    batch["input_ids"][1, 5:] = 0
    batch["input_ids"][2] = 0
    batch["input_weights"][0, 3] = 0
    if not times:
        del batch["timestamps"]
    return batch


def labelled() -> dict[str, Tensor]:
    batch = padded(times=True)
    labels = batch["input_ids"].roll(-1, 1)
    return batch | {"labels": labels.masked_fill((labels == 0) | (batch["input_ids"] == 0), -100)}


def packed(**changes) -> ImplicitRecForScoring:
    model = tiny(**changes)
    model.set_attn_implementation("flex_attention")
    return model


@pytest.mark.parametrize("times", [True, False])
def test_scores_are_those_of_padded_histories(times):
    batch = padded(times=times)
    with torch.no_grad():
        expected = tiny(copy_prior=True)(**batch)
        found = packed(copy_prior=True)(**batch)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    torch.testing.assert_close(found.logits, expected.logits)


def test_gradients_are_those_of_padded_histories(monkeypatch):
    """Torch computes them anywhere, but refuses to on a CPU: its check is taken out here."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    models = [make(hidden_dropout_prob=0.0).train() for make in (tiny, packed)]
    losses = [model(**labelled()).loss for model in models]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    expected = dict(models[0].named_parameters())
    tables = {"position.weight", "time.weight", "beta"}
    assert all(expected[f"model.evidence_bias.{name}"].grad.any() for name in tables)
    for name, parameter in models[1].named_parameters():
        if parameter.grad is None:
            assert expected[name].grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


def test_no_position_of_padding_is_computed():
    model, seen = packed(), []
    for block in model.model.blocks:
        block.register_forward_hook(lambda _block, inputs, _output: seen.append(inputs[0].shape))
    with torch.no_grad():
        model(**padded(times=True))
    assert seen == [(1, 12, 16)] * len(model.model.blocks)


def test_a_state_is_kept_of_padded_histories_and_nothing_has_no_state():
    model, batch = packed(), histories()
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(model(**batch, use_cache=True).logits, expected)
        nothing = model.model(torch.zeros(2, 3, dtype=torch.long)).last_hidden_state
    assert not nothing.any()


def test_dropout_of_probabilities_is_refused():
    model = packed(attention_probs_dropout_prob=0.1).train()
    with pytest.raises(ValueError, match="attention_probs_dropout_prob 0 in training, got 0.1"):
        model(**labelled())
