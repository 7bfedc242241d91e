"""A number that a recipe cannot use is refused by the name that its user gave it."""

import dataclasses
import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    check_numbers,
    fit_priors,
    parse_arguments,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
REFUSED = {
    "prepare": {
        "min_item_users": [-1, 0],
        "test_days": [-1, 0],
        "half_life_days": [-1, 0],
        "completion_cap": [0],
        "max_weight": [-1],
    },
    "finetune": {
        "dp_epsilon": [-1],
        "dp_delta": [0, 2],
        "dp_clip_norm": [0],
        "dp_count_noise": [-1],
        "recent_days": [-1],
        "season_days": [-1],
        "label_horizon_days": [-1],
        "target_window_days": [-1],
        "cooccurrence_folds": [-1],
        "label_weight_power": [-1],
        "prior_steps": [-1],
        "prior_dropout": [-0.5, 1.5],
        "lora_rank": [0],
        "early_stopping_patience": [-1],
    },
    "evaluate": {"ks": [[5, 0]], "history_lengths": [[-1]], "seed": [-1]},
    "recommend": {
        "top_k": [0],
        "shard_users": [0],
        "batch_size": [-1],
        "recent": [-1],
        "query_time": [-1],
    },
    "classify": {
        "days": [0],
        "active_days": [-1],
        "max_moments": [0],
        "early_stopping_patience": [-1],
    },
    "export": {"max_users": [-1, 0], "threads": [0]},
    "federated": {"rounds": [0], "target_window_days": [-1]},
    "pretrain": {"target_window_days": [-1]},
    "serve": {"history_events": [0], "max_batch": [0], "port": [-1, 65536]},
    "demo_app": {"users": [0], "recent": [0], "port": [-1]},
}
CASES = [
    (recipe, key, value)
    for recipe, keys in REFUSED.items()
    for key, values in keys.items()
    for value in values
]


@cache
def arguments_of(recipe: str) -> type:
    """The dataclass of a recipe, whose extra may be missing here."""
    try:
        found = runpy.run_path(str(RECIPES / f"{recipe}.py"))
    except SystemExit as error:
        pytest.skip(str(error))
    (own,) = [one for name, one in found.items() if name.endswith("Arguments") and own_of(one)]
    return own


def own_of(kind: type) -> bool:
    return kind.__module__ == "<run_path>"


@pytest.mark.parametrize(("recipe", "key", "value"), CASES)
def test_a_number_out_of_its_bounds_is_named(recipe, key, value):
    kind = arguments_of(recipe)
    missing = dataclasses.MISSING
    words = [
        f"--{field.name}={'{}' if field.type is dict else 'somewhere'}"
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing
    ]
    parse_arguments(kind, args=words)
    with pytest.raises(ValueError, match=rf"^{key} must be [<>]=? \d+, got .*{key_end(value)}"):
        parse_arguments(kind, args=[*words, f"--{key}={value}"])


def key_end(value: object) -> str:
    return str(value).strip("[]").split(", ")[-1]


def test_bounds_are_of_numbers_and_lists_and_leave_out_what_is_not_given():
    given = SimpleNamespace(share=0.5, ks=[1, 5], seed=None, rate=float("nan"))
    check_numbers(given, "share ks > 0", "share < 1", "ks <= 5", "seed >= 0")
    with pytest.raises(ValueError, match=r"^ks must be < 5, got \[1, 5\]"):
        check_numbers(given, "share ks < 5")
    with pytest.raises(ValueError, match=r"^share must be > 0.5, got 0.5"):
        check_numbers(given, "share > 0.5")
    with pytest.raises(ValueError, match=r"^rate must be >= 0, got nan"):
        check_numbers(given, "rate >= 0")


def test_what_weights_are_learnt_from_is_asked_for_by_name():
    found = runpy.run_path(str(RECIPES / "prepare.py"))
    args = found["PrepareArguments"](output_dir="data", learn_weights={"target": "buy"})
    with pytest.raises(SystemExit, match=r"learn_weights needs \['horizon_days'\], got {'target'"):
        found["fit_processor"](args, None)


@pytest.mark.parametrize("folds", [-1, 1])
def test_others_are_of_two_folds_at_least(folds):
    processor = ImplicitRecProcessor.fit({"item_id": ["tea", "milk"]})
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=3, num_cooccurrences=1))
    rows = Dataset.from_dict({"input_ids": [[1, 2], [2, 1]]})
    with pytest.raises(ValueError, match=f"folds must be 0, for none, or at least 2, got {folds}"):
        fit_priors(model, processor, rows, folds=folds)


@pytest.mark.parametrize("key", ["num_cooccurrences", "num_hidden_layers", "gap_loss"])
def test_a_size_of_the_model_is_not_negative(key):
    with pytest.raises(ValueError, match=f"{key} must not be negative, got -1"):
        ImplicitRecConfig(**{key: -1})
