"""The scoring head: hidden state against the item table, plus learned-scale count priors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_implicitrec import ImplicitRecConfig


def log_buckets(gaps: Tensor, num_buckets: int) -> Tensor:
    """Bucket of a gap in seconds (or events), two to every doubling of `1 + gap`; int32.

    They are read off the bits of the float: the exponent and the first bit of the mantissa. No gap
    and a negative one are in bucket 0, all that are too long in the last.
    """
    bits = (1 + gaps.clamp_min(0).float()).view(torch.int32)
    return ((bits >> 22) - 254).clamp_(max=num_buckets - 1)


class CopyPrior(nn.Module):
    """A count of the user's own history: each event adds its weight, faded by its age.

    The count of item v at position i is `sum over j <= i with item v of w_j * exp(k[age bucket])`;
    it enters the score as `(scale + scale_v) * log(1 + sharpness * count)`.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.num_buckets = config.num_time_buckets
        self.time_kernel = nn.Parameter(torch.zeros(2 * config.num_time_buckets))
        self.distance_kernel = nn.Parameter(torch.zeros(config.num_time_buckets))
        self.scale = nn.Parameter(torch.ones(()))
        self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.item_scale = nn.Embedding(config.vocab_size, 1)

    def forward(self, history: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source tokens and values, both `[positions, length]`."""
        ids, weights, columns = history["input_ids"], history["weights"], history["columns"]
        distance = columns[:, None] - torch.arange(ids.shape[1], device=ids.device)
        log_kernel = self.distance_kernel[log_buckets(distance, self.num_buckets)]
        if "timestamps" in history:
            age = history["query_time"][:, None] - history["timestamps"]
            log_kernel = log_kernel + self.time_kernel[log_buckets(age, 2 * self.num_buckets)]
        return ids, weights * (distance >= 0) * log_kernel.clamp_max(10).exp()

    def transform(self, counts: Tensor, item_scale: Tensor | None = None) -> Tensor:
        """The term added to the scores."""
        scale = self.scale if item_scale is None else self.scale + item_scale
        return scale * torch.log1p(self.log_sharpness.exp() * counts)


class CooccurrencePrior(nn.Module):
    """Counts of what followed the last few items in training, read from a stored table.

    While training, the pair that is the label's own is taken out of the count, so that the prior
    never sees the answer.
    """

    items: Tensor
    counts: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        shape = (config.vocab_size, config.num_cooccurrences)
        self.context = config.cooccurrence_context
        self.register_buffer("items", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(shape))
        self.log_gap_weight = nn.Parameter(-torch.log(torch.arange(1.0, self.context + 1)))
        self.scale = nn.Parameter(torch.ones(()))
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, history: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source tokens and values, both `[positions, context * neighbours]`."""
        ids, columns = history["input_ids"], history["columns"]
        gaps = torch.arange(self.context, device=ids.device)
        at = columns[:, None] - gaps
        present = (at >= 0) & (history["weights"].gather(1, at.clamp_min(0)) > 0)
        last = ids.gather(1, at.clamp_min(0)) * present
        items, counts = self.items[last].long(), self.counts[last]
        if self.training and "labels" in history:
            own = items == history["labels"][:, None, None]
            counts = (counts - own / (gaps + 1.0)[None, :, None]).clamp_min(0)
        values = counts * (self.log_gap_weight.exp()[None, :, None] * present[:, :, None])
        return items.flatten(1), values.flatten(1)

    def transform(self, counts: Tensor, item_scale: Tensor | None = None) -> Tensor:
        """The term added to the scores."""
        return self.scale * torch.log1p(self.log_sharpness.exp() * counts)


class ItemHead(nn.Module):
    """Scores `[positions, items]` or `[positions, candidates]` of hidden states."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.item_bias = nn.Embedding(config.vocab_size, 1) if config.use_item_bias else None
        self.copy = CopyPrior(config) if config.copy_prior else None
        self.cooccurrence = CooccurrencePrior(config) if config.num_cooccurrences else None

    def forward(
        self,
        hidden: Tensor,
        table: Tensor,
        history: dict[str, Tensor],
        candidate_ids: Tensor | None = None,
    ) -> Tensor:
        """Scores; the padding token's is the lowest number.

        Args:
            hidden: `[positions, hidden_size]`.
            table: `[vocab_size, hidden_size]`.
            history: see [`gather_history`].
            candidate_ids: `[candidates]` for all or `[positions, candidates]`.
        """
        scores = self._match(hidden, table, candidate_ids)
        if self.copy is not None:
            item_scale = self.copy.item_scale.weight[:, 0]
            scores = self._add(scores, self.copy, history, candidate_ids, item_scale)
        if self.cooccurrence is not None:
            scores = self._add(scores, self.cooccurrence, history, candidate_ids)
        if candidate_ids is None:
            return scores
        return scores.masked_fill(candidate_ids == 0, torch.finfo(scores.dtype).min)

    def _match(self, hidden: Tensor, table: Tensor, candidate_ids: Tensor | None) -> Tensor:
        """Dot products plus the item bias; over the catalogue, padding gets the lowest number."""
        bias = None if self.item_bias is None else self.item_bias.weight[:, 0]
        if candidate_ids is None:
            padding = torch.zeros_like(table[:, 0])
            padding[0] = torch.finfo(table.dtype).min
            return F.linear(hidden, table, padding if bias is None else padding + bias)
        chosen = table[candidate_ids]
        if candidate_ids.dim() == 1:
            scores = F.linear(hidden, chosen)
        else:
            scores = torch.einsum("ph,pch->pc", hidden, chosen)
        return scores if bias is None else scores + bias[candidate_ids]

    def _add(
        self,
        scores: Tensor,
        prior: "CopyPrior | CooccurrencePrior",
        history: dict[str, Tensor],
        candidate_ids: Tensor | None,
        item_scale: Tensor | None = None,
    ) -> Tensor:
        """Add a prior's term; over the catalogue only where the prior has a count."""
        source, values = prior(history)  # [positions, sources]
        if candidate_ids is None:
            empty = values.new_zeros(len(source), self.vocab_size)
            counts = empty.scatter_add(1, source, values).gather(1, source)
            times = empty.scatter_add(1, source, torch.ones_like(values)).gather(1, source)
            scale = None if item_scale is None else item_scale[source]
            return scores.scatter_add(1, source, prior.transform(counts, scale) / times)
        candidates = candidate_ids if candidate_ids.dim() == 2 else candidate_ids[None, :]
        counts = ((source[:, None, :] == candidates[:, :, None]) * values[:, None, :]).sum(2)
        return scores + prior.transform(
            counts, None if item_scale is None else item_scale[candidates]
        )


def gather_history(batch: dict[str, Any], rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """What the priors read at each position: its row's events up to the column."""
    history = {
        "input_ids": batch["input_ids"][rows],
        "weights": batch["weights"][rows],
        "columns": columns,
    }
    if batch["timestamps"] is not None:
        history["timestamps"] = batch["timestamps"][rows]
        last = history["timestamps"].gather(1, columns[:, None])[:, 0]
        asked = batch["query_time"]
        history["query_time"] = last if asked is None else asked[rows]
    return history
