"""Did it happen? `python scripts/measure_did_it_happen.py`: a held-out event against one that was not.

Each person of the test part gives a pair: one of their held-out items, and one item that is neither in
their history nor held out, drawn evenly over the catalogue or by popularity. *Accuracy* is the share of
pairs with the held-out item above the other (ties count half), *AUC* compares all held-out items with
all others, whoever's they are. *All* asks about any held-out item; where people buy things again, many
are in the history, and telling those from an unseen item is easy. *New* asks about the others alone.
Models are trained by the log's recipe, stopped after `max_steps`, and learn nothing of the test;
baselines learn from the same part. Pairs are drawn `draws` times for every seed of training. A
checkpoint that is in `work_dir` is not trained again; the report goes to
docs/results/did_it_happen.json and .md.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset
from result_pages import spread, table, what_is_measured, write_page
from seed_runs import Log, kept

from modeling_implicitrec import (
    ImplicitRecForScoring,
    ModelScorer,
    did_it_happen,
    fit_baselines,
    parse_arguments,
)

ROOT = Path(__file__).resolve().parents[1]
LOGS = {
    "complete_journey": "demo.yaml",
    "online_retail": "finetune.yaml",
    "movielens": "finetune.yaml",
}
BASELINES = ["popularity", "own_frequency", "cooccurrence", "item_knn"]
NEGATIVES = ("uniform", "popularity")
GOAL = 0.9


@dataclass
class HappenedArguments:
    """Which runs to make, and where results go."""

    logs: list[str] = field(default_factory=lambda: list(LOGS))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    max_steps: int = field(default=60, metadata={"help": "of training; -1: all of the recipe"})
    draws: int = field(default=5, metadata={"help": "of the pairs, for each seed"})
    work_dir: Path = field(default=Path("outputs/did_it_happen"))
    output_dir: Path = field(default=Path("docs/results"))


class Remembered:
    """The scores of a scorer for the rows of one part, made once."""

    def __init__(self, scorer, rows: Dataset) -> None:
        self.name = scorer.name
        starts = range(0, len(rows), 64)
        parts = [self._part(scorer, rows.select(range(s, min(s + 64, len(rows))))) for s in starts]
        self.scores = np.concatenate(parts)

    @staticmethod
    def _part(scorer, rows: Dataset) -> np.ndarray:
        return np.asarray(scorer.score(rows.to_list()), dtype=np.float32)

    def score(self, rows: Sequence[dict]) -> np.ndarray:
        return self.scores[[row["place"] for row in rows]]


def new_targets(rows: list[dict]) -> list[dict]:
    """The rows without the targets that repeat the history."""
    return [row | {"target_ids": np.setdiff1d(row["target_ids"], row["input_ids"])} for row in rows]


def ask(scorer: Remembered, rows: list[dict], counts: np.ndarray, seeds: Sequence[int]) -> dict:
    """AUC and accuracy by what is asked and how negatives are drawn, one value a draw."""
    found: dict = {}
    for asked, part in (("all", rows), ("new", new_targets(rows))):
        for negatives in NEGATIVES:
            told = [
                did_it_happen(
                    scorer,
                    part,
                    item_counts=counts,
                    generator=np.random.default_rng(seed),
                    negatives=negatives,
                )
                for seed in seeds
            ]
            found[f"{asked}, {negatives}"] = {
                name: [one[name] for one in told]
                for name in ("auc", "paired_accuracy", "num_pairs")
            }
    return found


def train(args: HappenedArguments, name: str, seed: int) -> Path:
    """The checkpoint of a recipe, trained by it in a process of its own where it is not there."""
    folder = args.work_dir / f"{name}_{args.max_steps}_{seed}"
    if not (folder / "training.json").exists():
        recipe = ROOT / "recipes" / name / LOGS[name]
        command = [ROOT / "recipes" / "finetune.py", recipe, "--output_dir", folder, "--seed", seed]
        command += ["--max_steps", args.max_steps, "--use_cpu", "true"]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    return folder


def numbers(args: HappenedArguments, seed: int) -> range:
    """Seeds of the draws that go with a seed of training."""
    return range(100 * seed, 100 * seed + args.draws)


def asked_log(name: str) -> tuple[Log, Dataset, Dataset, list[dict]]:
    """The log, what is learnt from, the test part, and its rows."""
    recipe = yaml.safe_load((ROOT / "recipes" / name / LOGS[name]).read_text())
    log = Log.read(Path(recipe["data_dir"]))
    test = log.splits["test"]
    columns = ["input_ids", "target_ids"]
    rows = [row | {"place": i} for i, row in enumerate(test.select_columns(columns).to_list())]
    return log, log.splits["before_test" if recipe.get("refit") else "train"], test, rows


def measure(args: HappenedArguments, name: str) -> Iterator[tuple[str, dict]]:
    """Every scorer's answers, those of all seeds together."""
    log, learnt, test, rows = asked_log(name)
    counts = log.processor.item_counts
    size, folder = log.processor.vocab_size, args.work_dir / f"{name}_{args.max_steps}"

    def of_model(seed: int) -> dict:
        model = ImplicitRecForScoring.from_pretrained(train(args, name, seed))
        return ask(Remembered(ModelScorer(model), test), rows, counts, numbers(args, seed))

    def of_baselines() -> dict:
        draws = [draw for seed in args.seeds for draw in numbers(args, seed)]
        fitted = fit_baselines(BASELINES, learnt, size)
        return {one.name: ask(Remembered(one, test), rows, counts, draws) for one in fitted}

    runs = [kept(folder / f"model_{s}.json", partial(of_model, s)) for s in args.seeds]
    joined = {
        question: {key: [float(np.mean(run[question][key])) for run in runs] for key in answers}
        for question, answers in runs[0].items()
    }
    yield "implicitrec", joined
    yield from kept(folder / "baselines.json", of_baselines).items()


def page(report: dict) -> list[str]:
    lines = ["# Did it happen?", ""]
    lines += [what_is_measured(__doc__, before=" A checkpoint"), ""]
    lines += [
        f"`{report['command']}`. Means, ± standard deviation over {len(report['training seeds'])} seeds"
    ]
    lines += ["for the model and over draws of pairs for the baselines, which have no seed.", ""]
    for name, scorers in report["logs"].items():
        lines += [f"## {name}", ""]
        for asked in ("all", "new"):
            pairs = np.mean(scorers["implicitrec"][f"{asked}, uniform"]["num_pairs"])
            lines += [f"{asked.title()} held-out items, {pairs:,.0f} pairs a draw:", ""]
            header = ["", "AUC, even", "accuracy, even", "AUC, popular", "accuracy, popular"]
            keys = [(f"{asked}, {n}", key) for n in NEGATIVES for key in ("auc", "paired_accuracy")]
            rows = [
                [scorer, *(spread(answers[kind][key]) for kind, key in keys)]
                for scorer, answers in scorers.items()
            ]
            lines += [*table(header, rows), ""]
    return lines + verdict(report)


def verdict(report: dict) -> list[str]:
    """Where the goal is reached, by the numbers."""
    lines = [
        f"The goal is an accuracy of {GOAL:.2f} with evenly drawn items, all held-out items:",
        "",
    ]
    for name, scorers in report["logs"].items():
        values = {n: np.mean(a["all, uniform"]["paired_accuracy"]) for n, a in scorers.items()}
        ours = values.pop("implicitrec")
        best = max(values, key=lambda other: values[other])
        reached = "reached" if ours >= GOAL else "missed"
        lines.append(
            f"- {name}: {reached}, {ours:.4f}; the best floor is {best}, {values[best]:.4f}."
        )
    return lines


def main() -> None:
    (args,) = parse_arguments(HappenedArguments)
    report = {
        "command": f"python scripts/measure_did_it_happen.py --max_steps {args.max_steps} "
        f"--logs '[{', '.join(args.logs)}]' --seeds '{args.seeds}'",
        "training seeds": args.seeds,
        "draws": args.draws,
        "logs": {name: dict(measure(args, name)) for name in args.logs},
    }
    write_page(args.output_dir / "did_it_happen", report, page(report))


if __name__ == "__main__":
    main()
