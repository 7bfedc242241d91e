"""Small models and histories whose terms all matter."""

import torch

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring

MIXERS = ["attention", "gru", "convolution"]


def tiny(**changes) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "num_negatives": 20}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | changes)).eval()
    with torch.no_grad():  # away from zero, so that every term matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def histories() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(1, 31, (3, 8), generator=generator),
        "input_weights": torch.rand(3, 8, generator=generator) + 0.5,
        "timestamps": torch.randint(1, 10**6, (3, 8), generator=generator).cumsum(1),
    }
