"""The head in numpy, for the few candidates of one user: what the priors name is scored, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .head_implicitrec import CooccurrencePrior, CopyPrior
from .kernels_implicitrec import SCALAR_STEP, TimeKernel
from .modeling_implicitrec import ImplicitRecForScoring
from .recent_events import RecentEvents
from .trend_implicitrec import TrendPrior

Counts = tuple[np.ndarray, np.ndarray]  # tokens, with repeats, and what each adds to its count


@dataclass(frozen=True)
class Past:
    """What the priors read of one history, `[events]` each, oldest first.

    Args:
        seen: tokens of all its events.
        items: tokens of those that are not negative, as are the others.
        weights: 0 for an event that is not there.
        ages: seconds from the event to the moment of asking, where there are times.
        asked_at: the moment of asking in seconds, where somebody said so.
    """

    seen: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    ages: np.ndarray | None
    asked_at: int | None = None


def read_pasts(input_ids: Tensor, history: Mapping[str, Tensor]) -> list[Past]:
    """The past of each row of what [`~ImplicitRecForScoring.last_states`] gives."""
    arrays = {name: values.cpu().numpy() for name, values in history.items()}
    pasts = []
    for row, (seen, last) in enumerate(zip(input_ids.cpu().numpy(), arrays["columns"])):
        there = slice(last + 1)
        ages = None
        if "timestamps" in arrays:
            ages = arrays["query_time"][row] - arrays["timestamps"][row, there]
        own = (arrays["input_ids"][row, there], arrays["weights"][row, there])
        asked_at = int(arrays["asked_at"][row]) if "asked_at" in arrays else None
        pasts.append(Past(seen[seen > 0], *own, ages, asked_at))
    return pasts


class LiveHead:
    """Scores of chosen items for one user, those of the model's head to 1e-5.

    Args:
        model: whose head it is; it must not change afterwards. Everybody's new events go into
            `trend.recent`, a copy of what the model's own trend holds.
        table: `[vocab_size, hidden_size]` of the items.
        bias: `[vocab_size]`, see [`item_vectors`].
    """

    def __init__(self, model: ImplicitRecForScoring, table: Tensor, bias: Tensor) -> None:
        self.table, self.bias = as_array(table), as_array(bias)
        head = model.head
        self.copy = None if head.copy is None else _Copy(head.copy)
        follows = head.cooccurrence
        self.cooccurrence = None if follows is None else _Cooccurrence(follows)
        self.trend = None if head.trend is None else _Trend(head.trend)

    def counts(self, past: Past) -> tuple[Counts | None, ...]:
        """Which items the trend, co-occurrence and copy prior name, and their parts of the counts."""
        priors = (self.trend, self.cooccurrence, self.copy)
        return tuple(None if prior is None else prior.counts(past) for prior in priors)

    def scores(self, state: np.ndarray, counts: Any, candidates: np.ndarray) -> np.ndarray:
        """`[candidates]`, of distinct rising tokens.

        Args:
            state: `[hidden_size]`, centred.
            counts: see [`~LiveHead.counts`].
        """
        scores = self.bias[candidates]
        for prior, named in zip((self.trend, self.cooccurrence), counts):
            if prior is not None:
                prior.raise_scores(scores, named, candidates)
        scores += self.table[candidates] @ state
        if self.copy is not None:
            self.copy.raise_scores(scores, counts[2], candidates)
        return scores


class _Prior:
    """A count prior; see [`excitation`] for how it raises a score."""

    def __init__(self, prior: CopyPrior | CooccurrencePrior | TrendPrior) -> None:
        self.level = 1 + SCALAR_STEP * prior.level.item()
        self.power = 1 + SCALAR_STEP * prior.power.item()
        self.time = _time_levels(prior.time_kernel)

    def of_time(self, ages: np.ndarray | None) -> np.ndarray | float:
        """The log influence of the events' ages."""
        return 0.0 if ages is None else self.time[log_buckets(ages, len(self.time))]

    def levels(self, items: np.ndarray) -> np.ndarray | float:
        return self.level

    def raise_scores(self, scores: np.ndarray, counts: Counts, candidates: np.ndarray) -> None:
        """Add intensities to those scores of candidates that the prior counts, in place."""
        tokens, values = counts
        place = np.searchsorted(candidates, tokens)
        place[place == len(candidates)] = 0
        there = candidates[place] == tokens
        totals = np.bincount(place[there], values[there], minlength=len(candidates))
        raised = totals.nonzero()[0]
        term = self.power * np.log(totals[raised].clip(1e-9)) + self.levels(candidates[raised])
        scores[raised] = np.logaddexp(scores[raised], term)


class _Copy(_Prior):
    def __init__(self, prior: CopyPrior) -> None:
        super().__init__(prior)
        self.distance = SCALAR_STEP * as_array(prior.distance_kernel)
        self.evidence = 1 + SCALAR_STEP * prior.evidence.item()
        self.item_level = as_array(prior.item_level.weight)[:, 0]

    def levels(self, items: np.ndarray) -> np.ndarray | float:
        return self.level + self.item_level[items]

    def counts(self, past: Past) -> Counts:
        distance = np.arange(len(past.items) - 1, -1, -1)
        kernel = self.distance[log_buckets(distance, len(self.distance))] + self.of_time(past.ages)
        weight = self.evidence * np.log(past.weights.clip(1e-9))
        return past.items, (past.weights > 0) * np.exp(weight + np.minimum(kernel, 10))


class _Cooccurrence(_Prior):
    def __init__(self, prior: CooccurrencePrior) -> None:
        super().__init__(prior)
        self.items, self.table = prior.items.cpu().numpy(), as_array(prior.counts)
        self.context, self.gap_power = prior.context, prior.gap_power
        self.gap_level = as_array(prior.gap_level)
        self.evidence = prior.evidence.item()

    def counts(self, past: Past) -> Counts:
        last = np.arange(len(past.items))[::-1][: self.context]  # the latest first
        items, weights = past.items[last], past.weights[last]
        kernel = self.gap_level[: len(last)] + self.evidence * np.log(weights.clip(1e-9))
        kernel = SCALAR_STEP * kernel + self.of_time(None if past.ages is None else past.ages[last])
        gaps = np.arange(1, len(last) + 1, dtype=np.float32)
        weight = np.exp(np.minimum(kernel, 10)) / gaps**self.gap_power * (weights > 0)
        return self.items[items].ravel(), (self.table[items] * weight[:, None]).ravel()


class _Trend(_Prior):
    def __init__(self, prior: TrendPrior) -> None:
        super().__init__(prior)
        self.recent = RecentEvents(prior.tokens.cpu().numpy(), prior.times.cpu().numpy())
        self.context = prior.context

    def counts(self, past: Past) -> Counts:
        if past.asked_at is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        before = np.searchsorted(self.recent.times, past.asked_at)
        last = slice(max(0, before - self.context), before)
        tokens, times = self.recent.tokens[last].copy(), self.recent.times[last]
        kernel = np.exp(np.minimum(self.of_time(past.asked_at - times), 10))
        return tokens, kernel * (tokens > 0)


def _time_levels(kernel: TimeKernel) -> np.ndarray:
    return SCALAR_STEP * as_array(kernel.levels)


def log_buckets(gaps: np.ndarray, num_buckets: int) -> np.ndarray:
    """The buckets of gaps in seconds or events, as those of the model.

    >>> log_buckets(np.array([0, 1, 2, 3, 1000]), 12).tolist()
    [0, 2, 3, 4, 11]
    """
    bits = (1 + np.maximum(gaps, 0)).astype(np.float32).view(np.int32)
    return np.minimum((bits >> 22) - 254, num_buckets - 1)


def as_array(values: Tensor) -> np.ndarray:
    """A tensor as float32; the same memory where it is that already."""
    return values.detach().float().cpu().contiguous().numpy()
