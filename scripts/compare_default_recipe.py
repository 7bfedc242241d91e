"""The recipe that prepare.py writes beside the tuned one: `python scripts/compare_default_recipe.py`.

Trains `<data_dir>/<log>/finetune.yaml` for every seed, a run that has its results not again, asks it what
`recipes/<log>/evaluate.yaml` asks, and puts the NDCG@10 beside that of docs/results/<log>.json. Writes
docs/results/default_recipe.json and .md.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import yaml
from benchmark_recipe import ROOT, summarise
from result_pages import TITLES, cell, table, write_page

from modeling_implicitrec import parse_arguments

MEASURE = "ndcg@10"


@dataclass
class DefaultArguments:
    """The logs, which are prepared, and the seeds."""

    logs: list[str] = field(default_factory=lambda: ["beauty", "deskdrop", "movielens"])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    data_dir: Path = field(default=ROOT / "data", metadata={"help": "folder of prepared logs"})
    work_dir: Path = field(default=ROOT / "outputs" / "default", metadata={"help": "checkpoints"})
    output_dir: Path = field(default=ROOT / "docs" / "results")


def run(args: DefaultArguments, log: str, seed: int) -> dict:
    """Train and evaluate one seed in processes of their own; what was found."""
    output = args.work_dir / f"{log}_{seed}"
    recipe, asked = args.data_dir / log / "finetune.yaml", ROOT / "recipes" / log / "evaluate.yaml"
    train = ["finetune.py", recipe, "--seed", seed, "--output_dir", output]
    tuned = yaml.safe_load((ROOT / "recipes" / log / "finetune.yaml").read_text())
    train += ["--refit", str(tuned.get("refit", False)).lower()]  # both learn from the same part
    test = ["evaluate.py", asked, "--model", output, "--baselines", "[]"]
    if not (output / "results_test.json").exists():
        for script, *words in (train, test):
            command = [sys.executable, ROOT / "recipes" / script, *words]
            subprocess.run([str(word) for word in command], check=True, cwd=ROOT)
    return json.loads((output / "results_test.json").read_text())


def compare(args: DefaultArguments, log: str) -> dict[str, dict]:
    """Both recipes by question, and the difference as a share of the tuned one's."""
    tuned = json.loads((args.output_dir / f"{log}.json").read_text())["results"]
    own = summarise([run(args, log, seed) for seed in args.seeds])
    found = {}
    for protocol, models in own.items():
        values = [models["implicitrec"][MEASURE], tuned[protocol]["implicitrec"][MEASURE]]
        share = values[0]["mean"] / values[1]["mean"] - 1
        found[protocol] = {"default": values[0], "tuned": values[1], "difference": share}
    return found


def page(report: dict) -> list[str]:
    header = ["log", "question", "written by prepare.py", "tuned by hand", "difference"]
    rows = [
        [log, TITLES[protocol], *(cell(found[name]) for name in ("default", "tuned"))]
        + [f"{found['difference']:+.1%}"]
        for log, questions in report["logs"].items()
        for protocol, found in questions.items()
    ]
    gaps = [found["difference"] for one in report["logs"].values() for found in one.values()]
    told = f"NDCG@10, mean ± standard deviation; {mean(gaps):+.1%} on average."
    how = f"`{report['command']}`, test part, seeds {report['training seeds']}."
    return ["# The recipe that is written for a log", "", how, "", *table(header, rows), "", told]


def main() -> None:
    (args,) = parse_arguments(DefaultArguments)
    report = {
        "command": f"python scripts/compare_default_recipe.py --logs '[{', '.join(args.logs)}]'",
        "training seeds": args.seeds,
        "logs": {log: compare(args, log) for log in args.logs},
    }
    write_page(args.output_dir / "default_recipe", report, page(report))


if __name__ == "__main__":
    main()
