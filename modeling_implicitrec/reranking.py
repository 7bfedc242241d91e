"""Business rules of a list: which items may be shown, boosts, and rules that arrange the best of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# From tokens and scores, best first, the places to keep, in the order to show them.
ListRule = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RankingRules:
    """What a list may hold and how it is arranged; numbers of items are tensors or arrays.

    Args:
        allowed: bool `[vocab_size]`, the items that may be shown: in stock, of a category.
        boosts: float `[vocab_size]`, added to the scores, which are log intensities: `log(2)` doubles.
        arrange: list rules, applied in turn to the best `pool` items of a user.
        pool: how many that are, read where there are list rules; at least the list's length.

    Raises:
        ValueError: where `allowed` is not of bools, when a list is made.

    >>> rules = RankingRules(allowed=torch.tensor([False, True, False, True]))
    >>> rules.added()
    tensor([-inf, 0., -inf, 0.])
    """

    allowed: Tensor | np.ndarray | None = None
    boosts: Tensor | np.ndarray | None = None
    arrange: Sequence[ListRule] = ()
    pool: int = 100

    def added(self) -> Tensor | None:
        """What to add to every item's score, `[vocab_size]`, `-inf` where it may not be shown."""
        boosts = None if self.boosts is None else torch.as_tensor(self.boosts)
        if self.allowed is None:
            return boosts
        allowed = np.asarray(self.allowed)
        if allowed.dtype != bool or allowed.ndim != 1:
            raise ValueError(
                "allowed must be bools [vocab_size], True where an item may be shown, got "
                f"{allowed.dtype} {list(allowed.shape)}"
            )
        shown = torch.where(torch.from_numpy(allowed), 0.0, -torch.inf)
        return shown if boosts is None else shown + boosts

    def places(self, tokens: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
        """The places of the `k` items to show of one user's candidates, which are best first."""
        places = np.arange(len(tokens))
        for rule in self.arrange:
            places = places[rule(tokens[places], scores[places])]
        return places[:k]


def at_most(most: int, groups: np.ndarray) -> ListRule:
    """No more than `most` items of a group, such as a category or an artist.

    Args:
        groups: int `[vocab_size]`, the group of each item; negative ones are not limited.

    >>> rule = at_most(1, np.array([-1, 7, 7, 8]))
    >>> rule(np.array([2, 1, 3]), np.array([3.0, 2.0, 1.0]))
    array([0, 2])
    """

    def rule(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        group = groups[tokens]
        order = np.argsort(group, kind="stable")
        place = np.empty(len(group), dtype=np.int64)  # how many of its group come before it
        place[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
        return np.flatnonzero((place < most) | (group < 0))

    return rule


def pinned(items: Iterable[int]) -> ListRule:
    """These tokens first, where the list holds them, in their own order.

    >>> pinned([3])(np.array([2, 1, 3]), np.array([3.0, 2.0, 1.0]))
    array([2, 0, 1])
    """
    rank = {token: place for place, token in enumerate(items)}

    def rule(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        keys = [rank.get(int(token), len(rank)) for token in tokens]
        return np.argsort(keys, kind="stable")

    return rule


def diverse(vectors: np.ndarray, *, share: float = 0.3, most: int = 50) -> ListRule:
    """Maximal marginal relevance (Carbonell and Goldstein, 1998): each next item is the best by
    `(1 - share) * relevance - share * (largest cosine with those already chosen)`.

    Relevance is the score moved to 0..1 over the list.

    Args:
        vectors: `[vocab_size, size]`, such as the item embeddings.
        share: of diversity, 0 to 1.
        most: items that are chosen so; the others follow in their order.

    Raises:
        ValueError: for a share outside 0 to 1.

    >>> rule = diverse(np.array([[0, 0], [1, 0], [1, 0.1], [0, 1.0]]), share=0.5)
    >>> rule(np.array([1, 2, 3]), np.array([3.0, 2.9, 2.0]))
    array([0, 2, 1])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")

    def rule(tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        chosen = vectors[tokens].astype(np.float32)
        unit = chosen / np.linalg.norm(chosen, axis=1, keepdims=True).clip(1e-9)
        spread = scores.max(initial=-np.inf) - scores.min(initial=np.inf)
        worth = (1 - share) * (scores - scores.min(initial=np.inf)) / max(spread, 1e-9)
        nearest = np.full(len(tokens), -1.0 if share else 0.0)
        order: list[int] = []
        for _ in range(min(most, len(tokens))):
            value = worth - share * (nearest if order else 0)
            value[order] = -np.inf
            order.append(int(value.argmax()))
            nearest = np.maximum(nearest, unit @ unit[order[-1]])
        rest = np.setdiff1d(np.arange(len(tokens)), order)
        return np.concatenate([np.array(order, dtype=np.int64), rest])

    return rule
