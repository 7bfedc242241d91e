"""Additive point-process intensities: what came before each target, and the likeliest rates."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

AGE_BINS = 4  # of an event's age within the horizon
AGE_STEP = 8.0  # each bin ends this many times later than the one before
EM_STEPS = 20
AT_ZERO = 1e-3  # expected targets of a whole kind below which its rate counts as zero
SMALLEST = 1e-9  # keeps logarithms finite; in expected targets of a whole kind of event


@dataclass
class PairEvents:
    """Events sorted by pair and time."""

    times: np.ndarray
    pairs: np.ndarray  # rising, one number a pair
    users: np.ndarray  # row of the event's user
    kinds: np.ndarray  # event type and strength bin
    is_target: np.ndarray
    until: np.ndarray  # the pair is observed until then


@dataclass
class Evidence:
    """Sufficient statistics of the likelihood: what preceded each target, and all exposure.

    Column k of `active` counts the events of kind and age bin k (the last one is the background) that
    may have brought a target; `exposure` `[users, columns]` is what the same events were given time for.
    """

    active: sparse.csr_array  # [targets, columns], divided by the length of the age bin
    users: np.ndarray  # of each target
    exposure: sparse.csr_array  # [users, columns], in whole age bins (background: horizons)

    def part(self, chosen: np.ndarray) -> "Evidence":
        """Of chosen users, bool `[users]`."""
        kept = chosen[self.users]
        return Evidence(
            self.active[kept], self.users[kept], sparse.diags_array(chosen * 1.0) @ self.exposure
        )

    def merged(self, groups: np.ndarray) -> "Evidence":
        """With columns added up by group."""
        shape = (len(groups), groups.max() + 1)
        add = sparse.csr_array((np.ones(len(groups)), (np.arange(len(groups)), groups)), shape)
        return Evidence(self.active @ add, self.users, self.exposure @ add)


def age_edges(horizon: float) -> np.ndarray:
    """Where the age bins begin and end."""
    return np.concatenate([[0.0], horizon * AGE_STEP ** np.arange(1.0 - AGE_BINS, 1)])


def gather_evidence(log: PairEvents, horizon: float, num_kinds: int, num_users: int) -> Evidence:
    """What preceded each target, found by going back one event at a time, and all exposure."""
    edges, columns = age_edges(horizon), num_kinds * AGE_BINS + 1
    widths = np.diff(edges)
    targets = np.flatnonzero(log.is_target)
    live, lag = np.arange(len(targets)), 0
    rows = [live]
    places = [np.full(len(targets), columns - 1)]
    values = [np.full(len(targets), 1 / horizon)]
    while len(live):
        lag += 1
        live = live[targets[live] >= lag]
        source = targets[live] - lag
        age = log.times[targets[live]] - log.times[source]
        near = (log.pairs[source] == log.pairs[targets[live]]) & (age <= horizon)
        live, source, age = live[near], source[near], age[near]
        before = age > 0
        bins = np.searchsorted(edges[1:], age[before])
        rows.append(live[before])
        places.append(log.kinds[source[before]] * AGE_BINS + bins)
        values.append(1 / widths[bins])
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(places)))
    active = sparse.csr_array(entries, shape=(len(targets), columns))
    exposure = sparse.csr_array((num_users, columns))
    for place, (start, width) in enumerate(zip(edges, widths)):
        observed = np.clip((log.until - log.times - start) / width, 0, 1)
        at = (log.users, log.kinds * AGE_BINS + place)
        exposure = exposure + sparse.csr_array((observed, at), shape=exposure.shape)
    first = np.flatnonzero(np.diff(log.pairs, prepend=-1))
    spans = (log.until[first] - log.times[first]) / horizon
    at = (log.users[first], np.full(len(first), columns - 1))
    exposure = exposure + sparse.csr_array((spans, at), shape=exposure.shape)
    return Evidence(active, log.users[targets], exposure)


def maximise(evidence: Evidence) -> np.ndarray:
    """Rates of the largest likelihood: a few steps of EM, then L-BFGS-B, in expected targets."""
    exposure = evidence.exposure.sum(0)
    seen = exposure > 0
    scale = np.where(seen, exposure, 1.0)
    active = (evidence.active @ sparse.diags_array(1 / scale)).tocsr()
    brought = np.where(seen, len(evidence.users) / seen.sum(), SMALLEST)
    transposed = active.T.tocsr()
    for _ in range(EM_STEPS):
        brought = np.maximum(brought * (transposed @ (1 / (active @ brought))), SMALLEST)

    def loss(brought: np.ndarray) -> tuple[float, np.ndarray]:
        rate = active @ brought
        return float(brought.sum() - np.log(rate).sum()), 1 - transposed @ (1 / rate)

    found = optimize.minimize(
        loss, brought, jac=True, method="L-BFGS-B", bounds=[(SMALLEST, None)] * len(brought)
    )
    return np.where(seen, found.x / scale, 0.0)


def log_likelihood(evidence: Evidence, rates: np.ndarray) -> np.ndarray:
    """Of each user, `[users]`."""
    logs = _of_user(evidence) @ np.log(np.maximum(evidence.active @ rates, np.finfo(float).tiny))
    return logs - evidence.exposure @ rates


def covariance(evidence: Evidence, rates: np.ndarray) -> np.ndarray:
    """Of the rates, by the sandwich estimator with a cluster for each user.

    A rate that is zero is held there, and has the error of a single target.
    """
    exposure = evidence.exposure.sum(0)
    share = sparse.diags_array(1 / (evidence.active @ rates)) @ evidence.active
    curvature = (share.T @ share).toarray()
    scores = _of_user(evidence) @ share - evidence.exposure
    spread = (scores.T @ scores).toarray()
    free = rates * exposure > AT_ZERO
    block = np.ix_(free, free)
    bread = np.linalg.pinv(curvature[block], hermitian=True)
    full = np.diag(np.where(free | (exposure == 0), 0.0, 1 / np.maximum(exposure, 1.0)) ** 2)
    full[block] = bread @ spread[block] @ bread
    return full


def _of_user(evidence: Evidence) -> sparse.csr_array:
    """Adds up the targets of each user, `[users, targets]`."""
    count = len(evidence.users)
    ones = (np.ones(count), (evidence.users, np.arange(count)))
    return sparse.csr_array(ones, shape=(evidence.exposure.shape[0], count))
