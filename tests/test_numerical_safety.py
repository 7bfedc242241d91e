"""Numbers stay numbers: weight 0, gaps of any size, half precision, empty rows; seeds decide all."""

import pytest
import torch

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring
from modeling_implicitrec.head_implicitrec import CooccurrencePrior, CopyPrior
from modeling_implicitrec.layers_implicitrec import EvidenceBias, WeightEmbedding

MIXERS = ("attention", "gru", "convolution")
DAY = 86_400


def model_of(mixer: str = "attention", **options) -> ImplicitRecForScoring:
    settings = {"vocab_size": 20, "hidden_size": 16, "copy_prior": True, "use_gaps": True}
    settings |= {"num_cooccurrences": 3, "use_weight_gate": True, "sequence_mixer": mixer}
    model = ImplicitRecForScoring(ImplicitRecConfig(**settings | options))
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, 20, (20, 3), generator=generator)
    model.fit_cooccurrences(items, torch.rand(20, 3, generator=generator) * 5)
    return model


def batch_of(weights: list[float], gaps: list[float]) -> dict[str, torch.Tensor]:
    size = len(weights)
    return {
        "input_ids": torch.arange(1, size + 1)[None],
        "input_weights": torch.tensor([weights]),
        "timestamps": torch.tensor([gaps]).cumsum(1).long(),
        "labels": torch.arange(2, size + 2)[None],
    }


CASES = {
    "weights of 0": ([0.0, 1.0, 0.0, 2.0], [0, 1, 1, 1]),
    "all weights 0": ([0.0, 0.0, 0.0], [0, 1, 1]),
    "tiny and huge weights": ([1e-30, 1e30, 1e-9, 1.0], [0, 1, 1, 1]),
    "gaps of 0": ([1.0, 1.0, 1.0], [0, 0, 0]),
    "gaps of centuries": ([1.0, 1.0, 1.0], [0, 36_500 * DAY, 2**40]),
    "times before 1970": ([1.0, 1.0, 1.0], [-(2**40), 1, 2**40]),
    "one event": ([1.0], [0]),
}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_finite(case, mixer):
    model = model_of(mixer).train()
    output = model(**batch_of(*CASES[case]))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    model.eval()
    assert torch.isfinite(model(**batch_of(*CASES[case])).logits).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_row_of_padding_changes_nothing_for_the_others(mixer):
    model = model_of(mixer).eval()
    batch = batch_of([1.0, 2.0, 0.5], [0, 10, 10])
    padded = {name: torch.cat([rows, torch.zeros_like(rows)]) for name, rows in batch.items()}
    padded["labels"][1] = -100
    alone, beside = model(**batch), model(**padded)
    assert torch.isfinite(beside.logits).all()
    assert torch.allclose(alone.logits[0], beside.logits[0], atol=1e-6)
    assert torch.allclose(alone.loss, beside.loss, atol=1e-6)
    padded["labels"][:] = -100
    nothing = model.train()(**padded)
    nothing.loss.backward()
    assert nothing.loss == 0, "no label, no loss"


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_finite_and_near_float32(case, mixer):
    model = model_of(mixer).eval()
    expected = model(**batch_of(*CASES[case])).logits[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch_of(*CASES[case]))
    assert torch.isfinite(mixed.loss)
    assert torch.allclose(mixed.logits[:, 1:].float(), expected, atol=0.1, rtol=0.1)
    half = model.bfloat16()(**batch_of(*CASES[case]))
    assert torch.isfinite(half.loss) and torch.isfinite(half.logits[:, 1:].float()).all()


def double(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with parameters that are not zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.05 * drawn.double()
    return module.double()


def check(module: torch.nn.Module, function) -> None:
    """The gradient of every parameter by finite differences."""
    names = [name for name, p in module.named_parameters() if p.requires_grad]
    values = tuple(dict(module.named_parameters())[n].detach().requires_grad_() for n in names)

    def of(*given):
        return torch.func.functional_call(module, dict(zip(names, given)), function)

    assert torch.autograd.gradcheck(of, values, atol=1e-6)


CONFIG = ImplicitRecConfig(
    vocab_size=6,
    hidden_size=4,
    num_time_buckets=4,
    num_weight_bins=4,
    max_position_embeddings=5,
    num_cooccurrences=2,
    learn_copy_power=True,
)
WEIGHTS = torch.tensor([[0.2, 0.0, 3.0, 1.0, 0.5]], dtype=torch.float64)
TIMES = torch.tensor([[0, 5, 5, 4000, 10**9]])


def test_gradients_of_the_evidence_bias():
    """Of position, time and weight; the lowest number, where nobody may look, is left out."""

    class Visible(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = double(EvidenceBias(CONFIG))

        def forward(self, weights, times):
            bias = self.bias(weights, times)
            return bias[bias > torch.finfo(bias.dtype).min]

    check(Visible(), (WEIGHTS, TIMES))


@pytest.mark.parametrize("prior", [CopyPrior, CooccurrencePrior])
def test_gradients_of_the_priors(prior):
    """Of the time kernels and the powers of weights, by the values that they give."""

    class Values(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = double(prior(CONFIG))
            if prior is CooccurrencePrior:
                self.prior.items.copy_(torch.randint(1, 6, (6, 2)))
                self.prior.counts.copy_(torch.rand(6, 2) + 1)

        def forward(self, history):
            return self.prior(history)[1]

    history = {
        "input_ids": torch.tensor([[1, 2, 3, 1, 4]]).expand(5, -1),
        "weights": WEIGHTS.expand(5, -1),
        "timestamps": TIMES.expand(5, -1),
        "columns": torch.arange(5),
        "query_time": TIMES[0],
    }
    check(Values(), (history,))


def test_gradients_of_the_weight_embedding():
    module = double(WeightEmbedding(ImplicitRecConfig(hidden_size=4, use_weight_gate=True)))
    check(module, (torch.randn(1, 5, 4, dtype=torch.float64), WEIGHTS))


def test_a_seed_decides_all():
    """Weights at the start, dropout, negatives, and so the weights after some steps."""

    def train(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        model = model_of(loss_type="sampled_softmax", num_negatives=8, hidden_dropout_prob=0.3)
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
        for _step in range(3):
            optimizer.zero_grad()
            model(**batch_of([1.0, 2.0, 0.5], [0, 10, 10])).loss.backward()
            optimizer.step()
        return model.state_dict()

    first, again, other = train(0), train(0), train(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.norm.weight"], other["model.norm.weight"])
