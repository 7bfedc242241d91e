"""Untrained and linear recommenders that every result is printed beside."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Protocol

import numpy as np
from scipy import linalg, sparse

from .bpr import BPR
from .event_columns import SECONDS_PER_DAY
from .matrices import (
    Rows,
    binary_matrix,
    flatten_column,
    flatten_tokens,
    positive_events,
    user_item_matrix,
)
from .popularity import (
    OwnFrequency,
    Popularity,
    PopularityNow,
    RecentPopularity,
    tie_break,
)
from .rows import Row


class Scorer(Protocol):
    """What is evaluated: a name and scores for encoded rows.

    `score` maps rows to float32 `[batch, vocab_size]`, larger is better; column 0 is ignored.
    """

    name: str

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """Scores of every token for the history (`input_ids`) of each row."""
        ...


class Cooccurrence:
    """Directional counts of what followed what, read from the last items of the history.

    `C[u, v] = sum of 1/g over the times that v came g <= window events after u`, and
    `score_v = sum_{j=1..last} C[h_{-j}, v] / j` for the history `h`. Popularity breaks ties.

    Args:
        train_rows: encoded rows in time order.
        vocab_size: item tokens including 0.
        last: how many of the last items of the history are read.
        window: longest gap that counts, in events.
    """

    def __init__(
        self, train_rows: Rows, vocab_size: int, *, last: int = 3, window: int = 3
    ) -> None:
        if last < 1 or window < 1:
            raise ValueError(f"last and window must be positive, got {last} and {window}")
        self.name = f"co-occurrence (last {last}, window {window})"
        self.vocab_size = vocab_size
        self.last = last
        self.tie_break = tie_break(train_rows, vocab_size)
        tokens, owners = flatten_tokens(train_rows, vocab_size)
        self.counts = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
        for gap in range(1, window + 1):
            same = owners[gap:] == owners[:-gap]
            before, after = tokens[:-gap][same], tokens[gap:][same]
            weights = np.full(len(before), 1.0 / gap, dtype=np.float32)
            shape = (vocab_size, vocab_size)
            self.counts = self.counts + sparse.csr_matrix((weights, (before, after)), shape=shape)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        tokens, owners = flatten_tokens(rows, self.vocab_size)
        ends = np.searchsorted(owners, np.arange(len(rows)), side="right")
        from_end = ends[owners] - np.arange(len(tokens))
        read = from_end <= self.last
        discounts = (1.0 / from_end[read]).astype(np.float32)
        shape = (len(rows), self.vocab_size)
        context = sparse.csr_matrix((discounts, (owners[read], tokens[read])), shape=shape)
        return (context @ self.counts).toarray().astype(np.float32) + self.tie_break


REGULARIZATION = 300.0  # of EASE where nobody chose, in users


def _leads_to(
    users: sparse.csr_matrix, inverse: np.ndarray, taken: sparse.csr_matrix
) -> np.ndarray:
    """`inverse @ users.T @ taken`, as few people at a time as there are items."""
    result = np.zeros_like(inverse)
    for start in range(0, users.shape[0], len(inverse)):
        part = slice(start, start + len(inverse))
        result += (taken[part].T @ (users[part] @ inverse)).T
    return result


class EASE:
    """Linear item-item model in closed form (Steck, 2019): `score = x @ B`, the diagonal of B is 0.

    With `G = X'X + regularization * I`, `P = G^-1` and the ridge solution `R = P X'Y`,
    `B_ij = R_ij - P_ij R_jj / P_jj`. X is the binary user-item matrix, x the binary history, and Y is
    X (so that `B_ij = -P_ij / P_jj`). With `recent_days` it is `X + (T / recent_days) N` for the T days
    of the log and the part N of X that its last days hold: what leads to the items that are taken now has
    the same say, a day, as what always did. Fitting holds up to four dense float32
    `[vocab_size, vocab_size]` matrices, so it is for small catalogues.

    Args:
        train_rows: encoded rows, with `timestamps` in seconds where `recent_days` is given.
        vocab_size: item tokens including 0.
        regularization: the lambda of the paper, in users.
        recent_days: length of the window of N, which ends with the last training event.
    """

    def __init__(
        self,
        train_rows: Rows,
        vocab_size: int,
        *,
        regularization: float = 100.0,
        recent_days: float | None = None,
    ) -> None:
        if not regularization > 0:
            raise ValueError(f"regularization must be positive, got {regularization}")
        self.name = f"EASE (lambda {regularization:g})"
        self.vocab_size = vocab_size
        users = binary_matrix(train_rows, vocab_size)
        gram = np.asfortranarray((users.T @ users).toarray(), dtype=np.float32)
        gram[np.diag_indices(vocab_size)] += regularization
        factor, failed = linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
        if failed:
            raise ValueError("the item Gram matrix is singular: use a larger regularization")
        inverse, _ = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
        inverse = np.tril(inverse)
        inverse += np.tril(inverse, -1).T
        if recent_days is None:
            inverse /= -np.diag(inverse)
            self.weights = inverse
        else:
            self.name = f"EASE (lambda {regularization:g}, {recent_days:g} days)"
            times = flatten_column(train_rows, "timestamps")[0]
            log_days = float(times.max(initial=0) - times.min(initial=0)) / SECONDS_PER_DAY
            recent = binary_matrix(train_rows, vocab_size, recent_days)
            ridge = _leads_to(users, inverse, recent) * np.float32(log_days / recent_days)
            self.weights = ridge - inverse * ((1 + np.diag(ridge)) / np.diag(inverse))
        self.weights[np.diag_indices(vocab_size)] = 0.0

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        return np.asarray(binary_matrix(rows, self.vocab_size) @ self.weights, dtype=np.float32)


def _missing_implicit(error: ImportError) -> ImportError:
    return ImportError(
        "this baseline needs the package 'implicit': pip install implicitrec[demo]", name=error.name
    )


class ItemKNN:
    """Cosine item neighbours through `implicit`: `score = x @ S`, S the k largest cosines a row.

    Args:
        train_rows: encoded rows.
        vocab_size: item tokens including 0.
        neighbours: how many neighbours every item keeps, itself among them.

    Raises:
        ImportError: if `implicit` is not installed.
    """

    def __init__(self, train_rows: Rows, vocab_size: int, *, neighbours: int = 100) -> None:
        try:
            from implicit.nearest_neighbours import CosineRecommender
            from implicit.utils import ParameterWarning
        except ImportError as error:
            raise _missing_implicit(error) from error
        self.name = f"item kNN ({neighbours} neighbours)"
        self.vocab_size = vocab_size
        self.tie_break = tie_break(train_rows, vocab_size)
        model = CosineRecommender(K=neighbours, num_threads=1)
        with warnings.catch_warnings():  # implicit warns of a COO matrix that it makes itself
            warnings.simplefilter("ignore", ParameterWarning)
            model.fit(binary_matrix(train_rows, vocab_size), show_progress=False)
        self.similarity = model.similarity.astype(np.float32)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        histories = binary_matrix(rows, self.vocab_size)
        return (histories @ self.similarity).toarray() + self.tie_break


class ALS:
    """Weighted matrix factorisation (Hu, Koren and Volinsky, 2008) through `implicit`.

    The confidence of a user-item pair seen r times is `1 + alpha * log(1 + r)`. A user's factors
    are solved from the history of the evaluated row, so users never trained on are scored too.

    Args:
        train_rows: encoded rows.
        vocab_size: item tokens including 0.
        factors: width of the factors.
        regularization: weight of the squared norms.
        alpha: weight of the evidence in the confidence.
        iterations: alternations.
        seed: of the starting factors.

    Raises:
        ImportError: if `implicit` is not installed.
    """

    def __init__(
        self,
        train_rows: Rows,
        vocab_size: int,
        *,
        factors: int = 64,
        regularization: float = 0.05,
        alpha: float = 10.0,
        iterations: int = 15,
        seed: int = 0,
    ) -> None:
        try:
            from implicit.als import AlternatingLeastSquares
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise _missing_implicit(error) from error
        self.name = f"ALS ({factors} factors)"
        self.vocab_size = vocab_size
        self.alpha = alpha
        # implicit spawns its own threads and slows down where the BLAS library does so as well.
        with threadpool_limits(limits=1, user_api="blas"):
            self.model = AlternatingLeastSquares(
                factors=factors,
                regularization=regularization,
                iterations=iterations,
                num_threads=1,
                random_state=seed,
            )
            self.model.fit(self._confidence(train_rows), show_progress=False)

    def _confidence(self, rows: Rows) -> sparse.csr_matrix:
        matrix = user_item_matrix(rows, self.vocab_size)
        matrix.data = (1.0 + self.alpha * np.log1p(matrix.data)).astype(np.float32)
        return matrix

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        users = self.model.recalculate_user(np.arange(len(rows)), self._confidence(rows))
        return np.asarray(users @ self.model.item_factors.T, dtype=np.float32)


class PositiveEvents:
    """A scorer that reads histories without their events of negative types."""

    def __init__(self, scorer: Scorer, negative_event_type_ids: Sequence[int]) -> None:
        self.name = scorer.name
        self.scorer = scorer
        self.negative_event_type_ids = negative_event_type_ids

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        return self.scorer.score(list(positive_events(rows, self.negative_event_type_ids)))


def fit_baselines(
    names: Sequence[str | Mapping[str, Mapping]],
    train_rows: Rows,
    vocab_size: int,
    *,
    negative_event_type_ids: Sequence[int] | None = None,
) -> list[Scorer]:
    """Fit baselines by name, or by a name with its settings, such as `{"ease": {"regularization": 300}}`.

    Baselines cannot tell evidence for an item from evidence against it: events of negative types are
    left out of what they learn from, and of the histories that they score.

    Raises:
        ValueError: for a name that is none of popularity, recent_popularity, popularity_now,
            own_frequency, recent_frequency, cooccurrence, item_knn, als, bpr and ease, or a setting that
            it does not have.
    """
    if isinstance(names, str):
        raise ValueError(f"names of baselines must be a list, such as [{names!r}], got {names!r}")
    known: dict[str, Callable[..., Scorer]] = {
        "popularity": Popularity,
        "recent_popularity": partial(RecentPopularity, days=28.0),
        "popularity_now": PopularityNow,
        "own_frequency": OwnFrequency,
        "recent_frequency": partial(OwnFrequency, half_life_days=60.0),
        "cooccurrence": Cooccurrence,
        "item_knn": ItemKNN,
        "als": ALS,
        "bpr": BPR,
        "ease": partial(EASE, regularization=REGULARIZATION),
    }
    wanted: dict[str, Mapping] = {}
    for name in names:
        wanted |= {name: {}} if isinstance(name, str) else name
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"unknown baselines {unknown}; the known ones are {sorted(known)}")
    negative = negative_event_type_ids or ()
    train_rows = positive_events(train_rows, negative)
    fitted: list[Scorer] = []
    for name, settings in wanted.items():
        try:
            signature(known[name]).bind(train_rows, vocab_size, **settings)
        except TypeError as error:
            raise ValueError(f"baseline {name}: {error}") from error
        fitted.append(known[name](train_rows, vocab_size, **settings))
    return [PositiveEvents(scorer, negative) for scorer in fitted] if negative else fitted
