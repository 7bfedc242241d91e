"""Differential privacy: what a user can change is bounded, the rest is noise, the cost is Opacus' own."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.numpy import load_file

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    PrivacyPlan,
    catalogue_processor,
    check_private,
    drop_rare_items,
    noisy_item_counts,
    write_model_card,
)
from modeling_implicitrec.privacy import (
    PoissonSampler,
    private_gradient,
    secret_generator,
    spent_epsilon,
)

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
PLAN = PrivacyPlan(num_users=100, users_per_step=10, steps=20, noise_multiplier=1.0)
SILENT = replace(PLAN, noise_multiplier=1e-15, clip_norm=1e6, users_per_step=1)


def small_model(**options) -> ImplicitRecForScoring:
    settings = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "copy_prior": True}
    config = ImplicitRecConfig(**settings | {"hidden_dropout_prob": 0.0} | options)
    model = ImplicitRecForScoring(config).train()
    model.state_centre.fixed = True
    return model


def users(count: int = 4, length: int = 5) -> list[dict[str, torch.Tensor]]:
    """A batch of one each, with as many labels as events."""
    generator = torch.Generator().manual_seed(3)

    def tokens() -> torch.Tensor:
        return torch.randint(1, 12, (1, length), generator=generator)

    times = torch.arange(length)[None] * 1000
    return [{"input_ids": tokens(), "labels": tokens(), "timestamps": times} for _ in range(count)]


def gradient(model, batches, plan) -> torch.Tensor:
    """The gradient of all parameters end to end."""
    found = private_gradient(model, batches, plan, torch.Generator().manual_seed(0))[1]
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"loss_chunk_size": 2}])
def test_users_gradients_add_up_to_the_batch_gradient(options):
    """Also of the tied table, which the input and the head both read."""
    model, batches = small_model(**options), users()
    together = {name: torch.cat([one[name] for one in batches]) for name in batches[0]}
    model(**together).loss.backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    whole = torch.cat([p.grad.flatten() for p in parameters]) * len(batches)
    assert torch.allclose(gradient(model, batches, SILENT), whole, atol=1e-5)


def test_a_user_s_gradient_does_not_depend_on_the_others():
    model, batches = small_model(), users()
    sums = gradient(model, batches, SILENT)
    alone = sum(gradient(model, [one], SILENT) for one in batches)
    assert torch.allclose(sums, alone, atol=1e-5)


@pytest.mark.parametrize("clip", [0.01, 1.0])
def test_an_outlier_changes_the_sum_by_the_clip_norm_at_most(clip):
    model, batches = small_model(), users()
    with torch.no_grad():
        model.item_decoder.weight.mul_(50)  # losses, and gradients, of any size
    plan = replace(SILENT, clip_norm=clip, noise_multiplier=1e-12)
    change = gradient(model, batches, plan) - gradient(model, batches[:-1], plan)
    free = gradient(model, batches, SILENT) - gradient(model, batches[:-1], SILENT)
    assert free.norm() > 2 * clip
    assert change.norm() == pytest.approx(clip, rel=1e-3)


def test_a_gradient_that_is_not_finite_adds_nothing():
    model, batches = small_model(), users(2)
    expected = gradient(model, batches[:1], PLAN)

    class Broken(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, broken=False, **batch):
            output = self.inner(**batch)
            output.loss = output.loss * (float("nan") if broken else 1)
            return output

    found = gradient(Broken(model), [batches[0], batches[1] | {"broken": True}], PLAN)
    assert torch.equal(found, expected)


def test_noise_of_the_planned_size_is_on_every_parameter():
    model = small_model(vocab_size=400)
    plan = replace(PLAN, noise_multiplier=3.0, clip_norm=0.5)
    noise = gradient(model, [], plan)  # a step that drew nobody
    assert noise.std() == pytest.approx(3.0 * 0.5 / plan.users_per_step, rel=0.05)
    assert abs(float(noise.mean())) < 0.01
    assert (noise != 0).all()
    again = [torch.randn(4, generator=secret_generator()) for _ in range(2)]
    torch.manual_seed(0)
    assert not torch.equal(*again), "the noise must not come from the run's seed"


def test_the_cost_is_that_of_opacus():
    accountants = pytest.importorskip("opacus.accountants")
    plan = PrivacyPlan(
        num_users=1000, users_per_step=50, steps=60, noise_multiplier=1.1, count_noise=7.0
    )
    theirs = accountants.PRVAccountant()
    theirs.step(noise_multiplier=7.0, sample_rate=1.0)
    for _ in range(60):
        theirs.step(noise_multiplier=1.1, sample_rate=0.05)
    assert plan.epsilon == theirs.get_epsilon(1e-5)
    assert plan.epsilon < spent_epsilon([*plan.releases, (1.1, 0.05, 60)], 1e-5)
    renyi = accountants.RDPAccountant()
    renyi.history = plan.releases
    assert plan.epsilon < renyi.get_epsilon(1e-5)


def test_the_noise_for_an_epsilon_is_the_least():
    utils = pytest.importorskip("opacus.accountants.utils")
    plan = replace(PLAN, delta=1e-3).for_epsilon(2.0)
    assert (
        plan.epsilon <= 2.0 < replace(plan, noise_multiplier=plan.noise_multiplier * 0.98).epsilon
    )
    theirs = utils.get_noise_multiplier(
        target_epsilon=2.0, target_delta=1e-3, sample_rate=0.1, steps=20, accountant="prv"
    )
    assert plan.noise_multiplier == pytest.approx(theirs, rel=0.01)
    with pytest.raises(ValueError, match="count_noise"):
        replace(PLAN, count_noise=0.5).for_epsilon(0.5)


def test_the_sampler_takes_each_user_by_chance():
    sampler = PoissonSampler(replace(PLAN, num_users=2000, users_per_step=100), secret_generator())
    batches = [batch for _ in range(5) for batch in sampler]
    sizes = np.array([len(batch) for batch in batches])
    assert len(sampler) == 20 and all(len(set(batch)) == len(batch) for batch in batches)
    assert sizes.mean() == pytest.approx(100, abs=5) and sizes.std() > 4  # of a binomial, 9.7


def test_a_user_adds_a_vote_of_norm_one_to_the_counts():
    rows = [{"input_ids": [1, 1, 2]}, {"input_ids": [3, 4, 5, 6]}]
    generator = torch.Generator().manual_seed(0)
    two = noisy_item_counts(rows, 8, noise=1e-9, generator=generator)
    assert two.tolist() == pytest.approx([0, 0.5**0.5, 0.5**0.5, 0.5, 0.5, 0.5, 0.5, 0], abs=1e-6)
    noised = noisy_item_counts(rows[:1], 4000, noise=2.0)
    above = noised[3:][noised[3:] > 2.0]
    assert 0.1 < len(above) / 3997 < 0.22  # a sixth of a normal lies above its deviation


def test_what_reads_the_log_without_noise_is_refused():
    rows = Dataset.from_dict({"user_id": [1, 2], "input_ids": [[1], [2]]})
    public = catalogue_processor(["a", "b"])
    config = ImplicitRecConfig(vocab_size=3)
    check_private(config, public, rows)
    fitted = ImplicitRecProcessor.fit({"item_id": ["a", "b"]})
    with pytest.raises(ValueError, match="catalogue"):
        check_private(config, fitted, rows)
    with pytest.raises(ValueError, match="num_cooccurrences 0, got 2"):
        check_private(ImplicitRecConfig(vocab_size=3, num_cooccurrences=2), public, rows)
    with pytest.raises(ValueError, match="num_trend_events 0, got 9"):
        trending = ImplicitRecConfig(vocab_size=3, num_trend_events=9, use_query_time=True)
        check_private(trending, public, rows)
    with pytest.raises(ValueError, match="in_batch_share"):
        check_private(ImplicitRecConfig(vocab_size=3, loss_type="bce"), public, rows)
    twice = Dataset.from_dict({"user_id": [1, 1], "input_ids": [[1], [2]]})
    with pytest.raises(ValueError, match="one row a user"):
        check_private(config, public, twice)


def test_items_of_few_people_are_no_tokens():
    train = Dataset.from_dict(
        {"user_id": [1, 2, 3], "item_ids": [["a", "b", "b", "b"], ["a", "c"], ["a", "c"]]}
    )
    events = {"item_id": [item for row in train["item_ids"] for item in row]}
    processor = ImplicitRecProcessor.fit(events)
    assert drop_rare_items(processor, train, min_users=2) == 1  # b, three events of one person
    assert processor.decode_items([1, 2]) == ["a", "c"] and processor.vocab_size == 3
    assert processor.item_counts.tolist() == [0, 3, 2]
    assert drop_rare_items(processor, train, min_users=3, after=2) == 0
    with pytest.raises(ValueError, match="no item is left"):
        drop_rare_items(processor, train, min_users=4)


def run(name: str, **options) -> None:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    before, sys.argv = sys.argv, [name, *words]
    try:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def log_of(people: int) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    parts = [
        {
            "user_id": user,
            "item_id": generator.integers(0, 12, 20),
            "timestamp": 1_600_000_000 + 3600 * np.sort(generator.integers(0, 2400, 20)),
        }
        for user in range(people)
    ]
    return pd.concat([pd.DataFrame(part) for part in parts])


def learn(folder: Path, log: pd.DataFrame, prepared: dict | None = None, **options) -> Path:
    """Prepare a log and train on it, in this folder."""
    folder.mkdir()
    log.to_csv(folder / "log.csv", index=False)
    paths = {"source": folder / "log.csv", "output_dir": folder / "data", "report_page": "false"}
    run("prepare", **paths, **(prepared or {}))
    small = {"model": "{hidden_size: 8, num_hidden_layers: 1, copy_prior: true}", "max_steps": 6}
    small |= {"per_device_train_batch_size": 4, "use_cpu": "true", "report_to": "none"}
    small |= {"save_strategy": "no", "learning_rate": 0.01}
    run("finetune", data_dir=folder / "data", output_dir=folder / "model", **small | options)
    return folder / "model"


@pytest.fixture
def public(tmp_path) -> dict:
    pd.DataFrame({"item_id": range(15)}).to_csv(tmp_path / "catalogue.csv", index=False)
    settings = {"catalogue": tmp_path / "catalogue.csv", "duration_weight": "null"}
    return settings | {"cleaning": "{clip_quantile: null}"}


def test_the_recipe_trains_privately_and_says_so(tmp_path, public):
    pytest.importorskip("opacus")
    private = {"dp_epsilon": 4, "dp_delta": 1e-3, "logging_steps": 1}
    made = [learn(tmp_path / name, log_of(20), public, **private) for name in ("one", "two")]
    plan = json.loads((made[0] / "training.json").read_text())["differential privacy"]
    assert 3.9 < plan["epsilon"] <= 4 and plan["num_users"] == 20 and plan["steps"] == 6
    card = " ".join((made[0] / "README.md").read_text().split())
    assert f"({plan['epsilon']:.2f}, 1e-03)-differentially private" in card
    assert "events kept | not measured" in card
    assert not list(made[0].rglob("*.png")), "losses are exact"
    first, second = (load_file(folder / "model.safetensors") for folder in made)
    assert not first["state_centre.mean"].any()
    changed = [name for name in first if not np.array_equal(first[name], second[name])]
    assert "model.item_embedding.weight" in changed, "one seed, but the noise is secret"
    processor = ImplicitRecProcessor.from_pretrained(made[0])
    assert not processor.item_counts.any()


def test_private_training_refuses_a_vocabulary_of_the_log(tmp_path):
    with pytest.raises(SystemExit, match="prepared with a catalogue"):
        learn(tmp_path / "run", log_of(20), dp_epsilon=4, max_steps=1)


def test_a_catalogue_refuses_what_sums_over_people(tmp_path, public):
    with pytest.raises(SystemExit, match="clip_quantile: None"):
        learn(tmp_path / "run", log_of(20), {"catalogue": public["catalogue"]})


def test_the_key_of_pseudonyms_stays_out_of_what_is_pushed(tmp_path):
    log_of(6).to_csv(tmp_path / "log.csv", index=False)
    data = tmp_path / "data"
    options = {"source": tmp_path / "log.csv", "output_dir": data, "report_page": "false"}
    with pytest.raises(SystemExit, match="must not lie in output_dir"):
        run("prepare", **options, pseudonym_key=data / "processor" / "key")
    assert not data.exists()


def test_a_deleted_user_leaves_no_trace(tmp_path):
    """The model is, bit for bit, one that never saw the user."""
    log = log_of(13)
    deleted = log[log["user_id"] != 12]
    never = learn(tmp_path / "never", log_of(12))
    forgot = learn(tmp_path / "forgot", deleted)
    seen = learn(tmp_path / "seen", log)
    for name in ("model.safetensors", "item_vocabulary.safetensors", "processor_config.json"):
        assert (never / name).read_bytes() == (forgot / name).read_bytes()
    assert (seen / "model.safetensors").read_bytes() != (never / "model.safetensors").read_bytes()


def test_no_parameter_and_no_file_is_of_a_user(tmp_path):
    """The number of parameters does not grow with the users, and no id of one is in the checkpoint."""
    log = log_of(16)
    log["user_id"] = "customer-" + log["user_id"].astype(str)
    folder = learn(tmp_path / "run", log)
    few = learn(tmp_path / "few", log_of(8))
    shapes = [
        {n: t.shape for n, t in load_file(f / "model.safetensors").items()} for f in (folder, few)
    ]
    assert shapes[0] == shapes[1]
    for path in folder.rglob("*"):
        assert not path.is_file() or b"customer-" not in path.read_bytes(), path.name


def test_the_card_tells_of_the_audit(tmp_path):
    attack = {"auc": 0.512, "interval": [0.48, 0.54]}
    audit = {"loss threshold": attack, "calibrated": attack, "exposure in bits": {"auc": attack}}
    processor = catalogue_processor(["a", "b"])
    model = ImplicitRecForScoring(
        ImplicitRecConfig(vocab_size=3, vocabulary_fingerprint=processor.fingerprint)
    )
    training = {"privacy audit": audit}
    card = write_model_card(
        tmp_path, model=model, processor=processor, results={}, training=training
    ).read_text()
    assert "| loss threshold | 0.512 [0.480, 0.540] |" in card
    assert "was not trained with differential privacy" in card
