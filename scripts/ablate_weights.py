"""Does weighing evidence help, where, and in which form? `python scripts/ablate_weights.py --log deskdrop`.

Trains small models that differ only in where the weights are read (an arm), over several seeds, on the
rows of `weighted_logs.py`, and keeps the result of every run in `work_dir`: a run that has one is not
run again. `report_weights.py` writes the tables.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from weighted_logs import WeightedLog, load_log

from modeling_implicitrec import (
    DataCollatorForNextItem,
    EpochCallback,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    cooccurrence_table,
    ndcg_at_k,
    parse_arguments,
    reduce_logits_to_hits,
)

FOLDS = 3
NEIGHBOURS = 32
PLACES = ("input", "attention", "priors")


@dataclass(frozen=True)
class Arm:
    """Where a model reads the weights; elsewhere every event counts alike."""

    reads: tuple[str, ...] = ()
    label_power: float = 0.0
    weighted_table: bool = False
    gate: bool = False
    collapse: bool = False
    ask: bool = False
    power: bool = False
    max_length: int | None = None


ARMS = {
    "ones": Arm(),
    "input": Arm(("input",)),
    "attention": Arm(("attention",)),
    "priors": Arm(("priors",)),
    "loss": Arm(label_power=1.0),
    "all": Arm(PLACES, label_power=1.0),
    "gate": Arm(("input",), gate=True),
    "scale": Arm(gate=True),  # the gate sees all ones: a learned scale of the item's embedding
    "table": Arm(("priors",), weighted_table=True),
    "loss^0.5": Arm(label_power=0.5),
    "loss^2": Arm(label_power=2.0),
    "all but loss": Arm(PLACES),
    "all + table": Arm(PLACES, label_power=1.0, weighted_table=True),
    "all + gate": Arm(PLACES, label_power=1.0, gate=True),
    "all + table + gate": Arm(PLACES, label_power=1.0, weighted_table=True, gate=True),
    "priors, power": Arm(("priors",), power=True),
    "priors, power, loss": Arm(("priors",), label_power=1.0, power=True),
    "all, power": Arm(PLACES, label_power=1.0, power=True),
    "all but loss, power": Arm(PLACES, power=True),
    "all, power, table": Arm(PLACES, label_power=1.0, power=True, weighted_table=True),
    "ask": Arm(ask=True),
    "ask + loss": Arm(label_power=1.0, ask=True),
    "all + ask": Arm(PLACES, label_power=1.0, ask=True),
    "all but loss + ask": Arm(PLACES, ask=True),
    "full, ones": Arm(),
    "full to 512, ones": Arm(max_length=512),
    "collapsed, ones": Arm(collapse=True),
    "collapsed, input": Arm(("input",), collapse=True),
    "collapsed, attention": Arm(("attention",), collapse=True),
    "collapsed, priors": Arm(("priors",), collapse=True),
    "collapsed, all": Arm(PLACES, collapse=True),
    "all^2 + table + gate": Arm(PLACES, label_power=2.0, weighted_table=True, gate=True),
}


@dataclass
class AblationArguments:
    """Which runs to make."""

    log: str = field(metadata={"help": "deskdrop, online_retail, taobao or lastfm"})
    data_dir: Path = field(default=Path("../shared/data"), metadata={"help": "folder of the logs"})
    work_dir: Path = field(default=Path("outputs/weights"), metadata={"help": "results of runs"})
    arms: list[str] = field(
        default_factory=lambda: ["ones", "input", "attention", "priors", "loss", "all"],
        metadata={"help": "names in ARMS"},
    )
    pollution: float | None = field(
        default=None, metadata={"help": "share of accidental clicks to inject; none: the plain log"}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: int = field(default=6)
    hidden_size: int = field(default=32)
    max_length: int = field(default=50)
    learning_rate: float = field(default=3e-3)


def present_only(module: nn.Module, args: tuple) -> tuple:
    """Forward pre-hook: every event that is there has weight 1."""

    def blind(value):
        if isinstance(value, dict):
            return value | {"weights": (value["weights"] > 0).float()}
        return value

    if isinstance(args[0], dict):
        return (blind(args[0]), *args[1:])
    place = 1 if args[0].dim() == 3 else 0  # the weight embedding takes the events first
    weights = (args[place] > 0).float()
    return (*args[:place], weights, *args[place + 1 :])


class AskedStrength(nn.Module):
    """Adds to the state the embedding of the strength asked for; while training, the label's own."""

    def __init__(self, arm: Arm, hidden_size: int) -> None:
        super().__init__()
        self.power = arm.label_power
        self.bins = nn.Embedding(32, hidden_size)
        nn.init.zeros_(self.bins.weight)
        self.asked = torch.ones(1)

    def read(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple:
        weights, labels = kwargs.get("label_weights"), kwargs.get("labels")
        if weights is not None and labels is not None:
            self.asked = weights[labels != -100]
            kwargs["label_weights"] = weights**self.power
        return args, kwargs

    def add(self, module: nn.Module, args: tuple, states: torch.Tensor) -> torch.Tensor:
        place = (self.asked.clamp(0.1, 10).log10() + 1) / 2 * 31  # two decades
        low = place.floor().clamp(0, 30)
        share = (place - low)[:, None]
        low = low.long()
        return states + (1 - share) * self.bins(low) + share * self.bins(low + 1)


def build_model(args: AblationArguments, arm: Arm, log: WeightedLog) -> ImplicitRecForScoring:
    config = ImplicitRecConfig(
        vocab_size=log.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=2 * args.hidden_size,
        num_hidden_layers=1,
        hidden_dropout_prob=0.3,
        max_position_embeddings=arm.max_length or args.max_length,
        copy_prior=not log.new_only,
        num_cooccurrences=NEIGHBOURS,
        loss_chunk_size=128,
        use_weight_gate=arm.gate,
        collapse_repeats=arm.collapse,
    )
    model = ImplicitRecForScoring(config)
    model.fit_item_counts(torch.as_tensor(log.counts))
    lists = {n: [row[n] for row in log.train] for n in ("input_ids", "input_weights")}
    group = np.arange(len(log.train)) % FOLDS

    def table(chosen: np.ndarray) -> tuple:
        rows = Dataset.from_dict({name: [v[i] for i in chosen] for name, v in lists.items()})
        return cooccurrence_table(rows, log.vocab_size, NEIGHBOURS, weighted=arm.weighted_table)

    folds = [table(np.flatnonzero(group != fold)) for fold in range(FOLDS)]
    stacked = tuple(np.stack(parts) for parts in zip(*folds))
    model.fit_cooccurrences(*table(np.arange(len(log.train))), folds=stacked)
    places = {"input": [model.model.weight_embedding], "attention": [model.model.evidence_bias]}
    places["priors"] = [p for p in (model.head.copy, model.head.cooccurrence) if p is not None]
    for name in set(PLACES) - set(arm.reads):
        for module in places[name]:
            module.register_forward_pre_hook(present_only)
    if model.head.copy is not None:
        model.head.copy.evidence.requires_grad_(arm.power)
    if arm.ask:
        model.asked = AskedStrength(arm, args.hidden_size)
        model.register_forward_pre_hook(model.asked.read, with_kwargs=True)
        model.state_centre.register_forward_hook(model.asked.add)
    return model


def train(args: AblationArguments, arm: Arm, log: WeightedLog, seed: int) -> tuple:
    set_seed(seed)
    model = build_model(args, arm, log)
    collator = DataCollatorForNextItem(
        model.config.max_position_embeddings,
        target_window=log.window,
        collapse_repeats=arm.collapse,
        num_folds=FOLDS,
        seed=seed,
        label_weight_power=1.0 if arm.ask else arm.label_power,
    )
    training = TrainingArguments(
        output_dir=str(args.work_dir / "trainer"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
        use_cpu=True,
    )
    callbacks = [EpochCallback(collator)]
    trainer = Trainer(model, training, collator, log.train, callbacks=callbacks)
    started = time.process_time()
    trainer.train()
    return model.eval(), (time.process_time() - started) / args.epochs


@torch.no_grad()
def scores(model: ImplicitRecForScoring, rows: list[dict]) -> torch.Tensor:
    """`[rows, vocab_size]` after the history of each."""
    config = model.config
    collator = DataCollatorForNextItem(
        config.max_position_embeddings, collapse_repeats=config.collapse_repeats
    )
    names = ("input_ids", "input_weights", "timestamps")
    histories = [{n: row[n] for n in names if n in row} for row in rows]
    order = np.argsort([len(row["input_ids"]) for row in rows], kind="stable")
    found = torch.empty(len(rows), config.vocab_size)
    for start in range(0, len(rows), 128):
        chosen = order[start : start + 128]
        batch = collator.histories([histories[i] for i in chosen])
        found[torch.from_numpy(chosen)] = model(**batch).logits
    return found


def ndcg(model: ImplicitRecForScoring, rows: list[dict], new_only: bool) -> np.ndarray:
    found = scores(model, rows)
    if new_only:
        for row, own in zip(rows, found):
            own[torch.as_tensor(row["input_ids"])] = -torch.inf
    width = max(len(row["target_ids"]) for row in rows)
    targets = [
        np.pad(r["target_ids"], (0, width - len(r["target_ids"])), constant_values=-100)
        for r in rows
    ]
    hits = reduce_logits_to_hits(found, torch.as_tensor(np.stack(targets))).numpy()
    return ndcg_at_k(hits[:, 1:].astype(bool), hits[:, 0], k=10)


def pair_accuracy(model: ImplicitRecForScoring, rows: list[dict]) -> np.ndarray:
    """Per user: the share of pairs of a strong and a weak item with the strong one above (its AUC)."""
    found = scores(model, rows).numpy()
    right = []
    for row, own in zip(rows, found):
        gap = own[row["strong"]][:, None] - own[row["weak"]][None, :]
        right.append(((gap > 0) + 0.5 * (gap == 0)).mean())
    return np.array(right)


def by_user(values: np.ndarray, rows: list[dict]) -> list[float]:
    """Means over a user's rows, by rising user."""
    users = np.unique([row["user"] for row in rows], return_inverse=True)[1]
    return (np.bincount(users, values) / np.bincount(users)).round(6).tolist()


def measure(model: ImplicitRecForScoring, log: WeightedLog) -> dict:
    """Per part and question, the value of every user."""
    found: dict = {}
    asked = dict(model.named_children()).get("asked")
    weights = np.concatenate([row["input_weights"] for row in log.train])
    for part, questions in log.parts.items():
        found[part] = {}
        for question, rows in questions.items():
            if isinstance(asked, AskedStrength):
                strong = 1.0 if question == "next" else float(np.quantile(weights, 0.9))
                asked.asked = torch.tensor([strong])
            if rows and question == "pairs":
                found[part][question] = by_user(pair_accuracy(model, rows), rows)
            elif rows:
                found[part][question] = by_user(ndcg(model, rows, log.new_only), rows)
    return found


def mean_length(args: AblationArguments, arm: Arm, log: WeightedLog) -> float:
    """Events of a test history as the model takes it."""
    rows = log.parts["test"]["next"]
    sizes = [len(np.unique(r["input_ids"])) if arm.collapse else len(r["input_ids"]) for r in rows]
    return float(np.minimum(sizes, arm.max_length or args.max_length).mean())


def learned(model: ImplicitRecForScoring) -> dict:
    """The numbers that say how the model came to read the weights."""
    numbers = {"beta": (1 + 10 * model.model.evidence_bias.beta).tolist()}
    numbers["evidence"] = 10 * model.head.cooccurrence.evidence.item()
    if model.head.copy is not None:
        numbers["copy power"] = 1 + 10 * model.head.copy.evidence.item()
    gate = model.model.weight_embedding.gate
    if gate is not None:
        numbers["gate"] = (10 * gate.weight[:, 0]).exp().tolist()
    return {name: np.round(value, 3).tolist() for name, value in numbers.items()}


def main() -> None:
    (args,) = parse_arguments(AblationArguments)
    world = args.log if args.pollution is None else f"{args.log}-{round(100 * args.pollution)}"
    log = load_log(args.log, args.data_dir, pollution=args.pollution)
    settings = {
        n: v
        for n, v in asdict(args).items()
        if n in ("epochs", "hidden_size", "max_length", "learning_rate")
    }
    for seed in args.seeds:
        for name in args.arms:
            target = args.work_dir / world / f"{name}_{seed}.json"
            if target.exists():
                continue
            model, seconds = train(args, ARMS[name], log, seed)
            result = {"settings": settings, "CPU seconds an epoch": round(seconds, 2)}
            result["mean length"] = round(mean_length(args, ARMS[name], log), 1)
            result |= {"learned": learned(model), "values": measure(model, log)}
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(result))
            means = {
                p: {q: round(float(np.mean(v)), 4) for q, v in x.items()}
                for p, x in result["values"].items()
            }
            print(
                world,
                name,
                seed,
                result["CPU seconds an epoch"],
                means,
                result["learned"],
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
