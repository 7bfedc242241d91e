"""What the season is worth, and which: `python scripts/measure_season.py`.

Each recipe is trained without a season, on the part before the validation's, and asked what its
`evaluate.yaml` asks of the validation part, by which a season is chosen. Then everything is ranked again
with the season of each length, smoothing and power. Beside it stands what the training part alone tells of
its seasons (`season_evidence`), by which `prepare.py` turns one on. Runs are kept in `work_dir`, and one
that is there is not made again; the report goes to docs/results/season.json and .md.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
import yaml
from benchmark_recipe import ROOT, stem_of
from datasets import Dataset
from result_pages import TITLES, opening, signed, spread, table, write_page
from seed_runs import Log, difference, kept, ndcg

from modeling_implicitrec import (
    ModelScorer,
    check_season,
    load_checkpoint,
    parse_arguments,
    positive_events,
    season_evidence,
    season_gain,
)

BATCH = 256  # rows that are scored at a time


@dataclass
class SeasonArguments:
    """The recipes, whose logs are prepared with a temporal test, and the seasons to try."""

    recipes: list[str] = field(
        default_factory=lambda: [
            "recipes/online_retail/finetune.yaml",
            "recipes/complete_journey/demo.yaml",
        ],
        metadata={"help": "training YAMLs, beside an evaluate.yaml"},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    windows: list[float] = field(
        default_factory=lambda: [0.5, 1.0, 2.0], metadata={"help": "season by length of the test"}
    )
    smoothings: list[float] = field(default_factory=lambda: [10.0, 30.0, 100.0])
    powers: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0])
    work_dir: Path = field(default=Path("outputs/season"), metadata={"help": "results of runs"})
    output_dir: Path = field(default=Path("docs/results"))

    @property
    def grid(self) -> str:
        """What a file of these seasons is called."""
        numbers = (self.windows, self.smoothings, self.powers)
        return "_".join("-".join(f"{one:g}" for one in those) for those in numbers)


@dataclass(frozen=True)
class World:
    """A recipe, its log, the length of its test, and which questions it asks."""

    recipe: Path
    log: Log
    days: float
    protocols: list[str]

    @classmethod
    def read(cls, recipe: Path) -> "World":
        """What the recipe names."""
        data = ROOT / yaml.safe_load(recipe.read_text())["data_dir"]
        prepared = json.loads((data / "prepare.json").read_text())
        if prepared["split"] != "temporal":
            raise SystemExit(f"a season needs a temporal split, {data} is {prepared['split']}")
        asked = yaml.safe_load((recipe.parent / "evaluate.yaml").read_text())
        return cls(recipe, Log.read(data), prepared["test_days"], asked["protocols"])

    @property
    def name(self) -> str:
        return stem_of(self.recipe.parent.name, self.recipe.name)

    @property
    def taken(self) -> Dataset:
        """The training part, without events that are no interest."""
        negative = self.log.processor.negative_event_type_ids
        return positive_events(self.log.splits["train"], negative)


class RaisedScorer:
    """Scores that were kept, `[rows, vocab_size]` by the rows' `place`, and what a season adds to them."""

    name = "implicitrec"

    def __init__(self, scores: np.ndarray, gain: np.ndarray | None = None) -> None:
        self.scores, self.gain = scores, gain

    def score(self, rows: Sequence[dict]) -> np.ndarray:
        scores = self.scores[[row["place"] for row in rows]]
        return scores if self.gain is None else scores + self.gain


def train(world: World, seed: int, output: Path) -> None:
    """The recipe without a season, in a process of its own; a model that is there is not made again."""
    if (output / "training.json").exists():
        return
    options = f"--refit false --season_days 0 --seed {seed} --output_dir {output.resolve()}"
    command = [sys.executable, ROOT / "recipes" / "finetune.py", world.recipe, *options.split()]
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT)


def measure(args: SeasonArguments, world: World, seed: int) -> dict:
    """NDCG@10 by question: of each person without a season and with the package's own, and all means."""
    folder = args.work_dir / f"{world.name}_{seed}"
    train(world, seed, folder)
    model = load_checkpoint(folder)[0]
    taken, rows, size = world.taken, world.log.splits["validation"], model.config.vocab_size
    check_season(model, taken, days=world.days)
    starts, scorer = range(0, len(rows), BATCH), ModelScorer(model)
    parts = [scorer.score(rows.select(range(at, min(at + BATCH, len(rows))))) for at in starts]
    scores, rows = np.concatenate(parts), rows.add_column("place", list(range(len(rows))))
    own = season_gain(taken, size, days=world.days)
    found: dict = {}
    for protocol in world.protocols:
        ask = partial(ndcg, log=world.log, rows=rows, repeats=protocol == "all")
        found[protocol] = {
            "without": ask(RaisedScorer(scores)).round(6).tolist(),
            "own": ask(RaisedScorer(scores, own)).round(6).tolist(),
            "grid": {
                name: float(ask(RaisedScorer(scores, gain)).mean())
                for name, gain in seasons(args, world, taken, size)
            },
        }
    return found


def seasons(
    args: SeasonArguments, world: World, taken: Dataset, vocab_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Each season of the grid by its name, and what it adds to the scores."""
    for window, smoothing, power in product(args.windows, args.smoothings, args.powers):
        days = window * world.days
        gain = season_gain(taken, vocab_size, days=days, power=power, smoothing=smoothing)
        yield setting(days, smoothing, power), gain


def setting(days: float, smoothing: float, power: float) -> str:
    return f"{days:g} days, smoothing {smoothing:g}, power {power:g}"


def run_world(args: SeasonArguments, world: World) -> dict:
    """All seeds of a recipe, and what its log tells of its seasons."""
    runs = [
        kept(
            args.work_dir / f"{world.name}_{seed}_{args.grid}.json",
            partial(measure, args, world, seed),
        )
        for seed in args.seeds
    ]
    size = world.log.processor.vocab_size
    lengths = [window * world.days for window in args.windows]
    told = {f"{days:g}": season_evidence(world.taken, size, days=days) for days in lengths}
    return {
        "test days": world.days,
        "evidence": told,
        "questions": {name: summary([run[name] for run in runs]) for name in world.protocols},
    }


def summary(runs: list[dict]) -> dict:
    """Means by seed, and what the package's own season changes."""
    without, own = ([run[name] for run in runs] for name in ("without", "own"))
    return {
        "people": len(without[0]),
        "without": [mean(values) for values in without],
        "own": [mean(values) for values in own],
        "difference": difference(own, without),
        "grid": {name: [run["grid"][name] for run in runs] for name in runs[0]["grid"]},
    }


def question_lines(args: SeasonArguments, world: dict, found: dict) -> list[str]:
    """The table of one question, the best season in bold."""
    tried = {"none": found["without"], **found["grid"]}
    best = max(tried, key=lambda name: mean(tried[name]))
    shown = {name: spread(values) for name, values in tried.items()}
    shown[best] = f"**{shown[best]}**"
    rows = [["none", shown["none"], *[""] * (len(args.powers) - 1)]]
    for window, smoothing in product(args.windows, args.smoothings):
        days = window * world["test days"]
        names = [setting(days, smoothing, power) for power in args.powers]
        rows.append([f"{days:g} days, smoothing {smoothing:g}", *(shown[name] for name in names)])
    head = ["season", *(f"power {power:g}" for power in args.powers)]
    told = f"{found['people']:,} people. `fit_season` as it stands, {world['test days']:g} days: "
    told += f"{spread(found['own'])}, {signed(found['difference'])}."
    return [told, "", *table(head, rows), ""]


def page(args: SeasonArguments, report: dict) -> list[str]:
    told = "the difference from none is paired, ± standard error. The best of a table is bold."
    lines = opening("What is in season", __doc__, report, ("NDCG@10, validation part", told))
    heads = ["log", *(f"{window:g} × its test" for window in args.windows)]
    rows = [
        [name, *(f"{value:.3f} ({days} days)" for days, value in world["evidence"].items())]
        for name, world in report["logs"].items()
    ]
    lines += [
        "## What logs tell",
        "",
        "`season_evidence`, nats an event, by the season's length.",
        "",
    ]
    lines += [*table(heads, rows), ""]
    for name, world in report["logs"].items():
        for protocol, found in world["questions"].items():
            lines += [f"## {name}, {TITLES[protocol]}", "", *question_lines(args, world, found)]
    return lines


def main() -> None:
    (args,) = parse_arguments(SeasonArguments)
    worlds = [World.read(ROOT / recipe) for recipe in args.recipes]
    named = args.recipes != SeasonArguments().recipes
    chosen = f" --recipes '[{', '.join(args.recipes)}]'" if named else ""
    report = {
        "command": f"python scripts/measure_season.py{chosen}",
        "training seeds": args.seeds,
        "logs": {world.name: run_world(args, world) for world in worlds},
    }
    write_page(args.output_dir / "season", report, page(args, report))


if __name__ == "__main__":
    main()
