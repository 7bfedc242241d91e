"""What a calibration gains on the test part: `python scripts/measure_calibration.py`.

Reads the best checkpoint of each run that `benchmark_recipe.py` has made, as it was before any calibration,
ranks the test part with it, calibrates it on the validation part, and ranks the test part again. A run
whose halves say that a calibration does not help is left as it is, and counts with no difference. The
report goes to docs/results/calibration.json and .md.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from result_pages import opening, spread, table, write_page

from modeling_implicitrec import (
    ImplicitRecForScoring,
    ModelScorer,
    calibrate,
    evaluate,
    last_checkpoint,
    load_sequences,
    parse_arguments,
)

METRICS = ("ndcg@10", "hit_rate@10")


@dataclass
class CalibrationArguments:
    """Which runs to read, and where results go."""

    logs: list[str] = field(
        default_factory=lambda: ["beauty", "deskdrop", "movielens"],
        metadata={"help": "of recipes, whose runs are outputs/<log>_<seed>"},
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    data_dir: Path = field(default=Path("data"), metadata={"help": "folder of the prepared logs"})
    runs_dir: Path = field(default=Path("outputs"), metadata={"help": "folder of the runs"})
    output_dir: Path = field(default=Path("docs/results"))


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run that its validation part chose."""
    last = last_checkpoint(run)
    if last is None:
        raise SystemExit(f"no checkpoints in {run}: run scripts/benchmark_recipe.py first")
    state = json.loads((last / "trainer_state.json").read_text())
    return run / Path(state["best_model_checkpoint"]).name


def measure(args: CalibrationArguments, log: str, seed: int) -> dict:
    """One run before and after."""
    splits = load_sequences(args.data_dir / log / "sequences")
    model = ImplicitRecForScoring.from_pretrained(best_checkpoint(args.runs_dir / f"{log}_{seed}"))
    asked = {"num_items": model.config.vocab_size - 1}
    asked["seen"] = "exclude" if model.config.exclude_seen else "keep"
    before = evaluate(ModelScorer(model), splits["test"], **asked).metrics
    done = calibrate(model, splits["validation"], seed=seed)
    after = evaluate(ModelScorer(model), splits["test"], **asked).metrics
    return {
        "halves": [done.before, done.after],
        "kept": done.kept,
        "test": {name: [before[name], after[name]] for name in METRICS},
    }


def page(report: dict) -> list[str]:
    told = (
        "NDCG@10 and hit rate of the test part, and NDCG@10 of the halves of the validation part that "
        "were not fitted",
        "kept is how many seeds keep the calibration",
    )
    lines, rows = opening("Calibration", __doc__, report, told), []
    for log, runs in report["logs"].items():
        halves = list(zip(*(run["halves"] for run in runs)))
        kept = f"{sum(run['kept'] for run in runs)} of {len(runs)}"
        for place, name in enumerate(("as trained", "calibrated")):
            values = [[run["test"][metric][place] for run in runs] for metric in METRICS]
            cells = [spread(halves[place]), *map(spread, values)]
            rows.append([f"{log}, {name}", *cells, kept if place else ""])
    return lines + table(["log", "validation", "test NDCG@10", "test hit rate@10", "kept"], rows)


def main() -> None:
    (args,) = parse_arguments(CalibrationArguments)
    logs = ", ".join(args.logs)
    report = {
        "command": f"python scripts/measure_calibration.py --logs '[{logs}]' --seeds '{args.seeds}'",
        "training seeds": args.seeds,
        "logs": {log: [measure(args, log, seed) for seed in args.seeds] for log in args.logs},
    }
    write_page(args.output_dir / "calibration", report, page(report))


if __name__ == "__main__":
    main()
