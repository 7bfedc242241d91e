"""Labels come from strictly later moments, and nothing is computed on what has no label."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
)


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


def test_rows_without_weights_get_labels_that_count_alike():
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    batch = DataCollatorForNextItem(10)(rows)
    assert batch["labels"].tolist() == [[6, 7], [9, -100]] and "input_weights" not in batch
    weighed = DataCollatorForNextItem(10, label_weight_power=2)(rows)
    assert weighed["label_weights"].tolist() == [[1, 1], [1, 0]]


def test_a_basket_never_labels_itself():
    collator = DataCollatorForNextItem(10)
    ids, times = [1, 2, 3, 4, 5, 6], [10, 10, 10, 20, 20, 30]
    seen = {tuple(b["labels"][0].tolist()) for b in epochs(collator, row(ids, times), 100)}
    assert {labels[0] for labels in seen} == {4, 5}
    assert {labels[3:] for labels in seen} == {(6, 6)}
    ends = DataCollatorForNextItem(10, moment_ends_only=True)([row(ids, times)])["labels"][0]
    assert ends[:2].tolist() == [-100, -100]
    assert ends[3].item() == -100


def test_within_moments_the_next_event_of_the_basket_is_the_label():
    collator = DataCollatorForNextItem(10, within_moments=True)
    histories = [row([1, 2, 3, 4], [10, 10, 10, 20]), row([5, 6], [20, 20])]
    batch = collator(histories)
    assert batch["labels"].tolist() == [[2, 3, 4], [6, -100, -100]]
    assert batch["timestamps"].tolist() == [[10, 10, 10], [20, 0, 0]]  # the model still reads them
    with pytest.raises(ValueError, match="within_moments"):
        DataCollatorForNextItem(10, within_moments=True, label_horizon=60.0)


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


def test_grouping_by_length_leaves_little_padding(tmp_path):
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.1, 2000) + 2, 50)  # most users are short, as in real logs
    rows = Dataset.from_dict(
        {
            "input_ids": [list(range(1, size + 1)) for size in lengths],
            "input_weights": [[1.0] * size for size in lengths],
            "length": lengths,
        }
    )
    shares = {}
    for strategy in ("random", "group_by_length"):
        settings = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=32,
            train_sampling_strategy=strategy,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
        )
        model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=60, hidden_size=8))
        loader = Trainer(model, settings, DataCollatorForNextItem(50), rows).get_train_dataloader()
        masks = [batch["attention_mask"] for batch in loader]
        shares[strategy] = 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert shares["group_by_length"] < 0.2
    assert shares["random"] > 0.5


def test_a_window_after_a_moment_gives_every_item_of_it():
    collator = DataCollatorForNextItem(10, target_window=15, query_time=True)
    ids, times = [1, 2, 2, 3, 1, 4, 5], [10, 20, 20, 30, 40, 60, 61]
    seen = Counter()
    for batch in epochs(collator, row(ids, times), 3000):
        history, asked = tuple(batch["input_ids"][0].tolist()), batch["query_time"].item()
        targets = {v for v, t in zip(ids, times) if asked < t <= asked + 15}
        assert set(batch["target_ids"][0].tolist()) == targets != set()
        assert history == tuple(v for v, t in zip(ids, times) if t <= asked)
        seen[history] += 1
    # 10 seconds before the 2nd, 4th and 5th moment, 15 of the 20 before the 6th, 1 before the last
    share = {(1,): 10, (1, 2, 2): 10, (1, 2, 2, 3): 10, (1, 2, 2, 3, 1): 15, (1, 2, 2, 3, 1, 4): 1}
    assert seen.keys() == share.keys()
    for history, seconds in share.items():
        assert abs(seen[history] / 3000 - seconds / 46) < 0.03


def test_somebody_who_was_there_once_has_no_window():
    batch = DataCollatorForNextItem(10, target_window=15)([row([1, 2], [10, 10])])
    assert batch["input_ids"].tolist() == [[1, 2]]
    assert batch["target_ids"].tolist() == [[-100]]


def test_collapsing_adds_up_weights_at_the_place_of_the_last():
    history = row([7, 5, 7, 6, 5], [1, 2, 3, 4, 5], target_ids=[1])
    history["input_weights"] = [1.0, 2.0, 3.0, 4.0, 5.0]
    batch = DataCollatorForNextItem(2, target_window=1, collapse_repeats=True)([history])
    assert batch["input_ids"].tolist() == [[6, 5]]
    assert batch["input_weights"].tolist() == [[4.0, 7.0]]
    assert batch["timestamps"].tolist() == [[4, 5]]
    whole = DataCollatorForNextItem(9, target_window=1, collapse_repeats=True)([history])
    assert whole["input_ids"].tolist() == [[7, 6, 5]]
    assert whole["input_weights"].tolist() == [[4.0, 4.0, 7.0]]


def test_a_users_fold_is_its_place_and_evaluation_has_none():
    collator = DataCollatorForNextItem(5, num_folds=3)
    rows = [{**row([1, 2], [1, 2]), "row": place} for place in (4, 5, 6)]
    assert collator(rows)["fold_ids"].tolist() == [1, 2, 0]
    assert "fold_ids" not in collator([row([1, 2], [1, 2], target_ids=[3])])


def test_a_negative_event_is_never_a_label_nor_a_target():
    ids, times = [1, 2, 3, 4, 5, 6], [10, 20, 20, 30, 40, 50]
    history = row(ids, times, event_type_ids=[1, 2, 1, 2, 1, 2])
    for horizon in (0, 15, 100):
        collator = DataCollatorForNextItem(9, negative_event_type_ids=[2], label_horizon=horizon)
        labels = {v for b in epochs(collator, history, 50) for v in b["labels"][0].tolist()}
        assert labels <= {3, 5, -100} and 3 in labels, horizon
    batch = DataCollatorForNextItem(9, negative_event_type_ids=[2])([history])
    assert batch["input_ids"].tolist() == [
        [1, 2, 3, 4]
    ]  # still inputs, and what follows them is learnt
    assert batch["labels"].tolist() == [[3, 5, 5, 5]]
    window = DataCollatorForNextItem(9, negative_event_type_ids=[2], target_window=15)
    targets = {v for b in epochs(window, history, 50) for v in b["target_ids"][0].tolist()}
    assert targets == {3, 5, -100}
    only = row([1, 2], [10, 20], event_type_ids=[2, 2])
    assert (collator([only])["labels"] == -100).all()
    with pytest.raises(ValueError, match="need event_type_ids"):
        collator([row(ids, times)])


def test_explicit_negatives_are_drawn_from_the_negative_events_alone():
    ids, times = [1, 2, 3, 4, 5, 4], [10, 20, 30, 40, 50, 60]
    history = row(ids, times, event_type_ids=[1, 2, 1, 2, 1, 1])
    plain = DataCollatorForNextItem(9, negative_event_type_ids=[2])([history])
    batch = DataCollatorForNextItem(9, negative_event_type_ids=[2], negative_labels=True)([history])
    assert batch["labels"].tolist() == plain["labels"].tolist() == [[3, 3, 5, 5, 4]]
    assert batch["negative_labels"].tolist() == [[2, 4, 4, -100, -100]]
    with pytest.raises(ValueError, match="negative_labels need"):
        DataCollatorForNextItem(9, negative_labels=True)


def test_a_labels_weight_is_a_power_of_its_events():
    history = row([5, 6, 7], [1, 2, 3])
    history["input_weights"] = [1.0, 4.0, 9.0]
    batch = DataCollatorForNextItem(5, label_weight_power=0.5)([history, row([8, 9], [1, 2])])
    assert batch["labels"].tolist() == [[6, 7], [9, -100]]
    assert batch["label_weights"].tolist() == [[2.0, 3.0], [1.0, 0.0]]
    assert "label_weights" not in DataCollatorForNextItem(5)([history])
    with pytest.raises(ValueError, match="label_weight_power"):
        DataCollatorForNextItem(5, label_weight_power=1.0, target_window=10.0)


@pytest.mark.parametrize("name", ["label_horizon", "target_window"])
def test_labels_do_not_come_from_before(name):
    with pytest.raises(ValueError, match="must not be negative, got .*-86400"):
        DataCollatorForNextItem(max_length=8, **{name: -86_400.0})


def test_rows_that_were_never_encoded_are_refused_by_what_they_lack():
    raw = [{"user_id": 7, "item_id": "tea", "timestamp": 1}]
    said = "with input_ids, as recipes/prepare.py .*encode_splits.*got rows with user_id, item_id"
    collator = DataCollatorForNextItem(10)
    for read in (collator, collator.lengths, collator.histories):
        with pytest.raises(ValueError, match=said):
            read(raw)
    with pytest.raises(ValueError, match="input_ids and timestamps.*got rows with input_ids"):
        DataCollatorForNextItem(10, target_window=9.0)([row([1, 2])])
