"""Settings that follow from a log."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from datasets import Dataset, DatasetDict

from modeling_implicitrec import (
    EaseSettings,
    ImplicitRecConfig,
    LogStatistics,
    choose_ease,
    choose_settings,
    default_recipe,
    ease_trial,
    log_statistics,
    write_default_recipe,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SHOP = LogStatistics(22_363, 131_413, 12_068, long_length=15, repeat_share=0.0)


def settings(**changes) -> dict:
    return {
        choice.key: choice.value for choice in choose_settings(dataclasses.replace(SHOP, **changes))
    }


def test_statistics_are_those_of_the_training_part():
    train = Dataset.from_dict({"input_ids": [[1, 2, 1, 1], [3], [2, 3]]})
    test = Dataset.from_dict({"input_ids": [[4] * 50]})
    log = log_statistics(DatasetDict(train=train, test=test), 5, window_days=7.0)
    assert (log.users, log.events, log.items, log.window_days) == (2, 7, 4, 7.0)
    assert log.repeat_share == pytest.approx(2 / 7)
    with pytest.raises(ValueError, match="two events or more"):
        log_statistics(DatasetDict(train=train.select([1])), 5)


def test_few_events_an_item_want_more_regularisation():
    sparse, dense = settings(), settings(events=2_000_000)
    assert sparse["model.hidden_dropout_prob"] > dense["model.hidden_dropout_prob"]
    assert sparse["weight_decay"] > dense["weight_decay"]
    assert "prior_dropout" in sparse and "prior_dropout" not in dense


def test_a_step_that_labels_every_event_has_short_and_long_histories():
    often = settings()
    assert often["per_device_train_batch_size"] * often["gradient_accumulation_steps"] == 64
    assert often["gradient_accumulation_steps"] == 4
    window = settings(window_days=28.0)  # of which every person has one question
    assert window["per_device_train_batch_size"] == 32
    assert window["gradient_accumulation_steps"] == 1


def test_repeats_decide_what_may_come_again():
    assert settings()["model.exclude_seen"] and not settings()["model.copy_prior"]
    again = settings(repeat_share=0.4)
    assert again["model.copy_prior"] and not again["model.exclude_seen"]


def test_a_large_catalogue_is_sampled_and_a_temporal_test_learns_its_window():
    large = settings(items=2_000_000, window_days=28.0)
    assert large["model.loss_type"] == "sampled_softmax" and large["row_wise_optimizer"]
    assert "target_window_days" not in large
    assert settings(window_days=28.0)["target_window_days"] == 28.0


def test_the_regularisation_of_ease_is_what_the_log_asks_for(monkeypatch):
    draw, rows = np.random.default_rng(0), []
    for _user in range(300):  # one thing of each of four pairs
        rows.append([2 * pair + draw.integers(2) + 1 for pair in draw.permutation(4)])
    train = Dataset.from_dict({"input_ids": rows})
    asked = []
    real = ease_trial.EASE

    def watched(rows, vocab_size, **settings):
        asked.append((settings["regularization"], max(len(row["input_ids"]) for row in rows)))
        return real(rows, vocab_size, **settings)

    monkeypatch.setattr(ease_trial, "EASE", watched)
    log = log_statistics(DatasetDict(train=train), 9, ordered=False)
    assert asked == [(value, 3) for value in ease_trial.CANDIDATES]  # the last one is held out
    assert log.ease.regularization in ease_trial.CANDIDATES
    chosen = {choice.key: choice.value for choice in choose_settings(log)}
    assert chosen["ease_regularization"] == log.ease.regularization
    again = Dataset.from_dict({"input_ids": [[1, 1], [2, 2]]})
    assert choose_ease(again, 3) == EaseSettings(300, None)  # nobody took anything new


def test_what_people_take_now_counts_more_where_it_ranks_better():
    """One of two things follows the first; which one, is another in the last weeks, or always the same."""
    draw = np.random.default_rng(0)
    start = draw.integers(0, 95, 3000)
    for turn, recent in ((50, 15.0), (1000, None)):
        late = start >= turn
        second = np.where(draw.random(3000) < 0.9, np.where(late, 2, 1), 3)
        first = np.full(3000, 4)
        items, times = np.stack([first, second], 1), np.stack([start, start + 5], 1) * 86_400
        rows = {"input_ids": items.tolist(), "timestamps": times.tolist()}
        train = Dataset.from_dict(rows)
        chosen = choose_ease(train, 5, window_days=10.0)
        assert (chosen.recent_days if chosen else None) == recent
    assert settings(window_days=28.0, ease=EaseSettings(300, 42.0))["recent_days"] == 42.0
    assert "recent_days" not in settings(window_days=28.0)


def test_where_order_tells_more_a_temporal_test_is_learnt_from_what_comes_next():
    generator = np.random.default_rng(0)
    starts, days = generator.integers(0, 40, size=200), np.sort(generator.random((200, 12)) * 100)
    items = 1 + (starts[:, None] + np.arange(12)) % 40  # everybody goes on to the next item
    rows = {"input_ids": items, "timestamps": (days * 86_400).astype(np.int64)}
    chosen = choose_ease(Dataset.from_dict(rows), 41, window_days=10.0)
    assert chosen is None
    in_order = settings(window_days=28.0, ease=chosen)
    assert in_order["model.num_cooccurrences"] and "cooccurrence_source" not in in_order
    assert "target_window_days" not in in_order
    rows["input_ids"] = [generator.permutation(row) for row in items]
    assert choose_ease(Dataset.from_dict(rows), 41, window_days=10.0) is not None


def test_who_holds_out_the_last_of_a_basket_learns_what_follows_in_it():
    times = [[0, 5, 5], [1, 2], [7, 7], [3]]
    train = Dataset.from_dict({"input_ids": [[1, 2, 3], [2, 3], [1, 3], [2]], "timestamps": times})
    log = log_statistics(DatasetDict(train=train), 4)
    assert log.basket_share == pytest.approx(2 / 3)
    assert settings(basket_share=0.5)["within_moments"]
    assert "within_moments" not in settings(basket_share=0.01)
    assert "within_moments" not in settings(basket_share=0.5, window_days=28.0)


def test_what_is_in_season_is_raised_where_the_log_has_seasons():
    assert settings(window_days=28.0, season=0.03)["season_days"] == 28.0
    assert "season_days" not in settings(window_days=28.0, season=0.01)
    assert "season_days" not in settings(season=0.03)


def test_what_people_refuse_for_a_while_makes_no_season(tmp_path, monkeypatch):
    """Every forty days they hide another item; what is taken is the same all the time."""
    place = np.arange(4000)  # twenty a day
    hidden, day = place % 2 == 1, place // 20
    log = pd.DataFrame({"user_id": place % 20, "timestamp": 86_400 * day})
    log["item_id"] = np.where(hidden, day // 40, place // 2 % 9)
    log["event_type"] = np.where(hidden, "hide", "take")
    log.to_csv(tmp_path / "log.csv", index=False)
    for negative in ("[]", "[hide]"):
        folder = tmp_path / negative
        words = f"prepare.py --source {tmp_path / 'log.csv'} --output_dir {folder} --split temporal"
        words += f" --test_days 20 --report_page false --negative_event_types {negative}"
        words = [*words.split(), "--columns", "{event_type: event_type}"]
        monkeypatch.setattr("sys.argv", words)
        runpy.run_path(str(RECIPES / "prepare.py"), run_name="__main__")
        chosen = yaml.safe_load((folder / "finetune.yaml").read_text())
        assert ("season_days" in chosen) == (negative == "[]")


def test_nothing_that_an_interrupted_preparation_left_outlives_the_next(tmp_path, monkeypatch):
    log = {"user_id": np.arange(60) % 9, "item_id": np.arange(60) % 7, "timestamp": np.arange(60)}
    pd.DataFrame(log).to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "item_names.parquet").write_text("of another log")
    words = f"prepare.py --source {tmp_path}/log.csv --output_dir {tmp_path}/data"
    monkeypatch.setattr("sys.argv", [*words.split(), "--report_page", "false"])
    runpy.run_path(str(RECIPES / "prepare.py"), run_name="__main__")
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "data"}
    assert not (tmp_path / "data" / "item_names.parquet").exists()


def test_a_log_without_an_order_is_counted_over_whole_histories():
    chosen = settings(ordered=False)
    assert chosen["cooccurrence_source"] == "ease" and chosen["model.cooccurrence_gap_power"] == 0
    assert not {"target_window_days", "model.collapse_repeats", "prior_steps"} & chosen.keys()


@pytest.mark.parametrize("users, events", [(2, 4), (10**9, 10**11)])
def test_logs_of_any_size_get_settings_that_the_model_takes(users, events):
    chosen = settings(users=users, events=events, items=max(2, events // 50))
    model = {k.removeprefix("model."): v for k, v in chosen.items() if k.startswith("model.")}
    ImplicitRecConfig(**model)
    assert chosen["num_train_epochs"] >= 1 and chosen["warmup_steps"] >= 1


def test_every_choice_is_written_with_its_reason(tmp_path):
    chosen = write_default_recipe(tmp_path, SHOP, data_dir="data/shop", output_dir="outputs/shop")
    text = (tmp_path / "finetune.yaml").read_text()
    written = yaml.safe_load(text)
    for choice in chosen:
        key, place = choice.key.removeprefix("model."), written
        if choice.key.startswith("model."):
            place = written["model"]
        assert place[key] == choice.value
        assert f"# {choice.reason}" in text
    asked = yaml.safe_load((tmp_path / "evaluate.yaml").read_text())
    assert asked["protocols"] == ["new"]
    assert asked["baselines"] == ["popularity", "recent_popularity", "cooccurrence"]


def test_what_was_recent_is_a_baseline_where_events_have_times(tmp_path):
    for timed in (True, False):
        log = dataclasses.replace(SHOP, repeat_share=0.3, timed=timed)
        write_default_recipe(tmp_path, log, data_dir="data/shop", output_dir="outputs/shop")
        asked = yaml.safe_load((tmp_path / "evaluate.yaml").read_text())
        assert ("recent_popularity" in asked["baselines"]) == timed
        assert ("recent_frequency" in asked["baselines"]) == timed
        assert "own_frequency" in asked["baselines"]


def test_a_log_in_which_all_read_the_same_at_a_time_gets_a_trend(tmp_path, monkeypatch):
    """Forty items of the hour, one after the other, read by ten people each; or by nobody else."""
    readers = {"input_ids": [list(range(1, 41))] * 10, "timestamps": []}
    readers["timestamps"] = [[3600 * item + reader for item in range(40)] for reader in range(10)]
    alone = {"input_ids": [list(range(4 * r + 1, 4 * r + 5)) for r in range(10)]}
    alone["timestamps"] = [times[:4] for times in readers["timestamps"]]
    for rows, trend in ((readers, 0.9), (alone, 0.0)):
        log = log_statistics(DatasetDict(train=Dataset.from_dict(rows)), 41)
        assert log.timed and log.trend_share == pytest.approx(trend)
    assert 0 < log.popular_share <= 1
    monkeypatch.setattr(default_recipe, "TREND_SAMPLE", 100)  # the last ten of the forty hours
    log = log_statistics(DatasetDict(train=Dataset.from_dict(readers)), 41)
    assert log.trend_share == pytest.approx(0.9) and log.events == 400
    assert not log_statistics(
        DatasetDict(train=Dataset.from_dict({"input_ids": [[1, 2]]})), 3
    ).timed
    feed = dataclasses.replace(SHOP, trend_share=0.8, popular_share=0.1)
    chosen = {choice.key: choice.value for choice in choose_settings(feed)}
    assert chosen["model.use_query_time"] and chosen["model.num_trend_events"] == SHOP.events
    ImplicitRecConfig(num_trend_events=chosen["model.num_trend_events"], use_query_time=True)
    assert "model.num_trend_events" not in settings(trend_share=0.3, popular_share=0.2)
    write_default_recipe(tmp_path, feed, data_dir="data/feed", output_dir="outputs/feed")
    assert "popularity_now" in (tmp_path / "evaluate.yaml").read_text()
