"""Trains a sequential model of RecTools: `python scripts/rectools_runner.py job.json`.

Runs in the environment of RecTools, see `peer_environments.py`. `settings` are the model's own
configuration; its key `class` is SASRecModel or BERT4RecModel.
"""

import numpy as np
import pandas as pd
import torch
from peer_marks import Run, read_job
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel

MODELS = {"SASRecModel": SASRecModel, "BERT4RecModel": BERT4RecModel}


class Marks(Callback):
    """Tells the run of every step."""

    def __init__(self, run: Run, model: SASRecModel | BERT4RecModel) -> None:
        self.run, self.model = run, model

    def __deepcopy__(self, memo: dict) -> "Marks":
        return self  # RecTools fits with a deep copy of its trainer

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        events = batch["x"]
        sizes = (int((batch["y"] != 0).sum()), int((events != 0).sum()), events.numel())
        trainer.should_stop = self.run.step(self.score, sizes)
        module.train()

    @torch.no_grad()
    def score(self, part: str, start: int, stop: int) -> torch.Tensor:
        """What `recommend` ranks by: the last state of a session times the items."""
        network, preparator = self.model.torch_model.eval(), self.model.data_preparator
        ids = preparator.item_id_map
        histories = self.run.histories(part, start, stop, preparator.session_max_len)
        inner = np.zeros(self.run.vocab_size, dtype=np.int64)
        tokens = preparator.get_known_item_ids().astype(np.int64)
        inner[tokens] = ids.convert_to_internal(tokens)
        batch = preparator._collate_fn_recommend(
            [(inner[row].tolist(), None, None) for row in histories]
        )
        items = network.item_model.get_all_embeddings()
        states = network.encode_sessions(batch, items)[:, -1]
        found = torch.full((len(histories), self.run.vocab_size), -torch.inf)
        found[:, tokens] = (states @ items.T)[:, inner[tokens]]
        return found


def build_dataset(run: Run) -> Dataset:
    """The events with their place as the time, which RecTools sorts by."""
    lengths = [len(row) for row in run.train]
    places = np.concatenate([np.arange(length) for length in lengths])
    events = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: np.concatenate(run.train),
            Columns.Datetime: pd.to_datetime(places, unit="s"),
            Columns.Weight: 1.0,
        }
    )
    return Dataset.construct(events)


def main() -> None:
    run = read_job()
    settings = dict(run.settings)
    model = MODELS[settings.pop("class")].from_config(settings)
    dataset = build_dataset(run)
    marks = Marks(run, model)
    model._trainer = Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[marks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    run.start()
    model.fit(dataset)
    run.finish(marks.score, "rectools", epochs=model.fit_trainer.current_epoch)


if __name__ == "__main__":
    main()
