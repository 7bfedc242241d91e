"""What everybody takes at the time of asking: what counts, what does not, and who says when."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_models import histories, tiny

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecProcessor,
    ModelScorer,
    PopularityNow,
    ServingModel,
    Wish,
    batch_histories,
    fit_baselines,
    fit_priors,
    fit_trend,
    leave_last_out,
    save_checkpoint,
    temporal_split,
)
from modeling_implicitrec.kernels_implicitrec import SCALAR_STEP

DAY = 86_400
TREND = {"use_query_time": True, "num_trend_events": 6, "trend_context": 3}


def trending(**changes):
    """A model to which everybody took 4, 5, 5, 6 at the hours 1, 2, 3 and 4."""
    model = tiny(**TREND | changes)
    model.fit_trend(torch.tensor([6, 5, 4, 5]), 3600 * torch.tensor([4, 3, 1, 2]))
    return model


def raised(model, moment: int) -> dict[int, float]:
    """Which items the trend raises for a question, and by what."""
    inputs = {name: values[:1] for name, values in histories().items()}
    asked = model(**inputs, query_time=torch.tensor([moment])).logits.detach()
    difference = (asked - model(**inputs).logits)[0]
    return {int(i): difference[i].item() for i in difference.abs().gt(1e-6).nonzero()[:, 0]}


def test_the_last_events_before_the_question_count_and_none_at_it_or_after():
    model = trending()
    assert raised(model, 3600) == {}  # the event of that moment may be the answer
    assert set(raised(model, 3601)) == {4}
    assert set(raised(model, 4 * 3600)) == {4, 5}
    assert set(raised(model, 5 * 3600)) == {5, 6}  # three events are read
    assert set(raised(model, 500 * DAY)) == {5, 6}


def test_the_count_is_the_sum_of_the_kernel_over_ages():
    model, moment = trending(), 4 * 3600 + 60
    trend = model.head.trend
    kernel = trend.time_kernel.of_age(torch.tensor([60, 3660, 7260])).exp()
    counts = {6: kernel[0], 5: kernel[1] + kernel[2]}
    level, power = 1 + SCALAR_STEP * trend.level, 1 + SCALAR_STEP * trend.power
    inputs = {name: values[:1] for name, values in histories().items()}
    states, history = model.last_states(**inputs, query_time=torch.tensor([moment]))
    bias = (1 + SCALAR_STEP * model.head.bias_power) * model.head.item_bias.weight[:, 0]
    scores = model.head(states, model.item_table(), history)[0]
    for item, count in counts.items():
        expected = torch.logaddexp(bias[item], level + power * count.log())
        expected = expected + model.item_table()[item] @ states[0]
        torch.testing.assert_close(scores[item], expected[0], atol=1e-5, rtol=0)


def test_who_does_not_say_when_gets_no_trend_and_some_candidates_get_what_all_have():
    model = trending()
    inputs = {name: values[:1] for name, values in histories().items()}
    plain = model.head.trend
    model.head.trend = None
    without = model(**inputs).logits
    model.head.trend = plain
    torch.testing.assert_close(model(**inputs).logits, without)
    asked = inputs | {"query_time": torch.tensor([5 * 3600])}
    every = model(**asked).logits
    chosen = torch.tensor([[5, 9, 6]])
    some = model(**asked, candidate_ids=chosen).logits
    torch.testing.assert_close(some, every.gather(1, chosen), atol=1e-5, rtol=0)


def test_new_events_push_the_oldest_out_whenever_they_come():
    model = trending()
    trend = model.head.trend
    assert trend.tokens.tolist() == [0, 0, 4, 5, 5, 6]
    trend.observe(torch.tensor([7, 8, 9]), 3600 * torch.tensor([9, 2, 8]))
    assert trend.tokens.tolist() == [5, 8, 5, 6, 9, 7]
    assert trend.times.tolist() == [7200, 7200, 10800, 14400, 28800, 32400]
    model.fit_trend([3], [3600])
    assert trend.tokens.tolist() == [0, 0, 0, 0, 0, 3]
    with pytest.raises(ValueError, match="num_trend_events is 0"):
        tiny().fit_trend([3], [3600])


def test_half_of_the_training_positions_see_the_trend_and_its_numbers_learn():
    torch.manual_seed(0)
    model = trending().train()
    inputs, shape = histories(), (3, 8)
    labels, moments = torch.full(shape, 5), torch.full(shape, 5 * 3600)
    model(**inputs, labels=labels, query_time=moments).loss.backward()
    assert model.head.trend.level.grad.abs() > 0
    history = {"input_ids": torch.ones(2000, 1, dtype=torch.long)}
    history["asked_at"] = torch.full((2000,), 5 * 3600)
    _, values = model.head.trend(history)
    assert 0.45 < (values.sum(1) > 0).float().mean() < 0.55


def test_a_trend_needs_the_time_of_asking_and_a_log_with_times():
    with pytest.raises(ValueError, match="needs use_query_time"):
        ImplicitRecConfig(num_trend_events=5)
    rows = Dataset.from_dict({"input_ids": [[1, 2]], "timestamps": [[3600, 7200]]})
    processor = ImplicitRecProcessor.fit({"item_id": ["a", "b", "a"]})
    model = tiny(vocab_size=3, **TREND)
    fit_priors(model, processor, rows)
    assert model.head.trend.times.tolist() == [0, 0, 0, 0, 3600, 7200]
    with pytest.raises(ValueError, match="needs a log with times"):
        fit_trend(model, rows.remove_columns("timestamps"))


def test_training_asks_at_the_labels_time_and_evaluation_at_the_rows():
    log = {"user_id": ["u"], "item_ids": [[1, 2, 3, 4]], "timestamps": [[10, 20, 30, 40]]}
    splits = leave_last_out(Dataset.from_dict(log))
    assert splits["test"]["query_time"] == [40] and splits["validation"]["query_time"] == [30]
    assert "query_time" not in splits["train"].column_names
    log["timestamps"] = [[10, 20 * DAY, 30 * DAY, 41 * DAY]]
    splits = temporal_split(Dataset.from_dict(log), test_seconds=10 * DAY)
    assert splits["test"]["query_time"] == [31 * DAY]
    row = {"input_ids": [1, 2, 3], "timestamps": [10, 20, 30], "input_weights": [1.0] * 3}
    batch = DataCollatorForNextItem(8, query_time=True)([row])
    assert batch["query_time"].tolist() == [[20, 30]] and batch["labels"].tolist() == [[2, 3]]
    batch = DataCollatorForNextItem(8, query_time=True, target_window=15)([row])
    since = batch["query_time"].item() - batch["timestamps"].max().item()
    assert 0 <= since < 10  # at any moment before the next event
    asked = batch_histories(ImplicitRecConfig(use_query_time=True), [row | {"query_time": 99}])
    assert asked["query_time"].tolist() == [99]
    assert "query_time" not in batch_histories(ImplicitRecConfig(), [row | {"query_time": 99}])


def test_a_scorer_reads_when_a_row_is_asked():
    model = trending()
    row = {"input_ids": [1, 2], "timestamps": [10, 20], "input_weights": [1.0, 1.0]}
    now = ModelScorer(model).score([row | {"query_time": 5 * 3600}])
    assert (now - ModelScorer(model).score([row]))[0, 6] > 0.01


def test_popularity_now_counts_the_days_before_the_question():
    rows = [{"input_ids": [1, 2, 2], "timestamps": [0, DAY, 2 * DAY]}]
    rows += [{"input_ids": [3], "timestamps": [DAY // 2]}]
    (now,) = fit_baselines([{"popularity_now": {"days": 1}}], rows, 4)
    assert isinstance(now, PopularityNow) and now.name == "popularity now (1 days)"
    asked = [
        {"input_ids": [1], "timestamps": [5], "query_time": moment} for moment in (DAY, 9 * DAY)
    ]
    asked += [{"input_ids": [1], "timestamps": [DAY + 1]}]
    np.testing.assert_allclose(
        now.score(asked), [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]], atol=1e-3
    )


def test_a_service_asks_after_the_last_event_that_is_known(tmp_path):
    processor = ImplicitRecProcessor.fit({"item_id": [f"item {n}" for n in range(30)]})
    model = tiny(vocab_size=processor.vocab_size, **TREND)
    model.fit_trend([20] * 6, [1000 + n for n in range(6)])
    with torch.no_grad():
        model.head.trend.level.fill_(1.0)
    processor.adapt_to(model.config)
    served = ServingModel(save_checkpoint(tmp_path / "model", model=model, processor=processor))
    trending = processor.decode_items([20])[0]
    for last in (10, 5000):  # before and after what is trending
        wish = Wish([{"item_id": "item 3", "timestamp": last}], top_k=1)
        assert served.recommend([wish])[0][0]["item_id"] == trending
