"""Logarithmic buckets of gaps, and what an event's age does to its influence."""

import torch
from torch import Tensor, nn

from .configuration_implicitrec import ImplicitRecConfig

SCALAR_STEP = 10.0  # single numbers learn this many times faster than the other parameters


def log_buckets(gaps: Tensor, num_buckets: int) -> Tensor:
    """Bucket of a gap in seconds (or events), two to every doubling of `1 + gap`; int32.

    They are read off the bits of the float: the exponent and the first bit of the mantissa. No gap
    and a negative one are in bucket 0, all that are too long in the last.
    """
    values = 1 + gaps.clamp_min(0).float()
    if torch.compiler.is_compiling():
        return portable_buckets(values, powers_of_two(values.device)).clamp_max(num_buckets - 1)
    bits = values.view(torch.int32)
    return ((bits >> 22) - 254).clamp_(max=num_buckets - 1)


def powers_of_two(device: torch.device) -> Tensor:
    """1, 2, 4, ..., all exact, as far as a gap of 64 bits reaches."""
    return 2.0 ** torch.arange(66, device=device)


def portable_buckets(values: Tensor, powers: Tensor) -> Tensor:
    """The buckets of numbers from 1 on without looking at their bits, for formats that cannot."""
    place = values.log2().long().clamp(0, 64)  # rounding may miss it by one
    place = place - (powers[place] > values).long() + (powers[place + 1] <= values).long()
    return 2 * place + (1.5 * powers[place] <= values).long()


def seconds_before_last(timestamps: Tensor) -> Tensor:
    """Each event's time by that of its row's last, `[batch, length]`, int32, not positive.

    Whole seconds, so that a gap is the same whatever comes later; within 68 years.
    """
    since = timestamps - timestamps.amax(1, keepdim=True)
    return since.clamp_min(1 - 2**31).int()


class TimeKernel(nn.Module):
    """The learned log influence of an event by the log of its age; nothing where there are no times."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.levels = nn.Parameter(torch.zeros(2 * config.num_time_buckets))

    def forward(self, history: dict[str, Tensor]) -> Tensor:
        """`[positions, length]`."""
        if "timestamps" not in history:
            return torch.zeros_like(history["weights"])
        return self.of_age(history["query_time"][:, None] - history["timestamps"])

    def of_age(self, seconds: Tensor) -> Tensor:
        return SCALAR_STEP * self.levels[log_buckets(seconds, len(self.levels))]
