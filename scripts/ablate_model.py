"""Which ideas help? `python scripts/ablate_model.py`: one thing is switched at a time.

Every model differs from the base in one setting and is trained and asked alike, over seeds: articles with
repeats allowed, films among new items. A difference is paired, by people and seeds; its standard error has
the part of both. Models are small and train briefly (see the command), so numbers stand beside each other,
not beside the results of the recipes. Choices are made by the validation part. Runs are kept in `work_dir`,
and one that is there is not made again; the report goes to docs/results/ablation.json and .md.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from result_pages import opening, signed, spread, table, write_page
from seed_runs import Log, Schedule, difference, floors, kept, learn, ndcg, new_model

from modeling_implicitrec import ModelScorer, parse_arguments

BASE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "hidden_dropout_prob": 0.3,
    "num_cooccurrences": 64,
}
WORLDS = {
    "deskdrop": {"max_position_embeddings": 50, "copy_prior": True},
    "movielens": {
        "max_position_embeddings": 100,
        "exclude_seen": True,
        "cooccurrence_context": 10,
    },
}
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "no co-occurrence prior": {"num_cooccurrences": 0},
    "no copy prior": {"copy_prior": False},
    "no item bias": {"use_item_bias": False},
    "no priors, no bias": {"num_cooccurrences": 0, "copy_prior": False, "use_item_bias": False},
    "states not centred": {},
    "without times": {},
    "no dropout": {"hidden_dropout_prob": 0.0},
    "label smoothing .1": {"label_smoothing": 0.1},
    "item dropout .1": {"item_dropout_prob": 0.1},
    "gaps as input": {"use_gaps": True},
    "weight gate": {"use_weight_gate": True},
    "sampled softmax, 256": {"loss_type": "sampled_softmax"},
    "gBCE, 256": {"loss_type": "gbce"},
    "BCE, 256": {"loss_type": "bce"},
    "two blocks": {"num_hidden_layers": 2},
    "no blocks": {"num_hidden_layers": 0},
    "width 64": {"hidden_size": 64, "intermediate_size": 128},
}


@dataclass
class ModelAblationArguments:
    """Which runs to make, and where results go."""

    logs: list[str] = field(default_factory=lambda: list(WORLDS))
    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": "names in ARMS"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: float = field(default=3.0)
    data_dir: Path = field(default=Path("data"), metadata={"help": "folder of prepared logs"})
    work_dir: Path = field(default=Path("outputs/ablation"), metadata={"help": "results of runs"})
    output_dir: Path = field(default=Path("docs/results"))


def changes(name: str, arm: str) -> bool:
    """Whether an arm differs from the base on a log."""
    settings = BASE | WORLDS[name]
    off = {"copy_prior": False}
    return arm in ("base", "states not centred", "without times") or any(
        (off | settings).get(key) != value for key, value in ARMS[arm].items()
    )


def parts_of(log: Log, arm: str) -> DatasetDict:
    """The log as the arm reads it."""
    return log.splits.remove_columns("timestamps") if arm == "without times" else log.splits


def measure(scorer, log: Log, parts: DatasetDict, repeats: bool) -> dict[str, list[float]]:
    """NDCG@10 of each person, by part."""
    return {
        part: ndcg(scorer, log, parts[part], repeats=repeats).round(6).tolist()
        for part in ("validation", "test")
    }


def run(args: ModelAblationArguments, log: Log, name: str, arm: str, seed: int) -> dict:
    """Train one arm and measure it."""
    parts = parts_of(log, arm)
    model = new_model(log, parts["train"], seed, **BASE | WORLDS[name] | ARMS[arm])
    model.state_centre.fixed = arm == "states not centred"
    seconds = learn(model, parts["train"], seed, Schedule(args.epochs))
    repeats = bool(WORLDS[name].get("copy_prior"))
    found: dict[str, Any] = measure(ModelScorer(model), log, parts, repeats)
    return found | {"seconds": round(seconds, 2)}


def run_log(args: ModelAblationArguments, name: str) -> dict:
    """All arms of one log beside the base."""
    log, folder = Log.read(args.data_dir / name), args.work_dir / f"{name}_{args.epochs:g}"
    runs: dict[str, list[dict]] = {}
    for arm in [arm for arm in args.arms if changes(name, arm)]:
        runs[arm] = [
            kept(folder / f"{arm}_{seed}.json", partial(run, args, log, name, arm, seed))
            for seed in args.seeds
        ]
    repeats = bool(WORLDS[name].get("copy_prior"))
    baselines = {one.name: measure(one, log, log.splits, repeats) for one in floors(log)}
    return {
        "repeats": repeats,
        "people": len(runs["base"][0]["test"]),
        "arms": {arm: summary(found, runs["base"]) for arm, found in runs.items()},
        "floors": {
            name: {part: float(np.mean(values)) for part, values in found.items()}
            for name, found in baselines.items()
        },
    }


def summary(runs: list[dict], base: list[dict]) -> dict:
    """Means by seed, and the differences from the base."""
    found: dict = {"seconds": float(np.mean([one["seconds"] for one in runs]))}
    for part in ("validation", "test"):
        values = [[one[part] for one in those] for those in (runs, base)]
        found[part] = [float(np.mean(one)) for one in values[0]]
        found[f"{part} difference"] = difference(*values)
    return found


def verdict(found: dict) -> str:
    """What the validation part says of an arm: beyond twice its error, or not to be told."""
    gap = found["validation difference"]
    if abs(gap["mean"]) <= 2 * gap["error"]:
        return "no difference"
    return "better" if gap["mean"] > 0 else "worse"


def page(report: dict) -> list[str]:
    differences = (
        "differences from the base ± standard error. The last column is by the validation "
    )
    differences += "part: beyond twice the error, or not."
    lines = opening("Which ideas help", __doc__, report, ("NDCG@10", differences))
    for name, world in report["logs"].items():
        asked = "repeats allowed" if world["repeats"] else "new items only"
        lines += [f"## {name}", "", f"{world['people']:,} people, {asked}.", ""]
        header = ["model", "validation", "difference", "test", "difference", "CPU seconds", ""]
        rows = []
        for arm, found in world["arms"].items():
            cells = [arm]
            for part in ("validation", "test"):
                gap = "" if arm == "base" else signed(found[f"{part} difference"])
                cells += [spread(found[part]), gap]
            cells += [f"{found['seconds']:.0f}", "" if arm == "base" else verdict(found)]
            rows.append(cells)
        for floor, found in world["floors"].items():
            rows.append(
                [floor, f"{found['validation']:.4f}", "", f"{found['test']:.4f}", *[""] * 3]
            )
        lines += [*table(header, rows), ""]
    return lines


def main() -> None:
    (args,) = parse_arguments(ModelAblationArguments)
    report = {
        "command": f"python scripts/ablate_model.py --epochs {args.epochs:g}",
        "training seeds": args.seeds,
        "logs": {name: run_log(args, name) for name in args.logs},
    }
    write_page(args.output_dir / "ablation", report, page(report))


if __name__ == "__main__":
    main()
