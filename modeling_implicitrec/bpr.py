"""Matrix factorisation for the order of item pairs, through `implicit`."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from .matrices import Rows, binary_matrix, item_counts
from .rows import Row


class BPR:
    """Bayesian personalised ranking (Rendle et al., 2009) through `implicit`: `score = p_user @ q_item`.

    Unlike the other baselines it knows users, not histories: rows need `user_id`, and who was not
    trained on gets the most popular items.

    Args:
        train_rows: encoded rows with `user_id`.
        vocab_size: item tokens including 0.
        factors: width of the factors, the item bias apart.
        learning_rate: of the stochastic steps.
        regularization: weight of the squared norms.
        iterations: epochs.
        seed: of the starting factors and the draws.

    Raises:
        ImportError: if `implicit` is not installed.
        ValueError: if rows have no `user_id`.
    """

    def __init__(
        self,
        train_rows: Rows,
        vocab_size: int,
        *,
        factors: int = 64,
        learning_rate: float = 0.01,
        regularization: float = 0.01,
        iterations: int = 100,
        seed: int = 0,
    ) -> None:
        try:
            from implicit.bpr import BayesianPersonalizedRanking
        except ImportError as error:
            raise ImportError(
                "this baseline needs the package 'implicit': pip install implicitrec[demo]",
                name=error.name,
            ) from error
        self.name = f"BPR ({factors} factors)"
        self.popularity = item_counts(train_rows, vocab_size).astype(np.float32)
        self.places = {user: place for place, user in enumerate(_users(train_rows))}
        self.model = BayesianPersonalizedRanking(
            factors=factors,
            learning_rate=learning_rate,
            regularization=regularization,
            iterations=iterations,
            num_threads=1,
            random_state=seed,
        )
        self.model.fit(binary_matrix(train_rows, vocab_size), show_progress=False)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        places = np.array([self.places.get(user, -1) for user in _users(rows)], dtype=np.int64)
        factors = self.model.user_factors[places] @ self.model.item_factors.T
        return np.where(places[:, None] < 0, self.popularity, factors).astype(np.float32)


def _users(rows: Rows) -> list:
    if isinstance(rows, Dataset):
        if "user_id" in rows.column_names:
            return list(rows["user_id"])
    elif all("user_id" in row for row in rows):
        return [row["user_id"] for row in rows]
    raise ValueError("BPR knows users by their user_id: rows have none")
