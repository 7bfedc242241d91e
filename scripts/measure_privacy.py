"""What differential privacy costs: `python scripts/measure_privacy.py --epsilons "[2, 8, .inf]"`.

For each log: writes its catalogue, prepares it with that alone, trains the same small model at each epsilon
and seed through `recipes/finetune.py`, ranks the test part through `recipes/evaluate.py`, and writes
docs/results/privacy.json and privacy.md. A run that is in `work_dir` already is not done again.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_implicitrec import ImplicitRecProcessor, parse_arguments

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
COMMON = {
    "lr_scheduler_type": "cosine",
    "use_cpu": "true",
    "report_to": "none",
    "save_strategy": "no",
    "per_device_eval_batch_size": 256,
    "dp_delta": 1e-5,
}
PRIVATE = {"per_device_train_batch_size": 256, "learning_rate": 0.01, "num_train_epochs": 4}
PLAIN = {"per_device_train_batch_size": 32, "learning_rate": 0.002, "num_train_epochs": 8}
LOGS: dict[str, dict] = {
    "complete_journey": {
        "model": SMALL
        | {
            "hidden_dropout_prob": 0.0,
            "max_position_embeddings": 128,
            "copy_prior": True,
            "collapse_repeats": True,
        },
        "finetune": {"target_window_days": 28, "refit": "true"},
        "protocols": ["all", "new"],
        "baselines": ["popularity", "own_frequency"],
        "part": "before_test",
    },
    "movielens": {
        "model": SMALL
        | {"hidden_dropout_prob": 0.0, "max_position_embeddings": 50, "exclude_seen": True},
        "finetune": {},
        "protocols": ["new"],
        "baselines": ["popularity", "cooccurrence"],
        "part": "train",
    },
}


@dataclass
class PrivacyArguments:
    """What to measure and where to write it."""

    logs: list = field(default_factory=lambda: list(LOGS), metadata={"help": "names of recipes"})
    epsilons: list = field(default_factory=lambda: [2.0, 8.0, math.inf])
    seeds: list = field(default_factory=lambda: [0, 1, 2])
    data_dir: str = field(default="data", metadata={"help": "where each log is prepared already"})
    raw_dir: str = field(default="data/raw", metadata={"help": "of the logs' own files"})
    work_dir: str = field(default="outputs/privacy")
    output_dir: str = field(default="docs/results")


def recipe(name: str, *words: str, **options) -> None:
    """Run a recipe in a process of its own."""
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *words, *flags]
    print("+", *command[1:], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def prepare(args: PrivacyArguments, log: str) -> Path:
    """The log encoded with a catalogue: the items of its prepared data, by id."""
    target = Path(args.work_dir, log, "data")
    if target.exists():
        return target
    known = ImplicitRecProcessor.from_pretrained(Path(args.data_dir, log, "processor"))
    items = sorted(known.decode_items(range(1, known.vocab_size)))
    target.parent.mkdir(parents=True, exist_ok=True)
    catalogue = target.with_name("catalogue.csv")
    pd.DataFrame({"item_id": items}).to_csv(catalogue, index=False)
    settings = json.loads(Path(args.data_dir, log, "prepare.json").read_text())
    source = settings["source"].replace("data/raw", args.raw_dir)
    yaml = str(ROOT / "recipes" / log / "prepare.yaml")
    public = {"catalogue": catalogue, "cleaning": "{clip_quantile: null}"}
    public |= {"duration_weight": "null", "report_page": "false"}
    recipe("prepare", yaml, source=source, output_dir=target, **public)
    return target


def measure(args: PrivacyArguments, log: str, epsilon: float, seed: int) -> dict:
    """Train and evaluate once, or read what an earlier run wrote."""
    data, chosen = prepare(args, log), LOGS[log]
    folder = Path(args.work_dir, log, f"epsilon_{epsilon:g}_seed_{seed}")
    if not (folder / "results_test.json").exists():
        private = math.isfinite(epsilon)
        options = COMMON | (PRIVATE if private else PLAIN) | chosen["finetune"]
        options |= {"model": json.dumps(chosen["model"]), "seed": seed}
        options |= {"dp_epsilon": epsilon if private else 0.0}
        recipe("finetune", data_dir=data, output_dir=folder, **options)
        ranked = {name: json.dumps(chosen[name]) for name in ("protocols", "baselines")}
        ranked |= {"train_split": chosen["part"]}
        recipe("evaluate", "--no-did_it_happen", model=folder, data_dir=data, **ranked)
    training = json.loads((folder / "training.json").read_text())
    results = json.loads((folder / "results_test.json").read_text())
    return {"seed": seed, "training": training, "results": results}


def summarise(log: str, runs: dict[str, list[dict]]) -> dict:
    """NDCG@10 of each protocol: mean and deviation over seeds of the model, the baselines beside it."""
    found: dict = {}
    for protocol in LOGS[log]["protocols"]:
        rows: dict = {}
        for epsilon, several in runs.items():
            values = [
                next(iter(run["results"][protocol].values()))["metrics"]["ndcg@10"]
                for run in several
            ]
            rows[f"epsilon {epsilon}"] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "values": values,
            }
        first = next(iter(runs.values()))[0]["results"][protocol]
        for name, result in list(first.items())[1:]:
            rows[name] = {"mean": result["metrics"]["ndcg@10"], "std": None}
        found[protocol] = rows
    return found


def write(args: PrivacyArguments, results: dict) -> None:
    lines = ["# What privacy costs", "", "`python scripts/measure_privacy.py`: NDCG@10 of the test"]
    lines[-1] += f" part, mean ± standard deviation over seeds {args.seeds}."
    for log, found in results.items():
        users = found["users"]
        lines += ["", f"## {log}, {users:,} users", ""]
        for epsilon, plan in found["plans"].items():
            lines.append(
                f"Epsilon {epsilon}: {plan['epsilon']:.3f} by the accountant at delta {plan['delta']:g}, "
                f"{plan['steps']} steps of {plan['users_per_step']} users expected, noise multiplier "
                f"{plan['noise_multiplier']:.3f}, count noise {plan['count_noise']:g}.\n"
            )
        for protocol, rows in found["ndcg@10"].items():
            named = {"all": "repeats allowed", "new": "new items only"}[protocol]
            lines += [f"| {named} | NDCG@10 |", "|---|---:|"]
            for name, row in rows.items():
                spread = "" if row["std"] is None else f" ± {row['std']:.4f}"
                lines.append(f"| {name} | {row['mean']:.4f}{spread} |")
            lines.append("")
    target = Path(args.output_dir)
    (target / "privacy.json").write_text(json.dumps(results, indent=2) + "\n")
    (target / "privacy.md").write_text("\n".join(lines).rstrip() + "\n")


def main() -> None:
    (args,) = parse_arguments(PrivacyArguments)
    results: dict = {}
    for log in args.logs:
        runs = {
            f"{epsilon:g}": [measure(args, log, epsilon, seed) for seed in args.seeds]
            for epsilon in args.epsilons
        }
        plans = {
            epsilon: several[0]["training"]["differential privacy"]
            for epsilon, several in runs.items()
            if epsilon != "inf"
        }
        users = next(iter(runs.values()))[0]["training"]["users"]
        results[log] = {"users": users, "plans": plans, "ndcg@10": summarise(log, runs)}
        write(args, results)
    print(Path(args.output_dir, "privacy.md").read_text())


if __name__ == "__main__":
    main()
