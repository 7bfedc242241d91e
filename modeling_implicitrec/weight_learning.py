"""Event weights learnt from a log: how much each kind of event announces a target behaviour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .encoding import flat_column
from .intensity import (
    AGE_BINS,
    SMALLEST,
    Evidence,
    PairEvents,
    age_edges,
    covariance,
    gather_evidence,
    log_likelihood,
    maximise,
)
from .weights_implicitrec import duration_tables, quantile_factor, read_strengths

FOLDS = 5  # of users, to measure what the factors gain on those held out
SMALLEST_FACTOR = 0.01  # an event of weight 0 would be a masked one
COUNT_BINS = ("count below 2", "count below 4", "count below 8", "count of 8 or more")
DURATION_BINS = tuple(f"dwell quarter {place}" for place in (1, 2, 3, 4))


@dataclass(frozen=True)
class LearnedEffect:
    """Expected target events that one event brings within the horizon.

    Args:
        effect: the estimate, not negative.
        standard_error: allows for dependence within users.
        events: how many there are.
    """

    effect: float
    standard_error: float
    events: int


@dataclass(frozen=True)
class LearnedWeights:
    """What [`learn_event_weights`] found; `print` shows it as a table.

    Args:
        target: the behaviour that is predicted.
        horizon: seconds within which an event can bring it.
        effects: per event type.
        strengths: per event type and strength bin, where a strength was asked for.
        factors: per event type, for `event_type_weights`: its effect over that of the mean event, at least
            0.01. A target that cannot repeat is not among them: it predicts nothing of itself, and what
            it is worth as evidence of taste is to be said by hand.
        background: target events of a pair within a horizon that nothing recent brought.
        age_shares: share of all effect that falls to each part of the horizon, by its end in seconds.
        num_pairs: user-item pairs that were observed.
        num_converted: those among them with a target event that was to be predicted.
        num_targets: target events that were to be predicted.
        num_unannounced: target events with nothing of their pair before them, which are not.
        gain: log-likelihood of held-out users for each target event (nats) above that of one effect for
            all types, by cross-validation, and its standard error over users.
    """

    target: str
    horizon: float
    effects: dict[str, LearnedEffect]
    strengths: dict[str, dict[str, LearnedEffect]]
    factors: dict[str, float]
    background: float
    age_shares: dict[float, float]
    num_pairs: int
    num_converted: int
    num_targets: int
    num_unannounced: int
    gain: tuple[float, float]

    def __str__(self) -> str:
        lines = [f"{'event':34} {'events':>11} {'effect':>10} {'± s.e.':>10} {'factor':>8}"]
        for name, found in self.effects.items():
            factor = f"{self.factors[name]:8.3f}" if name in self.factors else f"{'-':>8}"
            lines.append(f"{_line(name, found)} {factor}")
            lines += [_line(f"  {b}", part) for b, part in self.strengths.get(name, {}).items()]
        ages = ", ".join(f"{share:.0%} by {_time(end)}" for end, share in self._risen())
        return "\n".join(
            [
                *lines,
                f"effect: {self.target} events within {_time(self.horizon)} for each event; "
                f"background {self.background:.2g}",
                f"of it {ages}",
                f"{self.num_pairs:,} pairs, {self.num_converted:,} with {self.num_targets:,} targets; "
                f"{self.num_unannounced:,} came unannounced",
                "held-out gain over equal effects: {:+.4f} ± {:.4f} nats a target".format(
                    *self.gain
                ),
            ]
        )

    def _risen(self) -> list[tuple[float, float]]:
        risen = np.cumsum(list(self.age_shares.values()))
        return list(zip(self.age_shares, risen))


@dataclass(frozen=True)
class _Estimate:
    """Rates with their covariance, and events `[types, strength bins]`."""

    rates: np.ndarray
    covariance: np.ndarray
    events: np.ndarray

    def effect(self, place: int, bins: slice | int) -> LearnedEffect:
        """Of the mean event of a type in these bins, over all ages."""
        shares = np.zeros(self.events.shape)
        shares[place, bins] = self.events[place, bins]
        events = int(shares.sum())
        mean = np.append(np.repeat(shares.ravel() / max(events, 1), AGE_BINS), 0.0)
        error = np.sqrt(max(mean @ self.covariance @ mean, 0.0))
        return LearnedEffect(float(mean @ self.rates), float(error), events)

    def by_bin(
        self, names: Sequence[str], bins: Sequence[str]
    ) -> dict[str, dict[str, LearnedEffect]]:
        """The effect of each type by strength bin, of those that have events."""
        return {
            name: {b: self.effect(place, at) for at, b in enumerate(bins) if self.events[place, at]}
            for place, name in enumerate(names)
        }


def learn_event_weights(
    sequences: Dataset,
    *,
    target: str,
    horizon: float,
    strength: str | None = None,
    repeatable: bool = True,
) -> LearnedWeights:
    """Estimate how much each event type announces the target behaviour towards the same item.

    Target events of a user-item pair come at the rate `mu / horizon + sum over the pair's events e
    before t with t - t_e <= horizon of g[kind of e, age bin of t - t_e]`: an additive Poisson intensity
    with a step function of age for each kind of event (Lewis and Mohler, 2011). The likelihood
    `sum over targets log rate - integral of the rate` is concave and is maximised with `mu, g >= 0`; the
    effect of a kind is its `g` summed over the horizon. A pair is observed from its first event to
    the last moment of the log, so pairs without a target count, and an event's time after that
    moment is no time in which nothing happened. Events at the moment of a target, or after it, are no
    evidence for it. What is measured is prediction, not cause.

    Args:
        sequences: one row a user, in outside ids, as [`build_sequences`] makes them, the training part
            alone: `item_ids`, `timestamps`, `event_types`, with `durations`, `item_durations` or `counts`
            where they are the strength.
        target: the event type to predict, such as `"buy"`.
        horizon: seconds.
        strength: `"count"` or `"duration"` also estimates every type by strength: counts below 2, 4 and 8
            and more, or quarters of the dwell quantile among content of like length.
        repeatable: whether a pair can have the target again; otherwise (a like, a subscription) it is
            observed until the first one only.

    Raises:
        ValueError: for missing columns, times out of order, a horizon that is not positive, or no target
            to predict.

    >>> bought = {"item_ids": ["a", "a"], "timestamps": [0, 5], "event_types": ["view", "buy"]}
    >>> left = {"item_ids": ["b", "c"], "timestamps": [0, 99], "event_types": ["view", "view"]}
    >>> log = Dataset.from_list([bought, left])
    >>> learned = learn_event_weights(log, target="buy", horizon=10.0)
    >>> round(learned.effects["view"].effect, 2)  # of two views; the last has had no time
    0.5
    """
    if strength not in (None, "count", "duration"):
        raise ValueError(f"strength must be 'count', 'duration' or None, got {strength!r}")
    if not (np.isfinite(horizon) and horizon > 0):
        raise ValueError(f"horizon must be finite and positive, got {horizon}")
    names, bins, log = _read_log(sequences, target, strength)
    unannounced = _cut_pairs(log, repeatable)
    evidence = gather_evidence(log, horizon, len(names) * len(bins), len(sequences))
    if not len(evidence.users):
        raise ValueError(
            f"no {target!r} event follows another event of its user and item: nothing to learn"
        )
    rates = maximise(evidence)
    events = np.bincount(log.kinds, minlength=len(names) * len(bins))
    table = _Estimate(rates, covariance(evidence, rates), events.reshape(len(names), -1))
    effects = {name: table.effect(place, slice(None)) for place, name in enumerate(names)}
    brought = (rates * evidence.exposure.sum(0))[:-1].reshape(-1, AGE_BINS).sum(0)
    shares = brought / max(brought.sum(), SMALLEST)
    announced = log.pairs[log.is_target]
    return LearnedWeights(
        target=target,
        horizon=horizon,
        effects=effects,
        strengths=table.by_bin(names, bins) if strength else {},
        factors=_factors({n: e for n, e in effects.items() if repeatable or n != target}),
        background=float(rates[-1]),
        age_shares=dict(zip(age_edges(horizon)[1:].tolist(), shares.tolist())),
        num_pairs=int(log.pairs[-1]) + 1,
        num_converted=len(np.unique(announced)),
        num_targets=len(announced),
        num_unannounced=unannounced,
        gain=_gain(evidence),
    )


def _read_log(
    sequences: Dataset, target: str, strength: str | None
) -> tuple[list[str], tuple[str, ...], PairEvents]:
    """Event types by falling count, names of the strength bins, and the events by pair and time."""
    columns = ("item_ids", "timestamps", "event_types", *([f"{strength}s"] if strength else []))
    missing = [name for name in columns if name not in sequences.column_names]
    if missing:
        raise ValueError(f"expected the columns {columns}, {missing} are missing")
    items, offsets = flat_column(sequences, "item_ids")
    coded = items.dictionary_encode()
    types = flat_column(sequences, "event_types")[0]
    typed = np.asarray(types.is_valid())
    found = types.value_counts()
    sizes = {v["values"].as_py(): v["counts"].as_py() for v in found}
    names = sorted((n for n in sizes if n is not None), key=lambda name: (-sizes[name], name))
    kinds = np.asarray(pc.index_in(types, value_set=pa.array(names, types.type)).fill_null(0))
    bins, strengths = _read_strength(sequences, strength)
    kinds = kinds * len(bins) + strengths
    times = np.asarray(flat_column(sequences, "timestamps")[0])
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if ((np.diff(times) < 0) & (np.diff(users) == 0)).any():
        raise ValueError("timestamps must rise within a row: expected time order")
    keys = users * np.int64(len(coded.dictionary)) + np.asarray(coded.indices)
    order = np.argsort(keys, kind="stable")
    order = order[typed[order]]  # an event without a type can have no factor
    pairs = np.concatenate([[0], np.cumsum(np.diff(keys[order]) != 0)])[: len(order)]
    wanted = np.array([name == target for name in names for _ in bins], dtype=bool)
    kinds, last = kinds[order], float(times.max(initial=0))
    until = np.full(len(order), last)
    return names, bins, PairEvents(times[order], pairs, users[order], kinds, wanted[kinds], until)


def _read_strength(sequences: Dataset, strength: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the bins, and the bin of each event; the last one is for an unknown strength."""
    size = len(flat_column(sequences, "item_ids")[0])
    if strength is None:
        return ("all",), np.zeros(size, dtype=np.int64)
    values = read_strengths(flat_column(sequences, f"{strength}s")[0], strength)
    bins = COUNT_BINS if strength == "count" else DURATION_BINS
    if strength == "count":
        found = np.searchsorted([2.0, 4.0, 8.0], values, side="right")
    else:
        lengths = np.full(size, np.nan)
        if "item_durations" in sequences.column_names:
            column = flat_column(sequences, "item_durations")[0]
            lengths = read_strengths(column, "item_duration")
        tables = duration_tables([{"duration": values, "item_duration": lengths}])
        quantile = quantile_factor(values, lengths, *tables) / 2
        found = np.ceil(quantile * 4).astype(np.int64) - 1
    return (*bins, "unknown"), np.where(np.isnan(values), len(bins), found)


def _cut_pairs(log: PairEvents, repeatable: bool) -> int:
    """Leave as targets those that can be predicted; returns how many had nothing before them."""
    first_place = np.flatnonzero(np.diff(log.pairs, prepend=-1))
    first = log.times[first_place][log.pairs]
    if not repeatable and log.is_target.any():
        places = np.flatnonzero(log.is_target)
        pairs, at = np.unique(log.pairs[places], return_index=True)
        until = log.until[first_place]
        until[pairs] = log.times[places[at]]
        log.until = until[log.pairs]
        again = np.ones(len(log.pairs), dtype=bool)
        again[places[at]] = False
        log.is_target = log.is_target & ~again
    announced = log.times > first
    unannounced = int((log.is_target & ~announced).sum())
    log.is_target = log.is_target & announced
    return unannounced


def _gain(evidence: Evidence) -> tuple[float, float]:
    """Held-out log-likelihood a target, above that of one effect for all kinds of event; and its error."""
    columns = evidence.exposure.shape[1]
    groups = np.append(np.arange(columns - 1) % AGE_BINS, AGE_BINS)
    equal = evidence.merged(groups)
    fold = np.arange(evidence.exposure.shape[0]) % FOLDS
    gains = np.zeros(len(fold))
    for held_out in (fold == place for place in range(FOLDS)):
        for sign, model in ((1, evidence), (-1, equal)):
            train = model.part(~held_out)
            if not len(train.users):
                return float("nan"), float("nan")
            gains[held_out] += sign * log_likelihood(model, maximise(train))[held_out]
    count = len(evidence.users)
    return float(gains.sum() / count), float(np.sqrt(len(gains)) * gains.std() / count)


def _factors(effects: Mapping[str, LearnedEffect]) -> dict[str, float]:
    """Effects divided by that of the mean event."""
    events = sum(found.events for found in effects.values())
    mean = sum(found.effect * found.events for found in effects.values()) / max(events, 1)
    return {
        name: max(found.effect / max(mean, SMALLEST), SMALLEST_FACTOR)
        for name, found in effects.items()
    }


def _line(name: str, found: LearnedEffect) -> str:
    return f"{name:34} {found.events:11,} {found.effect:10.5f} {found.standard_error:10.5f}"


def _time(seconds: float) -> str:
    for name, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"
