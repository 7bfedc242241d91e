"""The profile of a log: aggregates counted by hand, and the same on every engine."""

from collections import Counter

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_implicitrec.event_profile import (
    ALL_TYPES,
    NO_TYPE,
    OTHER_TYPES,
    EventProfile,
    Histogram,
    profile_events,
    weight_histograms,
)
from modeling_implicitrec.processing_implicitrec import ImplicitRecProcessor

DAY = 86_400.0


def table(**columns: list) -> ibis.Table:
    return ibis.memtable(pa.table(columns))


def dirty_table() -> ibis.Table:
    return table(
        user_id=[1, 1, 1, 1, 2, 2, None],
        item_id=["a", "a", "b", None, "a", "c", "c"],
        event_type=["view", "view", "buy", "view", None, "buy", "view"],
        timestamp=[0.0, 8.0, 8.0, None, DAY, 3 * DAY, 5.0],
        duration=[1.0, 3.0, 4.0, float("nan"), 0.5, float("inf"), -2.0],
        count=[1.0, 7.0, 0.0, None, 2.0, 3.0, 1.0],
    )


def test_a_small_log_is_counted_as_by_hand() -> None:
    profile = profile_events(dirty_table())
    assert (profile.events, profile.users, profile.items) == (7, 2, 3)
    assert (profile.first, profile.last) == (0.0, 3 * DAY)
    assert profile.event_types == {"view": 4, "buy": 2, NO_TYPE: 1}
    assert profile.daily == {"view": {0: 3}, "buy": {0: 1, 3: 1}, NO_TYPE: {1: 1}}
    assert profile.popularity == ((1, 3), (2, 2), (3, 1))
    assert profile.top_share == 3 / 6
    assert profile.lengths == Histogram((2.0, 4.0, 8.0), (1, 1), 0, 3.0)
    assert profile.median_length == 2
    # User 1: 8 s and 0 s apart; user 2: two days.
    assert profile.gaps is not None
    assert profile.gaps.counts[0] == profile.gaps.counts[-1] == 1
    assert (profile.gaps.total, profile.gaps.nonpositive) == (2, 1)
    assert profile.gaps.edges[:2] == (8.0, 16.0)
    assert profile.gaps.edges[-2:] == (131072.0, 262144.0)
    assert profile.gaps.mean == (8 + 2 * DAY) / 2
    # Of (1, a), (1, a), (1, b), (2, a), (2, c) one repeats.
    assert profile.repeat_share == 1 / 5
    assert profile.durations == {
        "view": Histogram((1.0, 2.0, 4.0), (1, 1), 1, 2.0),
        "buy": Histogram((4.0, 8.0), (1,), 0, 4.0),
        NO_TYPE: Histogram((0.5, 1.0), (1,), 0, 0.5),
    }
    assert profile.counts["buy"] == Histogram((2.0, 4.0), (1,), 1, 3.0)
    assert profile.user_sample == 1


def test_ids_alone_are_enough() -> None:
    profile = profile_events(table(user_id=["u", "u", "v"], item_id=[1, 2, 1]))
    assert profile == EventProfile(
        events=3,
        users=2,
        items=2,
        popularity=((1, 2), (2, 1)),
        top_share=2 / 3,
        lengths=Histogram((1.0, 2.0, 4.0), (1, 1), 0, 1.5),
        median_length=1,
    )


def test_an_empty_table_has_an_empty_profile() -> None:
    profile = profile_events(dirty_table().limit(0))
    assert (profile.events, profile.popularity, profile.daily) == (0, (), {})
    assert profile.gaps == profile.lengths == Histogram((), ())


def test_rare_types_are_told_together() -> None:
    kinds = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    log = table(user_id=[1] * 10, item_id=[1] * 10, event_type=kinds, count=[2] * 10)
    profile = profile_events(log, max_types=2)
    assert profile.event_types == {"a": 4, "b": 3, OTHER_TYPES: 3}
    assert profile.counts[OTHER_TYPES] == Histogram((2.0, 4.0), (3,), 0, 2.0)


def test_days_without_types_are_all_events_and_absurd_times_are_none() -> None:
    log = table(user_id=[1, 1, 1], item_id=[1, 2, 3], timestamp=[-1.0, 1e18, 5.0])
    profile = profile_events(log)
    assert profile.daily == {ALL_TYPES: {-1: 1, 0: 1}}
    assert (profile.first, profile.last) == (-1.0, 5.0)


def test_gaps_and_repeats_of_a_sample_are_those_of_whole_users() -> None:
    users = 400
    log = table(
        user_id=np.repeat(np.arange(users), 3).tolist(),
        item_id=[1, 1, 2] * users,
        timestamp=[0.0, 60.0, 180.0] * users,
    )
    profile = profile_events(log, sample_events=300)
    assert profile.user_sample == 4
    assert profile.gaps is not None
    sampled, rest = divmod(profile.gaps.total, 2)
    assert rest == 0 and users / 8 < sampled < users / 2
    assert profile.gaps.mean == 90.0
    assert profile.repeat_share == pytest.approx(1 / 3)
    assert profile.users == users


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=1, max_size=300))
def test_popularity_and_lengths_agree_with_counting(pairs: list[tuple[int, int]]) -> None:
    log = table(user_id=[user for user, _ in pairs], item_id=[item for _, item in pairs])
    profile = profile_events(log)
    items = sorted(Counter(item for _, item in pairs).values(), reverse=True)
    assert profile.popularity == tuple(enumerate(items, start=1))
    users = Counter(user for user, _ in pairs)
    for low, high, found in zip(
        profile.lengths.edges, profile.lengths.edges[1:], profile.lengths.counts
    ):
        assert found == sum(low <= size < high for size in users.values())
    assert profile.lengths.total == len(users)
    assert profile.median_length == sorted(users.values())[(len(users) - 1) // 2]
    assert profile.repeat_share == pytest.approx(1 - len(set(pairs)) / len(pairs))


def test_a_long_tail_is_a_hundred_points() -> None:
    rng = np.random.default_rng(0)
    items = rng.zipf(1.3, 20_000) % 5_000
    profile = profile_events(table(user_id=[0] * len(items), item_id=items.tolist()))
    counts = np.sort(np.unique(items, return_counts=True)[1])[::-1]
    assert len(profile.popularity) <= 100
    assert profile.popularity[-1] == (len(counts), counts[-1])
    assert all(counts[rank - 1] == events for rank, events in profile.popularity)


@pytest.mark.parametrize("power", [-20, -3, 0, 1, 29, 40])
def test_a_power_of_two_opens_its_bin(power: int) -> None:
    log = table(user_id=[1], item_id=[1], duration=[2.0**power])
    (histogram,) = profile_events(log).durations.values()
    assert histogram == Histogram((2.0**power, 2.0 ** (power + 1)), (1,), 0, 2.0**power)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="no event columns .*item_id"):
        profile_events(table(user_id=[1]))
    with pytest.raises(ValueError, match="must be at least 1"):
        profile_events(table(user_id=[1], item_id=[1]), max_types=0)
    with pytest.raises(ValueError, match="expected 3 edges for 2 counts"):
        Histogram((1.0, 2.0), (1, 1))


def test_a_quantile_lies_where_the_values_are() -> None:
    histogram = Histogram((1.0, 2.0, 4.0, 8.0), (1, 0, 3))
    assert histogram.quantile(0.0) == 1.0
    assert histogram.quantile(0.25) == 4.0
    assert histogram.quantile(1.0) == 8.0
    assert 4.0 < histogram.quantile(0.5) < 8.0
    assert np.isnan(Histogram((), ()).quantile(0.5))


def processor(**columns: list) -> ImplicitRecProcessor:
    return ImplicitRecProcessor.fit({"item_id": [1, 2, 3], **columns})


def test_weights_are_counted_per_type_whatever_the_batch() -> None:
    typed = processor(event_type=["view", "view", "buy"])
    rows = Dataset.from_dict(
        {
            "input_weights": [[1.0, 2.0], [], [0.0, 0.5, 1.0], [4.0]],
            "event_type_ids": [[1, 2], [], [1, 1, 1], [0]],
        }
    )
    expected = weight_histograms(rows, typed)
    assert list(expected) == ["view", "buy", NO_TYPE]
    assert expected["view"].counts == (1, 0, 0, 0, 2)
    assert (expected["view"].edges[0], expected["view"].edges[4]) == (0.5, 1.0)
    assert (expected["view"].nonpositive, expected["view"].mean) == (1, 2.5 / 3)
    assert expected["buy"].edges == (2.0, pytest.approx(2**1.25))
    assert weight_histograms(rows, typed, batch_size=1) == expected


def test_weights_without_types_are_one_row() -> None:
    rows = Dataset.from_dict({"input_weights": [[1.0, 2.0]], "event_type_ids": [[0, 0]]})
    untyped = processor()
    assert list(weight_histograms(rows, untyped)) == [ALL_TYPES]
    alone = rows.remove_columns("event_type_ids")
    assert weight_histograms(alone, untyped) == weight_histograms(rows, untyped)
    with pytest.raises(ValueError, match="no column input_weights"):
        weight_histograms(rows.remove_columns("input_weights"), untyped)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_spark_gives_the_same_profile(spark, tmp_path) -> None:
    rng = np.random.default_rng(0)
    size = 500
    log = pd.DataFrame(
        {
            "user_id": rng.integers(0, 20, size),
            "item_id": [f"i{place}" for place in rng.zipf(1.5, size) % 50],
            "event_type": rng.choice(
                ["view", "like", "buy", "share"], size, p=[0.4, 0.3, 0.2, 0.1]
            ),
            "timestamp": rng.integers(0, 30 * 86_400, size).astype(float),
            "count": rng.integers(-1, 40, size).astype(float),
        }
    )
    log.loc[::17, "count"] = None
    log.loc[::19, "event_type"] = None
    path = tmp_path / "events.parquet"
    log.to_parquet(path)
    found = profile_events(spark.read_parquet(str(path)), max_types=3)
    assert found == profile_events(ibis.duckdb.connect().read_parquet(str(path)), max_types=3)
