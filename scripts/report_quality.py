"""Scores the ranked lists of `benchmark_quality.py` and writes its table, plot and JSON."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from peer_lists import LISTS, read_lists, score_lists
from result_pages import TITLES, cell

from modeling_implicitrec import paired_bootstrap

OURS = "implicitrec"
SHOWN = ("ndcg@10", "hit_rate@10", "recall@10")
MEASURE = "ndcg@10"
DOCS = Path(__file__).resolve().parents[1] / "docs"


def read_curve(folder: Path, rows, protocol: str, part: str) -> list[dict]:
    """Seconds of training and every user's metrics at each mark of a run."""
    done = json.loads((folder / "run.json").read_text())
    return [
        {
            "seconds": point["seconds"],
            "metrics": score_lists(
                read_lists(folder / f"{part}_{point['mark']:g}.parquet", LISTS[protocol]),
                rows,
                protocol,
            ),
        }
        for point in done["written"]
    ]


def chosen_mark(curve: list[dict] | None) -> int:
    """The mark whose validation NDCG is best; the last one where validation was learnt from."""
    if curve is None:
        return -1
    return int(np.argmax([point["metrics"][MEASURE].mean() for point in curve]))


def summarise_model(folders: list[Path], world, protocol: str) -> dict:
    """One trained model over its seeds: metrics at the chosen mark, and the test curve."""
    curves, finals = [], []
    for folder in folders:
        tested = read_curve(folder, world.rows["test"], protocol, "test")
        judge = None
        if world.train_split == "train":
            judge = read_curve(folder, world.rows["validation"], protocol, "validation")
        curves.append(tested)
        finals.append(tested[chosen_mark(judge)])
    marks = min(len(curve) for curve in curves)
    line = [
        [
            mean(curve[i]["seconds"] for curve in curves),
            mean(float(curve[i]["metrics"][MEASURE].mean()) for curve in curves),
        ]
        for i in range(marks)
    ]
    return {
        "metrics": {name: spread([f["metrics"][name].mean() for f in finals]) for name in SHOWN},
        "seconds": mean(final["seconds"] for final in finals),
        "curve": line,
        "users": np.mean([final["metrics"][MEASURE] for final in finals], axis=0),
    }


def summarise_baseline(folder: Path, world, protocol: str) -> dict:
    """One model without a budget."""
    ranked = read_lists(folder / "test.parquet", LISTS[protocol])
    found = score_lists(ranked, world.rows["test"], protocol)
    return {
        "metrics": {name: spread([found[name].mean()]) for name in SHOWN},
        "users": found[MEASURE],
    }


def spread(values: list) -> dict[str, float]:
    return {
        "mean": float(mean(values)),
        "std": float(stdev(values)) if len(values) > 1 else 0.0,
    }


def against_best(models: dict[str, dict]) -> dict | None:
    """Ours minus the best of the others, over users, with a 95 % interval of the bootstrap."""
    others = {name: model for name, model in models.items() if name != OURS}
    if OURS not in models or not others:
        return None
    best = max(others, key=lambda name: others[name]["metrics"][MEASURE]["mean"])
    gap, low, high = paired_bootstrap(
        models[OURS]["users"], others[best]["users"], generator=np.random.default_rng(0)
    )
    relative = gap / others[best]["metrics"][MEASURE]["mean"]
    return {"best of the others": best, "mean": gap, "interval": [low, high], "relative": relative}


def machine(threads: int) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} CPU cores, {threads} threads, {memory:.0f} GiB RAM, "
        f"Python {platform.python_version()}"
    )


def markdown(report: dict, folder: Path) -> str:
    """The page of one log, in a folder of the docs."""
    log, explained = report["log"], os.path.relpath(DOCS / "benchmarks.md", folder)
    lines = [f"# Quality on {log}", "", f"`{report['command']}`", ""]
    lines += [
        f"{report['minutes']:g} minutes of training each, seeds {report['seeds']}, test part, "
        f"learnt from `{report['train_split']}`. {report['machine']}.",
        f"What the columns mean: [the benchmarks]({explained}).",
        "",
    ]
    for protocol, models in report["results"].items():
        lines += [f"## {TITLES[protocol].capitalize()}", ""]
        lines.append("| model | " + " | ".join(SHOWN) + " | seconds |")
        lines.append("|---|" + "---:|" * (len(SHOWN) + 1))
        ranked = sorted(models.items(), key=lambda pair: -pair[1]["metrics"][MEASURE]["mean"])
        for name, model in ranked:
            cells = [cell(model["metrics"][metric]) for metric in SHOWN]
            seconds = f"{model['seconds']:.0f}" if "seconds" in model else ""
            lines.append(f"| {name} | " + " | ".join([*cells, seconds]) + " |")
        gap = report["differences"][protocol]
        if gap:
            low, high = gap["interval"]
            lines += [
                "",
                f"Ours minus {gap['best of the others']}: {gap['mean']:+.4f} "
                f"(95 % of the bootstrap over users {low:+.4f} to {high:+.4f}), "
                f"{100 * gap['relative']:+.1f} %.",
            ]
        lines += ["", *curve_table(models), ""]
    lines += [f"![NDCG@10 against seconds of training]({log}.svg)", "", "## Settings", ""]
    lines += [
        f"- {name}: {told['source']}. `{json.dumps(told['settings'])}`"
        for name, told in report["models"].items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}."]) + "\n"


def curve_table(models: dict[str, dict]) -> list[str]:
    """NDCG at each mark of those that were trained."""
    ours = models.get(OURS, {}).get("curve", [])
    lines = ["| model | NDCG@10 (seconds of training) | ours is there after |", "|---|---|---:|"]
    for name, model in models.items():
        if "curve" in model:
            points = ", ".join(f"{value:.4f} ({seconds:.0f})" for seconds, value in model["curve"])
            ahead = [seconds for seconds, value in ours if value >= model["curve"][-1][1]]
            there = f"{ahead[0]:.0f}" if ahead and name != OURS else ""
            lines.append(f"| {name} | {points} | {there} |")
    return lines


def draw(report: dict, target: Path) -> None:
    """Quality against seconds of training; a dotted line is the best model without a budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(report["results"]), 3.6), layout="constrained")
    grid = figure.subplots(1, len(report["results"]), squeeze=False)[0]
    for axes, (protocol, models) in zip(grid, report["results"].items()):
        fixed = {n: m["metrics"][MEASURE]["mean"] for n, m in models.items() if "curve" not in m}
        for name, model in models.items():
            if "curve" in model:
                width = 2.4 if name == OURS else 1.2
                axes.plot(*zip(*model["curve"]), marker="o", ms=3, lw=width, label=name)
        if fixed:
            best = max(fixed, key=lambda name: fixed[name])
            axes.axhline(fixed[best], color="grey", ls=":", label=best)
        axes.set(title=TITLES[protocol], xlabel="seconds of training", ylabel="NDCG@10")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    figure.savefig(target, metadata={"Date": None})


def write_report(args, world, chosen: dict, baselines: list[str]) -> None:
    """`<log>.json`, `.md` and `.svg` in the folder of the results."""
    results: dict[str, dict] = {}
    folders = {
        name: [world.folder / f"{name}_{seed}".replace(" ", "_") for seed in args.seeds]
        for name in chosen
    }
    for protocol in world.protocols:
        results[protocol] = {n: summarise_model(f, world, protocol) for n, f in folders.items()}
        for name in baselines:
            folder = world.folder / name.replace(" ", "_")
            results[protocol][name] = summarise_baseline(folder, world, protocol)
    differences = {protocol: against_best(models) for protocol, models in results.items()}
    for models in results.values():
        for model in models.values():
            model["evaluated users"] = len(model.pop("users"))
    versions = {name: version(name) for name in ("implicitrec", "transformers", "implicit")}
    for runs in folders.values():
        versions |= json.loads((runs[0] / "run.json").read_text())["versions"]
    report = {
        "log": world.name,
        "command": "python scripts/benchmark_quality.py " + " ".join(sys.argv[1:]),
        "machine": machine(args.threads),
        "versions": versions,
        "seeds": args.seeds,
        "minutes": args.minutes,
        "train_split": world.train_split,
        "models": {
            name: {k: job[k] for k in ("source", "settings")} for name, job in chosen.items()
        },
        "results": results,
        "differences": differences,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    target = args.output_dir / f"{world.name}.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    page = markdown(report, target.parent)
    target.with_suffix(".md").write_text(page)
    draw(report, target.with_suffix(".svg"))
    print(page)
