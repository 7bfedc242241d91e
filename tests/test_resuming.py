"""Runs that are killed end as those that are not; half-written checkpoints are passed over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import TrainingArguments

from modeling_implicitrec import (
    ImplicitRecProcessor,
    last_checkpoint,
    resume_point,
    set_aside_checkpoints,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))  # where scripts find each other

from measure_resume import ResumeArguments, prepare  # noqa: E402

OPTIONS = {
    "model": "{hidden_size: 16, hidden_dropout_prob: 0.2, num_cooccurrences: 4}",
    "max_steps": 24,  # one epoch and a half
    "early_stopping_patience": 5,
    "per_device_train_batch_size": 8,
    "save_steps": 4,
    "eval_steps": 4,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "use_cpu": "true",
    "num_train_epochs": 9,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A small log, prepared."""
    folder = tmp_path_factory.mktemp("resuming")
    return prepare(ResumeArguments(users=120, items=30, work_dir=folder))


def start(data: Path, output: Path, **more) -> subprocess.Popen:
    settings = OPTIONS | {"data_dir": data, "output_dir": output} | more
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(ROOT / "recipes" / "finetune.py")]
    command += [str(ROOT / "recipes" / "beauty" / "finetune.yaml"), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> None:
    told = process.communicate(timeout=240)[0]
    assert process.returncode == 0, told[-3000:]


def kill_at(process: subprocess.Popen, sign: Path) -> None:
    """Kill the process as soon as a file or folder is there."""
    late = time.monotonic() + 200
    while not sign.exists():
        assert process.poll() is None and time.monotonic() < late, process.communicate()[0][-3000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.timeout(600)
def test_a_run_killed_twice_ends_with_the_weights_of_one_that_was_not(data, tmp_path):
    finish(start(data, tmp_path / "whole"))
    cut = tmp_path / "cut"
    # Nothing is there yet: it starts anew.
    kill_at(start(data, cut, resume="true"), cut / "checkpoint-8" / "trainer_state.json")
    assert last_checkpoint(cut) is not None
    kill_at(start(data, cut, resume="true"), cut / "checkpoint-20" / "model.safetensors")
    assert last_checkpoint(cut) == cut / "checkpoint-16"
    finish(start(data, cut, resume="true"))
    for name in ("model.safetensors", "checkpoint-24/model.safetensors"):
        left, right = load_file(cut / name), load_file(tmp_path / "whole" / name)
        assert left.keys() == right.keys()
        for key, values in left.items():
            np.testing.assert_array_equal(values, right[key], err_msg=f"{name} {key}")
    states = [
        json.loads((folder / "checkpoint-24" / "trainer_state.json").read_text())
        for folder in (cut, tmp_path / "whole")
    ]
    assert states[0]["best_metric"] == states[1]["best_metric"]
    counters = [s["stateful_callbacks"]["EarlyStoppingCallback"] for s in states]
    assert counters[0] == counters[1]


def write_checkpoint(folder: Path, step: int, processes: int = 1) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for process in range(processes):
        torch.save({"seed": 1}, path / f"rng_state_{process}.pth")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_the_last_whole_checkpoint_is_found(tmp_path):
    first, second = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == second
    assert last_checkpoint(tmp_path, processes=2) is None
    whole = (second / "rng_state_0.pth").read_bytes()
    (second / "rng_state_0.pth").write_bytes(whole[:-30])
    assert last_checkpoint(tmp_path) == first
    (second / "rng_state_0.pth").write_bytes(whole)
    assert last_checkpoint(tmp_path) == second
    (second / "trainer_state.json").write_text('{"global_step": ')
    assert last_checkpoint(tmp_path) == first
    (second / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == first


def test_a_run_that_had_stopped_early_stays_stopped(tmp_path):
    path = write_checkpoint(tmp_path, 12)
    training = TrainingArguments(str(tmp_path), max_steps=99, use_cpu=True, report_to="none")
    assert resume_point(training) == str(path)
    assert training.max_steps == 99 and training.restore_callback_states_from_checkpoint
    control = {"TrainerControl": {"args": {"should_training_stop": True}, "attributes": {}}}
    state = {"global_step": 12, "stateful_callbacks": control}
    (path / "trainer_state.json").write_text(json.dumps(state))
    assert resume_point(training) == str(path)
    assert training.max_steps == 12


def test_only_checkpoints_of_the_same_run_are_gone_on_with(tmp_path):
    training = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    set_aside_checkpoints(training)  # nothing is there yet
    earlier = write_checkpoint(tmp_path, 12)
    assert resume_point(training) == str(earlier)
    set_aside_checkpoints(training)  # and killed before its first checkpoint
    assert resume_point(training) is None
    own = write_checkpoint(tmp_path, 4)
    assert resume_point(training) == str(own)
    (earlier / "trainer_state.json").write_text('{"global_step": 12}')  # written anew
    assert resume_point(training) == str(earlier)


@pytest.mark.timeout(300)
def test_a_new_run_in_an_old_folder_is_not_mixed_up_with_the_old_one(data, tmp_path):
    write_checkpoint(tmp_path, 99)
    kill_at(start(data, tmp_path), tmp_path / "checkpoint-4" / "trainer_state.json")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_a_run_on_data_of_other_items_is_not_gone_on_with(tmp_path):
    path = write_checkpoint(tmp_path, 12)
    ImplicitRecProcessor.fit({"item_id": ["tea", "milk"]}).save_pretrained(path)
    training = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    same = ImplicitRecProcessor.fit({"item_id": ["tea", "milk"]})
    assert resume_point(training, same) == str(path)
    other = ImplicitRecProcessor.fit({"item_id": ["rye", "tea"]})  # whose tokens they are now
    with pytest.raises(
        ValueError, match="the data was .* the 2 items of .*checkpoint-12: .* another"
    ):
        resume_point(training, other)
