"""How much of what training computes is padding, on every prepared log that a recipe names:
`python scripts/measure_padding.py`.

It collates one epoch of each log as `recipes/finetune.py` would, in random order, with Trainer's own
grouping by length and with [`GroupedRows`]; no model is trained. The report goes to
`docs/results/padding.json` and `.md`.
"""

import json
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from report_quality import machine
from transformers import Trainer, TrainingArguments

from modeling_implicitrec import (
    GroupedRows,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    SequenceRows,
    parse_arguments,
)

ROOT = Path(__file__).resolve().parents[1]
ORDERS = ("random", "Trainer's own", "GroupedRows")


@dataclass
class PaddingArguments:
    """Which recipes to measure."""

    recipes: list[Path] = field(
        default_factory=list,
        metadata={"help": "YAML files of finetune.py; all in recipes/ by default"},
    )
    output_dir: Path = field(default=Path("docs/results"), metadata={"help": "the report"})


def build_trainer(path: Path) -> Trainer:
    """The recipe's trainer, for a model of next to no size."""
    recipe = SimpleNamespace(**runpy.run_path(str(ROOT / "recipes" / "finetune.py")))
    words = [str(path), "--use_cpu", "true", "--report_to", "none"]
    args, training = parse_arguments(recipe.FinetuneArguments, TrainingArguments, args=words)
    train, validation, processor = recipe.load(args)
    names = ("max_position_embeddings", "collapse_repeats")
    config = ImplicitRecConfig(
        vocab_size=2,
        hidden_size=8,
        num_attention_heads=1,
        negative_event_type_ids=processor.negative_event_type_ids,
        **{name: args.model[name] for name in names if name in args.model},
    )
    model = ImplicitRecForScoring(config)
    collator = recipe.build_collator(args, training, model, processor)
    return recipe.build_trainer(args, training, model, collator, train, validation)


def real_share(trainer: Trainer) -> float:
    """Events among the positions of an epoch."""
    real = positions = 0
    for batch in trainer.get_train_dataloader():
        real += int(batch["attention_mask"].sum())
        positions += batch["attention_mask"].numel()
    return real / positions


def measure(path: Path) -> dict:
    """The share of real positions in each order."""
    trainer = build_trainer(path)
    rows = trainer.train_dataset
    if not isinstance(rows, GroupedRows):
        raise SystemExit(f"{path} does not group by length")
    found = {"users": len(rows), "batch": trainer.args.per_device_train_batch_size}
    found |= {"length": trainer.data_collator.max_length, "GroupedRows": real_share(trainer)}
    trainer.train_dataset = SequenceRows(rows.rows)
    for name, strategy in zip(ORDERS, ("random", "group_by_length")):
        trainer.args.train_sampling_strategy = strategy
        found[name] = real_share(trainer)
    return found


def markdown(report: dict) -> str:
    """The page of the results."""
    lines = ["# Padding", "", f"`{report['command']}`", "", f"{report['machine']}.", ""]
    lines += [
        "The share of the computed positions that hold an event, over one epoch of the training part of "
        "each recipe: rows in random order, grouped by Trainer's own `LengthGroupedSampler`, and by "
        "`GroupedRows`, which `train_sampling_strategy: group_by_length` gives.",
        "",
        "| recipe | users | rows a batch | events a row at most | " + " | ".join(ORDERS) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(ORDERS),
    ]
    for name, found in report["results"].items():
        cells = [name, f"{found['users']:,}", str(found["batch"]), str(found["length"])]
        lines.append("| " + " | ".join(cells + [f"{found[o]:.1%}" for o in ORDERS]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = parse_arguments(PaddingArguments)
    found = {}
    for path in args.recipes or sorted(ROOT.glob("recipes/*/*.yaml")):
        text = path.read_text()
        if "train_sampling_strategy" in text:
            name = (
                path.parent.name if path.stem == "finetune" else f"{path.parent.name} {path.stem}"
            )
            found[name] = measure(path)
            print(name, found[name], flush=True)
    report = {
        "command": " ".join(["python scripts/measure_padding.py", *sys.argv[1:]]),
        "machine": machine(1),
        "results": found,
    }
    target = args.output_dir / "padding.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
