"""Trains SASRec of RePlay: `python scripts/replay_runner.py job.json`.

Runs in the environment of RePlay, see `peer_environments.py`. `settings` are those of `SasRec`, and
`batch_size` and `learning_rate`.
"""

import warnings

import lightning
import numpy as np
import pandas as pd
import torch
from peer_marks import Run, read_job
from replay.data import FeatureHint, FeatureType
from replay.data.nn import PandasSequentialDataset, TensorFeatureInfo, TensorSchema
from replay.models.nn.optimizer_utils import FatOptimizerFactory
from replay.models.nn.sequential.sasrec import SasRec, SasRecTrainingDataset
from torch.utils.data import DataLoader

ITEMS = "items"


class Marks(lightning.Callback):
    """Tells the run of every step."""

    def __init__(self, run: Run, model: SasRec, length: int, tokens: np.ndarray) -> None:
        self.run, self.model, self.length = run, model, length
        self.tokens = torch.from_numpy(tokens)
        self.inner = np.full(run.vocab_size, len(tokens), dtype=np.int64)  # that is padding
        self.inner[tokens] = np.arange(len(tokens))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        labels, events = batch["target_padding_mask"], batch["padding_mask"]
        sizes = (int(labels.sum()), int(events.sum()), events.numel())
        trainer.should_stop = self.run.step(self.score, sizes)
        module.train()

    @torch.no_grad()
    def score(self, part: str, start: int, stop: int) -> torch.Tensor:
        """The scores that RePlay predicts with."""
        histories = self.run.histories(part, start, stop, self.length)
        table = np.full((len(histories), self.length), len(self.tokens), dtype=np.int64)
        for place, row in enumerate(histories):
            table[place, -len(row) :] = self.inner[row]
        items = torch.from_numpy(table)
        batch = {"feature_tensor": {ITEMS: items}, "padding_mask": items != len(self.tokens)}
        found = torch.full((len(histories), self.run.vocab_size), -torch.inf)
        found[:, self.tokens] = self.model.eval().predict(batch)
        return found


def main() -> None:
    warnings.filterwarnings("ignore")  # RePlay calls its own Pandas classes deprecated
    run = read_job()
    settings = dict(run.settings)
    batch_size, rate = settings.pop("batch_size"), settings.pop("learning_rate")
    tokens = np.flatnonzero(run.known.numpy())
    feature = TensorFeatureInfo(
        name=ITEMS,
        feature_type=FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        cardinality=len(tokens),
        padding_value=len(tokens),
        embedding_dim=settings["hidden_size"],
    )
    schema = TensorSchema(feature)
    run.start()
    model = SasRec(schema, **settings, optimizer_factory=FatOptimizerFactory(learning_rate=rate))
    marks = Marks(run, model, settings["max_seq_len"], tokens)
    rows = pd.DataFrame({"user": range(len(run.train)), ITEMS: [marks.inner[r] for r in run.train]})
    sequences = PandasSequentialDataset(schema, "user", ITEMS, rows)
    examples = SasRecTrainingDataset(sequences, settings["max_seq_len"])
    trainer = lightning.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        callbacks=[marks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(examples, batch_size, shuffle=True))
    run.finish(marks.score, "replay-rec", epochs=trainer.current_epoch)


if __name__ == "__main__":
    main()
