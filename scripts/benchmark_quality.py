"""Ours beside every peer on one log, an equal time of training each: `python scripts/benchmark_quality.py
--recipe recipes/beauty`.

Trains each model for every seed in a process of its own and keeps its ranked lists in `work_dir`: a run
that is there is not made again. `report_quality.py` scores all lists alike and writes the table and plot.
Docs: `docs/benchmarks.md`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from peer_environments import peer_python
from peer_lists import LISTS, PARTS, export_splits, read_splits, write_lists
from peer_models import peer_models
from report_quality import write_report

from modeling_implicitrec import (
    ImplicitRecProcessor,
    fit_baselines,
    parse_arguments,
    rank_histories,
)

ROOT = Path(__file__).resolve().parents[1]
OURS = "implicitrec"
LONG = 40  # mean events of a training history from which a log is one of long histories
K = 20
ALWAYS = ("popularity", "cooccurrence", "item_knn", "als", "bpr", "ease")
TIMED = ("recent_popularity",)


@dataclass
class QualityArguments:
    """The log, who takes part and for how long."""

    recipe: Path = field(metadata={"help": "folder of the recipe"})
    data_dir: Path | None = field(
        default=None, metadata={"help": "prepared data, also of another split; else the recipe's"}
    )
    config: str = field(default="finetune.yaml", metadata={"help": "training YAML of the recipe"})
    models: list[str] = field(
        default_factory=list, metadata={"help": "names; empty: ours and all peers"}
    )
    minutes: float = field(default=5.0, metadata={"help": "training time of each model"})
    marks: list[float] = field(
        default_factory=lambda: [0.5, 1.0, 2.0, 3.0, 4.0, 5.0],
        metadata={"help": "minutes at which lists are written"},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    threads: int = field(default=2)
    peers_dir: Path = field(default=Path("outputs/peers"), metadata={"help": "environments"})
    work_dir: Path = field(default=Path("outputs/quality"), metadata={"help": "lists of all runs"})
    output_dir: Path = field(default=Path("docs/benchmarks"), metadata={"help": "the report"})


@dataclass(frozen=True)
class World:
    """One prepared log and how it is asked."""

    name: str
    data: Path
    folder: Path
    rows: dict
    processor: ImplicitRecProcessor
    train_split: str
    protocols: list[str]
    baselines: list


def read_world(args: QualityArguments) -> World:
    """The splits of the log, exported for the peers; questions and baselines are the recipe's."""
    training = yaml.safe_load((args.recipe / args.config).read_text())
    asked = yaml.safe_load((args.recipe / "evaluate.yaml").read_text())
    data = args.data_dir or Path(training["data_dir"])
    rows = read_splits(data / "sequences")
    processor = ImplicitRecProcessor.from_pretrained(data / "processor")
    train_split = "before_test" if training.get("refit") and "before_test" in rows else "train"
    folder = args.work_dir / f"{data.name}_{args.minutes:g}"  # lists of one budget of time
    export_splits(rows, folder / "splits", vocab_size=processor.vocab_size, train_split=train_split)
    has_time = "timestamps" in rows["train"].column_names
    names = [*ALWAYS, *(TIMED if has_time else ())]
    told = asked.get("baselines", [])
    given = {one if isinstance(one, str) else next(iter(one)) for one in told}
    baselines = [*told, *(name for name in names if name not in given)]
    protocols = asked.get("protocols", ["new"])
    return World(data.name, data, folder, rows, processor, train_split, protocols, baselines)


def jobs(args: QualityArguments, world: World) -> dict[str, dict]:
    """Name of each trained model to its runner's interpreter and settings."""
    lengths = world.rows[world.train_split]["length"]
    found = {OURS: {"peer": None, "settings": words(args, world), "source": str(args.recipe)}}
    found |= peer_models(long_histories=float(np.mean(lengths)) >= LONG)
    unknown = sorted(set(args.models) - set(found))
    if unknown:
        raise SystemExit(f"unknown models {unknown}; the known ones are {list(found)}")
    return {name: found[name] for name in args.models or found}


def words(args: QualityArguments, world: World) -> list[str]:
    """What `finetune.py` is told."""
    told = [str(args.recipe / args.config), "--data_dir", str(world.data), "--use_cpu", "true"]
    told += ["--output_dir", str(world.folder / "trainer")]
    return told if world.train_split == "before_test" else [*told, "--refit", "false"]


def run(args: QualityArguments, world: World, name: str, job: dict, seed: int) -> None:
    """Train one model in a process of its own, unless its lists are there."""
    output = world.folder / f"{name}_{seed}".replace(" ", "_")
    if (output / "run.json").exists():
        return
    settings = job["settings"]
    if job["peer"] is None:
        settings = [*settings, "--seed", str(seed)]
    told = {
        "data": str(world.folder / "splits"),
        "output": str(output),
        "settings": settings,
        "seconds": 60 * args.minutes,
        "marks": [60 * mark for mark in args.marks if mark <= args.minutes],
        "warmup": 5,
        "seed": seed,
        "threads": args.threads,
        "k": K,
        "parts": PARTS,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "job.json").write_text(json.dumps(told, indent=2))
    python = sys.executable if job["peer"] is None else peer_python(args.peers_dir, job["peer"])
    runner = ROOT / "scripts" / f"{job['peer'] or OURS}_runner.py"
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    print(f"{world.name}: {name}, seed {seed}", flush=True)
    subprocess.run(
        [str(python), str(runner), str(output / "job.json")], check=True, env=environment
    )


def rank_baselines(world: World) -> list[str]:
    """Lists of the untrained and linear models, which need no budget; their names."""
    names = []
    for told in world.baselines:
        (scorer,) = fit_baselines(
            [told],
            world.rows[world.train_split],
            world.processor.vocab_size,
            negative_event_type_ids=world.processor.negative_event_type_ids,
        )
        names.append(scorer.name)
        target = world.folder / scorer.name.replace(" ", "_") / "test.parquet"
        if target.exists():
            continue
        rows = world.rows["test"]
        write_lists(
            {
                LISTS[protocol]: rank_histories(
                    scorer.score, rows, k=K, seen=LISTS[protocol], progress=False
                )
                for protocol in world.protocols
            },
            target,
        )
    return names


def main() -> None:
    (args,) = parse_arguments(QualityArguments)
    world = read_world(args)
    chosen = jobs(args, world)
    baselines = rank_baselines(world)
    for seed in args.seeds:
        for name, job in chosen.items():
            run(args, world, name, job, seed)
    write_report(args, world, chosen, baselines)


if __name__ == "__main__":
    main()
