"""Attacks on a plain and on a private model: `python scripts/audit_privacy.py --data_dir data/mine`.

The training users are dealt into members, non-members and a reference part. Each model learns from the
members, and from planted canaries: users of random items. Then an attacker who holds the checkpoint guesses

- who was a member (Yeom et al., 2018: a low loss; calibrated, Watson et al., 2022: a loss lower than
  that of a model of the reference part), as AUC with its 95 % interval, 0.5 being a coin's, and
- the last item of a canary from those before: its exposure `log2(items) - log2(rank)` (Carlini et al.,
  2019), beside canaries that no model has seen.

Writes docs/results/privacy_audit.json and .md, and what concerns a checkpoint into its training.json, for
its card. The data must have been prepared with a catalogue.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecForScoring,
    auc,
    load_sequences,
    parse_arguments,
    save_sequences,
)

ROOT = Path(__file__).resolve().parents[1]
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "hidden_dropout_prob": 0.0,
}
COMMON = {"use_cpu": "true", "report_to": "none", "save_strategy": "no", "eval_strategy": "no"}
PLAIN = {"per_device_train_batch_size": 32, "learning_rate": 0.003, "num_train_epochs": 30}
PRIVATE = {"per_device_train_batch_size": 128, "learning_rate": 0.01, "num_train_epochs": 6}
DAY = 86_400
BOOTSTRAP = 2000
ATTACKS = ("loss threshold", "calibrated")


@dataclass
class AuditArguments:
    """What to attack."""

    data_dir: str = field(metadata={"help": "folder that prepare.py wrote, with a catalogue"})
    work_dir: str = field(default="outputs/audit")
    output_dir: str = field(default="docs/results")
    epsilon: float = field(default=2.0, metadata={"help": "of the private model"})
    delta: float = field(default=1e-5)
    max_length: int = field(default=50, metadata={"help": "events of a history"})
    num_canaries: int = field(default=30, metadata={"help": "planted; as many are kept back"})
    canary_events: int = field(default=6)
    seeds: list = field(default_factory=lambda: [0, 1, 2])


def deal(train: Dataset, seed: int) -> list[Dataset]:
    """Members, non-members and reference users, a third each."""
    order = np.random.default_rng(seed).permutation(len(train))
    return [train.select(np.sort(part)) for part in np.array_split(order, 3)]


def make_canaries(args: AuditArguments, like: Dataset, vocab_size: int, seed: int) -> Dataset:
    """Users of distinct random items, one a day: the first half to be planted, the others not."""
    generator = np.random.default_rng((seed, 1))
    size, start = 2 * args.num_canaries, 1_600_000_000
    events = [
        1 + generator.choice(vocab_size - 1, args.canary_events, replace=False) for _ in range(size)
    ]
    days = start + DAY * np.arange(args.canary_events)
    columns = {
        "user_id": [type(like[0]["user_id"])(-1 - n) for n in range(size)],
        "input_ids": events,
        "input_weights": [np.ones(args.canary_events)] * size,
        "timestamps": [days] * size,
        "event_type_ids": [np.zeros(args.canary_events, dtype=int)] * size,
        "length": [args.canary_events] * size,
        "row": list(range(size)),
    }
    return Dataset.from_dict({n: columns[n] for n in like.column_names}, features=like.features)


def train_model(args: AuditArguments, name: str, rows: Dataset, seed: int, **options) -> Path:
    """A checkpoint of `recipes/finetune.py` that learnt from these users alone."""
    folder = Path(args.work_dir, f"seed_{seed}", name)
    if (folder / "training.json").exists():
        return folder
    data = folder.with_name(f"{name}_data")
    shutil.rmtree(data, ignore_errors=True)
    parts = load_sequences(Path(args.data_dir, "sequences"))
    numbered = rows.remove_columns("row").add_column("row", np.arange(len(rows)))
    save_sequences({"train": numbered, "validation": parts["validation"]}, data / "sequences")
    shutil.copytree(Path(args.data_dir, "processor"), data / "processor")
    settings = {"data_dir": data, "output_dir": folder, "seed": seed, **COMMON, **options}
    settings["model"] = json.dumps(MODEL | {"max_position_embeddings": args.max_length})
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(ROOT / "recipes" / "finetune.py"), *words]
    print("+", *command[1:], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@torch.no_grad()
def losses(model: ImplicitRecForScoring, rows: Dataset, args: AuditArguments) -> np.ndarray:
    """Each user's mean loss over the last events, `[users]`."""
    collator = DataCollatorForNextItem(max_length=args.max_length)
    names = [n for n in rows.column_names if n.endswith("s") or n in ("length", "row")]
    latest = []
    for row in rows:
        cut = {n: v[-args.max_length :] if isinstance(v, list) else v for n, v in row.items()}
        latest.append({name: cut[name] for name in names})
    return np.array([float(model(**collator([row])).loss) for row in latest])


@torch.no_grad()
def exposures(model: ImplicitRecForScoring, canaries: Dataset) -> np.ndarray:
    """`log2(items) - log2(rank)` of each canary's last item after the others, in bits."""
    found = []
    for row in canaries:
        given = {"input_ids": row["input_ids"], "timestamps": row["timestamps"]}
        batch = {name: torch.tensor([values[:-1]]) for name, values in given.items()}
        scores = model(**batch).logits[0, 1:]
        rank = int((scores > scores[row["input_ids"][-1] - 1]).sum()) + 1
        found.append(np.log2(len(scores)) - np.log2(rank))
    return np.array(found)


def auc_interval(members: np.ndarray, others: np.ndarray, seed: int) -> dict:
    """AUC of scores that should be higher for members, with a bootstrap over users."""

    generator = np.random.default_rng(seed)
    drawn = [
        auc(generator.choice(members, len(members)), generator.choice(others, len(others)))
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"auc": auc(members, others), "interval": [float(low), float(high)]}


def attack(args: AuditArguments, folder: Path, reference: Path, parts: dict, seed: int) -> dict:
    model = ImplicitRecForScoring.from_pretrained(folder).eval()
    other = ImplicitRecForScoring.from_pretrained(reference).eval()
    own = {name: losses(model, parts[name], args) for name in ("members", "others")}
    base = {name: losses(other, parts[name], args) for name in ("members", "others")}
    gains = {name: base[name] - own[name] for name in own}
    exposed = exposures(model, parts["canaries"])
    planted, kept_back = np.split(exposed, 2)
    return {
        "users attacked": len(own["members"]) + len(own["others"]),
        "mean loss": {name: float(values.mean()) for name, values in own.items()},
        "loss threshold": auc_interval(-own["members"], -own["others"], seed),
        "calibrated": auc_interval(gains["members"], gains["others"], seed),
        "exposure in bits": {
            "planted": float(planted.mean()),
            "kept back": float(kept_back.mean()),
            "auc": auc_interval(planted, kept_back, seed),
        },
    }


def audit(args: AuditArguments, seed: int) -> dict:
    """Attack both models of one seed."""
    train = load_sequences(Path(args.data_dir, "sequences"))["train"]
    train = train.filter(lambda size: size > 1, input_columns="length")
    processor = json.loads(Path(args.data_dir, "prepare.json").read_text())
    if not processor.get("catalogue"):
        raise SystemExit(f"{args.data_dir} was not prepared with a catalogue")
    vocab_size = 1 + max(max(ids) for ids in train["input_ids"])
    members, others, reference = deal(train, seed)
    canaries = make_canaries(args, train, vocab_size, seed)
    learnt = concatenate_datasets([members, canaries.select(range(args.num_canaries))])
    dp = {"dp_epsilon": args.epsilon, "dp_delta": args.delta}
    models = {
        "plain": train_model(args, "plain", learnt, seed, **PLAIN),
        f"epsilon {args.epsilon:g}": train_model(args, "private", learnt, seed, **PRIVATE, **dp),
    }
    compared = train_model(args, "reference", reference, seed, **PLAIN)
    parts = {"members": members, "others": others, "canaries": canaries}
    found = {}
    for name, folder in models.items():
        found[name] = attack(args, folder, compared, parts, seed)
        training = json.loads((folder / "training.json").read_text())
        training["privacy audit"] = found[name]
        (folder / "training.json").write_text(json.dumps(training, indent=2))
    return found


def cell(result: dict) -> str:
    low, high = result["interval"]
    return f"{result['auc']:.3f} [{low:.3f}, {high:.3f}]"


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=min(1, len(values) - 1)):.3f}"


def write(args: AuditArguments, results: dict) -> None:
    source = json.loads(Path(args.data_dir, "prepare.json").read_text())["source"]
    lines = [
        "# Attacks",
        "",
        f"`python scripts/audit_privacy.py` on users of {'/'.join(Path(source).parts[-2:])}, delta "
        f"{args.delta:g}: AUC of telling members from others and planted canaries from those kept back, "
        "with 95 % intervals over users; exposure in bits.",
        "",
        "| seed | model | users | loss threshold | calibrated | exposure, planted | kept back | "
        "canaries told apart |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for seed, models in results.items():
        for name, one in models.items():
            bits = one["exposure in bits"]
            cells = [seed, name, f"{one['users attacked']:,}", cell(one["loss threshold"])]
            cells += [cell(one["calibrated"]), f"{bits['planted']:.2f}", f"{bits['kept back']:.2f}"]
            lines.append("| " + " | ".join([*cells, cell(bits["auc"])]) + " |")
    lines += [
        "",
        "| mean ± deviation over seeds | loss threshold | calibrated | canaries told apart |",
    ]
    lines.append("|---|---:|---:|---:|")
    for name in next(iter(results.values())):
        several = [models[name] for models in results.values()]
        cells = [spread([one[key]["auc"] for one in several]) for key in ATTACKS]
        cells.append(spread([one["exposure in bits"]["auc"]["auc"] for one in several]))
        lines.append("| " + " | ".join([name, *cells]) + " |")
    target = Path(args.output_dir)
    (target / "privacy_audit.json").write_text(json.dumps(results, indent=2) + "\n")
    (target / "privacy_audit.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    (args,) = parse_arguments(AuditArguments)
    results: dict = {}
    for seed in args.seeds:
        results[str(seed)] = audit(args, seed)
        write(args, results)


if __name__ == "__main__":
    main()
