"""What EASE wants for a log, and who tells: `python scripts/measure_ease.py`.

For each prepared log, EASE learns the training part with everything that `prepare.py` tries and ranks the
validation part, items that are new to the person only: with every lambda and, where a test has days, also
with its last days counting more (`recent_days`). Bold is what the training part alone chose, with the share
of the best value that it keeps.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from result_pages import table, what_is_measured, write_page
from seed_runs import Log, ndcg

from modeling_implicitrec import (
    EASE,
    EaseSettings,
    choose_ease,
    ease_candidates,
    parse_arguments,
    positive_events,
)

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class EaseArguments:
    """The logs, which are prepared."""

    logs: list[str] = field(
        default_factory=lambda: ["online_retail", "complete_journey"],
        metadata={"help": "folders of data_dir"},
    )
    data_dir: Path = field(default=ROOT / "data", metadata={"help": "folder of prepared logs"})
    output_dir: Path = field(default=ROOT / "docs" / "results")


def measure(folder: Path) -> dict:
    """NDCG@10 by recent days and lambda, and what the training part chose of them."""
    log = Log.read(folder)
    size = log.processor.vocab_size
    prepared = json.loads((folder / "prepare.json").read_text())
    train = positive_events(log.splits["train"], log.processor.negative_event_type_ids)
    window = prepared["test_days"] if prepared["split"] == "temporal" else None
    values: dict[str, dict[str, float]] = {}
    for settings in ease_candidates(window):
        row, column = words(settings)
        scorer = EASE(train, size, **settings._asdict())
        found = float(ndcg(scorer, log, log.splits["validation"]).mean())
        values.setdefault(row, {})[column] = found
    chosen = choose_ease(train, size, window_days=window)
    return {
        "values": values,
        "chosen": words(chosen) if chosen else ["what follows the last items", ""],
    }


def named(days: float | None) -> str:
    return "all alike" if days is None else f"the last {days:g} more"


def words(settings: EaseSettings) -> list[str]:
    """How a report names settings: its row and its column."""
    return [named(settings.recent_days), f"{settings.regularization:g}"]


def page(report: dict) -> list[str]:
    rows = []
    for log, told in report["logs"].items():
        best = max(value for values in told["values"].values() for value in values.values())
        for days, values in told["values"].items():
            cells, kept = {name: f"{value:.4f}" for name, value in values.items()}, ""
            if days == told["chosen"][0]:
                name = told["chosen"][1]
                cells[name], kept = f"**{cells[name]}**", f"{values[name] / best:.0%}"
            rows.append([log, days, *cells.values(), kept])
    lambdas = next(iter(report["logs"].values()))["values"][named(None)]
    header = ["log", "days", *lambdas, "kept"]
    head = ["# What EASE wants for a log", "", what_is_measured(__doc__), ""]
    return [*head, f"`{report['command']}`; validation part, NDCG@10.", "", *table(header, rows)]


def main() -> None:
    (args,) = parse_arguments(EaseArguments)
    report = {
        "command": f"python scripts/measure_ease.py --logs '[{', '.join(args.logs)}]'",
        "logs": {log: measure(args.data_dir / log) for log in args.logs},
    }
    write_page(args.output_dir / "ease", report, page(report))


if __name__ == "__main__":
    main()
