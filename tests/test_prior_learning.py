"""The numbers of the co-occurrence prior learn for as long as they are told to."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    PriorCallback,
    SequenceRows,
)

ROWS = [
    {"input_ids": [1 + i % 7, 1 + (i + 1) % 7, 1 + (i + 3) % 7], "row": i, "length": 3}
    for i in range(24)
]


class Levels(TrainerCallback):
    """Notes a number of the prior and a row of the body after every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        prior, body = kwargs["model"].head.cooccurrence, kwargs["model"].model
        row = body.item_embedding.weight[1, 0].item()
        self.seen.append((prior.level.item(), row, prior.dropout))


def test_prior_learns_in_the_first_steps_only(tmp_path: Path) -> None:
    set_seed(0)
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=8, num_cooccurrences=3))
    model.fit_cooccurrences(torch.randint(1, 8, (8, 3)), torch.rand(8, 3) + 1)
    levels = Levels()
    training = TrainingArguments(
        tmp_path,
        max_steps=6,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
    )
    Trainer(
        model=model,
        args=training,
        train_dataset=SequenceRows(Dataset.from_list(ROWS)),
        data_collator=DataCollatorForNextItem(max_length=5),
        callbacks=[PriorCallback(3, dropout=0.5), levels],
    ).train()
    told, rows, hidden = zip(*levels.seen)
    assert len(set(told[:3])) == 3 and set(told[3:]) == {told[2]}
    assert len(set(rows)) == 6
    assert hidden == (0, 0, 0, 0.5, 0.5, 0.5)


def test_a_share_of_the_positions_does_not_see_the_prior_while_training() -> None:
    torch.manual_seed(0)
    prior = ImplicitRecForScoring(
        ImplicitRecConfig(vocab_size=8, num_cooccurrences=3)
    ).head.cooccurrence
    prior.counts += 1
    history = {
        "input_ids": torch.ones(4000, 2, dtype=torch.long),
        "weights": torch.ones(4000, 2),
        "columns": torch.ones(4000, dtype=torch.long),
    }
    prior.dropout = 0.25
    whole, seen = prior.eval()(history)[1], prior.train()(history)[1]
    shown = seen.sum(1) > 0
    assert abs(shown.float().mean() - 0.75) < 0.03
    assert torch.equal(seen[shown], whole[shown]) and whole.sum(1).min() > 0


@pytest.mark.parametrize(("steps", "dropout"), [(0, 0.5), (200, 1.0), (200, -0.1)])
def test_numbers_out_of_range_are_named(steps: int, dropout: float) -> None:
    with pytest.raises(ValueError, match=f"got {steps}, {dropout}"):
        PriorCallback(steps, dropout)


@pytest.mark.parametrize(
    ("settings", "dropout", "fits"),
    [
        ({}, 0.0, False),
        ({"num_cooccurrences": 3}, 0.5, True),
        ({"num_trend_events": 9, "use_query_time": True}, 0.0, True),
        ({"num_trend_events": 9, "use_query_time": True}, 0.5, False),
    ],
)
def test_a_model_without_the_prior_is_refused(tmp_path, settings, dropout, fits) -> None:
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=8, **settings))
    callback = PriorCallback(3, dropout)
    begin = (TrainingArguments(str(tmp_path), report_to="none"), None, None)
    if fits:
        return callback.on_train_begin(*begin, model=model)
    with pytest.raises(ValueError, match="prior_steps need a prior .* got 0 and [09]$"):
        callback.on_train_begin(*begin, model=model)
