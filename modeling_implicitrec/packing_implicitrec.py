"""Attention among the events of a batch that stand end to end, for GPUs: no position of it is padding."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from .kernels_implicitrec import portable_buckets, powers_of_two, seconds_before_last


@cache
def kernel(device_type: str) -> Callable[..., Tensor]:
    """The attention of torch, compiled where there is a kernel for it that learns."""
    if device_type == "cpu":
        return flex_attention
    return torch.compile(flex_attention)


def packed_attention(
    weights: Tensor,
    timestamps: Tensor | None,
    position: Tensor,
    time: Tensor,
    power: Tensor,
) -> Callable[..., Tensor]:
    """How present events attend to the earlier ones of their own history, with the evidence bias.

    The bias is computed within the kernel, pair by pair, and blocks of two histories are passed over (Dong
    et al., 2024, FlexAttention); on a CPU, which has no such kernel, all pairs are computed.

    Args:
        weights: `[batch, length]`, 0 where there is no event.
        timestamps: `[batch, length]` seconds.
        position: `[distances, heads]`, what a distance adds.
        time: `[buckets, heads]`, what a gap adds.
        power: `[heads]` of the weight of the event that is looked at.

    Returns:
        A function of queries, keys and values, `[1, heads, events, head_size]` each and as the result.
    """
    present = weights > 0
    row = present.nonzero()[:, 0]  # of each event, [events]
    log_weight = weights[present].log()
    powers = powers_of_two(weights.device)
    since = None if timestamps is None else seconds_before_last(timestamps)[present]

    def with_bias(score: Tensor, _batch: Tensor, head: Tensor, at: Tensor, of: Tensor) -> Tensor:
        bias = position[(at - of).clamp(0, len(position) - 1), head] + power[head] * log_weight[of]
        if since is not None:
            gap = (since[at] - since[of]).clamp_min(0)
            bucket = portable_buckets(1 + gap.float(), powers).clamp_max(len(time) - 1)
            bias = bias + time[bucket, head]
        return score + bias

    def allowed(_batch: Tensor, _head: Tensor, at: Tensor, of: Tensor) -> Tensor:
        return (row[at] == row[of]) & (at >= of)

    mask = create_block_mask(allowed, None, None, len(row), len(row), device=weights.device)
    return partial(kernel(weights.device.type), score_mod=with_bias, block_mask=mask)
