"""What EASE wants for a log, and who tells: `python scripts/measure_ease.py`.

For each prepared log, EASE learns the training part with every lambda that `prepare.py` tries and ranks the
validation part, items that are new to the person only. The lambda that the training part alone chose stands
beside, with the share of the best value that it keeps. Where a test has days, EASE then learns with that
lambda and with what the last days had counted more, `recent_days`, whether or not the training part chose it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from result_pages import table, what_is_measured, write_page
from seed_runs import Log, ndcg

from modeling_implicitrec import (
    EASE,
    choose_recent_days,
    choose_regularization,
    parse_arguments,
    positive_events,
)

ROOT = Path(__file__).resolve().parents[1]
LAMBDAS = (30.0, 100.0, 300.0, 1000.0)  # those of prepare.py
RECENT_WINDOWS = 1.5  # as well


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
    """NDCG@10 by lambda and by recent days, and what the training part chose of each."""
    log = Log.read(folder)
    splits, size = log.splits, log.processor.vocab_size
    prepared = json.loads((folder / "prepare.json").read_text())
    train = positive_events(splits["train"], log.processor.negative_event_type_ids)
    window = prepared["test_days"] if prepared["split"] == "temporal" else None

    def found(value: float, days: float | None = None) -> float:
        scorer = EASE(train, size, regularization=value, recent_days=days)
        return float(ndcg(scorer, log, splits["validation"]).mean())

    values = {f"{value:g}": found(value) for value in LAMBDAS}
    chosen = choose_regularization(train, size, window_days=window, candidates=LAMBDAS)
    told = {"values": values, "chosen": f"{chosen:g}"}
    if window is None:
        return told
    days = RECENT_WINDOWS * window
    recent = choose_recent_days(train, size, window_days=window, regularization=chosen)
    by_days = {"0": values[f"{chosen:g}"], f"{days:g}": found(chosen, days)}
    return told | {"by recent days": by_days, "recent days": f"{recent:g}"}


def kept(values: dict[str, float], chosen: str) -> str:
    return f"{values[chosen] / max(values.values()):.0%}"


def page(report: dict) -> list[str]:
    logs = report["logs"]
    header = ["log", *(f"{value:g}" for value in LAMBDAS), "chosen", "kept"]
    rows = []
    for log, told in logs.items():
        values, chosen = told["values"], told["chosen"]
        cells = [f"{value:.4f}" for value in values.values()]
        rows.append([log, *cells, chosen, kept(values, chosen)])
    lines = ["# What EASE wants for a log", "", what_is_measured(__doc__), ""]
    lines += [f"`{report['command']}`; validation part, NDCG@10.", ""]
    lines += ["## Lambda", "", *table(header, rows)]
    days = {log: told["by recent days"] for log, told in logs.items() if "recent days" in told}
    if not days:
        return lines
    rows = []
    for log, values in days.items():
        chosen, (_, length) = logs[log]["recent days"], values
        cells = [f"{value:.4f}" for value in values.values()]
        rows.append([log, *cells, f"{length} days", chosen, kept(values, chosen)])
    header = ["log", "all days alike", "recent days more", "which are", "chosen", "kept"]
    return [*lines, "", "## Recent days", "", *table(header, rows)]


def main() -> None:
    (args,) = parse_arguments(EaseArguments)
    report = {
        "command": f"python scripts/measure_ease.py --logs '[{', '.join(args.logs)}]'",
        "logs": {log: measure(args.data_dir / log) for log in args.logs},
    }
    write_page(args.output_dir / "ease", report, page(report))


if __name__ == "__main__":
    main()
