"""Trains a sequential model of RecBole: `python scripts/recbole_runner.py job.json`.

Runs in the environment of RecBole, see `peer_environments.py`. `settings` are RecBole's own; their key
`class` is the model's name. RecBole makes an example of every event: its history, padded.
"""

import os
from itertools import count

import numpy as np
import torch
from peer_marks import Run, read_job
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer


class TimeOver(Exception):
    """Ends RecBole's training loop."""


class Marks:
    """Stands in for the model's loss, which RecBole computes once a step."""

    def __init__(self, run: Run, model: torch.nn.Module, dataset) -> None:
        self.run, self.model, self.loss = run, model, model.calculate_loss
        self.sizes: tuple[int, int, int] | None = None
        names = dataset.field2id_token["item_id"][1:].astype(np.int64)
        self.inner = np.zeros(run.vocab_size, dtype=np.int64)
        self.inner[names] = np.arange(1, len(names) + 1)
        self.tokens = torch.from_numpy(names)

    def __call__(self, interaction: Interaction) -> torch.Tensor:
        if self.sizes is not None and self.run.step(self.score, self.sizes):
            raise TimeOver
        self.model.train()
        events = interaction["item_id_list"]
        self.sizes = (len(events), int((events != 0).sum()), events.numel())
        return self.loss(interaction)

    @torch.no_grad()
    def score(self, part: str, start: int, stop: int) -> torch.Tensor:
        """RecBole's own full ranking scores."""
        length = self.model.max_seq_length
        histories = self.run.histories(part, start, stop, length)
        table = np.zeros((len(histories), length), dtype=np.int64)
        for place, row in enumerate(histories):
            table[place, : len(row)] = self.inner[row]
        sizes = torch.tensor([len(row) for row in histories])
        batch = {"item_id_list": torch.from_numpy(table), "item_length": sizes}
        scores = self.model.eval().full_sort_predict(Interaction(batch))
        found = torch.full((len(histories), self.run.vocab_size), -torch.inf)
        found[:, self.tokens] = scores[:, 1:]
        return found


def write_atomic_file(run: Run) -> None:
    """The events as RecBole reads them, with their place as the time."""
    folder = run.output / "events"
    folder.mkdir(exist_ok=True)
    with open(folder / "events.inter", "w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, row in enumerate(run.train):
            file.writelines(f"{user}\t{token}\t{place}\n" for place, token in enumerate(row))


def main() -> None:
    run = read_job()
    os.chdir(run.output)  # RecBole logs into the folder that it runs in
    settings = dict(run.settings)
    name = settings.pop("class")
    write_atomic_file(run)
    own = {
        "data_path": str(run.output),
        "checkpoint_dir": str(run.output / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,  # the loss is the softmax
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "epochs": 1_000_000,
        "seed": run.job["seed"],
    }
    config = Config(model=name, dataset="events", config_dict=own | settings)
    dataset = create_dataset(config)
    run.start()
    dataset._change_feat_format()  # makes the examples
    loader = TrainDataLoader(config, dataset, None, shuffle=True)
    model = get_model(name)(config, dataset)
    marks = Marks(run, model, dataset)
    model.calculate_loss = marks
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    epoch = 0
    try:
        for epoch in count():
            trainer._train_epoch(loader, epoch)
    except TimeOver:
        pass
    run.finish(marks.score, "recbole", epochs=epoch)


if __name__ == "__main__":
    main()
