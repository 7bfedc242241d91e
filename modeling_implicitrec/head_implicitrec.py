"""The scoring head: hidden state against the item table, plus learned-scale count priors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_implicitrec import ImplicitRecConfig
from .content_implicitrec import ItemContent
from .kernels_implicitrec import SCALAR_STEP, TimeKernel, log_buckets
from .pairs_implicitrec import own_counts
from .trend_implicitrec import TrendPrior

MEAN_STEP = 0.1  # of the running mean of states towards the batch's
LINE = 16  # floats of a cache line
SMALLEST = 1e-6  # count; what is left below it is rounding


class CopyPrior(nn.Module):
    """Self-excitation, as in a Hawkes process (1971): every event raises the chance of its own item.

    The count of item v at position i is `sum over j <= i with item v of w_j^q * exp(k[age bucket])`,
    for a learned kernel k and a power q, 1 unless `learn_copy_power`.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.num_buckets = config.num_time_buckets
        self.time_kernel = TimeKernel(config)
        self.distance_kernel = nn.Parameter(torch.zeros(config.num_time_buckets))
        self.evidence = nn.Parameter(torch.zeros(1), requires_grad=config.learn_copy_power)
        self.power = nn.Parameter(torch.zeros(1))
        self.level = nn.Parameter(torch.zeros(1))
        self.item_level = nn.Embedding(config.vocab_size, 1)

    def forward(self, history: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source tokens and values, both `[positions, length]`."""
        ids, weights, columns = history["input_ids"], history["weights"], history["columns"]
        distance = columns[:, None] - torch.arange(ids.shape[1], device=ids.device)
        log_kernel = SCALAR_STEP * self.distance_kernel[log_buckets(distance, self.num_buckets)]
        log_kernel = (log_kernel + self.time_kernel(history)).clamp_max(10)
        log_weight = (1 + SCALAR_STEP * self.evidence) * weights.clamp_min(1e-9).log()
        present = (weights > 0) & (distance >= 0)
        return ids, present * (log_weight + log_kernel).exp()


class CooccurrencePrior(nn.Module):
    """Mutual excitation: what goes with the last few items in the histories of others, by a table.

    While training, the prior must not see the answer. Either the user's own pairs are taken out of the
    counts, or every user reads a table that was made from other users only (cross-fitting, as in
    Wolpert's stacked generalisation, 1992).
    """

    items: Tensor
    counts: Tensor
    fold_items: Tensor
    fold_counts: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        shape = (config.vocab_size, config.num_cooccurrences)
        self.context = config.cooccurrence_context
        self.gap_power = config.cooccurrence_gap_power
        self.dropout = 0.0  # share of the positions that do not see the prior while training
        self.register_buffer("items", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(shape))
        none = (0, *shape)
        self.register_buffer("fold_items", torch.zeros(none, dtype=torch.int32), persistent=False)
        self.register_buffer("fold_counts", torch.zeros(none), persistent=False)
        self.gap_level = nn.Parameter(torch.zeros(self.context))
        self.time_kernel = TimeKernel(config)
        self.evidence = nn.Parameter(torch.zeros(1))
        self.power = nn.Parameter(torch.zeros(1))
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, history: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source tokens and values, `[positions, context * neighbours]`, and more in training."""
        ids, columns = history["input_ids"], history["columns"]
        # An exported model has one way for all lengths; what is not there counts nothing.
        every = torch.compiler.is_compiling()
        gaps = torch.arange(self.context if every else min(self.context, ids.shape[1]))
        gaps = gaps.to(ids.device)
        at = columns[:, None] - gaps
        place = at.clamp_min(0)
        evidence = history["weights"].gather(1, place)
        present = (at >= 0) & (evidence > 0)
        last = ids.gather(1, place) * present
        log_weight = self.gap_level[: len(gaps)] + self.evidence * evidence.clamp_min(1e-9).log()
        log_weight = SCALAR_STEP * log_weight + self.time_kernel(history).gather(1, place)
        weight = log_weight.clamp_max(10).exp() / (gaps + 1.0) ** self.gap_power * present
        items, counts = self._table(history, last)
        source, values = items.flatten(1), (counts * weight[:, :, None]).flatten(1)
        if self.training and "own_ids" in history and not len(self.fold_items):
            own_ids = history["own_ids"]
            own = own_counts(own_ids, last, weight, history["item_frequency"])
            source, values = torch.cat([source, own_ids], 1), torch.cat([values, -own], 1)
        if self.training and self.dropout:
            values = values * (torch.rand(len(values), 1, device=values.device) >= self.dropout)
        return source, values

    def _table(self, history: dict[str, Tensor], last: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of items, `[positions, context, neighbours]` tokens and counts."""
        if not (self.training and len(self.fold_items)):
            return self.items[last].long(), self.counts[last]
        if "fold_ids" not in history:
            raise ValueError(
                "training with cross-fitted co-occurrences expects fold_ids in the batch, got none; "
                "set num_folds of the collator"
            )
        at_fold = (history["fold_ids"][:, None], last)
        return self.fold_items[at_fold].long(), self.fold_counts[at_fold]


Prior = CopyPrior | CooccurrencePrior | TrendPrior


def score_all(bias: Tensor, hidden: Tensor, table: Tensor) -> Tensor:
    """`bias + hidden @ table.t()`, `[positions, items]`.

    Where nobody asks for a gradient, in rows of whole cache lines: the same numbers in half the time.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.addmm(bias, hidden, table.t())
    wide = hidden.new_empty(len(hidden), -(-len(table) // LINE) * LINE)
    return wide[:, : len(table)].copy_(bias).addmm_(hidden, table.t())


def add_at(table: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """`table.scatter_add(1, index, values)`; in place where nobody asks for a gradient.

    A copy of all scores takes longer than the few sums.
    """
    add = table.scatter_add if torch.is_grad_enabled() else table.scatter_add_
    return add(1, index, values)


def lowest_at(scores: Tensor, tokens: Tensor) -> Tensor:
    """Scores whose tokens `[positions, n]` have the lowest number; in place as [`add_at`] is."""
    put = scores.scatter if torch.is_grad_enabled() else scores.scatter_
    return put(1, tokens, torch.finfo(scores.dtype).min)


def read_rows(table: nn.Embedding, items: Tensor) -> Tensor:
    """The rows of items, without the padding row's special place among gradients."""
    return F.embedding(items, table.weight, sparse=table.sparse)


def counts_of(candidates: Tensor, source: Tensor, values: Tensor) -> Tensor:
    """The sum of the values whose source is each candidate, `[positions, candidates]`, by search."""
    ordered = candidates.sort(dim=1).values
    place = torch.searchsorted(ordered, source).clamp_max(ordered.shape[1] - 1)
    found = values * (ordered.gather(1, place) == source)
    counts = values.new_zeros(ordered.shape).scatter_add(1, place, found)
    return counts.gather(1, torch.searchsorted(ordered, candidates.contiguous()))


def excitation(prior: Prior, background: Tensor, counts: Tensor, items: Tensor) -> Tensor:
    """What a prior adds to log intensities: `log(exp(background) + exp(level_v) * count^p) - background`.

    So intensities add up: an item without a count keeps its own, and one with a large count has the
    count's, whatever its popularity. Level and power p are learned, for copies a level per item too.
    """
    level = 1 + SCALAR_STEP * prior.level
    if isinstance(prior, CopyPrior):
        level = level + read_rows(prior.item_level, items)[..., 0]
    term = (1 + SCALAR_STEP * prior.power) * counts.clamp_min(SMALLEST).log() + level
    return torch.where(counts > SMALLEST, torch.logaddexp(background, term) - background, 0.0)


class StateCentre(nn.Module):
    """Takes the running mean off the states: what all histories share is left to the item bias.

    With tied embeddings the mean is a direction along which every rare item is pushed away at the pace
    of the optimiser (Gao et al., 2019, the representation degeneration problem): a second popularity, and
    a poor one. The mean is over all processes. A state of zeros, that of no event, stays as it is.
    """

    mean: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.fixed = False  # whether the mean stays as it is while training
        self.register_buffer("mean", torch.zeros(config.hidden_size))

    def forward(self, states: Tensor) -> Tensor:
        """`[positions, hidden_size]`, both; call it once a step while training."""
        if self.training and not self.fixed:
            with torch.no_grad():
                total = torch.cat([states.sum(0).float(), states.new_tensor([len(states)])])
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    torch.distributed.all_reduce(total)
                if total[-1]:
                    self.mean.lerp_(total[:-1] / total[-1], MEAN_STEP)
        return (states - self.mean.to(states.dtype)) * states.ne(0).any(-1, keepdim=True)


class ItemHead(nn.Module):
    """Scores `[positions, items]` or `[positions, candidates]` of hidden states.

    The item bias, times a learned power of popularity, is raised by what everybody takes at the time and
    by the co-occurrence prior, the hidden state's match with the item is added, and the copy prior raises
    the sum: the body says what is new, the history what comes back.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.sparse = False  # whether the item table's gradient is to be sparse
        self.item_bias = nn.Embedding(config.vocab_size, 1) if config.use_item_bias else None
        self.bias_power = nn.Parameter(torch.zeros(1))
        self.copy = CopyPrior(config) if config.copy_prior else None
        self.cooccurrence = CooccurrencePrior(config) if config.num_cooccurrences else None
        self.trend = TrendPrior(config) if config.num_trend_events else None

    def item_tables(self) -> list[nn.Embedding]:
        """The tables that have a row an item."""
        own = [] if self.item_bias is None else [self.item_bias]
        return own if self.copy is None else [*own, self.copy.item_level]

    def prior_numbers(self) -> list[nn.Parameter]:
        """How much the priors of the others' events count, and popularity beside them."""
        priors = [prior for prior in (self.cooccurrence, self.trend) if prior is not None]
        numbers = [number for prior in priors for number in prior.parameters()]
        return [self.bias_power, *numbers] if priors else []

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
        bias = self._background(table, candidate_ids)
        if self.trend is not None:
            bias = bias.expand(hidden.shape[0], -1).clone()
            bias = self._excite(bias, bias, self.trend, history, candidate_ids)
        if candidate_ids is not None and candidate_ids.dim() == 2:
            chosen = F.embedding(candidate_ids, table, sparse=self.sparse)
            scores = bias + torch.einsum("ph,pch->pc", hidden, chosen)
        else:
            chosen = table
            if candidate_ids is not None:
                chosen = F.embedding(candidate_ids, table, sparse=self.sparse)
            scores = score_all(bias, hidden, chosen)
        if self.cooccurrence is not None:
            scores = self._excite(scores, bias, self.cooccurrence, history, candidate_ids)
        if self.copy is not None:
            scores = self._excite(scores, scores, self.copy, history, candidate_ids)
        return scores

    def _background(self, table: Tensor, candidate_ids: Tensor | None) -> Tensor:
        """The item bias, of the shape of the candidates; padding has a number that can be added to."""
        items = candidate_ids
        if items is None:
            items = torch.arange(self.vocab_size, device=table.device)
        bias = table.new_zeros(items.shape)
        if self.item_bias is not None:
            power = 1 + SCALAR_STEP * self.bias_power
            bias = power * read_rows(self.item_bias, items)[..., 0]
        return bias.masked_fill(items == 0, torch.finfo(table.dtype).min / 2)

    def _excite(
        self,
        scores: Tensor,
        background: Tensor,
        prior: Prior,
        history: dict[str, Tensor],
        candidate_ids: Tensor | None,
    ) -> Tensor:
        """Add what a prior adds to a background, `[items]` or `[positions, items]`.

        Where the sources are few, only to the items that they name: an item's part is shared out among
        its sources as their values are.
        """
        source, values = prior(history)  # [positions, sources]
        if candidate_ids is not None:
            candidates = candidate_ids.expand(source.shape[0], -1)
            counts = counts_of(candidates, source, values)
            return scores + excitation(prior, background, counts, candidates)
        counts = add_at(values.new_zeros(source.shape[0], self.vocab_size), source, values)
        if not torch.compiler.is_compiling() and source.shape[1] >= self.vocab_size:
            every = torch.arange(self.vocab_size, device=source.device)
            return scores + excitation(prior, background, counts, every)
        counts = counts.gather(1, source)
        before = background[source] if background.dim() == 1 else background.gather(1, source)
        share = (values / counts.clamp_min(SMALLEST)).detach()
        added = share * excitation(prior, before, counts, source)
        return add_at(scores, source, added.to(scores.dtype))


PRIORS = (CopyPrior, CooccurrencePrior, TrendPrior)
ZERO_AT_FIRST = (*PRIORS, TimeKernel, StateCentre, ItemHead, ItemContent)


def drop_negative(history: dict[str, Tensor], negative: Tensor) -> dict[str, Tensor]:
    """The history at each position without its negative events, `negative` being `[positions, length]`."""
    length = negative.shape[1]
    order = (~negative).cumsum(1)
    place = torch.where(negative, length, order - 1)  # negative ones share one behind the last

    def front(values: Tensor) -> Tensor:
        empty = values.new_zeros(values.shape[0], length + 1)
        return empty.scatter(1, place, values)[:, :length]

    kept = {name: front(history[name]) for name in ("input_ids", "weights")}
    kept["columns"] = order.gather(1, history["columns"][:, None])[:, 0] - 1
    if "timestamps" in history:
        kept["timestamps"] = front(history["timestamps"])
    return history | kept


def gather_history(batch: dict[str, Any], rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """What the priors read at each position: its row's events up to the column, negative ones left out."""
    history = {
        "input_ids": batch["input_ids"][rows],
        "weights": batch["weights"][rows],
        "columns": columns,
    }
    if batch["fold_ids"] is not None:
        history["fold_ids"] = batch["fold_ids"][rows]
    if batch["own_ids"] is not None:
        history["own_ids"] = batch["own_ids"][rows]
        history["item_frequency"] = batch["item_frequency"]
    if batch["timestamps"] is not None:
        history["timestamps"] = batch["timestamps"][rows]
        last = history["timestamps"].gather(1, columns[:, None])[:, 0]
        history["query_time"] = last
        if (asked := batch["query_time"]) is not None:
            asked = asked[rows] if asked.dim() == 1 else asked[rows, columns]
            history |= {"query_time": torch.where(asked > 0, asked, last), "asked_at": asked}
    if batch["negative"] is not None:
        history = drop_negative(history, batch["negative"][rows])
    return history
