"""The k best items of a large catalogue: an index finds candidates, the head scores them exactly."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .head_implicitrec import LINE
from .kernels_implicitrec import SCALAR_STEP
from .live_head import LiveHead, Past, read_pasts
from .modeling_implicitrec import ImplicitRecForScoring, ImplicitRecRecommendation
from .ranking import best_of_many, pad_tokens
from .reranking import RankingRules

WIDENED = 65_536  # items of a small table that are made floats at one time
WIDER = 5  # times the items asked for are taken from an approximate index, and scored exactly
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
    """Every item's `state · embedding + bias`.

    Args:
        table: `[vocab_size, hidden_size]`; kept once more the other way round, which is read faster.
        bias: `[vocab_size]`.
        dtype: `"float32"`; `"bfloat16"` and `"int8"` (a scale per item) keep the table in a half and a
            quarter of the memory, at the price of near ties being found in another order.
        chunk_size: scores that exist at one time, unless one query has more.

    Raises:
        ValueError: for another dtype.

    >>> index = ExactIndex(torch.tensor([[9.0], [1.0], [2.0]]), torch.tensor([0.0, 5.0, 0.0]))
    >>> index.search(torch.tensor([[2.0]]), 1)
    (tensor([[1]]), tensor([[7.]]))
    """

    def __init__(
        self, table: Tensor, bias: Tensor, *, dtype: str = "float32", chunk_size: int = 2**25
    ) -> None:
        if dtype not in STORED:
            raise ValueError(f"dtype must be one of {list(STORED)}, got {dtype!r}")
        self.size, self.chunk_size = len(table), chunk_size
        filling = -len(table) % LINE  # rows of whole cache lines, filled with what is never shown
        self.bias = pad(bias.float(), (0, filling), value=-torch.inf)
        self.bias[0] = -torch.inf
        self.scale = None
        if dtype == "int8":
            self.scale = table.abs().amax(dim=1).clamp_min(1e-9) / 127
            table = (table / self.scale[:, None]).round()
            self.scale = pad(self.scale, (0, filling))
        # [hidden_size, whole lines]
        self.table = pad(table.to(STORED[dtype]), (0, 0, 0, filling)).t().contiguous()

    @torch.no_grad()
    def search(
        self,
        states: Tensor,
        k: int,
        *,
        added: Tensor | None = None,
        barred: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens and scores `[queries, k]`, best first; token 0 and `-inf` where fewer may be shown.

        Args:
            states: `[queries, hidden_size]`.
            added: `[vocab_size]`, a part of each item's score besides the bias, `-inf` to leave it out.
            barred: `[queries, any]`, tokens to leave out of each, filled up with 0.
        """
        found = []
        at_once = max(1, self.chunk_size // len(self.bias))
        for start in range(0, len(states), at_once):
            part = slice(start, start + at_once)
            scores = self._scores(states[part])
            if added is not None:
                scores[:, : self.size] += added
            if barred is not None:
                scores.scatter_(1, barred[part], -torch.inf)
            found.append(best_of_many(scores, min(k, self.size - 1)))
        if not found:
            return torch.zeros(0, k, dtype=torch.long), states.new_zeros(0, k)
        best, tokens = (torch.cat(parts) for parts in zip(*found))
        return tokens.masked_fill(best == -torch.inf, 0), best

    def _scores(self, states: Tensor) -> Tensor:
        """`[queries, vocab_size]`."""
        if self.table.dtype == torch.float32:
            return torch.addmm(self.bias, states, self.table)
        parts = [states @ part.to(states.dtype) for part in self.table.split(WIDENED, dim=1)]
        scores = torch.cat(parts, dim=1)
        return (scores if self.scale is None else scores * self.scale) + self.bias


class Retriever:
    """Recommends as the model does, in a catalogue too large to score for everyone.

    An item's score is `state · embedding + bias` until a prior raises it, and the priors name few
    items. So the best of an index together with those that the priors name, all scored by the head,
    hold the best of the whole catalogue: exactly with [`ExactIndex`], nearly with an approximate one.
    Where rules left so few that an item outside might be better, the catalogue is scanned instead, and
    where the priors may name as many items as there are, all are scored.

    Args:
        model: set to evaluation mode. It must not change afterwards.
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
        self.head = LiveHead(model, self.table, self.bias)
        self.exact = index if isinstance(index, ExactIndex) else ExactIndex(self.table, self.bias)
        self.index = index or self.exact

    @torch.no_grad()
    def recommend(
        self,
        input_ids: Tensor,
        *,
        top_k: int = 10,
        exclude_seen: bool = False,
        seen: Sequence[Sequence[int]] | None = None,
        rules: RankingRules | None = None,
        **inputs: Tensor,
    ) -> ImplicitRecRecommendation:
        """The `top_k` items of each history.

        Args:
            input_ids: `[batch, length]`, with the other inputs of the model by name.
            exclude_seen: leave out the items of the history, as with `config.exclude_seen` always.
            seen: more tokens of each history to leave out, such as those before the model's window.
            rules: what the lists may hold, the same for all of the batch.

        Raises:
            ValueError: where `top_k` is not positive.
        """
        states, history = self.model.last_states(input_ids, **inputs)
        pasts = read_pasts(input_ids, history)
        asked: dict[str, Any] = {"top_k": top_k, "exclude_seen": exclude_seen}
        return self.rank(states, pasts, seen=seen, rules=rules, **asked)

    @torch.no_grad()
    def rank(
        self,
        states: Tensor,
        pasts: Sequence[Past],
        *,
        top_k: int = 10,
        exclude_seen: bool = False,
        seen: Sequence[Sequence[int]] | None = None,
        rules: RankingRules | None = None,
    ) -> ImplicitRecRecommendation:
        """[`~Retriever.recommend`] from states that are there already.

        Args:
            states: `[batch, hidden_size]`, centred.
            pasts: of each, see [`read_pasts`] and [`LiveBody.past`].
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        rules = rules or RankingRules()
        depth = min(max(top_k, rules.pool) if rules.arrange else top_k, len(self.table) - 1)
        barred = _barred(pasts, exclude_seen or self.model.config.exclude_seen, seen)
        added = rules.added()
        if added is not None and added.shape != (len(self.table),):
            raise ValueError(
                f"rules must have a number for each of {len(self.table)} tokens, got {list(added.shape)}"
            )
        found, bounds = self._candidates(self.index, states, barred, added, depth)
        vectors = states.float().cpu().numpy()
        boosts = None if added is None else added.cpu().numpy()
        tokens = np.zeros((len(pasts), depth), dtype=np.int64)
        best = np.full((len(pasts), depth), -np.inf, dtype=np.float32)
        for row, past in enumerate(pasts):
            asked = (vectors[row], self.head.counts(past), barred[row], boosts, depth)
            chosen, worth = self._best(found[row], *asked)
            if self.index is not self.exact and (len(worth) < depth or worth[-1] < bounds[row]):
                one = slice(row, row + 1)
                again, _ = self._candidates(self.exact, states[one], barred[one], added, depth)
                chosen, worth = self._best(again[0], *asked)
            tokens[row, : len(chosen)], best[row, : len(chosen)] = chosen, worth
        return _arranged(tokens, best, rules, min(top_k, depth))

    def _candidates(
        self,
        index: Index,
        states: Tensor,
        barred: list[np.ndarray],
        added: Tensor | None,
        depth: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[batch, found]` that hold the best but for the priors; and the score of the last."""
        if isinstance(index, ExactIndex):
            left_out = torch.from_numpy(pad_tokens(barred)).to(states.device)
            tokens, scores = index.search(states, depth, added=added, barred=left_out)
            return tokens.cpu().numpy(), scores[:, -1].cpu().numpy()
        most = max((len(own) for own in barred), default=0)
        tokens, scores = index.search(states, min(WIDER * depth + most, len(self.table) - 1))
        found = tokens.cpu().numpy()
        if added is not None:
            raised = (added > 0).nonzero()[:, 0].cpu().numpy()
            found = np.concatenate([found, np.tile(raised, (len(found), 1))], axis=1)
        return found, scores[:, -1].cpu().numpy()

    def _best(
        self,
        found: np.ndarray,
        state: np.ndarray,
        counts: Any,
        barred: np.ndarray,
        boosts: np.ndarray | None,
        depth: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """At most `depth` tokens and scores, best first, of what was found and what the priors name."""
        candidates = np.concatenate([found, *(tokens for tokens, _ in filter(None, counts))])
        shown = np.ones(len(self.table), dtype=bool)
        shown[barred] = shown[0] = False
        if len(candidates) < len(self.table):
            candidates = np.sort(candidates[shown[candidates]])
            candidates = candidates[np.diff(candidates, prepend=0) > 0]
        else:
            candidates = shown.nonzero()[0]
        scores = self.head.scores(state, counts, candidates)
        if boosts is not None:
            scores += boosts[candidates]
        if len(scores) > depth:
            chosen = np.argpartition(scores, -depth)[-depth:]
            candidates, scores = candidates[chosen], scores[chosen]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > -np.inf]
        return candidates[order], scores[order]


def _barred(
    pasts: Sequence[Past], exclude_seen: bool, seen: Sequence[Sequence[int]] | None
) -> list[np.ndarray]:
    """The tokens that each list may not hold, int64."""
    own = [past.seen if exclude_seen else past.seen[:0] for past in pasts]
    more = [()] * len(pasts) if seen is None else seen
    return [np.concatenate([a, b]).astype(np.int64) for a, b in zip(own, more, strict=True)]


def _arranged(
    tokens: np.ndarray, scores: np.ndarray, rules: RankingRules, k: int
) -> ImplicitRecRecommendation:
    """The lists after their list rules, cut to `k`."""
    shown, values = tokens[:, :k], scores[:, :k]
    if rules.arrange:
        shown, values = np.zeros_like(shown), np.full_like(values, -np.inf)
        for row, (items, worth) in enumerate(zip(tokens, scores)):
            there = items > 0
            places = rules.places(items[there], worth[there], k)
            shown[row, : len(places)] = items[there][places]
            values[row, : len(places)] = worth[there][places]
    return ImplicitRecRecommendation(
        item_tokens=torch.from_numpy(shown), scores=torch.from_numpy(values)
    )
