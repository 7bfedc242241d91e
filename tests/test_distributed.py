"""Accumulated steps equal whole ones; every accelerate configuration is understood."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


class Histories(Dataset):
    """Of two to nine events, the same each time."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        size = 2 + index % 8
        ids = torch.randint(1, 40, (size,), generator=generator)
        return {"input_ids": ids.numpy(), "input_weights": torch.ones(size).numpy(), "row": index}


def train(
    folder: Path, batch: int, accumulate: int, fixed: bool
) -> tuple[list[float], ImplicitRecForScoring]:
    """The logged losses of six steps of twelve rows."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_attention_heads": 2, "hidden_dropout_prob": 0.0}
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=40, **settings))
    model.state_centre.fixed = fixed
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        learning_rate=0.01,
        logging_steps=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForNextItem(10)
    trainer = Trainer(model, arguments, collator, train_dataset=Histories())
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model


@pytest.mark.parametrize("fixed, error", [(True, 1e-4), (False, 5e-3)])
def test_accumulated_batches_have_the_losses_of_one_large_batch(fixed, error, tmp_path):
    """Though the small ones hold different numbers of labels; but the running mean steps at each."""
    whole, model = train(tmp_path, 12, 1, fixed)
    parts, same = train(tmp_path, 4, 3, fixed)
    assert len(whole) == 6
    assert parts == pytest.approx(whole, rel=error)
    if fixed:
        torch.testing.assert_close(same.item_table(), model.item_table(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_accelerate_configuration_is_understood(path):
    config = load_config_from_file(str(path))
    assert config.num_machines == 1 and config.num_processes >= 1
    if config.num_processes > 1:  # others than these silently run one process
        assert config.distributed_type in ("MULTI_GPU", "FSDP")
