"""A calibration trusts what ranks held-out answers best, changes nothing else, and never makes it worse."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from test_recipes import SMALL, data, run, words  # noqa: F401 a fixture

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    calibrate,
)

ITEMS = 40


def trained(**settings) -> ImplicitRecForScoring:
    """A body that knows nothing and says it loudly, beside a table that knows what follows."""
    torch.manual_seed(0)
    sizes = {"vocab_size": ITEMS + 1, "hidden_size": 16, "num_cooccurrences": 2}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | settings))
    with torch.no_grad():
        model.model.item_embedding.weight.normal_()
        model.state_centre.mean.normal_()
    every = torch.arange(ITEMS + 1)
    table = torch.stack([every % ITEMS + 1, (every + 6) % ITEMS + 1], dim=1)
    model.fit_cooccurrences(table, torch.tensor([[1.0, 0.3]]).expand(ITEMS + 1, 2))
    return model


def held_out(count: int = 300, step: int = 1) -> Dataset:
    """What follows an item is the one `step` places after it."""
    generator = torch.Generator().manual_seed(1)
    last = torch.randint(1, ITEMS + 1, (count,), generator=generator).tolist()
    rows = [
        {"input_ids": [9, item], "target_ids": [(item + step - 1) % ITEMS + 1]} for item in last
    ]
    return Dataset.from_list(rows)


def test_what_ranks_held_out_answers_counts_more_and_tables_and_layers_stay() -> None:
    model, rows = trained().train(), held_out()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = model.eval()(torch.tensor([[9, 5]])).logits
    model.train()
    done = calibrate(model, rows)
    assert done.kept and done.answers == 300 and model.training
    assert done.before < 0.5 < 0.9 < done.after
    after = model.eval().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"model.norm.weight", "state_centre.mean", "head.cooccurrence.level"} <= changed
    head = {name for name in changed if name.startswith("head.")}
    assert changed - head == {"model.norm.weight", "state_centre.mean"}
    assert not any(after[name].shape[:1] == (ITEMS + 1,) for name in head)
    part = after["model.norm.weight"] / before["model.norm.weight"]
    assert part.max() - part.min() < 1e-5 and part.mean() < 0.9
    torch.testing.assert_close(after["state_centre.mean"] / before["state_centre.mean"], part)
    best = model(torch.tensor([[9, 5]])).logits
    assert best.argmax() == 6 and not torch.equal(best, scores)
    assert all(number.grad is None for number in model.parameters())


def test_a_model_that_cannot_rank_better_stays_as_it_is() -> None:
    model, rows = trained(), held_out()
    calibrate(model, rows)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = calibrate(model, rows, learning_rate=1e-9)
    assert not done.kept and done.before == done.after
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_numbers() -> None:
    models = [trained(), trained()]
    for model in models:
        calibrate(model, held_out(), steps=20, seed=3)
    for one, other in zip(*(model.state_dict().values() for model in models)):
        assert torch.equal(one, other)


def test_answers_that_cannot_be_listed_are_not_fitted() -> None:
    model, unknown = trained(exclude_seen=True), {"input_ids": [3, 4], "target_ids": [-1]}
    rows = [*held_out(60), unknown, {"input_ids": [3, 4], "target_ids": [3]}]
    done = calibrate(model, Dataset.from_list(rows), steps=20)
    assert done.answers == 61  # an item of the history counts as one that was missed
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_what_cannot_be_calibrated_is_named() -> None:
    with pytest.raises(ValueError, match="expects a model with a prior, got num_cooccurrences 0"):
        calibrate(plain(), held_out())
    with pytest.raises(ValueError, match=r"rows with target_ids, got \['input_ids'\]"):
        calibrate(trained(), held_out().remove_columns("target_ids"))
    with pytest.raises(ValueError, match="two rows with a known target, got 1"):
        calibrate(trained(), held_out(1))


def plain() -> ImplicitRecForScoring:
    return ImplicitRecForScoring(ImplicitRecConfig(vocab_size=ITEMS + 1, hidden_size=16))


def test_a_recipe_ends_with_it_and_its_card_says_so(data: Path, tmp_path: Path) -> None:  # noqa: F811
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "calibrate": "true"}
    run("finetune", *words(options | {"load_best_model_at_end": "true"}))
    made = json.loads((tmp_path / "training.json").read_text())
    told = made["calibration"]
    assert told["kept"] == (told["after"] > told["before"]) and told["answers"] > 10
    shown = (
        f"before {told['before']:.4f}, after {told['after']:.4f}, answers {told['answers']}, kept"
    )
    assert shown in (tmp_path / "README.md").read_text()
    plainly = tmp_path / "plain"
    run("finetune", *words(options | {"output_dir": plainly, "eval_strategy": "no"}))
    assert "calibration" not in json.loads((plainly / "training.json").read_text())
