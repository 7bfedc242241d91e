"""How much a pair of a user's events counts in the co-occurrence table, and which are the user's own."""

import torch
from torch import Tensor

WINDOW = 20  # events that a pair may be apart
GAP_POWER = 0.5  # p of the count `1 / gap^p` of a pair
BACKWARD = 0.3  # what a pair counts against the order of time: b came before a
# Of the frequency of an item that a count is divided by: where it leads to others, and they to it.
SOURCE_POWER = 0.5
TARGET_POWER = 0.25


def pair_counts(places: int, like: Tensor) -> Tensor:
    """What the event at place j counts for that at place k, `[places, places]`.

    `(k - j)^-p` where k follows j, and `BACKWARD` times as much where it comes before; nothing for an
    event itself and beyond the window.
    """
    steps = torch.arange(places, device=like.device)
    gaps = steps[None, :] - steps[:, None]
    counts = gaps.abs().clamp_min(1).to(like.dtype) ** -GAP_POWER
    counts = torch.where(gaps < 0, BACKWARD * counts, counts)
    return counts * ((gaps != 0) & (gaps.abs() <= WINDOW))


def own_counts(ids: Tensor, context: Tensor, weight: Tensor, frequency: Tensor) -> Tensor:
    """What a user's own events are in the sum of the table's rows of some items, by event.

    A training history must be scored by the pairs of others. These are the counts that the table holds
    of the history's own pairs, later events included, to be taken out of the sum.

    Args:
        ids: `[positions, length]` all events of each position's user, 0 for none.
        context: `[positions, context]` the items whose rows are summed, 0 for none.
        weight: of the same shape, the share of each row in the sum.
        frequency: `[vocab_size]` of the items, by which the table is scaled.
    """
    rare = weight * frequency[context] ** -SOURCE_POWER * (context > 0)
    same = ids[:, :, None] == context[:, None, :]  # [positions, length, context]
    source = (same * rare[:, None, :]).sum(2)
    found = source @ pair_counts(ids.shape[1], source)
    return found * frequency[ids] ** -TARGET_POWER * (ids > 0)


def own_events(ids: Tensor, labels: Tensor, negative: Tensor | None) -> Tensor:
    """The items of each row with the last label behind them, `[batch, length + 1]`, 0 for none.

    Args:
        ids: `[batch, length]`.
        labels: of the same shape, -100 for none; the last event's is not among the ids.
        negative: bool of the same shape, events that the table does not count.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    last = ((ids > 0) * places).argmax(1, keepdim=True)
    behind = torch.cat([ids, torch.zeros_like(last)], dim=1)
    behind = behind.scatter(1, last + 1, labels.gather(1, last).clamp_min(0))
    if negative is None:
        return behind
    kept = behind * ~torch.cat([negative, torch.zeros_like(last, dtype=torch.bool)], dim=1)
    return kept.gather(1, (kept == 0).int().argsort(dim=1, stable=True))


def relative_frequency(item_counts: Tensor) -> Tensor:
    """How often each item happens, with a mean of 1 over the catalogue; never is half an event."""
    counts = item_counts.float().clamp_min(0.5)
    return counts / counts[1:].mean()
