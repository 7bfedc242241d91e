"""What training costs by arithmetic, checked against steps that are run: `python scripts/training_cost.py`.

FLOPs are counted from the matrix products of a step, forward and backward; seconds are those of the
processor, so that other programs on the machine count little. The report goes to
`docs/results/training_cost.json` and `.md`; `docs/scale.md` explains it.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from report_quality import machine
from step_profile import FlopCounter

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    RowWiseAdamW,
    parse_arguments,
)

BATCH, NEGATIVES, STEPS = 32, 512, 3


@dataclass(frozen=True)
class Sizes:
    """A model, its catalogue and its histories."""

    hidden: int
    blocks: int
    length: int
    items: int

    @property
    def flops(self) -> dict[str, float]:
        """Of an event's forward and backward pass, three times the forward pass's two a number.

        A block has 4 hidden² numbers in attention's projections and 3 hidden × 2 hidden in its MLP;
        attention compares an event with all of the row's, in two products; the head compares it with the
        negatives.
        """
        parts = {"projections": 4 * self.hidden**2, "MLP": 6 * self.hidden**2}
        parts["attention"] = 2 * self.length * self.hidden
        found = {name: 6.0 * self.blocks * size for name, size in parts.items()}
        return found | {"head": 6.0 * NEGATIVES * self.hidden}

    @property
    def table_bytes(self) -> int:
        """The item table in float32 and its row-wise moments: one table and three numbers a row."""
        return 4 * self.items * (2 * self.hidden + 3)


CHECKED = (Sizes(32, 2, 50, 10_000), Sizes(64, 2, 50, 100_000), Sizes(128, 4, 100, 100_000))
PLANNED = {"a shop": Sizes(64, 2, 50, 100_000), "a video site": Sizes(128, 4, 200, 10_000_000)}
PLANNED |= {"the largest": Sizes(256, 8, 512, 100_000_000)}


@dataclass
class CostArguments:
    """What a plan's chip does."""

    chip_flops: float = field(
        default=1e14,
        metadata={"help": "FLOP/s that a chip reaches in training; a guess to plan with"},
    )
    output_dir: Path = field(default=Path("docs/results"), metadata={"help": "the report"})


def build(sizes: Sizes) -> tuple[ImplicitRecForScoring, RowWiseAdamW]:
    config = ImplicitRecConfig(
        vocab_size=sizes.items + 1,
        hidden_size=sizes.hidden,
        intermediate_size=2 * sizes.hidden,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=2,
        max_position_embeddings=sizes.length,
        hidden_dropout_prob=0.0,
        loss_type="sampled_softmax",
        num_negatives=NEGATIVES,
    )
    model = ImplicitRecForScoring(config).train()
    model.use_sparse_gradients()
    return model, RowWiseAdamW(model.parameters(), lr=1e-3)


def product_seconds(size: int = 1024, times: int = 8) -> float:
    """Processor seconds of one FLOP in large matrix products."""
    left = torch.randn(size, size)
    left @ left
    start = time.process_time()
    for _ in range(times):
        left @ left
    return (time.process_time() - start) / (times * 2 * size**3)


def measure(sizes: Sizes) -> dict:
    """FLOPs, processor seconds and bytes of the state, an event each or in all."""
    model, optimizer = build(sizes)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, sizes.items, (BATCH, sizes.length + 1), generator=generator)
    events = BATCH * sizes.length

    def step() -> None:
        optimizer.zero_grad()
        model(ids[:, :-1], labels=ids[:, 1:]).loss.backward()
        optimizer.step()

    step()
    with FlopCounter() as counter:
        step()
    start = time.process_time()
    for _ in range(STEPS):
        step()
    seconds = (time.process_time() - start) / STEPS
    table = model.item_table()
    state = optimizer.state[table]
    tensors = [table, *(value for value in state.values() if value.dim())]
    return {
        "counted FLOPs": counter.total / events,
        "seconds": seconds / events,
        "table bytes": sum(value.numel() * value.element_size() for value in tensors),
    }


def compare() -> list[dict]:
    """The model beside what was measured."""
    rows = []
    for sizes in CHECKED:
        found = measure(sizes)
        rate = product_seconds()
        flops = sum(sizes.flops.values())
        found |= {"sizes": vars(sizes), "FLOPs": flops, "bytes": sizes.table_bytes}
        found["share of the limit"] = rate * found["counted FLOPs"] / found["seconds"]
        rows.append(found)
        print(found, flush=True)
    return rows


def markdown(report: dict) -> str:
    """The page of the results."""
    lines = ["# What training costs", "", f"`{report['command']}`", "", f"{report['machine']}.", ""]
    lines += [
        f"## Checked here: batches of {BATCH} full rows, {NEGATIVES} negatives, float32",
        "",
        "| hidden, blocks, length, items | FLOPs an event, model | counted | table and moments, model "
        "| held | processor seconds per million events | share of the matrix-product limit |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["checked"]:
        name = ", ".join(f"{value:,}" for value in row["sizes"].values())
        cells = [name, f"{row['FLOPs']:,.0f}", f"{row['counted FLOPs']:,.0f}"]
        cells += [f"{row['bytes'] / 2**20:,.1f} MiB", f"{row['table bytes'] / 2**20:,.1f} MiB"]
        cells += [f"{row['seconds'] * 1e6:,.0f}", f"{row['share of the limit']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    chip = report["chip FLOP/s"]
    lines += [
        "",
        f"## Planned: a chip that reaches {chip:.0e} FLOP/s",
        "",
        "Arithmetic only; none of it was run.",
        "",
        "| size | hidden, blocks, length, items | FLOPs an event | chip seconds per billion events "
        "| table and moments |",
        "|---|---|---:|---:|---:|",
    ]
    for name, sizes in PLANNED.items():
        flops = sum(sizes.flops.values())
        cells = [name, ", ".join(f"{value:,}" for value in vars(sizes).values())]
        cells += [f"{flops:,.0f}", f"{flops * 1e9 / chip:,.0f}"]
        cells.append(f"{sizes.table_bytes / 2**30:,.2f} GiB")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = parse_arguments(CostArguments)
    torch.set_num_threads(1)
    report = {
        "command": " ".join(["python scripts/training_cost.py", *sys.argv[1:]]),
        "machine": machine(1),
        "chip FLOP/s": args.chip_flops,
        "checked": compare(),
    }
    target = args.output_dir / "training_cost.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
