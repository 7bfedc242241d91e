"""One body for several platforms: what of a model is shared, and how its copies become one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .modeling_implicitrec import ImplicitRecForScoring
from .transfer import ITEM_ROWS, OWN, PLATFORM_ROWS, TYPE_ROWS

# What is counted in a platform's log, or starts from what is: it never leaves, whatever is shared.
COUNTED = {*OWN, "head.item_bias.weight"}
NAMED = {*ITEM_ROWS, TYPE_ROWS, PLATFORM_ROWS}  # their rows mean what a platform's names say


def shared_weights(model: ImplicitRecForScoring, *, share_items: bool = False) -> dict[str, Tensor]:
    """A copy of what a platform tells the others, by name in the model's `state_dict`.

    That is the body and the scalars and kernels of the priors. Popularity and the table of co-occurrences,
    which are counts of the log, are never in it.

    Args:
        share_items: also the tables of items, event types and platforms, for platforms that have one
            catalogue, so that a row means the same to all.

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=5))
    >>> own = set(shared_weights(model, share_items=True)) - set(shared_weights(model))
    >>> "model.item_embedding.weight" in own, "head.item_bias.weight" in own
    (True, False)
    """
    private = COUNTED if share_items else COUNTED | NAMED
    tied = {"item_decoder.weight"} if model.config.tie_word_embeddings else set()
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if name not in private | tied
    }


@torch.no_grad()
def load_shared_weights(
    model: ImplicitRecForScoring, weights: Mapping[str, Tensor], *, share_items: bool = False
) -> None:
    """Take the shared weights over; all others of the model stay.

    Args:
        weights: as [`shared_weights`] gives them, with the same `share_items`.

    Raises:
        ValueError: for other names or shapes than the model's own.
    """
    own = model.state_dict()
    wanted = shared_weights(model, share_items=share_items)
    _check_alike(wanted, weights)
    for name in wanted:
        own[name].copy_(weights[name])


def average_weights(
    parts: Sequence[Mapping[str, Tensor]], sizes: Sequence[float]
) -> dict[str, Tensor]:
    """`sum_p size_p * weights_p / sum_p size_p` of each tensor (FedAvg, McMahan et al., 2017).

    Args:
        parts: of each platform, what it learnt, in the same names and shapes.
        sizes: of each platform, how many people it learnt from.

    Raises:
        ValueError: for no platform, other names or shapes, or sizes that are not positive.

    >>> average_weights([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], [3, 1])
    {'w': tensor([1.])}
    """
    if not parts or len(parts) != len(sizes) or not min(sizes) > 0:
        raise ValueError(f"expected a positive size for each part, got {len(parts)}, {list(sizes)}")
    for part in parts[1:]:
        _check_alike(parts[0], part)
    total = float(sum(sizes))
    return {
        name: torch.stack([part[name] * (size / total) for part, size in zip(parts, sizes)]).sum(0)
        for name in parts[0]
    }


def _check_alike(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    want = {name: list(value.shape) for name, value in wanted.items()}
    got = {name: list(value.shape) for name, value in given.items()}
    names = sorted(n for n in want.keys() | got.keys() if want.get(n) != got.get(n))
    if names:
        first = f"{names[0]}: {want.get(names[0])} and {got.get(names[0])}"
        raise ValueError(f"platforms must share weights of the same names and shapes, got {first}")
