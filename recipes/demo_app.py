"""A web page of a checkpoint: `python recipes/demo_app.py recipes/<log>/demo_app.yaml`.

With `--space_dir` nothing is served: a folder is written that can be pushed to the Hub as a Space.
"""

import json
import shutil
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path

import modeling_implicitrec
from modeling_implicitrec import (
    Showcase,
    check_numbers,
    load_checkpoint,
    load_sequences,
    parse_arguments,
    run_recipe,
)

try:
    import gradio

    from modeling_implicitrec.demo_page import THEME, build_page
except ImportError as error:
    raise SystemExit(f"{error}: the page needs pip install 'implicitrec[app]'") from error

CARD = """---
title: {title}
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
---

A recommender trained with implicitrec, to play with. The histories are those of `histories.json`.
"""
APP = """from modeling_implicitrec import Showcase
from modeling_implicitrec.demo_page import THEME, build_page
import json

histories = json.load(open("histories.json", encoding="utf-8"))
catalogue = {catalogue!r}
showcase = Showcase("checkpoint", catalogue=catalogue, histories=histories)
build_page(showcase, title={title!r}).launch(theme=THEME)
"""


@dataclass
class DemoArguments:
    """The checkpoint, whose histories are shown, and where the page goes."""

    model: str = field(metadata={"help": "checkpoint folder"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    title: str = field(default="What comes next?", metadata={"help": "of the page"})
    users: int = field(default=8, metadata={"help": "histories to pick from"})
    recent: int = field(default=25, metadata={"help": "events of each"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=7860, metadata={"help": "port to listen on"})
    space_dir: str | None = field(
        default=None, metadata={"help": "write a Space here instead of serving"}
    )

    def __post_init__(self) -> None:
        check_numbers(self, "users recent >= 1", "port >= 0", "port < 65536")


def main() -> None:
    (args,) = parse_arguments(DemoArguments)
    names = Path(args.data_dir) / "item_names.parquet"
    catalogue = names if names.exists() else None
    histories = read_histories(args)
    if args.space_dir is not None:
        write_space(args, histories, catalogue)
        return
    showcase = Showcase(args.model, catalogue=catalogue, histories=histories)
    page = build_page(showcase, title=args.title)
    page.launch(server_name=args.host, server_port=args.port, theme=THEME)


def read_histories(args: DemoArguments) -> dict[str, list[dict]]:
    """The latest events of a few users, those with the most of them left out."""
    processor = load_checkpoint(args.model, data_dir=args.data_dir)[1]
    rows = load_sequences(Path(args.data_dir) / "sequences")["test"]
    long_enough = [i for i, size in enumerate(rows["length"]) if size >= args.recent // 2]
    step = max(1, len(long_enough) // args.users)
    histories = {}
    for row in rows.select(long_enough[::step][: args.users]):
        items = processor.decode_items(row["input_ids"][-args.recent :])
        times = row.get("timestamps", list(range(len(row["input_ids"]))))[-args.recent :]
        events = [{"item_id": i, "timestamp": int(t)} for i, t in zip(items, times)]
        for event, kind in zip(events, row.get("event_type_ids", [])[-args.recent :]):
            event |= {"event_type": processor.event_types[kind - 1]} if kind else {}
        histories[f"user {len(histories) + 1}"] = events
    return histories


def write_space(args: DemoArguments, histories: dict, catalogue: Path | None) -> None:
    """Everything the page needs in one folder: app, card, package, checkpoint and histories."""
    folder = Path(args.space_dir)
    folder.mkdir(parents=True)
    package = Path(modeling_implicitrec.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, folder / package.name, ignore=ignored)
    kept = shutil.ignore_patterns("checkpoint-*", "*.bin", "*.py", "README.md", "item_index*")
    shutil.copytree(args.model, folder / "checkpoint", ignore=kept)
    if catalogue is not None:
        shutil.copy(catalogue, folder / "catalogue.parquet")
    told = {"title": args.title, "catalogue": catalogue and "catalogue.parquet"}
    (folder / "app.py").write_text(APP.format(**told))
    needed = [line.split(";") for line in requires("implicitrec") or []]
    wanted = [
        name.strip() for name, *when in needed if not when or 'extra == "app"' in when[0].lower()
    ]
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n")
    (folder / "histories.json").write_text(json.dumps(histories))
    (folder / "README.md").write_text(CARD.format(title=args.title, gradio=gradio.__version__))
    print(f"written to {folder}; push it with: hf upload <you>/<name> {folder} --repo-type space")


if __name__ == "__main__":
    run_recipe(main)
