"""Learnt weights: known effects are recovered, and nothing after a target helps to predict it."""

import numpy as np
import pytest
from datasets import Dataset

from modeling_implicitrec import ImplicitRecProcessor, learn_event_weights, training_columns

DAY = 86_400
EFFECTS = {"view": 0.02, "cart": 0.25, "rest": 0.0, "buy": 0.1}


def world(seed: int = 0, users: int = 800, strong: float = 1.0) -> Dataset:
    """Touches come on their own; each brings Poisson many purchases within a day, at any age.

    A touch has a count of 1 or 9; one of 9 brings `strong` times as many.
    """
    rng = np.random.default_rng(seed)
    size, names = users * 60, np.array([*EFFECTS])
    kind = rng.integers(0, 3, size)
    time = rng.integers(0, 30 * DAY, size)
    pair, count = rng.integers(0, users * 8, size), rng.choice([1.0, 9.0], size)
    generation, events = (kind, time, pair, count), []
    while len(generation[0]):
        events.append(generation)
        kind, time, pair, count = generation
        effect = np.array([*EFFECTS.values()])[kind] * np.where(count > 8, strong, 1.0)
        parent = np.repeat(np.arange(len(kind)), rng.poisson(effect))
        later = time[parent] + rng.integers(1, DAY + 1, len(parent))
        ones = np.ones(len(parent))
        born = (np.full(len(parent), 3), later, pair[parent], ones)
        generation = tuple(column[later < 30 * DAY] for column in born)
    kind, time, pair, count = (np.concatenate(columns) for columns in zip(*events))
    order = np.lexsort((time, pair // 8))
    ends = np.searchsorted(pair[order] // 8, np.arange(1, users))
    columns = {"item_ids": pair % 8, "timestamps": time, "event_types": names[kind]}
    lists = {n: np.split(v[order], ends) for n, v in (columns | {"counts": count}).items()}
    return Dataset.from_dict({"user_id": list(range(users)), **lists})


def test_known_effects_are_recovered_within_their_errors():
    learned = learn_event_weights(world(), target="buy", horizon=DAY)
    for name, effect in EFFECTS.items():
        found = learned.effects[name]
        assert found.effect == pytest.approx(effect, abs=3 * found.standard_error + 1e-4), name
        assert found.standard_error < 0.03
    assert learned.effects["cart"].effect == pytest.approx(0.25, rel=0.1)
    assert learned.effects["rest"].effect < 0.005
    assert learned.factors["rest"] < 0.05  # but never 0, which would mask the event
    assert learned.background < 0.01
    assert learned.gain[0] > 5 * learned.gain[1] > 0
    assert sum(learned.age_shares.values()) == pytest.approx(1)
    assert learned.age_shares[DAY] == pytest.approx(7 / 8, abs=0.05)  # any age is alike
    events = sum(found.events for found in learned.effects.values())
    mean = sum(learned.factors[n] * found.events for n, found in learned.effects.items()) / events
    assert mean == pytest.approx(1, abs=0.01)


def test_a_learnt_factor_becomes_the_weight():
    log = world(users=300)
    learned = learn_event_weights(log, target="buy", horizon=DAY)
    processor = ImplicitRecProcessor.fit(
        training_columns(log), event_type_weights=learned.factors, use_counts=False
    )
    weights = processor.weights(event_types=["cart", "view"])
    ratio = learned.effects["cart"].effect / learned.effects["view"].effect
    assert weights[0] / weights[1] == pytest.approx(ratio, rel=1e-4)
    table = str(learned)
    assert "buy events within 1 days" in table and "cart" in table


def test_strength_bins_tell_strong_events_from_weak_ones():
    learned = learn_event_weights(world(strong=3), target="buy", horizon=DAY, strength="count")
    cart = learned.strengths["cart"]
    assert set(cart) == {"count below 2", "count of 8 or more"}
    assert cart["count below 2"].effect == pytest.approx(0.25, rel=0.15)
    assert cart["count of 8 or more"].effect == pytest.approx(0.75, rel=0.15)
    assert learned.effects["cart"].effect == pytest.approx(0.5, rel=0.15)


def test_dwell_is_told_apart_by_quarters_and_an_unknown_one_by_itself():
    log = world(strong=3, users=400).rename_column("counts", "durations")
    options = {"target": "buy", "horizon": DAY, "strength": "duration"}
    cart = learn_event_weights(log, **options).strengths["cart"]
    assert list(cart) == ["dwell quarter 3", "dwell quarter 4"]  # most dwells are the shorter one
    short, long = (found.effect for found in cart.values())
    assert long == pytest.approx(3 * short, rel=0.25)
    missing = log.map(lambda row: {"durations": [None if d > 8 else d for d in row["durations"]]})
    unknown = learn_event_weights(missing, **options).strengths["cart"]["unknown"]
    assert unknown.effect == pytest.approx(long, rel=0.1)


def row(*events, user=0):
    """A user of `(item, time, type)`."""
    items, times, types = zip(*events)
    return {"user_id": user, "item_ids": items, "timestamps": times, "event_types": types}


def clicks(rows, last=100):
    """Rows, and one user whose event ends the log."""
    return Dataset.from_list([*rows, row(("z", last, "view"), user=99)])


def test_what_comes_at_or_after_a_target_does_not_predict_it():
    before = [("a", 10, "view"), ("a", 12, "buy")]
    for late in (12, 13, 30):
        rows = [row(*before, ("a", late, "share"), ("b", late, "view")) for _ in range(20)]
        learned = learn_event_weights(clicks(rows), target="buy", horizon=10.0)
        assert learned.effects["share"].effect < 1e-6
        assert learned.effects["view"].effect == pytest.approx(20 / 41, abs=0.05)
        assert learned.num_targets == 20
    other = [row(("b", 10, "share"), *before) for _ in range(20)]  # of another item
    assert (
        learn_event_weights(clicks(other), target="buy", horizon=10.0).effects["share"].effect
        < 1e-6
    )


def test_moving_events_among_the_times_after_all_targets_changes_nothing():
    rng = np.random.default_rng(0)

    def learned(generator):
        rows = []
        for user in range(40):
            start = 7 * user % 11
            late = [("a", 60 + int(t), "share") for t in sorted(generator.integers(0, 20, 3))]
            early = [("a", start, "view")] + [("a", start + 3, "buy")] * (user % 3 == 0)
            rows.append(row(*early, *late, user=user))
        return learn_event_weights(clicks(rows, last=1000), target="buy", horizon=30.0)

    first, second = learned(rng), learned(rng)
    assert first.effects == second.effects and first.background == second.background


def test_time_after_the_end_of_the_log_is_no_time_in_which_nothing_happened():
    early = [
        row(("a", 10, "view"), *([("a", 11, "buy")] * (n % 2 == 0)), user=n) for n in range(40)
    ]
    late = [row(("a", 100, "view"), user=n) for n in range(50, 90)]
    alone = learn_event_weights(clicks(early), target="buy", horizon=20.0)
    beside = learn_event_weights(clicks(early + late), target="buy", horizon=20.0)
    # the user who ends the log adds a view, but no time in which it could bring anything
    assert beside.effects["view"].effect == pytest.approx(alone.effects["view"].effect)
    assert alone.effects["view"].effect == pytest.approx(0.5, abs=0.05)


def test_a_target_without_repeats_ends_what_is_observed_of_its_pair():
    rows = [
        row(("a", 1, "view"), ("a", 2, "like"), ("a", 3, "view"), ("a", 4, "like"), user=user)
        for user in range(10)
    ]
    once = learn_event_weights(clicks(rows), target="like", horizon=10.0, repeatable=False)
    assert once.num_targets == once.num_converted == 10
    assert "like" not in once.factors
    again = learn_event_weights(clicks(rows), target="like", horizon=10.0)
    assert (again.num_targets, again.num_converted) == (20, 10)
    cold = [row(("a", 1, "like"), ("a", 2, "view"), user=user) for user in range(10)]
    both = learn_event_weights(clicks(rows + cold), target="like", horizon=10.0)
    assert both.num_unannounced == 10 and both.num_pairs == 21


def test_what_cannot_be_learnt_is_refused():
    log = clicks([row(("a", 1, "view"), ("a", 2, "buy"))])
    with pytest.raises(ValueError, match="nothing to learn"):
        learn_event_weights(log, target="gift", horizon=10.0)
    with pytest.raises(ValueError, match="horizon must be"):
        learn_event_weights(log, target="buy", horizon=0.0)
    with pytest.raises(ValueError, match="counts.* missing"):
        learn_event_weights(log, target="buy", horizon=1.0, strength="count")
    with pytest.raises(ValueError, match="time order"):
        learn_event_weights(
            clicks([row(("a", 5, "view"), ("a", 2, "buy"))]), target="buy", horizon=9.0
        )
