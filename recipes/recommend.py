"""Recommend what comes next: `python recipes/recommend.py recipes/<log>/recommend.yaml`.

Reads everybody's whole history, those events too that evaluation asks for.
Prints one user's recommendations; with `--output_dir`, writes those of all users as Parquet shards. The
same command goes on after a kill, and under `accelerate launch` the processes share the work.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset

from modeling_implicitrec import (
    BatchOptions,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    Retriever,
    batch_histories,
    check_numbers,
    fit_trend,
    load_checkpoint,
    load_sequences,
    parse_arguments,
    positive_events,
    recommend_users,
    run_recipe,
)


@dataclass
class RecommendArguments:
    """Whose history, and how many items."""

    model: str = field(metadata={"help": "checkpoint folder or Hub name"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    user_id: str | None = field(default=None, metadata={"help": "by default the first one"})
    top_k: int = field(default=10, metadata={"help": "recommendations"})
    recent: int = field(default=8, metadata={"help": "events of the history to print"})
    exclude_seen: bool = field(
        default=False, metadata={"help": "new items only; always if nobody takes one twice"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for Parquet shards of all users' recommendations"}
    )
    query_time: int | None = field(
        default=None,
        metadata={
            "help": "when they are asked, seconds since 1970; by default after the last event"
        },
    )
    shard_users: int = field(default=20_000, metadata={"help": "users of one shard"})
    batch_size: int = field(default=256, metadata={"help": "users scored at one time"})

    def __post_init__(self) -> None:
        check_numbers(self, "top_k shard_users batch_size >= 1", "recent query_time >= 0")


def main() -> None:
    (args,) = parse_arguments(RecommendArguments)
    rows = load_sequences(Path(args.data_dir) / "latest")["latest"]
    model, processor = load_checkpoint(args.model, data_dir=args.data_dir)
    # The trend of the training part ends earlier.
    fit_trend(model, positive_events(rows, processor.negative_event_type_ids))
    moment = moment_of_asking(args, model, rows)
    if args.output_dir is not None:
        recommend_all(args, model, processor, rows, moment)
        return
    users = [str(user) for user in rows["user_id"]]
    if args.user_id is not None and str(args.user_id) not in users:
        raise SystemExit(f"user {args.user_id!r} is not in {args.data_dir}")
    row = rows[users.index(str(args.user_id)) if args.user_id is not None else 0]
    names = read_names(Path(args.data_dir) / "item_names.parquet")
    history = processor.decode_items(row["input_ids"][-args.recent :])
    print(f"\nuser {row['user_id']}: the last {len(history)} of {len(row['input_ids'])} events")
    for item in history:
        print(f"      {names.get(item, item)}")
    asked = {} if moment is None else {"query_time": moment}
    batch = batch_histories(model.config, [row | asked])
    only_new = args.exclude_seen or model.config.exclude_seen
    seen = [row["input_ids"]] if only_new else None  # also what the model no longer reads
    top = Retriever(model).recommend(**batch, top_k=args.top_k, seen=seen)
    items = processor.decode_items(top.item_tokens[0])  # fewer than asked for, where there are
    print(f"\n{len(items)} recommendations{' of new items' if only_new else ''}")
    for place, (item, score) in enumerate(zip(items, top.scores[0]), start=1):
        print(f"  {place:2d}. {names.get(item, item)}  ({score:.2f})")


def moment_of_asking(
    args: RecommendArguments, model: ImplicitRecForScoring, rows: Dataset
) -> int | None:
    """In seconds; `None` for a model that does not read it."""
    if not model.config.use_query_time or "timestamps" not in rows.column_names:
        return None
    times = pc.list_flatten(rows.with_format("arrow")[:]["timestamps"])
    return args.query_time or pc.max(times).as_py() + 1


def recommend_all(
    args: RecommendArguments,
    model: ImplicitRecForScoring,
    processor: ImplicitRecProcessor,
    rows: Dataset,
    moment: int | None,
) -> None:
    """Write this process' share of the shards."""
    state = PartialState(cpu=not torch.cuda.is_available())
    options = BatchOptions(
        top_k=args.top_k,
        exclude_seen=args.exclude_seen,
        shard_users=args.shard_users,
        batch_size=args.batch_size,
        query_time=moment,
    )
    written = recommend_users(
        model.to(state.device),
        processor,
        rows,
        args.output_dir,
        options=options,
        process=state.process_index,
        num_processes=state.num_processes,
    )
    print(f"process {state.process_index + 1} of {state.num_processes}: {written} shards written")
    state.wait_for_everyone()
    state.destroy_process_group()


def read_names(path: Path) -> dict:
    """Names by item id, where the log came with them."""
    if not path.exists():
        return {}
    table = pd.read_parquet(path)
    return dict(zip(table["item_id"], table["name"]))


if __name__ == "__main__":
    run_recipe(main)
