"""What is in season is raised in every part of the score alike, and nowhere else."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    check_season,
    fit_season,
    season_evidence,
)

DAY = 86_400
ROWS = {
    "input_ids": [[1, 1, 2, 3], [2, 4, 4]],
    "timestamps": [[0, 1, 2, 40 * DAY], [3, 4, 39 * DAY]],
}


def trained(**settings) -> ImplicitRecForScoring:
    """A model with all parts, and numbers of each that are not those of the start."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 6, "hidden_size": 16, "num_cooccurrences": 3, "copy_prior": True}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | settings)).eval()
    if model.config.use_item_bias:
        model.fit_item_counts(torch.tensor([0, 2, 2, 1, 2, 0]))
    items = torch.randint(1, 6, (6, 3))
    model.fit_cooccurrences(items, torch.rand(6, 3))
    with torch.no_grad():
        for number in model.head.parameters():
            number += 0.02 * torch.randn_like(number)
    return model


def gains(days: float, power: float, smoothing: float) -> list[float]:
    """By hand: of 7 events the last 30 days had one of item 3 and one of item 4."""
    assert days == 30
    latest, share = [0, 0, 0, 1, 1, 0], [0, 2 / 7, 2 / 7, 1 / 7, 2 / 7, 0]
    return [((n + smoothing) / (2 * s + smoothing)) ** power for n, s in zip(latest, share)]


@pytest.mark.parametrize("power, smoothing", [(1.0, 1.0), (0.5, 3.0)])
def test_every_score_rises_by_the_items_gain_whatever_it_comes_from(power, smoothing):
    model, history = trained(), torch.tensor([[1, 3, 3, 2]])
    before = model(history).logits[0, 1:]
    fit_season(model, Dataset.from_dict(ROWS), days=30, power=power, smoothing=smoothing)
    raised = torch.tensor(gains(30, power, smoothing)).log()[1:]
    assert raised.abs().max() > 0.05
    torch.testing.assert_close(model(history).logits[0, 1:], before + raised)


def test_an_event_that_is_no_interest_is_of_no_season():
    refused = trained(num_event_types=3, negative_event_type_ids=[2])
    rows = ROWS | {"event_type_ids": [[1, 1, 1, 2], [1, 1, 1]]}
    alone = trained(num_event_types=3, negative_event_type_ids=[2])
    kept = {"input_ids": [[1, 1, 2], [2, 4, 4]], "timestamps": [[0, 1, 2], [3, 4, 39 * DAY]]}
    fit_season(refused, Dataset.from_dict(rows), days=30)
    fit_season(alone, Dataset.from_dict(kept | {"event_type_ids": [[1, 1, 1]] * 2}), days=30)
    assert torch.equal(refused.head.item_bias.weight, alone.head.item_bias.weight)


def test_evidence_is_what_the_season_tells_of_the_days_after_it():
    """Item 1 all the year, item 2 from day 100 on, when 1 goes: 40 events of each in their days."""
    days = np.r_[np.arange(40) * 2.5, 100 + np.arange(40) / 2]
    items = np.r_[np.ones(40, int), np.full(40, 2)]

    def evidence(tokens) -> float:
        rows = {"input_ids": [tokens], "timestamps": [(days * DAY).astype(int)]}
        return season_evidence(Dataset.from_dict(rows), 3, days=10, periods=1)

    # before the last ten days (more than 109.5): 40 of item 1, 20 of item 2; the ten before: 20 of 2
    gain = 0.75 * np.log([(0 + 30) / (20 * 40 / 60 + 30), (20 + 30) / (20 * 20 / 60 + 30)])
    mean = np.log((40.5 * np.exp(gain[0]) + 20.5 * np.exp(gain[1])) / 61)
    assert evidence(items) == pytest.approx(gain[1] - mean, rel=1e-5)
    assert evidence(items) > 0.1
    assert evidence(np.tile([1, 2], 40)) == pytest.approx(0, abs=1e-3)
    both = {"input_ids": [items], "timestamps": [(days * DAY).astype(int)]}
    both = [season_evidence(Dataset.from_dict(both), 3, days=10, periods=n) for n in (1, 2)]
    # of the period before, nothing can be told: until then all had item 1
    assert both[1] == pytest.approx(both[0] / 2, rel=1e-5)
    once = Dataset.from_dict({"input_ids": [[1, 2]], "timestamps": [[0, DAY]]})
    assert season_evidence(once, 3, days=10) == 0


def test_evidence_is_of_the_events_that_a_season_counts():
    """What is hidden changes with the days, what is taken does not; the other way round it does."""
    days = np.repeat(np.arange(100), 2)
    changing = np.where(np.arange(100) < 60, 1, 2)
    items = np.stack([changing, np.arange(100) % 2 + 1], axis=1).ravel()
    rows = {
        "input_ids": [items],
        "timestamps": [days * DAY],
        "event_type_ids": [[2, 1] * 100],
    }

    def evidence(negative: list[int]) -> float:
        train = Dataset.from_dict(rows)
        return season_evidence(train, 3, days=20, periods=1, negative_event_type_ids=negative)

    assert evidence([2]) == pytest.approx(0, abs=1e-3)
    assert evidence([1]) > evidence([]) > 0.02
    alone = {name: [np.asarray(values[0])[::2]] for name, values in rows.items()}
    changed = season_evidence(Dataset.from_dict(alone), 3, days=20, periods=1)
    assert evidence([1]) == pytest.approx(changed)
    assert evidence([1, 2]) == 0


def test_what_has_no_season_is_refused_by_name():
    rows = Dataset.from_dict(ROWS)
    with pytest.raises(ValueError, match="without num_trend_events"):
        check_season(trained(num_trend_events=4, use_query_time=True), rows, days=30)
    with pytest.raises(ValueError, match="use_item_bias"):
        check_season(trained(use_item_bias=False), rows, days=30)
    with pytest.raises(ValueError, match="a log with times"):
        check_season(trained(), rows.remove_columns("timestamps"), days=30)
    with pytest.raises(ValueError, match="positive number of days, got 0"):
        check_season(trained(), rows, days=0)
    with pytest.raises(ValueError, match="smoothing must be positive, got 0"):
        fit_season(trained(), rows, days=30, smoothing=0)
