"""What goes with what: the table, and the prior that reads it."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    cooccurrence_table,
    fit_priors,
)
from modeling_implicitrec.kernels_implicitrec import SCALAR_STEP
from modeling_implicitrec.pairs_implicitrec import own_events

EVEN = np.ones(4)  # frequencies that scale nothing


def test_pairs_are_counted_by_gap_and_order_within_a_row():
    rows = Dataset(pa.table({"input_ids": [[1, 2, 3], [2, 3], [1]]}))
    items, counts = cooccurrence_table(rows, 4, 2, item_counts=EVEN)
    assert items[1].tolist() == [2, 3]
    np.testing.assert_allclose(counts[1], [1, 2**-0.5], rtol=1e-6)
    assert items[2].tolist() == [3, 1]
    np.testing.assert_allclose(counts[2], [2, 0.3], rtol=1e-6)
    assert items[3].tolist() == [2, 1]
    np.testing.assert_allclose(counts[3], [2 * 0.3, 0.3 * 2**-0.5], rtol=1e-6)
    assert counts[0].sum() == 0


def test_counts_are_divided_by_powers_of_both_frequencies():
    rows = Dataset(pa.table({"input_ids": [[1, 2], [1, 3], [1, 3]]}))
    _, counts = cooccurrence_table(rows, 4, 2)  # events 3, 1, 2: frequencies 1.5, 0.5, 1
    np.testing.assert_allclose(counts[1], [2 / 1.5**0.5, 1.5**-0.5 * 0.5**-0.25], rtol=1e-6)


def test_weighted_pairs_count_by_the_weights_of_both_events():
    rows = Dataset(
        pa.table({"input_ids": [[1, 2, 3], [1, 2]], "input_weights": [[2.0, 3.0, 0.5], [1.0, 1.0]]})
    )
    items, counts = cooccurrence_table(rows, 4, 2, item_counts=EVEN, weighted=True)
    assert items[1].tolist() == [2, 3]
    np.testing.assert_allclose(counts[1], [2 * 3 + 1, 2 * 0.5 * 2**-0.5], rtol=1e-6)


def test_the_last_label_stands_behind_a_users_events_and_negative_ones_are_left_out():
    ids = torch.tensor([[4, 5, 6], [7, 8, 0]])
    labels = torch.tensor([[5, 6, 9], [8, -100, -100]])
    assert own_events(ids, labels, None).tolist() == [[4, 5, 6, 9], [7, 8, 0, 0]]
    negative = torch.tensor([[False, True, False], [False, False, False]])
    assert own_events(ids, labels, negative).tolist() == [[4, 6, 9, 0], [7, 8, 0, 0]]


def test_while_training_a_user_reads_the_cooccurrences_of_others():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 9, (n,), generator=generator).tolist() for n in (6, 25, 4, 9)]
    rows = Dataset.from_dict(
        {"input_ids": rows, "input_weights": [[1.0] * len(row) for row in rows]}
    )
    item_counts = np.arange(9)
    model = ImplicitRecForScoring(
        ImplicitRecConfig(vocab_size=9, num_cooccurrences=8, cooccurrence_context=3, hidden_size=8)
    )
    model.fit_item_counts(item_counts)
    batch = DataCollatorForNextItem(max_length=40)([rows[1], rows[3]])

    def counts_read(train):
        model.fit_cooccurrences(*cooccurrence_table(train, 9, 8, item_counts=item_counts))
        prior, seen = model.head.cooccurrence, []
        hook = prior.register_forward_hook(lambda _module, _inputs, found: seen.append(found))
        model.train()(**batch)
        hook.remove()
        ((source, values),) = seen
        return torch.zeros(len(source), 9).scatter_add(1, source, values)

    every = counts_read(rows)
    model.head.cooccurrence.register_forward_pre_hook(
        lambda _module, inputs: ({**inputs[0], "own_ids": inputs[0]["own_ids"] * 0},)
    )
    read = [counts_read(rows.select(others)) for others in ([0, 2, 3], [0, 1, 2])]
    of_first = (batch["labels"][0] != -100).sum()
    torch.testing.assert_close(every[:of_first, 1:], read[0][:of_first, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(every[of_first:, 1:], read[1][of_first:, 1:], atol=1e-5, rtol=0)
    assert every[:, 1:].max() > 0.1


def test_cooccurrences_of_an_event_count_by_its_weight_and_age():
    model = ImplicitRecForScoring(
        ImplicitRecConfig(
            vocab_size=31, num_cooccurrences=1, cooccurrence_context=2, cooccurrence_gap_power=0.0
        )
    )
    items = torch.zeros(31, 1, dtype=torch.int32)
    items[4], items[5] = 9, 10
    model.fit_cooccurrences(items, (items > 0).float())
    prior = model.head.cooccurrence
    history = {
        "input_ids": torch.tensor([[4, 5]]),
        "weights": torch.tensor([[4.0, 1.0]]),
        "columns": torch.tensor([1]),
        "timestamps": torch.tensor([[0, 1000]]),
        "query_time": torch.tensor([1000]),
    }

    def ratio() -> float:  # of what the first event adds to what the last one does
        source, values = prior(history)
        assert source.tolist() == [[10, 9]]
        return (values[0, 1] / values[0, 0]).item()

    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.zero_()
        assert ratio() == pytest.approx(1.0)
        prior.evidence.fill_(0.5 / SCALAR_STEP)
        assert ratio() == pytest.approx(2.0)
        prior.time_kernel.levels[0] = 1 / SCALAR_STEP  # of events as old as the question
        assert ratio() == pytest.approx(2 / math.e)


def told(rows: Dataset, processor: ImplicitRecProcessor, settings: dict, **options) -> dict:
    """What `fit_priors` wrote into a model, and its fold tables."""
    config = ImplicitRecConfig(vocab_size=processor.vocab_size, hidden_size=8, **settings)
    torch.manual_seed(0)
    model = ImplicitRecForScoring(config)
    fit_priors(model, processor, rows, **options)
    return dict(model.named_buffers()) | {"bias": model.head.item_bias.weight.detach()}


def test_priors_are_counts_of_events_of_users_or_of_recent_users():
    processor = ImplicitRecProcessor.fit({"item_id": [*"aaabbc"]})
    rows = Dataset.from_dict(
        {"input_ids": [[1, 1, 1, 2], [2, 3]], "timestamps": [[0, 0, 0, 90_000], [86_400, 90_000]]}
    )
    for settings, options, counts in (
        ({}, {}, [0, 3, 2, 1]),
        ({"collapse_repeats": True}, {}, [0, 1, 2, 1]),
        ({"collapse_repeats": True}, {"recent_days": 0.5}, [0, 0, 2, 1]),
    ):
        expected = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=4, hidden_size=8))
        expected.fit_item_counts(torch.tensor(counts))
        found = told(rows, processor, settings, **options)
        torch.testing.assert_close(found["bias"], expected.head.item_bias.weight.detach())
    with pytest.raises(ValueError, match="recent_days=0.5 expects collapse_repeats"):
        told(rows, processor, {}, recent_days=0.5)


def test_priors_hold_the_pairs_of_the_positive_events_with_and_without_each_fold():
    log = {"item_id": [*"aabbc"], "event_type": ["view", "view", "view", "hide", "view"]}
    processor = ImplicitRecProcessor.fit(log, negative_event_types=["hide"])
    (hide,) = processor.negative_event_type_ids
    kept = {"input_ids": [[1, 2], [1, 3]], "input_weights": [[1.0, 3.0], [1.0, 1.0]], "row": [0, 1]}
    view = 3 - hide
    whole = {
        "input_ids": [[1, 2, 2], [1, 3]],
        "input_weights": [[1.0, 3.0, 9.0], [1.0, 1.0]],
        "event_type_ids": [[view, view, hide], [view, view]],
        "row": [0, 1],
    }
    rows = Dataset.from_dict(kept)
    settings = {"num_cooccurrences": 2, "num_event_types": 3}
    counts = processor.item_counts
    found = told(Dataset.from_dict(whole), processor, settings, folds=2, weighted=True)
    expected = cooccurrence_table(rows, 4, 2, item_counts=counts, weighted=True)
    folds = [
        cooccurrence_table(rows.select([other]), 4, 2, item_counts=counts, weighted=True)
        for other in (1, 0)
    ]
    tables = {name: value for name, value in found.items() if "cooccurrence" in name}
    assert any(np.allclose(table, expected[1]) for table in tables.values() if table.dim() == 2)
    stacked = np.stack([fold[1] for fold in folds])
    assert any(np.allclose(table, stacked) for table in tables.values() if table.dim() == 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"source": "songs"}, "'sequence' or 'ease', got 'songs'"), ({"weighted": True}, "folds")],
)
def test_priors_of_another_kind_are_refused(options, message):
    processor = ImplicitRecProcessor.fit({"item_id": [*"ab"]})
    rows = Dataset.from_dict({"input_ids": [[1, 2]]})
    with pytest.raises(ValueError, match=message):
        told(rows, processor, {"num_cooccurrences": 2}, **options)


def test_rows_in_the_place_of_the_processor_are_refused():
    rows = Dataset.from_dict({"input_ids": [[1, 2, 1]]})
    processor = ImplicitRecProcessor.fit({"item_id": ["tea", "milk", "tea"]})
    with pytest.raises(ValueError, match="model, processor, rows"):
        fit_priors(ImplicitRecForScoring(ImplicitRecConfig(vocab_size=3)), rows, processor)


def test_copies_start_with_the_share_of_events_that_come_again():
    """Of four later events, three are of a known item; before them lie weights of 2, 3, 4 and 1."""
    kept = {
        "input_ids": [[1, 2, 1, 1], [2], [2, 2]],
        "input_weights": [[2.0, 1, 1, 9], [5.0], [1.0, 1]],
    }
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=4, hidden_size=16, copy_prior=True))
    processor = ImplicitRecProcessor.fit({"item_id": ["a", "b", "c", "a", "a", "b", "b", "b"]})
    fit_priors(model, processor, Dataset.from_dict(kept))
    background = model.item_frequency[1:].sum().log().item()
    expected = math.log(0.75 / 0.25) + background - math.log(2 * 3 * 4 * 1) / 4
    assert 1 + 10 * model.head.copy.level.item() == pytest.approx(expected, abs=1e-5)
    learned = model.head.copy.level.clone()
    fit_priors(model, processor, Dataset.from_dict({"input_ids": [[1, 1, 2, 3]]}))
    assert model.head.copy.level == learned
