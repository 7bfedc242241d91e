"""Train and test a recipe over several seeds: `python scripts/benchmark_recipe.py recipes/beauty`.

Runs `finetune.py` and `evaluate.py` for every seed (a seed that has its results is not run again), and
writes the means beside the baselines to `docs/results/<recipe>.json` and `.md`, their NDCG@10 into the
tables of `README.md` and `recipes/README.md`, and the first seed's model card to `model_cards/<recipe>.md`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import yaml
from result_pages import TITLES, cell, table

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("ndcg@10", "recall@10", "hit_rate@10", "mrr@10", "coverage@10")
BASELINES = ("popularity", "own frequency", "co-occurrence", "item kNN", "ALS", "EASE")
START, END = "<!-- results -->\n", "<!-- end of results -->"


def run_seed(recipe: Path, config: str, seed: int, output: Path) -> None:
    """Train and evaluate one seed in processes of their own."""
    python, recipes = sys.executable, ROOT / "recipes"
    train = [recipes / "finetune.py", recipe / config, "--seed", seed, "--output_dir", output]
    train += ["--license", "apache-2.0"]  # of the project's own checkpoints
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
        rows = [
            [model, *(cell(metrics[metric]) for metric in SHOWN)]
            for model, metrics in models.items()
        ]
        lines += [f"## {TITLES[protocol].capitalize()}", "", *table(["model", *SHOWN], rows), ""]
    return "\n".join(lines)


def readme_table(reports: dict[str, dict]) -> str:
    """NDCG@10 of every recipe that has been measured, a line for each of its questions."""
    lines = [
        "| recipe | question | implicitrec | best baseline | " + " | ".join(BASELINES) + " |",
        "|---|---|---:|---|" + "---:|" * len(BASELINES),
    ]
    for stem, report in sorted(reports.items()):
        for protocol, models in report["results"].items():
            cells = list(beside_best(models))
            for start in BASELINES:
                found = [name for name in models if name.startswith(start)]
                cells.append(cell(models[found[0]]["ndcg@10"]) if found else "")
            link = f"[{stem}](docs/results/{stem}.md)"
            question = f"{TITLES[protocol]}{told_when(stem, 'docs')}"
            lines.append(f"| {link} | {question} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def beside_best(models: dict) -> tuple[str, str]:
    """NDCG@10 of the model, which comes first, and of the best of the others, with its name."""
    model, *others = models
    best = max(others, key=lambda other: models[other]["ndcg@10"]["mean"])
    return cell(models[model]["ndcg@10"]), f"{cell(models[best]['ndcg@10'])}, {best}"


def recipe_index(reports: dict[str, dict]) -> str:
    """Every training recipe with its data, its checkpoint and its NDCG@10 beside the best baseline's."""
    lines = ["| recipe | data set | checkpoint | question | NDCG@10 | best baseline |"]
    lines.append("|---|---|---|---|---:|---|")
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        name, keys = path.parent.name, yaml.safe_load(path.read_text())
        if "output_dir" not in keys or "data_dir" not in keys:
            continue
        stem = stem_of(name, path.name)
        row = f"| [{name}/{path.name}]({name}/{path.name}) | [{name}]({name}/prepare.yaml) | "
        card = ROOT / "model_cards" / f"{stem}.md"
        row += f"[card](../model_cards/{card.name}) | " if card.exists() else "none yet | "
        if stem not in reports:
            lines.append(f"{row}| not measured | |")
            continue
        for protocol, models in reports[stem]["results"].items():
            question = f"{TITLES[protocol]}{told_when(stem, '../docs')}"
            lines.append(f"{row}{question} | {' | '.join(beside_best(models))} |")
    return "\n".join(lines) + "\n"


def told_when(stem: str, docs: str) -> str:
    """What a question adds where the model hears when it is asked: others do not stand beside it."""
    for path in (ROOT / "recipes").glob("*/*.yaml"):
        model = yaml.safe_load(path.read_text()).get("model")  # that of evaluate.yaml is a folder
        told = isinstance(model, dict) and model.get("use_query_time")
        if told and stem_of(path.parent.name, path.name) == stem:
            return f", [told when it is asked]({docs}/trend.md)"
    return ""


def stem_of(name: str, config: str) -> str:
    """What the results of a recipe's training YAML are called."""
    return name if config == "finetune.yaml" else f"{name}_{Path(config).stem}"


def with_results(readme: str, made: Callable[[dict], str] = readme_table) -> str:
    """A page with its table made anew from `docs/results`; that of recipes/README.md is `recipe_index`."""
    found = sorted((ROOT / "docs" / "results").glob("*.json"))
    reports = {path.stem: json.loads(path.read_text()) for path in found}
    # The folder also holds benchmarks of other kinds, which have no seeds.
    measured = {stem: report for stem, report in reports.items() if "seeds" in report}
    before, rest = readme.split(START)
    return before + START + made(measured) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path, help="folder of the recipe")
    parser.add_argument("--config", default="finetune.yaml", help="training YAML in that folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    name = args.recipe.name
    stem = stem_of(name, args.config)
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
    card = (ROOT / "outputs" / f"{stem}_{args.seeds[0]}" / "README.md").read_text()
    card = re.sub(r"\n!\[.*\]\(plots/.*\)\n", "", card)  # the plot lies in the checkpoint
    (cards / f"{stem}.md").write_text(card)
    for page, made in (
        (ROOT / "README.md", readme_table),
        (ROOT / "recipes/README.md", recipe_index),
    ):
        page.write_text(with_results(page.read_text(), made))
    print(markdown(stem, report))


if __name__ == "__main__":
    main()
