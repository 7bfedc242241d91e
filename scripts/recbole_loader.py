"""The RecBole job of `benchmark_events.py`: a log to an atomic file to RecBole's sequential data.

`python scripts/recbole_loader.py LOG_FOLDER OUTPUT_FOLDER '{...}'` prints what came out as a line of
JSON. It runs in an environment of its own: `pip install recbole "setuptools<81" "numpy<2" "pandas<3"
"pyarrow<20"`. RecBole does less than the other jobs: it drops missing ids and filters values, but has no
option for exact duplicates (`rm_dup_inter` keeps one event of a user and an item), for events a day,
for immediate repeats and for weights. Augmentation, which copies up to 50 events before every event,
is left out.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataset import Dataset

KINDS = {
    "user_id": "token",
    "item_id": "token",
    "event_type": "token",
    "timestamp": "float",
    "duration": "float",
    "count": "float",
}


def write_atomic_file(log: Path, folder: Path) -> None:
    """The log as `events/events.inter`, in batches; a view counts 1, as RecBole has no missing count."""
    folder.mkdir(parents=True)
    schema = {"user_id": pa.string(), "item_id": pa.string(), "event_type": pa.string()}
    names = [f"{name}:{kind}" for name, kind in KINDS.items()]
    types = [schema.get(name, pa.float64()) for name in KINDS]
    fields = pa.schema(list(zip(names, types)))
    options = pa.csv.WriteOptions(delimiter="\t", quoting_style="none", include_header=False)
    with open(folder / "events.inter", "wb") as file:
        file.write(("\t".join(names) + "\n").encode())
        with pa.csv.CSVWriter(file, fields, write_options=options) as writer:
            source = pyarrow.dataset.dataset(log).scanner(columns=list(KINDS))
            for batch in source.to_batches():
                table = pa.Table.from_batches([batch])
                table = table.set_column(5, "count", pc.fill_null(table["count"], 1.0))
                writer.write_table(table.rename_columns(names).cast(fields))


def load(output: Path) -> Dataset:
    """RecBole's data set: ids mapped, missing ids and returned goods dropped."""
    settings = {
        "data_path": str(output),
        "checkpoint_dir": str(output / "saved"),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": list(KINDS)},
        "val_interval": {"count": "(0,inf)"},
        "train_neg_sample_args": None,  # the loss is the softmax
        "use_gpu": False,
        "show_progress": False,
    }
    # RecBole reads the command line too.
    sys.argv = sys.argv[:1]
    return create_dataset(Config(model="SASRec", dataset="events", config_dict=settings))


def save_sequences(dataset: Dataset, output: Path) -> int:
    """What `build` does before augmentation: tensors in order of user and time, a slice a user."""
    Dataset._change_feat_format(dataset)
    dataset.sort(by=[dataset.uid_field, dataset.time_field])
    _, lengths = torch.unique_consecutive(dataset.inter_feat["user_id"], return_counts=True)
    columns = dict(dataset.inter_feat.interaction)
    torch.save({"lengths": lengths, **columns}, output / "sequences.pt")
    np.save(output / "items.npy", dataset.field2id_token["item_id"].astype(str))
    return len(lengths)


def main() -> None:
    log, output = Path(sys.argv[1]), Path(sys.argv[2])
    moments = [time.perf_counter()]
    write_atomic_file(log, output / "events")
    moments.append(time.perf_counter())
    dataset = load(output)
    moments.append(time.perf_counter())
    users = save_sequences(dataset, output)
    moments.append(time.perf_counter())
    facts = {"events": dataset.inter_num, "users": users, "items": dataset.item_num - 1}
    names = ("atomic file", "create_dataset", "sequences")
    steps = dict(zip(names, np.diff(moments).tolist()))
    print(json.dumps(facts | {"seconds": moments[-1] - moments[0], "steps": steps}))


if __name__ == "__main__":
    main()
