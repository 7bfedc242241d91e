"""Times the lists of a checkpoint: `python scripts/implicitrec_bulk.py job.json`.

All users by `recommend_users`, the writing of Parquet included; one user by a `Retriever`, from the items.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from bulk_clock import measure, read_job

from modeling_implicitrec import (
    BatchOptions,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    Retriever,
    load_sequences,
    recommend_users,
)


def main() -> None:
    torch.set_num_threads(1)
    job, histories = read_job()
    rows = load_sequences(Path(job["data"]) / "sequences")["test"]
    processor = ImplicitRecProcessor.from_pretrained(job["model"])
    model = ImplicitRecForScoring.from_pretrained(job["model"]).eval()
    retriever = Retriever(model)
    options = BatchOptions(top_k=job["k"], exclude_seen=True)
    length = model.config.max_position_embeddings

    with tempfile.TemporaryDirectory() as folder:

        def first(size: int) -> list[Path]:
            target = Path(folder) / str(size)
            recommend_users(model, processor, rows.select(range(size)), target, options=options)
            return sorted(target.glob("*.parquet"))

        def one(user: int) -> torch.Tensor:
            seen = histories[user]
            window = torch.tensor(seen[-length:])[None]
            return retriever.recommend(window, top_k=job["k"], seen=[seen]).item_tokens

        def read(files: list[Path]) -> np.ndarray:
            items = [pq.read_table(file)["item_ids"].combine_chunks().flatten() for file in files]
            tokens = processor.encode_items(np.concatenate(items))
            return np.asarray(tokens).reshape(len(histories), job["k"])

        measure(job, len(rows), first, one, read)


if __name__ == "__main__":
    main()
