"""Recommend from a checkpoint alone: `python recipes/recommend.py recipes/<log>/recommend.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    load_sequences,
    parse_arguments,
)


@dataclass
class RecommendArguments:
    """Whose history, and how many items."""

    model: str = field(metadata={"help": "checkpoint folder or Hub name"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    user_id: str | None = field(default=None, metadata={"help": "by default the first one"})
    top_k: int = field(default=10, metadata={"help": "recommendations"})
    recent: int = field(default=8, metadata={"help": "events of the history to print"})
    exclude_seen: bool = field(default=False, metadata={"help": "only items new to the user"})


def main() -> None:
    (args,) = parse_arguments(RecommendArguments)
    rows = load_sequences(Path(args.data_dir) / "sequences")["test"]
    processor = ImplicitRecProcessor.from_pretrained(args.model)
    model = ImplicitRecForScoring.from_pretrained(args.model)
    processor.check_model(model.config)
    users = [str(user) for user in rows["user_id"]]
    if args.user_id is not None and str(args.user_id) not in users:
        raise SystemExit(f"user {args.user_id!r} is not in the test part of {args.data_dir}")
    row = rows[users.index(str(args.user_id)) if args.user_id is not None else 0]
    names = read_names(Path(args.data_dir) / "item_names.parquet")
    history = processor.decode_items(row["input_ids"][-args.recent :])
    print(f"\nuser {row['user_id']}: the last {len(history)} of {len(row['input_ids'])} events")
    for item in history:
        print(f"      {names.get(item, item)}")
    collator = DataCollatorForNextItem(
        model.config.max_position_embeddings, collapse_repeats=model.config.collapse_repeats
    )
    batch = collator([row])
    del batch["target_ids"]
    top = model.recommend(**batch, top_k=args.top_k, exclude_seen=args.exclude_seen)
    print(f"\n{args.top_k} recommendations{' of new items' if args.exclude_seen else ''}")
    for place, (token, score) in enumerate(zip(top.item_tokens[0], top.scores[0]), start=1):
        item = processor.decode_items([int(token)])[0]
        print(f"  {place:2d}. {names.get(item, item)}  ({score:.2f})")


def read_names(path: Path) -> dict:
    """Names by item id, where the log came with them."""
    if not path.exists():
        return {}
    table = pd.read_parquet(path)
    return dict(zip(table["item_id"], table["name"]))


if __name__ == "__main__":
    main()
