"""Train and test a recipe over several seeds: `python scripts/benchmark_recipe.py recipes/beauty`.

Runs `finetune.py` and `evaluate.py` for every seed (a seed that has its results is not run again), and
writes the means beside the baselines to `docs/results/<recipe>.json` and `.md`, their NDCG@10 into the
table of `README.md`, and the first seed's model card to `model_cards/<recipe>.md`.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("ndcg@10", "recall@10", "hit_rate@10", "mrr@10", "coverage@10")
TITLES = {"all": "repeats allowed", "new": "new items only"}
BASELINES = ("popularity", "own frequency", "co-occurrence", "item kNN", "ALS", "EASE")
START, END = "<!-- results -->\n", "<!-- end of results -->"


def run_seed(recipe: Path, config: str, seed: int, output: Path) -> None:
    """Train and evaluate one seed in processes of their own."""
    python, recipes = sys.executable, ROOT / "recipes"
    train = [recipes / "finetune.py", recipe / config, "--seed", seed, "--output_dir", output]
    test = [recipes / "evaluate.py", recipe / "evaluate.yaml", "--model", output]
    for command in (train, test):
        subprocess.run([python, *map(str, command)], check=True, cwd=ROOT)


def summarise(runs: list[dict]) -> dict:
    """Mean and standard deviation over seeds of every metric of every model."""
    table: dict = {}
    for protocol, models in runs[0].items():
        table[protocol] = {}
        for name in models:
            found = {
                metric: [run[protocol][name]["metrics"][metric] for run in runs] for metric in SHOWN
            }
            table[protocol][name] = {
                metric: {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0}
                for metric, values in found.items()
            }
    return table


def markdown(name: str, report: dict) -> str:
    lines = [f"# {name}", "", f"`{report['command']}`, seeds {report['seeds']}, test part."]
    lines += [f"{report['machine']}.", ""]
    for protocol, models in report["results"].items():
        lines += [
            f"## {TITLES[protocol].capitalize()}",
            "",
            "| model | " + " | ".join(SHOWN) + " |",
        ]
        lines.append("|---|" + "---:|" * len(SHOWN))
        for model, metrics in models.items():
            cells = [cell(metrics[metric]) for metric in SHOWN]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def cell(value: dict) -> str:
    spread = f" ± {value['std']:.4f}" if value["std"] else ""
    return f"{value['mean']:.4f}{spread}"


def readme_table(reports: dict[str, dict]) -> str:
    """NDCG@10 of every recipe that has been measured, a line for each of its questions."""
    names = ("implicitrec", *BASELINES)
    lines = [
        "| recipe | question | " + " | ".join(names) + " |",
        "|---|---|" + "---:|" * len(names),
    ]
    for stem, report in sorted(reports.items()):
        for protocol, models in report["results"].items():
            cells = []
            for start in names:
                found = [name for name in models if name.startswith(start)]
                cells.append(cell(models[found[0]]["ndcg@10"]) if found else "")
            link = f"[{stem}](docs/results/{stem}.md)"
            lines.append(f"| {link} | {TITLES[protocol]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_results(readme: str) -> str:
    """The text of README.md with its table made anew from `docs/results`."""
    found = sorted((ROOT / "docs" / "results").glob("*.json"))
    reports = {path.stem: json.loads(path.read_text()) for path in found}
    table = readme_table({name: report for name, report in reports.items() if "results" in report})
    before, rest = readme.split(START)
    return before + START + table + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="folder of the recipe")
    parser.add_argument("--config", default="finetune.yaml", help="training YAML in that folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    name = args.recipe.name
    stem = name if args.config == "finetune.yaml" else f"{name}_{Path(args.config).stem}"
    runs, seconds = [], []
    for seed in args.seeds:
        output = ROOT / "outputs" / f"{stem}_{seed}"
        if not (output / "results_test.json").exists():
            run_seed(args.recipe, args.config, seed, output)
        runs.append(json.loads((output / "results_test.json").read_text()))
        seconds.append(json.loads((output / "training.json").read_text())["seconds"])
    config = "" if args.config == "finetune.yaml" else f" --config {args.config}"
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    report = {
        "command": f"python scripts/benchmark_recipe.py recipes/{name}{config}",
        "seeds": args.seeds,
        "machine": f"{os.cpu_count()} CPU cores, {threads} threads, Python {platform.python_version()}",
        "training seconds": seconds,
        "results": summarise(runs),
    }
    target = ROOT / "docs" / "results"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (target / f"{stem}.md").write_text(markdown(stem, report))
    cards = ROOT / "model_cards"
    cards.mkdir(exist_ok=True)
    shutil.copyfile(
        ROOT / "outputs" / f"{stem}_{args.seeds[0]}" / "README.md", cards / f"{stem}.md"
    )
    readme = ROOT / "README.md"
    readme.write_text(with_results(readme.read_text()))
    print(markdown(stem, report))


if __name__ == "__main__":
    main()
