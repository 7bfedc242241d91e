"""Times the lists of RecTools' SASRec: `python scripts/rectools_bulk.py job.json`.

Runs in the environment of RecTools, see `peer_environments.py`. The model is trained for one step: its
time does not depend on its weights.
"""

import numpy as np
import pandas as pd
import torch
from bulk_clock import measure, read_job
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def build_dataset(histories: list[np.ndarray], users: np.ndarray) -> Dataset:
    """Events with their place as the time, which RecTools sorts by."""
    lengths = [len(row) for row in histories]
    places = np.concatenate([np.arange(length) for length in lengths])
    columns = {Columns.User: np.repeat(users, lengths), Columns.Item: np.concatenate(histories)}
    columns |= {Columns.Datetime: pd.to_datetime(places, unit="s"), Columns.Weight: 1.0}
    return Dataset.construct(pd.DataFrame(columns))


def main() -> None:
    torch.set_num_threads(1)
    job, histories = read_job()
    users = np.arange(len(histories))
    dataset = build_dataset(histories, users)
    model = SASRecModel.from_config(job["settings"])
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    model._trainer = Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    model.fit(dataset)

    def recommend(users: np.ndarray, dataset: Dataset) -> pd.DataFrame:
        return model.recommend(users=users, dataset=dataset, k=job["k"], filter_viewed=True)

    def one(user: int) -> pd.DataFrame:
        alone = users[user : user + 1]
        return recommend(alone, build_dataset([histories[user]], alone))

    def read(table: pd.DataFrame) -> np.ndarray:
        items = table.sort_values([Columns.User, Columns.Rank])[Columns.Item].to_numpy()
        return items.reshape(len(users), job["k"])

    measure(job, len(users), lambda size: recommend(users[:size], dataset), one, read)


if __name__ == "__main__":
    main()
