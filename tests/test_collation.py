"""Labels come from strictly later moments, and nothing is computed on what has no label."""

import numpy as np

from modeling_implicitrec import DataCollatorForNextItem


def row(ids, times=None, **more):
    rows = {"input_ids": ids, "input_weights": [1.0] * len(ids), **more}
    return rows | ({"timestamps": times} if times else {})


def epochs(collator, history, number):
    for collator.epoch in range(number):
        yield collator([history])


def test_without_ties_the_label_is_the_next_item():
    batch = DataCollatorForNextItem(10)([row([5, 6, 7]), row([8, 9])])
    assert batch["input_ids"].tolist() == [[5, 6], [8, 0]]
    assert batch["labels"].tolist() == [[6, 7], [9, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_a_basket_never_labels_itself():
    collator = DataCollatorForNextItem(10)
    ids, times = [1, 2, 3, 4, 5, 6], [10, 10, 10, 20, 20, 30]
    seen = {tuple(b["labels"][0].tolist()) for b in epochs(collator, row(ids, times), 100)}
    assert {labels[0] for labels in seen} == {4, 5}
    assert {labels[3:] for labels in seen} == {(6, 6)}
    ends = DataCollatorForNextItem(10, moment_ends_only=True)([row(ids, times)])["labels"][0]
    assert ends[:2].tolist() == [-100, -100]
    assert ends[3].item() == -100


def test_the_horizon_bounds_the_label():
    collator = DataCollatorForNextItem(10, label_horizon=15)
    history = row([1, 2, 3], [10, 20, 40])
    labels = {batch["labels"][0, 0].item() for batch in epochs(collator, history, 50)}
    assert labels == {2}
    wide = DataCollatorForNextItem(10, label_horizon=100)
    labels = {batch["labels"][0, 0].item() for batch in epochs(wide, history, 50)}
    assert labels == {2, 3}


def test_a_long_history_is_cut_anywhere_in_training_and_at_the_start_in_evaluation():
    ids = list(range(1, 21))
    collator = DataCollatorForNextItem(5)
    starts = set()
    for batch in epochs(collator, row(ids), 300):
        assert batch["input_ids"].shape == (1, 5)
        assert (batch["labels"] == batch["input_ids"] + 1).all()
        starts.add(batch["input_ids"][0, 0].item())
    assert starts == set(range(1, 16))
    batch = collator([row(ids, target_ids=[-1, 3])])
    assert batch["input_ids"].tolist() == [[16, 17, 18, 19, 20]]
    assert batch["target_ids"].tolist() == [[-1, 3]]


def test_draws_depend_on_the_row_and_the_epoch_alone():
    rows = [row([1, 2, 3, 4], [10, 20, 20, 20], row=place) for place in range(30)]
    together, alone = DataCollatorForNextItem(10), DataCollatorForNextItem(10)
    first = together(rows)["labels"]
    assert first.tolist() == [alone([r])["labels"][0].tolist() for r in reversed(rows)][::-1]
    together.epoch = 1
    assert first.tolist() != together(rows)["labels"].tolist()


def test_an_empty_history_is_a_row_of_padding():
    batch = DataCollatorForNextItem(5)([row([], target_ids=[3]), row([4, 2], target_ids=[3])])
    assert batch["input_ids"].tolist() == [[0, 0], [4, 2]]
    assert np.isfinite(batch["input_weights"].numpy()).all()
