"""Tables of the ablation of weights: `python scripts/report_weights.py`, from the runs in `work_dir`.

Writes `docs/results/weights.json` and `weights.md`. A difference is paired with the arm in which every
event counts alike: same seed, same users. Its standard error has two parts, added as squares: that of
the users (of their differences, averaged over seeds) and that of the seeds (of the mean differences).
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modeling_implicitrec import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = {"next": "NDCG@10", "strong": "NDCG@10, strong", "pairs": "strong above weak"}
COSTS = ("mean length", "CPU seconds an epoch")  # told where arms differ in length
BASES = ("ones", "full, ones")


@dataclass
class ReportArguments:
    """Where the runs are."""

    work_dir: Path = field(default=Path("outputs/weights"), metadata={"help": "results of runs"})


def read_runs(folder: Path) -> dict[str, dict[str, dict[int, dict]]]:
    """World -> arm -> seed -> what the run found."""
    runs: dict = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/*.json")):
        arm, seed = path.stem.rsplit("_", 1)
        runs[path.parent.name][arm][int(seed)] = json.loads(path.read_text())
    return runs


def compare(arm: dict[int, dict], base: dict[int, dict], part: str, question: str) -> dict:
    """Mean and deviation over seeds, and the paired difference from the base with its error."""
    means = [float(np.mean(run["values"][part][question])) for run in arm.values()]
    both = sorted(set(arm) & set(base))
    gaps = np.array(
        [
            np.subtract(arm[s]["values"][part][question], base[s]["values"][part][question])
            for s in both
        ]
    )  # [seeds, users]
    users = gaps.mean(0).std(ddof=1) / np.sqrt(gaps.shape[1])
    seeds = gaps.mean(1).std(ddof=1) / np.sqrt(len(both)) if len(both) > 1 else 0.0
    return {
        "mean": round(float(np.mean(means)), 6),
        "std": round(float(np.std(means, ddof=1)), 6) if len(means) > 1 else 0.0,
        "difference": round(float(gaps.mean()), 6),
        "standard error": round(float(np.hypot(users, seeds)), 6),
        "users": int(gaps.shape[1]),
    }


def ordered(arms: dict) -> list[str]:
    """The base first, then single places, then what adds to them."""
    single = ("input", "gate", "attention", "priors", "table", "loss")
    known = (*BASES, *single)
    return sorted(arms, key=lambda a: (known.index(a) if a in known else len(known), len(a), a))


def summarise(arms: dict[str, dict[int, dict]]) -> dict:
    """Every arm of one world against the base, both parts, all questions."""
    base = arms[next(name for name in BASES if name in arms)]
    some = next(iter(base.values()))
    found: dict = {"settings": some["settings"], "arms": {}}
    for name in ordered(arms):
        runs = arms[name]
        entry = {"seeds": sorted(runs), "learned": [run["learned"] for run in runs.values()]}
        if "full, ones" in arms:
            for key in COSTS:
                entry[key] = round(float(np.mean([run[key] for run in runs.values()])), 2)
        for part in ("validation", "test"):
            questions = some["values"][part]
            entry[part] = {q: compare(runs, base, part, q) for q in QUESTIONS if q in questions}
        found["arms"][name] = entry
    found["chosen"] = {
        question: max(found["arms"], key=lambda a: found["arms"][a]["validation"][question]["mean"])
        for question in QUESTIONS
        if question in some["values"]["validation"]
    }
    return found


def table(world: dict) -> list[str]:
    """Markdown: an arm a line, for each question the test mean and the paired difference."""
    questions = list(world["chosen"])
    heads = [text for q in questions for text in (QUESTIONS[q], "difference")]
    lines = ["| weights read in | seeds | " + " | ".join(heads) + " |"]
    lines.append("|---|---:|" + "---:|" * len(heads))
    for name, arm in world["arms"].items():
        cells = []
        for q in questions:
            value = arm["test"][q]
            mark = " *" if world["chosen"][q] == name else ""
            cells.append(f"{value['mean']:.4f} ± {value['std']:.4f}{mark}")
            gap, error = value["difference"], value["standard error"]
            cells.append(f"{gap:+.4f} ± {error:.4f}" if error else "")
        lines.append(f"| {name} | {len(arm['seeds'])} | " + " | ".join(cells) + " |")
    return lines


def lengths(world: dict) -> list[str]:
    """What an arm costs, where arms differ in length."""
    lines = ["| arm | events a history | CPU seconds an epoch |", "|---|---:|---:|"]
    for name, arm in world["arms"].items():
        lines.append(f"| {name} | {arm['mean length']:.0f} | {arm['CPU seconds an epoch']:.1f} |")
    return lines


def command(name: str, world: dict) -> str:
    log, _, share = name.partition("-")
    words = ["python scripts/ablate_weights.py", f"--log {log}"]
    words += [f"--pollution {int(share) / 100}"] if share else []
    words += [f"--{key} {value}" for key, value in world["settings"].items()]
    return " ".join([*words, f"--arms '{json.dumps(list(world['arms']))}'"])


def markdown(worlds: dict[str, dict]) -> str:
    findings = ROOT / "docs" / "weights_evidence.md"
    lines = ["# Weights on against all ones", ""]
    lines += [" ".join((__doc__ or "").split("\n\n", 1)[1].split()), ""]
    lines += [
        "`*`: best on validation. Means ± deviation over seeds, differences ± standard error."
    ]
    lines += [f"Test part. In words: [weights_evidence]({'../' + findings.name}).", ""]
    for name, world in worlds.items():
        users = {q: a["users"] for q, a in next(iter(world["arms"].values()))["test"].items()}
        lines += [f"## {name}", "", f"`{command(name, world)}`", ""]
        lines += [f"Users: {', '.join(f'{n} ({q})' for q, n in users.items())}.", ""]
        lines += [*table(world), ""]
        if "full, ones" in world["arms"]:
            lines += [*lengths(world), ""]
    return "\n".join(lines)


def main() -> None:
    (args,) = parse_arguments(ReportArguments)
    worlds = {name: summarise(arms) for name, arms in read_runs(args.work_dir).items()}
    target = ROOT / "docs" / "results"
    lines = [f"{json.dumps(name)}: {json.dumps(world)}" for name, world in worlds.items()]
    (target / "weights.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    (target / "weights.md").write_text(markdown(worlds))
    print(markdown(worlds))


if __name__ == "__main__":
    main()
