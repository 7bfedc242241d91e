"""Weighted losses over labelled positions whose logits exist only in chunks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_implicitrec import ImplicitRecConfig


def normalised_label_weights(label_weights: Tensor | None, count: int, like: Tensor) -> Tensor:
    """Weights that sum to one: `w / sum(w)`; even where none are given or all are zero.

    Args:
        label_weights: `[positions]`, not negative, or `None`.
        count: number of labelled positions.
        like: a tensor whose device is used.
    """
    even = torch.full((count,), 1.0 / max(count, 1), device=like.device)
    if label_weights is None:
        return even
    weights = label_weights.float().clamp_min(0)
    total = weights.sum()
    return torch.where(total > 0, weights / total.clamp_min(1e-12), even)


def softmax_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the whole catalogue, `-log softmax(logits)[label]`, `[positions]`."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def draw_negatives(targets: Tensor, vocab_size: int, uniform: int, in_batch: int) -> Tensor:
    """Shared negatives: `uniform` drawn from the catalogue and `in_batch` from the batch's labels."""
    drawn = torch.randint(1, vocab_size, (uniform,), device=targets.device)
    chosen = torch.randint(len(targets), (in_batch,), device=targets.device)
    return torch.cat([drawn, targets[chosen]])


def expected_draws(frequency: Tensor, items: Tensor, uniform: int, in_batch: int) -> Tensor:
    """How often `draw_negatives` is expected to draw each of the items.

    Args:
        frequency: `[vocab_size]` how often each item is a label, with a mean of 1 over the catalogue.
    """
    return (uniform + in_batch * frequency[items]) / (len(frequency) - 1)


def sampled_softmax_loss(positive: Tensor, negatives: Tensor, negative_log_q: Tensor) -> Tensor:
    """Softmax over the label and sampled negatives with the logQ correction, `[positions]`.

    Each negative's logit is reduced by the log of the number of times that its item is expected to be
    drawn (Bengio and Senecal, 2008; Yi et al., 2019), so that the sum over negatives estimates the
    full softmax's. A negative equal to the label is to be passed as the lowest number.

    Args:
        positive: `[positions]` logit of the label.
        negatives: `[positions, negatives]` logits.
        negative_log_q: `[negatives]`.
    """
    others = torch.logsumexp(negatives - negative_log_q, dim=1)
    return torch.logaddexp(positive, others) - positive


def pair_loss(pairs: Tensor, known: Tensor) -> Tensor:
    """`-log sigmoid(s_label - s_refused)` (BPR, Rendle et al., 2009), 0 where not known; `[positions]`.

    Args:
        pairs: `[positions, 2]` scores of the label and of the item that a negative event refused.
        known: bool `[positions]`.
    """
    return torch.where(known, F.softplus(pairs[:, 1] - pairs[:, 0]), 0.0)


def targets_loss(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Mean over rows of the mean cross-entropy of a row's targets."""
    known = target_ids > 0
    chances = logits.log_softmax(-1).gather(1, target_ids.clamp_min(0))
    losses = -(chances * known).sum(1) / known.sum(1).clamp_min(1)
    return losses.sum() / known.any(1).sum().clamp_min(1)


def pointwise_loss(logits: Tensor, labels: Tensor, label_weights: Tensor | None) -> Tensor:
    """Weighted binary cross-entropy of candidates; -100 is ignored."""
    if labels.shape != logits.shape:
        raise ValueError(
            f"with candidate_ids, labels must have their shape {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    known = labels != -100
    given = None if label_weights is None else label_weights[known]
    share = normalised_label_weights(given, int(known.sum()), logits)
    losses = F.binary_cross_entropy_with_logits(
        logits[known], labels[known].to(logits.dtype), reduction="none"
    )
    return (losses * share).sum()


def gbce_loss(positive: Tensor, negatives: Tensor, beta: float) -> Tensor:
    """`-(beta * log sigmoid(s+) + sum log(1 - sigmoid(s-)))`, `[positions]`.

    With `beta = 1` it is binary cross-entropy; gBCE (Petrov and Macdonald, 2023, eq. 10) sets
    `beta = a * (t * (1 - 1/a) + 1/a)` for a negative sampling rate `a` and calibration `t`.
    """
    return -(beta * F.logsigmoid(positive) + F.logsigmoid(-negatives).sum(1))


def gbce_beta(num_negatives: int, num_items: int, calibration: float) -> float:
    """The exponent of gBCE for `num_negatives` drawn from `num_items` items."""
    rate = min(1.0, num_negatives / max(num_items - 1, 1))
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def draws_of(config: ImplicitRecConfig) -> tuple[int, int]:
    """Negatives drawn from the catalogue, and from the batch's labels."""
    in_batch = int(config.num_negatives * config.in_batch_share)
    return config.num_negatives - in_batch, in_batch


def negatives_for(config: ImplicitRecConfig, targets: Tensor) -> Tensor | None:
    """The negatives `[negatives]` that all targets share, none for the full softmax."""
    if config.loss_type == "softmax":
        return None
    return draw_negatives(targets, config.vocab_size, *draws_of(config))


def position_losses(
    config: ImplicitRecConfig,
    score: Callable[[Tensor | None], Tensor],
    targets: Tensor,
    negatives: Tensor | None,
    frequency: Tensor,
) -> Tensor:
    """The loss that the configuration names, `[positions]`.

    Args:
        config: for `loss_type` and what belongs to it.
        score: gives `[positions, candidates]` scores of candidates, or with `None` of the catalogue.
        targets: `[positions]` the labels.
        negatives: as [`negatives_for`] draws them.
        frequency: as in [`expected_draws`].
    """
    if negatives is None:
        return softmax_loss(score(None), targets, config.label_smoothing)
    positive = score(targets[:, None])[:, 0]
    lowest = torch.finfo(positive.dtype).min
    others = score(negatives).masked_fill(negatives[None] == targets[:, None], lowest)
    if config.loss_type == "sampled_softmax":
        drawn = expected_draws(frequency, negatives, *draws_of(config))
        return sampled_softmax_loss(positive, others, drawn.log())
    beta = 1.0
    if config.loss_type == "gbce":
        beta = gbce_beta(config.num_negatives, config.vocab_size - 1, config.gbce_calibration)
    return gbce_loss(positive, others, beta)


class _ChunkedLoss(torch.autograd.Function):
    """Computes each chunk's gradient in the forward pass, so that no chunk's logits are kept."""

    @staticmethod
    def forward(ctx, chunk_loss, chunk_size, positions, parameters_at, *tensors):
        wants = [t.requires_grad for t in tensors]
        per_position, parameters = tensors[:parameters_at], tensors[parameters_at:]
        at_positions = [want and place < parameters_at for place, want in enumerate(wants)]
        grads = [torch.zeros_like(t) if own else None for t, own in zip(tensors, at_positions)]
        total = tensors[0].new_zeros((), dtype=torch.float32)
        shared = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
        for start in range(0, positions, chunk_size):
            rows = slice(start, start + chunk_size)
            parts = [t.detach()[rows].requires_grad_(t.requires_grad) for t in per_position]
            with torch.enable_grad():
                loss = chunk_loss(rows, *parts, *shared)
            leaves = [leaf for leaf, want in zip([*parts, *shared], wants) if want]
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            _add_gradients(grads, wants, found, rows, parameters_at)
            total += loss.detach()
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx, grad_output):
        scaled = (None if grad is None else grad * grad_output for grad in ctx.grads)
        return None, None, None, None, *scaled


def _add_gradients(grads, wants, found, rows, parameters_at):
    wanted = [i for i, want in enumerate(wants) if want]
    for index, gradient in zip(wanted, found):
        if gradient is None:
            continue
        if index < parameters_at:
            grads[index][rows] = gradient
        else:  # sparse ones are joined
            grads[index] = gradient if grads[index] is None else grads[index] + gradient


def chunked_loss(
    chunk_loss: Callable[..., Tensor],
    per_position: Sequence[Tensor],
    parameters: Sequence[Tensor],
    chunk_size: int,
) -> Tensor:
    """Sum `chunk_loss` over chunks of positions in memory bounded by one chunk.

    Args:
        chunk_loss: called as `chunk_loss(rows, *parts, *parameters)`, `rows` a slice; gives a
            scalar that is already weighted, so that chunks add up.
        per_position: tensors whose first dimension is the positions.
        parameters: tensors shared by all chunks; all that need a gradient must be named.
        chunk_size: positions a chunk.
    """
    positions = per_position[0].shape[0]
    tensors = (*per_position, *parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _ChunkedLoss.apply(chunk_loss, chunk_size, positions, len(per_position), *tensors)
    total = per_position[0].new_zeros((), dtype=torch.float32)
    for start in range(0, positions, chunk_size):
        rows = slice(start, start + chunk_size)
        total = total + chunk_loss(rows, *[t[rows] for t in per_position], *parameters)
    return total
