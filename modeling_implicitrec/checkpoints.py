"""Checkpoints: loading one, which of Trainer's are whole, and where a killed run goes on."""

import json
import logging
import zipfile
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from .modeling_implicitrec import ImplicitRecForScoring
from .processing_implicitrec import ImplicitRecProcessor

STATE = "trainer_state.json"
EARLIER = "trainer_state_of_earlier_run.json"  # the same, of a run that another one has replaced
logger = logging.getLogger(__name__)


def load_checkpoint(
    name: str | Path, *, data_dir: str | Path | None = None
) -> tuple[ImplicitRecForScoring, ImplicitRecProcessor]:
    """The model and the processor of a folder or a Hub repository.

    Args:
        data_dir: prepared data whose tokens the model is to read.

    Raises:
        FileNotFoundError: where there is none, or its training has not ended; the message says what to do.
        ValueError: where the two, or they and the data, do not belong together, or a file is damaged.

    >>> load_checkpoint(".")
    Traceback (most recent call last):
    FileNotFoundError: no checkpoint in . yet: recipes/finetune.py writes it when training ends
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / CONFIG_NAME).exists():
        hint = "recipes/finetune.py writes it when training ends"
        if (last := last_checkpoint(folder)) is not None:
            hint += f"; go on with --resume true, or name {last}"
        raise FileNotFoundError(f"no checkpoint in {folder} yet: {hint}")
    try:
        processor = ImplicitRecProcessor.from_pretrained(name)
        model = ImplicitRecForScoring.from_pretrained(name)
    except (OSError, HFValidationError) as error:
        where = "the folder is not whole" if folder.is_dir() else "no such folder, and of the Hub"
        why = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"no checkpoint at {str(name)!r}: {where}: {why}") from error
    processor.check_model(model.config)
    if data_dir is not None and Path(data_dir, "processor").is_dir():
        of_data = ImplicitRecProcessor.from_pretrained(Path(data_dir, "processor"))
        _check_items(of_data, str(data_dir), processor, str(name))
    return model, processor


def _check_items(
    of_data: ImplicitRecProcessor, data: str, known: ImplicitRecProcessor, checkpoint: str
) -> None:
    """Raise `ValueError` where data has other items than a checkpoint, or in another order."""
    if of_data.fingerprint != known.fingerprint:
        raise ValueError(
            f"{data} was prepared with {of_data.vocab_size - 1} items that are not, or not in this "
            f"order, the {known.vocab_size - 1} items of {checkpoint}: their tokens differ; train on "
            f"it, from this model with --from_checkpoint {checkpoint} and another output_dir"
        )


class ProcessorCallback(TrainerCallback):
    """Saves the processor with every checkpoint of Trainer, which then loads by itself.

    As Trainer does with its `processing_class`, but in every folder of a checkpoint alone.

    >>> callbacks = [ProcessorCallback(ImplicitRecProcessor.fit({"item_id": ["tea", "milk"]}))]
    """

    def __init__(self, processor: ImplicitRecProcessor) -> None:
        self.processor = processor

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            self.processor.save_pretrained(Path(args.output_dir, name))


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
        is_earlier = (steps[step] / EARLIER).exists()
        why = "is of an earlier run" if is_earlier else "was not written to its end"
        logger.warning("%s %s and is passed over", steps[step], why)
    return None


def _is_whole(checkpoint: Path, processes: int) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    states = list(checkpoint.glob("rng_state*.pth"))
    # The list of a zip file's contents stands at its end.
    return len(states) >= processes and all(zipfile.is_zipfile(path) for path in states)


def set_aside_checkpoints(training: TrainingArguments) -> None:
    """Say of the checkpoints in a run's folder that they are an earlier run's: none is gone on with.

    Their `trainer_state.json` is renamed; they can still be loaded. One process does it.

    Args:
        training: of the new run.

    >>> set_aside_checkpoints(TrainingArguments("a new folder", report_to="none", use_cpu=True))
    """
    if training.should_save:
        for state in Path(str(training.output_dir)).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{STATE}"):
            state.replace(state.with_name(EARLIER))


def resume_point(
    training: TrainingArguments, processor: ImplicitRecProcessor | None = None
) -> str | None:
    """What `Trainer.train` takes as `resume_from_checkpoint` to end as if the run had not been killed.

    Without a whole checkpoint the run starts anew. Early stopping goes on counting where it was, and a run
    that it had ended stays ended: both are told to Trainer through `training`.

    Args:
        training: of the run, the same as before but for what is set here.
        processor: of the data, where the checkpoints hold theirs ([`ProcessorCallback`]).

    Raises:
        ValueError: where the run learnt from data of other items.
    """
    checkpoint = last_checkpoint(str(training.output_dir), processes=training.world_size)
    if checkpoint is None:
        return None
    if processor is not None:
        try:
            known = ImplicitRecProcessor.from_pretrained(checkpoint)
        except OSError:  # the run was killed before it was written
            known = processor
        _check_items(processor, "the data", known, str(checkpoint))
    training.restore_callback_states_from_checkpoint = True
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    control = state.stateful_callbacks.get("TrainerControl", {})
    if control.get("args", {}).get("should_training_stop"):
        training.max_steps = state.global_step
    return str(checkpoint)
