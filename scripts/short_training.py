"""How the small models of comparing scripts are trained: one process on the CPU, nothing saved."""

import tempfile
from collections.abc import Sequence
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_implicitrec import EpochCallback


def train_briefly(
    model: Any,
    rows: Any,
    collator: Any,
    *,
    seed: int,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> Any:
    """The model after training on the rows of two events and more.

    Args:
        collator: of rows; new draws each epoch.
        settings: of TrainingArguments, such as `max_steps` or `learning_rate`.
    """
    kept = rows.filter(lambda size: size > 1, input_columns="length")
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            folder,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            seed=seed,
            **settings,
        )
        callbacks = [EpochCallback(collator), *callbacks]
        Trainer(model, training, collator, train_dataset=kept, callbacks=callbacks).train()
    return model.eval()
