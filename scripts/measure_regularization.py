"""Which lambda EASE wants, and who tells: `python scripts/measure_regularization.py`.

For each prepared log, EASE learns the training part with every lambda that `prepare.py` tries and ranks the
validation part, items that are new to the person only. The lambda that the training part alone chose stands
beside, with the share of the best value that it keeps.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from result_pages import table, what_is_measured, write_page
from seed_runs import Log, ndcg

from modeling_implicitrec import (
    EASE,
    choose_regularization,
    parse_arguments,
    positive_events,
)

ROOT = Path(__file__).resolve().parents[1]
LAMBDAS = (30.0, 100.0, 300.0, 1000.0)  # those of prepare.py


@dataclass
class RegularizationArguments:
    """The logs, which are prepared."""

    logs: list[str] = field(
        default_factory=lambda: ["online_retail", "complete_journey"],
        metadata={"help": "folders of data_dir"},
    )
    data_dir: Path = field(default=ROOT / "data", metadata={"help": "folder of prepared logs"})
    output_dir: Path = field(default=ROOT / "docs" / "results")


def measure(folder: Path) -> dict:
    """NDCG@10 by lambda, and the lambda that the training part chose."""
    log = Log.read(folder)
    splits, processor = log.splits, log.processor
    prepared = json.loads((folder / "prepare.json").read_text())
    train = positive_events(splits["train"], processor.negative_event_type_ids)
    window = prepared["test_days"] if prepared["split"] == "temporal" else None
    found, size = {}, processor.vocab_size
    for value in LAMBDAS:
        scorer = EASE(train, size, regularization=value)
        found[f"{value:g}"] = float(ndcg(scorer, log, splits["validation"]).mean())
    chosen = choose_regularization(train, size, window_days=window, candidates=LAMBDAS)
    return {"values": found, "chosen": f"{chosen:g}"}


def page(report: dict) -> list[str]:
    header = ["log", *(f"{value:g}" for value in LAMBDAS), "chosen", "kept"]
    rows = []
    for log, told in report["logs"].items():
        values, chosen = told["values"], told["chosen"]
        cells = [f"{value:.4f}" for value in values.values()]
        rows.append([log, *cells, chosen, f"{values[chosen] / max(values.values()):.0%}"])
    head = ["# The regularisation of EASE", "", what_is_measured(__doc__), ""]
    return [*head, f"`{report['command']}`; validation part, NDCG@10.", "", *table(header, rows)]


def main() -> None:
    (args,) = parse_arguments(RegularizationArguments)
    report = {
        "command": f"python scripts/measure_regularization.py --logs '[{', '.join(args.logs)}]'",
        "logs": {log: measure(args.data_dir / log) for log in args.logs},
    }
    write_page(args.output_dir / "regularization", report, page(report))


if __name__ == "__main__":
    main()
