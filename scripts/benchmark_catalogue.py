"""Time and memory of training against the size of the catalogue: `python scripts/benchmark_catalogue.py`.

Trainer takes steps on histories of Zipf-drawn items, with the sampled softmax, and once with the row-wise
optimizer and once with the dense AdamW. Each run has a process of its own, whose peak memory the
operating system counts (`measure_process.py`). The results go to `docs/results/catalogue.json` and `.md`.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    RowWiseAdamW,
    SettleCallback,
    parse_arguments,
)

SCRIPTS = Path(__file__).parent
OPTIMIZERS = ("row-wise", "dense")


@dataclass
class CatalogueArguments:
    """The sizes to measure, and the model and batch that are the same for all."""

    items: list[int] = field(
        default_factory=lambda: [10_000, 100_000, 1_000_000, 10_000_000],
        metadata={"help": "catalogue sizes"},
    )
    optimizers: list[str] = field(
        default_factory=lambda: list(OPTIMIZERS), metadata={"help": f"of {OPTIMIZERS}"}
    )
    dense_items: int = field(
        default=1_000_000, metadata={"help": "largest catalogue of the dense optimizer"}
    )
    hidden_size: int = 64
    length: int = field(default=50, metadata={"help": "events of a history"})
    batch_size: int = field(default=128, metadata={"help": "histories of a step"})
    num_negatives: int = 512
    warmup: int = field(default=10, metadata={"help": "steps before the clock starts"})
    steps: int = field(default=30, metadata={"help": "steps that are timed"})
    seed: int = 0
    output_dir: str = field(default="docs/results", metadata={"help": "folder of the results"})
    run: str | None = field(
        default=None, metadata={"help": "an optimizer: measure it here, on the one size of items"}
    )


class Clock(TrainerCallback):
    """The moment at the end of each step."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.moments.append(time.perf_counter())


def histories(args: CatalogueArguments, rows: int) -> Dataset:
    """Histories whose items follow Zipf's law, in no order."""
    generator = np.random.default_rng(args.seed)
    ranks = np.exp(generator.random((rows, args.length + 1)) * np.log(args.items[0])).astype(int)
    shuffled = (ranks * 2_654_435_761) % args.items[0] + 1  # popular items lie anywhere
    ones = np.ones_like(shuffled, dtype=np.float32)
    columns = {"input_ids": list(shuffled), "input_weights": list(ones)}
    return Dataset.from_dict(columns | {"row": np.arange(rows)})


def measure(args: CatalogueArguments) -> dict:
    """Train on one catalogue and say what it took."""
    set_seed(args.seed)
    config = ImplicitRecConfig(
        vocab_size=args.items[0] + 1,
        hidden_size=args.hidden_size,
        max_position_embeddings=args.length,
        loss_type="sampled_softmax",
        num_negatives=args.num_negatives,
    )
    model = ImplicitRecForScoring(config)
    clock = Clock()
    steps, optimizer, callbacks = args.warmup + args.steps, None, [clock]
    if args.run == "row-wise":
        model.use_sparse_gradients()
        optimizer = (RowWiseAdamW, {"lr": 1e-3})
        callbacks.append(SettleCallback())
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-3,
            weight_decay=0.01,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(
            model=model,
            args=training,
            train_dataset=histories(args, steps * args.batch_size),
            data_collator=DataCollatorForNextItem(max_length=args.length),
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer,
        ).train()
    table, times = model.model.item_embedding.weight, np.diff(clock.moments[args.warmup - 1 :])
    return {"step_seconds": float(np.median(times)), "table_bytes": table.numel() * 4}


def run(args: CatalogueArguments, items: int, optimizer: str) -> dict:
    """One measurement in a process of its own."""
    options = asdict(args) | {"items": [items], "run": optimizer}
    options.pop("optimizers")
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "measured.json")
        command = [sys.executable, SCRIPTS / "measure_process.py", report, "{}"]
        command += [sys.executable, __file__, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(report.read_text())
    found = {"items": items, "optimizer": optimizer, "peak_bytes": measured["peak_bytes"]}
    if measured["exit_code"]:
        raise SystemExit(f"{optimizer} at {items:,} items ended with {measured['exit_code']}")
    return found | json.loads(done.stdout.splitlines()[-1])


def markdown(report: dict) -> str:
    """The page of the results."""
    runs, args = report["runs"], report["settings"]
    first = {r["optimizer"]: r["step_seconds"] for r in reversed(runs)}
    lines = [
        "# Training against the size of the catalogue",
        "",
        f"{report['machine']}. A step of Trainer on {args['batch_size']} histories of {args['length']} "
        f"events, hidden size {args['hidden_size']}, sampled softmax with {args['num_negatives']} "
        f"negatives; the median of {args['steps']} steps. `peak` is the process's largest resident "
        "memory, libraries included, as the operating system counted it; `beside the table` is what of "
        "it is not the item table, its moments (one row-wise, two dense) or a dense gradient.",
        "",
        "| items | optimizer | ms a step | times the smallest | events/s | peak GiB | beside the table |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for found in runs:
        tables = {"row-wise": 2, "dense": 4}[found["optimizer"]]
        rest = found["peak_bytes"] - tables * found["table_bytes"]
        events = args["batch_size"] * args["length"] / found["step_seconds"]
        cells = [f"{found['items']:,}", found["optimizer"], f"{1e3 * found['step_seconds']:.0f}"]
        cells += [f"{found['step_seconds'] / first[found['optimizer']]:.1f}", f"{events:,.0f}"]
        cells += [f"{size / 2**30:.2f}" for size in (found["peak_bytes"], rest)]
        lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return "\n".join([*lines, "", f"Measured with `{report['command']}`; {versions}."]) + "\n"


def main() -> None:
    (args,) = parse_arguments(CatalogueArguments)
    if args.run:
        print(json.dumps(measure(args)))
        return
    runs = []
    for items in args.items:
        for optimizer in args.optimizers:
            if optimizer == "row-wise" or items <= args.dense_items:
                runs.append(run(args, items, optimizer))
                print(runs[-1])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    report = {
        "machine": f"{os.cpu_count()} CPU cores, {memory:.0f} GiB RAM, "
        f"Python {platform.python_version()}, {torch.get_num_threads()} threads",
        "command": "python scripts/benchmark_catalogue.py",
        "versions": {name: version(name) for name in ("torch", "transformers", "implicitrec")},
        "settings": asdict(args),
        "runs": runs,
    }
    target = Path(args.output_dir)
    (target / "catalogue.json").write_text(json.dumps(report, indent=2) + "\n")
    (target / "catalogue.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
