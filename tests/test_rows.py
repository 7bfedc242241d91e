"""Rows in order of length: every row once, little padding, an order that epoch and seed decide."""

import numpy as np
import pytest
from datasets import Dataset

from modeling_implicitrec import DataCollatorForNextItem, GroupedRows, SequenceRows

SIZES = np.random.default_rng(0).zipf(1.5, 1000).clip(2, 200)
ROWS = Dataset.from_dict(
    {"input_ids": [[1] * int(size) for size in SIZES], "row": list(range(len(SIZES)))}
)
COLLATOR = DataCollatorForNextItem(100)


def grouped(**changes) -> GroupedRows:
    return GroupedRows(ROWS, COLLATOR.lengths, **({"step_rows": 32, "group_steps": 8} | changes))


def order(rows: SequenceRows) -> list[int]:
    return [row["row"] for row in rows]


def padding(rows: SequenceRows, size: int = 32) -> float:
    """The share of the positions that hold nothing."""
    lengths = COLLATOR.lengths(list(rows))
    widths = [lengths[i : i + size].max() * size for i in range(0, len(lengths) - size, size)]
    return 1 - lengths[: len(widths) * size].sum() / sum(widths)


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    rows, orders = grouped(), []
    for epoch in range(3):
        rows.set_epoch(epoch)
        orders.append(order(rows))
        assert sorted(orders[-1]) == list(range(1000))
    assert orders[0] != orders[1] != orders[2]
    rows.set_epoch(1)
    assert order(rows) == orders[1]
    again = grouped()
    again.set_epoch(1)
    assert [again[place]["row"] for place in range(500, 600)] == orders[1][500:600]
    assert order(grouped(seed=1)) != orders[0]


def test_companions_change_and_steps_do_not_come_by_length():
    rows = grouped()
    steps = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        found = order(rows)
        steps.append({frozenset(found[i : i + 32]) for i in range(0, 992, 32)})
    assert not steps[0] & steps[1]
    means = [SIZES[list(order(rows)[i : i + 32])].mean() for i in range(0, 256, 32)]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def test_little_is_padding_and_less_where_more_is_sorted_at_once():
    assert padding(grouped(group_steps=64)) < padding(grouped()) < padding(SequenceRows(ROWS)) / 3
    assert padding(grouped(group_steps=64)) < 0.1


def test_a_step_of_several_batches_has_short_and_long_histories():
    whole, mixed = (COLLATOR.lengths(list(r))[:768] for r in (grouped(), grouped(batches=4)))
    events = [lengths.reshape(-1, 32).sum(1) for lengths in (whole, mixed)]
    assert events[1].std() < events[0].std() / 2
    means = mixed.reshape(-1, 4, 8).mean(2)  # of each batch of each step
    assert (np.diff(means, axis=1) >= 0).all() and (means[:, 0] < means[:, 3]).all()
    assert padding(grouped(batches=4), size=8) < 0.15
    assert sorted(order(grouped(batches=4))) == list(range(1000))


def test_processes_share_the_steps_of_one():
    """Two processes of 16 rows take turns, as accelerate deals out batches."""
    whole = order(grouped())
    halves = [whole[i : i + 16] for i in range(0, 960, 16)]
    steps = [set(whole[i : i + 32]) for i in range(0, 960, 32)]
    assert [set(a) | set(b) for a, b in zip(halves[::2], halves[1::2])] == steps


def test_lengths_follow_the_draw_of_the_epoch():
    times = np.arange(50) * 86_400
    history = {"input_ids": np.arange(1, 51), "timestamps": times, "row": 3}
    collator = DataCollatorForNextItem(40, target_window=5 * 86_400)
    found = set()
    for collator.epoch in range(20):
        found.add(int(collator.lengths([history])[0]))
        assert collator.lengths([history])[0] == collator([history])["input_ids"].shape[1]
    assert len(found) > 5


def test_sizes_and_places_out_of_range_are_refused():
    with pytest.raises(ValueError, match="expected positive sizes, got 0 rows"):
        grouped(step_rows=0)
    with pytest.raises(ValueError, match="batches must divide the 32 rows of a step, got 5"):
        grouped(batches=5)
    for place in (-1, 1000):
        with pytest.raises(IndexError, match="rows are 0 to 999"):
            grouped()[place]
    assert order(GroupedRows(ROWS.select(range(3)), COLLATOR.lengths, step_rows=32)) in (
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    )
