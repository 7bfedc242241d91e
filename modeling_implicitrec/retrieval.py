"""The k best items of a large catalogue: an index finds candidates, the head scores them exactly."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .collation import pad_rows
from .head_implicitrec import SCALAR_STEP, gather_history
from .layers_implicitrec import event_weights, negative_events
from .modeling_implicitrec import ImplicitRecForScoring, ImplicitRecRecommendation
from .reranking import RankingRules

STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Index(Protocol):
    """What finds items by `state · embedding + bias`."""

    def search(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Tokens and scores `[queries, k]`, best first; token 0 where fewer were found."""


@torch.no_grad()
def item_vectors(model: ImplicitRecForScoring) -> tuple[Tensor, Tensor]:
    """The item table `[vocab_size, hidden_size]` and the bias `[vocab_size]` as the head adds it."""
    table = model.item_table().detach().float()
    head = model.head
    if head.item_bias is None:
        return table, torch.zeros(len(table))
    return table, (1 + SCALAR_STEP * head.bias_power) * head.item_bias.weight[:, 0].float()


def table_fingerprint(model: ImplicitRecForScoring) -> str:
    """SHA-256 of the item table and bias, to tell whether an index belongs to a model."""
    digest = hashlib.sha256()
    for part in item_vectors(model):
        digest.update(np.ascontiguousarray(part.cpu().numpy()).data)
    return digest.hexdigest()


class ExactIndex:
    """Every item's `state · embedding + bias`, a chunk of the table at a time.

    Args:
        table: `[vocab_size, hidden_size]`.
        bias: `[vocab_size]`.
        dtype: `"float32"`; `"bfloat16"` and `"int8"` (a scale per item) keep the table in a half and a
            quarter of the memory, at the price of near ties being found in another order.
        chunk_size: items whose scores exist at one time.

    Raises:
        ValueError: for another dtype.

    >>> index = ExactIndex(torch.tensor([[9.0], [1.0], [2.0]]), torch.tensor([0.0, 5.0, 0.0]))
    >>> index.search(torch.tensor([[2.0]]), 1)
    (tensor([[1]]), tensor([[7.]]))
    """

    def __init__(
        self, table: Tensor, bias: Tensor, *, dtype: str = "float32", chunk_size: int = 65_536
    ) -> None:
        if dtype not in STORED:
            raise ValueError(f"dtype must be one of {list(STORED)}, got {dtype!r}")
        self.bias, self.chunk_size = bias.float(), chunk_size
        self.scale = None
        if dtype == "int8":
            self.scale = table.abs().amax(dim=1).clamp_min(1e-9) / 127
            table = (table / self.scale[:, None]).round()
        self.table = table.to(STORED[dtype])

    @torch.no_grad()
    def search(
        self, states: Tensor, k: int, *, added: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens and scores `[queries, k]`, best first; token 0 and `-inf` where fewer may be shown.

        Args:
            states: `[queries, hidden_size]`.
            added: `[vocab_size]`, a part of each item's score besides the bias, `-inf` to leave it out.
        """
        best = states.new_full((len(states), 0), 0.0)
        tokens = torch.zeros(len(states), 0, dtype=torch.long, device=states.device)
        for start in range(1, len(self.table), self.chunk_size):
            part = slice(start, min(start + self.chunk_size, len(self.table)))
            scores = states @ self.table[part].to(states.dtype).t()
            if self.scale is not None:
                scores *= self.scale[part]
            scores += self.bias[part]
            if added is not None:
                scores += added[part]
            values, places = scores.topk(min(k, scores.shape[1]), dim=1)
            best, tokens = torch.cat([best, values], 1), torch.cat([tokens, places + start], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            tokens = tokens.gather(1, order)
        return tokens.masked_fill(best == -torch.inf, 0), best


@torch.no_grad()
def last_states(
    model: ImplicitRecForScoring, input_ids: Tensor, **inputs: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The centred state after the last event, `[batch, hidden_size]`, and what the priors read."""
    given = dict(inputs)
    query_time = given.pop("query_time", None)
    hidden = model.model(input_ids, **given).last_hidden_state
    weights = event_weights(
        model.config, input_ids, inputs.get("input_weights"), inputs.get("attention_mask")
    )
    batch: dict[str, Any] = {
        "input_ids": input_ids,
        "weights": weights,
        "timestamps": inputs.get("timestamps"),
        "query_time": query_time if model.config.use_query_time else None,
        "fold_ids": None,
        "negative": negative_events(model.config, inputs.get("event_type_ids")),
    }
    rows = torch.arange(len(hidden), device=hidden.device)
    last = ((weights > 0) * torch.arange(hidden.shape[1], device=hidden.device)).argmax(1)
    return model.state_centre(hidden[rows, last]), gather_history(batch, rows, last)


class Retriever:
    """Recommends as the model does, in a catalogue too large to score for everyone.

    An item's score is `state · embedding + bias` until a prior raises it, and the priors name few
    items. So the best of an index together with those that the priors name, all scored by the head,
    hold the best of the whole catalogue: exactly with [`ExactIndex`], nearly with an approximate one.
    Where rules left so few that an item outside might be better, the catalogue is scanned instead, and
    where the priors may name as many items as there are, all are scored.

    Args:
        model: set to evaluation mode.
        index: finds candidates; by default the exact one.

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=50, hidden_size=8))
    >>> found = Retriever(model).recommend(torch.tensor([[3, 5]]), top_k=4)
    >>> bool((found.item_tokens == model.recommend(torch.tensor([[3, 5]]), top_k=4).item_tokens).all())
    True
    """

    def __init__(self, model: ImplicitRecForScoring, index: Index | None = None) -> None:
        self.model = model.eval()
        self.table, self.bias = item_vectors(model)
        self.exact = index if isinstance(index, ExactIndex) else ExactIndex(self.table, self.bias)
        self.index = index or self.exact

    @torch.no_grad()
    def recommend(
        self,
        input_ids: Tensor,
        *,
        top_k: int = 10,
        exclude_seen: bool = True,
        seen: Sequence[Sequence[int]] | None = None,
        rules: RankingRules | None = None,
        **inputs: Tensor,
    ) -> ImplicitRecRecommendation:
        """The `top_k` items of each history.

        Args:
            input_ids: `[batch, length]`, with the other inputs of the model by name.
            exclude_seen: leave out the items of the history.
            seen: more tokens of each history to leave out, such as those before the model's window.
            rules: what the lists may hold, the same for all of the batch.

        Raises:
            ValueError: where `top_k` is not positive.
        """
        states, history = last_states(self.model, input_ids, **inputs)
        return self.rank(
            states,
            history,
            top_k=top_k,
            exclude_seen=exclude_seen or self.model.config.exclude_seen,
            seen=seen,
            rules=rules,
        )

    @torch.no_grad()
    def rank(
        self,
        states: Tensor,
        history: dict[str, Tensor],
        *,
        top_k: int = 10,
        exclude_seen: bool = True,
        seen: Sequence[Sequence[int]] | None = None,
        rules: RankingRules | None = None,
    ) -> ImplicitRecRecommendation:
        """[`~Retriever.recommend`] from states that are there already; see [`last_states`]."""
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        rules = rules or RankingRules()
        depth = min(max(top_k, rules.pool) if rules.arrange else top_k, len(self.table) - 1)
        barred = history["input_ids"] if exclude_seen else history["input_ids"][:, :0]
        if seen is not None:
            barred = torch.cat([barred, pad_rows(seen, torch.long).to(barred.device)], dim=1)
        added = rules.added()
        width = min(2 * depth + barred.shape[1], len(self.table) - 1)
        asked: dict[str, Any] = {"added": added, "depth": depth, "width": width}
        tokens, best, unsure = self._best(self.index, states, history, barred=barred, **asked)
        if unsure.any():
            rows = unsure.nonzero()[:, 0]
            part = {name: values[rows] for name, values in history.items()}
            again = self._best(self.exact, states[rows], part, barred=barred[rows], **asked)
            tokens[rows], best[rows] = again[:2]
        return _arranged(tokens, best, rules, min(top_k, depth))

    def _best(
        self,
        index: Index,
        states: Tensor,
        history: dict[str, Tensor],
        *,
        barred: Tensor,
        added: Tensor | None,
        depth: int,
        width: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best tokens and scores `[batch, depth]`, and where others might be better."""
        named = self._named(history)
        every = width + sum(part.shape[1] for part in named) >= len(self.table)
        if every:
            candidates = torch.arange(len(self.table), device=states.device).expand(len(states), -1)
            bounds = torch.full_like(states[:, :1], -torch.inf)
            scores = self.model.head(states, self.table, history).float()
        else:
            exactly = {"added": added} if isinstance(index, ExactIndex) else {}
            found, bounds = index.search(states, width, **exactly)
            if added is not None:
                named.append((added > 0).nonzero()[:, 0].expand(len(found), -1))
            candidates = distinct(torch.cat([found, *named], dim=1))
            scores = self.model.head(states, self.table, history, candidates).float()
        if added is not None:
            scores = scores + added[candidates]
        hidden = (candidates == 0) | is_among(candidates, barred)
        scores = scores.masked_fill(hidden, -torch.inf)
        scores = torch.nn.functional.pad(
            scores, (0, max(0, depth - scores.shape[1])), value=-torch.inf
        )
        candidates = torch.nn.functional.pad(candidates, (0, scores.shape[1] - candidates.shape[1]))
        best, places = scores.topk(depth, dim=1)
        tokens = candidates.gather(1, places).masked_fill(best == -torch.inf, 0)
        unsure = best[:, -1] < bounds[:, -1]
        return tokens, best, unsure & (not isinstance(index, ExactIndex))

    def _named(self, history: dict[str, Tensor]) -> list[Tensor]:
        """Tokens that a prior may raise, `[batch, sources]` each, 0 for none."""
        priors = [self.model.head.copy, self.model.head.cooccurrence]
        pairs = [prior(history) for prior in priors if prior is not None]
        return [source.masked_fill(values <= 0, 0) for source, values in pairs]


def distinct(tokens: Tensor) -> Tensor:
    """Each row's tokens once, in rising order, filled up with 0 on the left."""
    ordered = tokens.sort(dim=1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    ordered = ordered.masked_fill(repeated, 0).sort(dim=1).values
    return ordered[:, min(int((ordered == 0).sum(1).min()), ordered.shape[1] - 1) :]


def is_among(candidates: Tensor, barred: Tensor) -> Tensor:
    """Whether each row's rising candidates are in the row's `barred`, of the shape of `candidates`."""
    if not barred.shape[1]:
        return torch.zeros_like(candidates, dtype=torch.bool)
    ordered = barred.sort(dim=1).values
    place = torch.searchsorted(ordered, candidates.contiguous()).clamp_max(ordered.shape[1] - 1)
    return ordered.gather(1, place) == candidates


def _arranged(
    tokens: Tensor, scores: Tensor, rules: RankingRules, k: int
) -> ImplicitRecRecommendation:
    """The lists after their list rules, cut to `k`."""
    if not rules.arrange:
        return ImplicitRecRecommendation(item_tokens=tokens[:, :k], scores=scores[:, :k])
    shown = torch.zeros(len(tokens), k, dtype=torch.long)
    values = torch.full((len(tokens), k), -torch.inf)
    for row, (items, worth) in enumerate(zip(tokens.cpu().numpy(), scores.cpu().numpy())):
        there = items > 0
        places = rules.places(items[there], worth[there], k)
        shown[row, : len(places)] = torch.from_numpy(items[there][places])
        values[row, : len(places)] = torch.from_numpy(worth[there][places])
    return ImplicitRecRecommendation(item_tokens=shown, scores=values)
