"""The recipes from a log to recommendations: every YAML, launchers, two processes, resuming."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file
from transformers import AutoModel

from modeling_implicitrec import ImplicitRecProcessor, load_sequences  # by it AutoModel knows

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
FINETUNE = [p for p in sorted(RECIPES.glob("*/*.yaml")) if "data_dir" in p.read_text()]
FINETUNE = [p for p in FINETUNE if "output_dir" in yaml.safe_load(p.read_text())]
FINETUNE_BEAUTY = [str(RECIPES / "finetune.py"), str(RECIPES / "beauty" / "finetune.yaml")]
SMALL = {
    "model": "{hidden_size: 16, hidden_dropout_prob: 0.0, num_cooccurrences: 4, copy_prior: true}",
    "max_steps": 4,
    "logging_steps": 1,
    "per_device_train_batch_size": 8,
    "eval_steps": 2,
    "save_steps": 2,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "use_cpu": "true",
    "num_train_epochs": 3,
    "train_sampling_strategy": "group_by_length",
    "learning_rate": 0.01,  # so that each step tells in the next loss
    "warmup_steps": 0,
}


def words(options: dict) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def run(name: str, *arguments: str) -> None:
    """Run a recipe in this process, as `python recipes/<name>.py ...` would."""
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def launch(*command: str, **variables: str) -> None:
    """Run a command in a process of its own, since Accelerate keeps state in the one it ran in."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A prepared temporal split of a small world: baskets over 100 days, counts, two types."""
    folder = tmp_path_factory.mktemp("log")
    generator = np.random.default_rng(0)
    size = 4000
    user = generator.integers(0, 40, size)
    log = pd.DataFrame(
        {
            "user_id": user,
            "item_id": 2 * generator.integers(0, 15, size) + user % 2,
            "timestamp": 1_600_000_000 + 3600 * generator.integers(0, 2400, size),
            "event_type": generator.choice(["view", "buy"], size, p=[0.8, 0.2]),
            "count": generator.integers(1, 4, size),
        }
    )
    log.to_csv(folder / "log.csv", index=False)
    settings = {
        "source": str(folder / "log.csv"),
        "output_dir": str(folder / "data"),
        "columns": {"event_type": "event_type", "count": "count"},
        "event_type_weights": {"buy": 3},
        "split": "temporal",
        "test_days": 14,
    }
    (folder / "prepare.yaml").write_text(yaml.safe_dump(settings))
    run("prepare", str(folder / "prepare.yaml"))
    report = json.loads((folder / "data" / "cleaning_report.json").read_text())
    assert report["rows_in"] == size
    return folder / "data"


def test_preparing_says_how_many_held_out_items_no_list_can_hold(tmp_path, capsys):
    log = pd.DataFrame([(u, p, f"{(u + p) % 5}") for u in range(20) for p in range(5)])
    log.columns = ["user_id", "place", "item_id"]
    log.loc[(log.place == 4) & (log.user_id < 5), "item_id"] = "nobody else's"
    log.to_csv(tmp_path / "log.csv")  # with pandas' row numbers, in a column without a name
    options = {"source": tmp_path / "log.csv", "output_dir": tmp_path / "data"}
    options["columns"] = "{timestamp: null, order: place}"
    run("prepare", *words(options | {"split": "leave_last_out"}))
    assert "25.0% of the test's held-out items are too new or too rare" in capsys.readouterr().out
    assert "cooccurrence_source" not in (tmp_path / "data" / "finetune.yaml").read_text()
    run("prepare", *words(options | {"split": "leave_last_out", "columns": "{timestamp: null}"}))
    assert "cooccurrence_source: ease" in (tmp_path / "data" / "finetune.yaml").read_text()


@pytest.mark.parametrize("path", FINETUNE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_finetuning_yaml_trains_two_steps(path, data, tmp_path):
    options = {"data_dir": data, "output_dir": tmp_path, "max_steps": 2, "use_cpu": "true"}
    options |= {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2}
    run("finetune", str(path), *words(options | {"save_steps": 2}))
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 2
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("evaluated", ["steps", "no"])
def test_the_recipe_that_prepare_writes_trains_and_is_evaluated(evaluated, data, tmp_path, capsys):
    written = yaml.safe_load((data / "finetune.yaml").read_text())
    assert written["data_dir"] == str(data)
    options = {"output_dir": tmp_path, "max_steps": 2, "use_cpu": "true", "save_steps": 2}
    options |= {"eval_strategy": evaluated, "save_strategy": "steps", "eval_steps": 2}
    run("finetune", str(data / "finetune.yaml"), *words(options))
    told = "without load_best_model_at_end and early_stopping_patience" in capsys.readouterr().out
    assert told == (evaluated == "no")
    run("evaluate", str(data / "evaluate.yaml"), "--model", str(tmp_path))
    assert "own frequency" in json.loads((tmp_path / "results_test.json").read_text())["all"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/prepare.yaml")), ids=str)
def test_every_prepare_yaml_is_understood(path, tmp_path):
    source = yaml.safe_load(path.read_text())["source"]
    if source != "completejourney" and not Path(source).exists():
        pytest.skip(f"the log {source} is not on this machine")
    run("prepare", str(path), "--output_dir", str(tmp_path / "data"))
    assert json.loads((tmp_path / "data" / "cleaning_report.json").read_text())["rows_out"] > 0


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A run of four steps in one process, with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("trained")
    options = words(SMALL | {"data_dir": data, "output_dir": folder})
    launch(sys.executable, *FINETUNE_BEAUTY, *options)
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    """The logged losses, which are means over processes."""
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    found = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(found) == 4
    return found


def test_a_run_leaves_a_plot_of_it_in_the_card(trained):
    assert (trained / "plots" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "(plots/training.png)" in (trained / "README.md").read_text()


def test_a_resumed_run_ends_with_the_same_weights(data, trained, tmp_path):
    shutil.copytree(trained / "checkpoint-2", tmp_path / "checkpoint-2")
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "resume": "true"}
    launch(sys.executable, *FINETUNE_BEAUTY, *words(options))
    left, right = weights(tmp_path / "checkpoint-4"), weights(trained / "checkpoint-4")
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], err_msg=name)
    assert "| seconds and energy since | checkpoint-2 |" in (tmp_path / "README.md").read_text()
    assert "seconds and energy since" not in (trained / "README.md").read_text()


def launch_two(config: str, *command: str, **variables: str) -> None:
    """Run a command in two processes, as an accelerate configuration says."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    path = str(RECIPES / "accelerate" / f"{config}.yaml")
    launch(*accelerate, "--config_file", path, *command, **variables)


def fsdp(options: dict) -> None:
    """Fine-tune under FSDP2 in two processes without a GPU."""
    runner = str(ROOT / "tests" / "fsdp_on_cpu.py")
    options = {name: value for name, value in options.items() if name != "use_cpu"}
    variables = {"ACCELERATE_TORCH_DEVICE": "cpu"}
    launch_two("fsdp", runner, *FINETUNE_BEAUTY, *words(options), **variables)


def check_two_processes(folder: Path, one_process: Path) -> None:
    """That a run of two processes had the losses, the metrics and the weights of one."""
    one = json.loads((one_process / "training.json").read_text())
    two = json.loads((folder / "training.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert losses(folder) == pytest.approx(losses(one_process), rel=1e-4)
    assert two["best validation NDCG@10"] == pytest.approx(one["best validation NDCG@10"], abs=1e-6)
    expected = weights(one_process / "checkpoint-4")
    for name, values in weights(folder / "checkpoint-4").items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_two_processes_equal_one_at_the_same_global_batch(data, trained, tmp_path):
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "per_device_train_batch_size": 4}
    launch_two("cpu_2_processes", *FINETUNE_BEAUTY, *words(options))
    check_two_processes(tmp_path, trained)


def test_a_model_divided_by_fsdp2_learns_and_is_saved_as_a_whole_one(data, trained, tmp_path):
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "per_device_train_batch_size": 4}
    fsdp(options)
    check_two_processes(tmp_path, trained)
    sources, config = {path.name for path in trained.glob("*.py")}, ("config.json", "auto_map")
    assert {path.name for path in tmp_path.glob("*.py")} == sources
    found, expected = (json.loads((at / config[0]).read_text()) for at in (tmp_path, trained))
    assert found[config[1]] == expected[config[1]]
    saved, model = weights(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert saved.keys() == weights(trained).keys()
    for name, values in model.state_dict().items():
        name = {"item_decoder.weight": "model.item_embedding.weight"}.get(name, name)
        np.testing.assert_array_equal(values.numpy(), saved[name], err_msg=name)
    shutil.rmtree(tmp_path / "checkpoint-4")  # as after a kill
    fsdp(options | {"resume": "true"})
    for name, values in weights(tmp_path).items():
        np.testing.assert_array_equal(values, saved[name], err_msg=name)


def test_accelerate_launch_runs_one_process(data, tmp_path):
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "max_steps": 2}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", *FINETUNE_BEAUTY]
    launch(*command, *words(options))
    assert json.loads((tmp_path / "training.json").read_text())["processes"] == 1


def test_evaluation_prints_the_baselines_and_writes_the_card(data, trained, capsys):
    options = {"model": trained, "data_dir": data, "protocols": "[all, new]"}
    options["baselines"] = "[popularity, own_frequency, cooccurrence]"
    run("evaluate", str(RECIPES / "beauty" / "evaluate.yaml"), *words(options))
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("implicitrec", "popularity", "own frequency"))
    assert "did it happen?" in printed and "held-out items" in printed
    assert "95 % interval over users" in printed
    results = json.loads((trained / "results_test.json").read_text())
    assert set(results) == {"all", "new"}
    names = list(results["all"]["implicitrec"]["groups"])
    assert names[0].startswith("up to") and names[-1].startswith("over")  # short histories first
    assert "popularity" in (trained / "README.md").read_text()


def test_a_refit_learns_from_all_before_the_test_and_is_compared_with_baselines_that_did(
    data, tmp_path, capsys
):
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "refit": "true", "season_days": 20}
    run("finetune", FINETUNE_BEAUTY[1], *words(options))
    made = json.loads((tmp_path / "training.json").read_text())
    assert made["part"] == "before_test"
    assert "best validation NDCG@10" not in made
    bias = [weights(f)["head.item_bias.weight"] for f in (tmp_path, tmp_path / "checkpoint-4")]
    assert np.abs(bias[0] - bias[1])[1:].max() > 0.01  # the season is raised when all is learnt
    path = str(RECIPES / "beauty" / "evaluate.yaml")
    options = {"model": tmp_path, "data_dir": data, "baselines": "[popularity]"}
    with pytest.raises(SystemExit, match="give --train_split before_test"):
        run("evaluate", path, *words(options))
    options["train_split"] = "before_test"
    with pytest.raises(SystemExit, match="before_test holds the validation targets"):
        run("evaluate", path, *words(options | {"split": "validation"}))
    run("evaluate", path, *words(options))
    assert "test, new items only" in capsys.readouterr().out


def test_training_and_evaluation_push_what_they_made(hub, data, tmp_path, capsys):
    options = SMALL | {"data_dir": data, "output_dir": tmp_path / "shop", "max_steps": 2}
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "results_test.json").write_text("{}")  # of an earlier training
    run("finetune", FINETUNE_BEAUTY[1], *words(options))
    assert hub.used == []  # off by default
    push = {"push_to_hub": "true", "hub_model_id": "alice/shop"}
    told = push | {"hub_private_repo": "true", "license": "mit"}
    run("finetune", FINETUNE_BEAUTY[1], *words(options | told))
    kept = hub.repos["models", "alice/shop"]
    assert kept.private and len(kept.commits) == 2
    files = hub.files("alice/shop")
    assert "results_test.json" not in files and not any(f.endswith(".bin") for f in files)
    assert b"Results: not measured." in hub.read("alice/shop", "README.md")
    assert "hf_alice" not in hub.read("alice/shop", "training.json").decode()
    options = {"model": tmp_path / "shop", "data_dir": data, "baselines": "[popularity]"}
    run("evaluate", str(RECIPES / "beauty" / "evaluate.yaml"), *words(options | push))
    assert len(kept.commits) == 3
    measured = json.loads(hub.read("alice/shop", "results_test.json"))["new"]["implicitrec"]
    card = hub.read("alice/shop", "README.md").decode()
    assert f"{measured['metrics']['ndcg@10']:.4f}" in card and "\nlicense: mit\n" in card
    assert sum(group["num_users"] for group in measured["groups"].values()) == measured["num_users"]
    assert capsys.readouterr().out.count("pushed to") == 2


def test_recommendations_are_printed(data, trained, capsys):
    options = {"model": trained, "data_dir": data, "user_id": 3, "top_k": 500}
    run("recommend", str(RECIPES / "complete_journey" / "recommend.yaml"), *words(options))
    printed = capsys.readouterr().out
    assert "user 3:" in printed and "\n30 recommendations\n" in printed


def test_data_of_another_vocabulary_is_refused(data, trained, tmp_path):
    other = shutil.copytree(data, tmp_path / "other")
    ImplicitRecProcessor.fit({"item_id": range(30)}).save_pretrained(other / "processor")
    for name in ("evaluate", "recommend", "export"):
        with pytest.raises(SystemExit, match="^error: .*other was prepared with 30 .* order"):
            run(name, *words({"model": trained, "data_dir": other}))


def test_unknown_keys_and_missing_data_are_refused(data, trained, tmp_path):
    path = str(RECIPES / "beauty" / "finetune.yaml")
    with pytest.raises(SystemExit, match="learning_rat"):
        run("finetune", path, "--learning_rat", "1")
    with pytest.raises(SystemExit, match="no prepared data in"):
        run("finetune", path, "--data_dir", str(tmp_path / "none"))
    start = {"data_dir": data, "output_dir": tmp_path, "from_checkpoint": "nowhere"}
    with pytest.raises(SystemExit, match="^error: no checkpoint at 'nowhere'"):
        run("finetune", *words(start))
    with pytest.raises(SystemExit, match="^error: .*'hidden_size' expected int, got str"):
        run("finetune", *words(start | {"from_checkpoint": "", "model": "{hidden_size: big}"}))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="output_dir must be a folder, got the file .*file$"):
        run("finetune", *words({"data_dir": data, "output_dir": tmp_path / "file"}))
    with pytest.raises(SystemExit, match="has the parts .*'test', .* got .'tests'."):
        run("evaluate", *words({"model": trained, "data_dir": data, "split": "tests"}))
    with pytest.raises(SystemExit, match="user '999' is not in"):
        options = {"model": trained, "data_dir": data, "user_id": 999}
        run("recommend", str(RECIPES / "complete_journey" / "recommend.yaml"), *words(options))


def test_a_dropout_of_the_prior_that_never_begins_is_refused(data, tmp_path):
    options = {"data_dir": data, "output_dir": tmp_path, "use_cpu": "true"}
    options |= {"model": SMALL["model"], "prior_steps": 0, "prior_dropout": 0.5}
    with pytest.raises(SystemExit, match="prior_steps must be at least 1.* got 0, 0.5$"):
        run("finetune", FINETUNE_BEAUTY[1], *words(options))
    options |= {"model": "{hidden_size: 16}", "prior_steps": 9}
    with pytest.raises(SystemExit, match="^error: prior_steps need a prior .* got 0 and 0$"):
        run("finetune", FINETUNE_BEAUTY[1], *words(options))


def test_recommendations_read_whole_histories_of_everybody(data, trained, tmp_path):
    latest = load_sequences(data / "latest")["latest"]
    test = load_sequences(data / "sequences")["test"]
    assert latest.num_rows == 40 >= test.num_rows
    whole = dict(zip(latest["user_id"], latest["input_ids"]))
    for user, history, targets in zip(test["user_id"], test["input_ids"], test["target_ids"]):
        assert whole[user][: len(history)] == history
        assert set(whole[user][len(history) :]) == set(targets)
    options = {"model": trained, "data_dir": data, "output_dir": tmp_path / "lists"}
    run("recommend", *words(options))
    assert sorted(pd.read_parquet(tmp_path / "lists")["user_id"]) == list(range(40))


def test_a_checkpoint_of_the_training_is_whole(data, trained, tmp_path):
    run("recommend", *words({"model": trained / "checkpoint-2", "data_dir": data}))
    shutil.copytree(trained / "checkpoint-2", tmp_path / "killed" / "checkpoint-2")
    for name in ("evaluate", "recommend"):
        with pytest.raises(SystemExit, match="no checkpoint in .*--resume true, or name .*-2$"):
            run(name, *words({"model": tmp_path / "killed", "data_dir": data}))


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"columns": "{user: who}"},
            r"columns does not know \['user'\]; it takes user_id, item_id",
        ),
        ({"columns": "{user_id: who}"}, "^error: no column 'who' .for user_id. in .*log.csv"),
        ({"cleaning": "{bots: 1}"}, r"cleaning does not know \['bots'\]"),
        ({"target_event_types": "[sold]"}, "^error: target_event_types must be types of the log"),
    ],
)
def test_a_wrong_recipe_ends_in_one_line(data, tmp_path, given, message):
    options = {"source": data.parent / "log.csv", "output_dir": tmp_path / "data"}
    options |= {"columns": "{event_type: event_type}", "report_page": "false"}
    with pytest.raises(SystemExit, match=message):
        run("prepare", *words(options | given))
    assert not (tmp_path / "data").exists()


def test_preparing_takes_no_folder_of_others_for_its_own(data, tmp_path):
    kept = tmp_path / "home" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("two years of work")
    for folder in (kept.parent, kept):
        with pytest.raises(SystemExit, match=f"name a new folder, got {folder} with thesis.txt"):
            run("prepare", *words({"source": data.parent / "log.csv", "output_dir": folder}))
    assert kept.read_text() == "two years of work"


@pytest.mark.parametrize(
    "name, package, extra", [("serve", "uvicorn", "serve"), ("demo_app", "gradio", "app")]
)
def test_a_recipe_names_the_extra_that_it_needs(name, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match=rf"{package}.*pip install 'implicitrec\[{extra}\]'"):
        run(name, "--help")
