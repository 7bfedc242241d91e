"""Short and long histories in one step: `python scripts/measure_batches.py`.

Each recipe is trained as it stands but for how the rows of a step are put together: one batch of histories
of like length, or several, from short ones to long ones, that the step accumulates. Rows a step, steps and
all else are the same. The table has the best validation NDCG@10 of a run, and the processor's seconds that
training took. Runs are kept in `work_dir`, and one that is there is not made again; the report goes to
docs/results/batches.json and .md.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean

import yaml
from result_pages import opening, spread, table, write_page
from seed_runs import kept

from modeling_implicitrec import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
READ = ("best validation NDCG@10", "CPU seconds")


@dataclass
class BatchesArguments:
    """Which runs to make, and where results go."""

    recipes: list[Path] = field(metadata={"help": "YAML files of finetune.py"})
    batches: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "of a step"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    work_dir: Path = field(default=Path("outputs/batches"), metadata={"help": "results of runs"})
    output_dir: Path = field(default=Path("docs/results"))


def train(recipe: Path, batches: int, seed: int, output_dir: Path) -> dict:
    """What a run says of itself, trained in a process of its own."""
    own = yaml.safe_load(recipe.read_text())
    step = own["per_device_train_batch_size"] * own.get("gradient_accumulation_steps", 1)
    if step % batches:
        raise SystemExit(f"{recipe}: {step} rows a step are not to be cut into {batches} batches")
    options = {"output_dir": output_dir, "seed": seed, "use_cpu": "true", "refit": "false"}
    options |= {"per_device_train_batch_size": step // batches}
    options |= {"gradient_accumulation_steps": batches}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    script = str(ROOT / "recipes" / "finetune.py")
    subprocess.run([sys.executable, script, str(recipe), *words], check=True)
    made = json.loads((output_dir / "training.json").read_text())
    return {name: made[name] for name in READ}


def name_of(recipe: Path) -> str:
    return recipe.parent.name


def measure(args: BatchesArguments) -> dict:
    """By recipe and number of batches, the two numbers of every seed."""
    found: dict = {}
    for recipe in args.recipes:
        for batches in args.batches:
            folders = [args.work_dir / f"{name_of(recipe)}_{batches}_{seed}" for seed in args.seeds]
            runs = [
                kept(folder.with_suffix(".json"), partial(train, recipe, batches, seed, folder))
                for seed, folder in zip(args.seeds, folders)
            ]
            arm = {name: [run[name] for run in runs] for name in READ}
            found.setdefault(name_of(recipe), {})[batches] = arm
    return found


def page(report: dict) -> list[str]:
    told = ("validation part", "the difference is from the mean of one batch a step")
    lines = opening("Batches of a step", __doc__, report, told)
    rows = []
    for log, arms in report["logs"].items():
        first = mean(next(iter(arms.values()))[READ[0]])
        for batches, arm in arms.items():
            gap = f"{mean(arm[READ[0]]) / first - 1:+.1%}"
            rows.append([log, str(batches), spread(arm[READ[0]]), gap, f"{mean(arm[READ[1]]):.0f}"])
    header = ["log", "batches a step", "NDCG@10", "difference", "CPU seconds"]
    return lines + table(header, rows)


def main() -> None:
    (args,) = parse_arguments(BatchesArguments)
    recipes = ", ".join(str(recipe) for recipe in args.recipes)
    report = {
        "command": f"python scripts/measure_batches.py --recipes '[{recipes}]' "
        f"--batches '{args.batches}' --seeds '{args.seeds}'",
        "training seeds": args.seeds,
        "logs": measure(args),
    }
    write_page(args.output_dir / "batches", report, page(report))


if __name__ == "__main__":
    main()
