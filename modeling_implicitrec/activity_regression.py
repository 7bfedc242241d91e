"""The baseline of questions about users: a logistic regression on recency, frequency and tenure."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit


class ActivityRegression:
    """Logistic regression with an L2 penalty, on standardised features.

    Args:
        features: `[asked, features]`.
        labels: `[asked]` of 0 and 1.
        penalty: of the squared weights, divided by the number asked.

    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> model = ActivityRegression(x, np.array([0, 0, 1, 1]))
    >>> bool(model(x)[0] < 0.5 < model(x)[3])
    True
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, *, penalty: float = 1.0) -> None:
        if len(features) != len(labels) or not len(labels):
            raise ValueError(f"expected as many labels as rows, got {len(labels)}, {len(features)}")
        self.mean = features.mean(0)
        deviation = features.std(0)
        self.deviation = np.where(deviation > 0, deviation, 1.0)
        given, signs = self._scaled(features), 2.0 * np.asarray(labels) - 1

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            margins = signs * (given @ weights)
            wrong = -signs * expit(-margins) / len(signs)
            kept = np.append(weights[:-1], 0.0) * penalty / len(signs)
            value = np.logaddexp(0, -margins).mean() + kept @ weights / 2
            return float(value), given.T @ wrong + kept

        start = np.zeros(given.shape[1])
        self.weights = minimize(loss, start, jac=True, method="L-BFGS-B").x

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        scaled = (features.astype(np.float64) - self.mean) / self.deviation
        return np.concatenate([scaled, np.ones((len(features), 1))], axis=1)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Probabilities `[asked]`."""
        return np.asarray(expit(self._scaled(features) @ self.weights))
