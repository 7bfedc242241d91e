"""Trainer's checkpoints: which are whole, and where a killed run goes on."""

import json
import logging
import zipfile
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATE = "trainer_state.json"
logger = logging.getLogger(__name__)


def last_checkpoint(folder: str | Path, *, processes: int = 1) -> Path | None:
    """The latest checkpoint in `folder` that was written to its end; None where there is none.

    Trainer writes the weights, the optimizer, each process's random state and, last, its own state. A
    run that is killed meanwhile leaves a folder that Trainer itself would take for its latest checkpoint.

    Args:
        processes: of the run; each has written its random state.

    >>> last_checkpoint("no such folder") is None
    True
    """
    steps = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit():
            steps[int(number)] = path
    for step in sorted(steps, reverse=True):
        if _is_whole(steps[step], processes):
            return steps[step]
        logger.warning("%s was not written to its end and is passed over", steps[step])
    return None


def _is_whole(checkpoint: Path, processes: int) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    states = list(checkpoint.glob("rng_state*.pth"))
    # The list of a zip file's contents stands at its end.
    return len(states) >= processes and all(zipfile.is_zipfile(path) for path in states)


def resume_point(training: TrainingArguments) -> str | None:
    """What `Trainer.train` takes as `resume_from_checkpoint` to end as if the run had not been killed.

    Without a whole checkpoint the run starts anew. Early stopping goes on counting where it was, and a run
    that it had ended stays ended: both are told to Trainer through `training`.

    Args:
        training: of the run, the same as before but for what is set here.
    """
    checkpoint = last_checkpoint(str(training.output_dir), processes=training.world_size)
    if checkpoint is None:
        return None
    training.restore_callback_states_from_checkpoint = True
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    control = state.stateful_callbacks.get("TrainerControl", {})
    if control.get("args", {}).get("should_training_stop"):
        training.max_steps = state.global_step
    return str(checkpoint)
