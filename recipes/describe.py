"""Describe the items of prepared data: `python recipes/describe.py --data_dir DIR --table items.csv ...`.

Reads a table with a row an item, and writes `item_features.safetensors` for `finetune.py
--use_item_features`, and `item_features.json`, by which items that come later are described alike.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from safetensors.numpy import save_file

from modeling_implicitrec import ImplicitRecProcessor, ItemFeatures, parse_arguments, run_recipe


@dataclass
class DescribeArguments:
    """The items of which data, and what is known of them."""

    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    table: str = field(
        default="",
        metadata={"help": "CSV or Parquet, a row an item; by default item_names.parquet"},
    )
    id_column: str = field(default="item_id", metadata={"help": "of the item ids"})
    texts: list = field(default_factory=list, metadata={"help": "columns of text"})
    categories: list = field(default_factory=list, metadata={"help": "columns of names"})
    numbers: list = field(default_factory=list, metadata={"help": "columns of numbers"})
    separator: str = field(default="|", metadata={"help": "between the names of a cell"})


def main() -> None:
    (args,) = parse_arguments(DescribeArguments)
    data = Path(args.data_dir)
    path = Path(args.table) if args.table else data / "item_names.parquet"
    if not path.exists():
        raise SystemExit(f"no table of items at {path}")
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    chosen = {name: getattr(args, name) for name in ("id_column", "texts", "categories")}
    chosen |= {"numbers": args.numbers, "separator": args.separator}
    try:
        features = ItemFeatures.fit(table, **chosen)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    processor = ImplicitRecProcessor.from_pretrained(data / "processor")
    matrix = features.catalogue(table, processor)
    save_file({"features": matrix}, data / "item_features.safetensors")
    (data / "item_features.json").write_text(json.dumps(dataclasses.asdict(features), indent=2))
    described = int(matrix.any(1).sum())
    print(
        f"{described:,} of {processor.vocab_size - 1:,} items described by {matrix.shape[1]} numbers"
    )


if __name__ == "__main__":
    run_recipe(main)
