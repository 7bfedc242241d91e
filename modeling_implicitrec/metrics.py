"""Ranking and pointwise metrics as pure numpy functions that return one value per user."""

from statistics import NormalDist

import numpy as np


def _first_k(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Checked `hits[:, :k]` as float64 and `num_relevant` as float64."""
    hits, num_relevant = np.asarray(hits), np.asarray(num_relevant)
    _check_width(hits, k, "hits")
    if num_relevant.shape != hits.shape[:1]:
        raise ValueError(
            f"num_relevant must have shape {hits.shape[:1]} as hits has {len(hits)} users, "
            f"got {num_relevant.shape}"
        )
    if (num_relevant < 1).any():
        raise ValueError("num_relevant must be at least 1 for every user: leave out the others")
    if (hits.astype(bool).sum(1) > num_relevant).any():
        raise ValueError("a user has more hits than relevant items: are there duplicates?")
    return hits[:, :k].astype(bool).astype(np.float64), num_relevant.astype(np.float64)


def _check_width(table: np.ndarray, k: int, name: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")
    if table.ndim != 2 or table.shape[1] < k:
        raise ValueError(f"{name} must have shape [users, >= {k}], got {table.shape}")


def hit_rate_at_k(hits: np.ndarray, num_relevant: np.ndarray, *, k: int) -> np.ndarray:
    """`1` if any of the first k items is relevant, else `0`; `[users]`.

    Args:
        hits: bool `[users, >= k]`; `hits[u, j]` says whether the item ranked j-th is relevant.
        num_relevant: int `[users]`, relevant items of each user, found or not; at least 1.
        k: length of the list that counts.

    Raises:
        ValueError: if k is not positive, a shape does not fit or a user has no relevant item.

    >>> hit_rate_at_k(np.array([[0, 1], [0, 0]]), np.array([1, 1]), k=2).tolist()
    [1.0, 0.0]
    """
    found, _ = _first_k(hits, num_relevant, k)
    return found.max(1)


def recall_at_k(hits: np.ndarray, num_relevant: np.ndarray, *, k: int) -> np.ndarray:
    """`sum_{j<=k} hit_j / num_relevant`; `[users]`. Arguments as in [`hit_rate_at_k`].

    >>> recall_at_k(np.array([[1, 0, 1]]), np.array([4]), k=3).tolist()
    [0.5]
    """
    found, relevant = _first_k(hits, num_relevant, k)
    return found.sum(1) / relevant


def precision_at_k(hits: np.ndarray, num_relevant: np.ndarray, *, k: int) -> np.ndarray:
    """`sum_{j<=k} hit_j / k`; `[users]`. Arguments as in [`hit_rate_at_k`].

    >>> precision_at_k(np.array([[1, 0, 1, 0]]), np.array([4]), k=4).tolist()
    [0.5]
    """
    found, _ = _first_k(hits, num_relevant, k)
    return found.sum(1) / k


def ndcg_at_k(hits: np.ndarray, num_relevant: np.ndarray, *, k: int) -> np.ndarray:
    """`DCG / ideal DCG` with binary gains; `[users]`. Arguments as in [`hit_rate_at_k`].

    `DCG = sum_{j<=k} hit_j / log2(j + 1)`; the ideal list has `min(num_relevant, k)` hits on top
    (Jarvelin and Kekalainen, 2002).

    >>> ndcg_at_k(np.array([[0, 0, 1]]), np.array([1]), k=3).tolist()
    [0.5]
    """
    found, relevant = _first_k(hits, num_relevant, k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.minimum(relevant, k).astype(np.int64) - 1]
    return found @ discounts / ideal


def mrr_at_k(hits: np.ndarray, num_relevant: np.ndarray, *, k: int) -> np.ndarray:
    """`1 / rank of the first hit`, or 0 without one in the first k; `[users]`.

    Arguments as in [`hit_rate_at_k`].

    >>> mrr_at_k(np.array([[0, 1, 1]]), np.array([2]), k=3).tolist()
    [0.5]
    """
    found, _ = _first_k(hits, num_relevant, k)
    return (found / np.arange(1, k + 1)).max(1)


def map_at_k(hits: np.ndarray, num_relevant: np.ndarray, *, k: int) -> np.ndarray:
    """Average precision `sum_{j<=k} hit_j * precision@j / min(num_relevant, k)`; `[users]`.

    Arguments as in [`hit_rate_at_k`].

    >>> map_at_k(np.array([[1, 0, 0, 1]]), np.array([2]), k=4).tolist()
    [0.75]
    """
    found, relevant = _first_k(hits, num_relevant, k)
    precisions = np.cumsum(found, axis=1) / np.arange(1, k + 1)
    return (found * precisions).sum(1) / np.minimum(relevant, k)


def _exposure(recommended: np.ndarray, num_items: int, k: int) -> np.ndarray:
    """How often each of the items 1..num_items is recommended; token 0 is an empty place."""
    recommended = np.asarray(recommended)
    _check_width(recommended, k, "recommended")
    tokens = recommended[:, :k].ravel()
    if num_items < 1:
        raise ValueError(f"num_items must be positive, got {num_items}")
    if tokens.size and (tokens.min() < 0 or tokens.max() > num_items):
        raise ValueError(f"tokens must lie in 0..{num_items}, got {tokens.min()}..{tokens.max()}")
    return np.bincount(tokens, minlength=num_items + 1)[1:]


def coverage_at_k(recommended: np.ndarray, num_items: int, *, k: int) -> float:
    """`|union of the lists| / num_items`: the share of the catalogue anyone is shown.

    Args:
        recommended: int `[users, >= k]` item tokens 1..num_items; 0 is an empty place.
        num_items: size of the catalogue.
        k: length of the list that counts.

    >>> coverage_at_k(np.array([[1, 2], [2, 1]]), 4, k=2)
    0.5
    """
    return float((_exposure(recommended, num_items, k) > 0).mean())


def novelty_at_k(recommended: np.ndarray, item_counts: np.ndarray, *, k: int) -> float:
    """`mean of -log2(count_i / sum of counts)` over the recommended items, in bits.

    Args:
        recommended: int `[users, >= k]` item tokens; 0 is an empty place.
        item_counts: `[vocab_size]` events of each token in the training data; a count of 0 is
            read as 1, so that an item never seen has a finite novelty.
        k: length of the list that counts.

    >>> novelty_at_k(np.array([[1, 2]]), np.array([0, 4, 4]), k=2)
    1.0
    """
    counts = np.asarray(item_counts, dtype=np.float64)
    if counts.ndim != 1 or len(counts) < 2 or counts[1:].sum() <= 0:
        raise ValueError("item_counts must be [vocab_size] with a positive sum over tokens 1..")
    exposure = _exposure(recommended, len(counts) - 1, k)
    if exposure.sum() == 0:
        raise ValueError("recommended holds no item")
    bits = -np.log2(np.maximum(counts[1:], 1.0) / counts[1:].sum())
    return float(exposure @ bits / exposure.sum())


def gini_at_k(recommended: np.ndarray, num_items: int, *, k: int) -> float:
    """Gini index of exposure: 0 if all items are shown equally often, near 1 if only one is.

    `sum_i (2i - n - 1) x_(i) / (n * sum x)` over the n items' exposures in rising order.
    Arguments as in [`coverage_at_k`].

    >>> gini_at_k(np.array([[1, 2], [3, 4]]), 4, k=2)
    0.0
    """
    exposure = np.sort(_exposure(recommended, num_items, k)).astype(np.float64)
    if exposure.sum() == 0:
        raise ValueError("recommended holds no item")
    factors = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(factors @ exposure / (num_items * exposure.sum()))


def _scores(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(f"{name} must be a non-empty vector without NaN, got {values.shape}")
    return values


def auc(positive_scores: np.ndarray, negative_scores: np.ndarray) -> float:
    """`P(s+ > s-) + P(s+ = s-) / 2` over all pairs (Mann-Whitney).

    >>> auc(np.array([2.0, 1.0]), np.array([0.0, 1.0]))
    0.875
    """
    positive = _scores(positive_scores, "positive_scores")
    negative = np.sort(_scores(negative_scores, "negative_scores"))
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / (2 * len(negative)))


def paired_accuracy(positive_scores: np.ndarray, negative_scores: np.ndarray) -> np.ndarray:
    """`1` where `s+ > s-`, `0.5` where equal, else `0`; `[pairs]`.

    >>> paired_accuracy(np.array([2.0, 1.0]), np.array([0.0, 1.0])).tolist()
    [1.0, 0.5]
    """
    positive = _scores(positive_scores, "positive_scores")
    negative = _scores(negative_scores, "negative_scores")
    if positive.shape != negative.shape:
        raise ValueError(f"expected pairs, got {positive.shape} and {negative.shape}")
    return np.where(positive == negative, 0.5, (positive > negative).astype(np.float64))


def confidence_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float, float]:
    """`(mean, low, high)`: `mean -+ z * std / sqrt(n)`, the normal approximation over users.

    >>> confidence_interval(np.array([1.0, 1.0]))
    (1.0, 1.0, 1.0)
    """
    values = _scores(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    half = NormalDist().inv_cdf(0.5 + level / 2) * spread
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, samples: int = 1000, generator: np.random.Generator
) -> tuple[float, float, float]:
    """`(mean of a - b, low, high)`: 95 % percentile bootstrap over users (Efron, 1979).

    Args:
        a: `[users]` values of one system; b: those of another for the same users.
        samples: bootstrap samples.
        generator: source of randomness.

    >>> paired_bootstrap(np.ones(3), np.zeros(3), generator=np.random.default_rng(0))
    (1.0, 1.0, 1.0)
    """
    first, second = _scores(a, "a"), _scores(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"expected the same users in a and b, got {first.shape}, {second.shape}")
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    gaps, size = first - second, len(first)
    means = [gaps[generator.integers(size, size=size)].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(gaps.mean()), float(low), float(high)


def _answers(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = _scores(scores, "scores"), np.asarray(labels)
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"expected labels of 0 and 1 {scores.shape}, got shape {labels.shape}")
    return labels.astype(np.float64), scores


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """`sum_n (R_n - R_{n-1}) P_n` over the distinct scores from high to low; precision P, recall R.

    >>> round(average_precision(np.array([1, 0, 1]), np.array([0.9, 0.8, 0.7])), 4)
    0.8333
    """
    labels, scores = _answers(labels, scores)
    if not labels.any():
        raise ValueError("expected at least one label of 1, got none")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(labels[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    gained = np.diff(found[ends], prepend=0.0)
    return float((gained * found[ends] / (ends + 1)).sum() / labels.sum())


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """`-mean(y log p + (1 - y) log(1 - p))`, p kept at least 1e-6 from 0 and 1.

    >>> round(log_loss(np.array([1, 0]), np.array([0.5, 0.5])), 4)
    0.6931
    """
    labels, p = _answers(labels, probabilities)
    p = p.clip(1e-6, 1 - 1e-6)
    return float(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)).mean())


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 10) -> float:
    """`sum_b |b| / n |mean(y_b) - mean(p_b)|`, the bins b holding equally many (Naeini et al., 2015).

    >>> round(calibration_error(np.array([0, 1, 0, 1]), np.array([0.2, 0.2, 0.6, 0.6]), bins=2), 4)
    0.2
    """
    labels, p = _answers(labels, probabilities)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    order = np.argsort(p, kind="stable")
    parts = np.array_split(labels[order] - p[order], min(bins, len(p)))
    return float(sum(abs(part.sum()) for part in parts) / len(p))
