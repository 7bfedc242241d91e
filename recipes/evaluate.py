"""Score a checkpoint beside baselines: `python recipes/evaluate.py recipes/<log>/evaluate.yaml`.

Full ranking of the catalogue; the table is printed and the numbers are written beside the weights,
those of the test part also into the model card, `README.md`; `--push_to_hub true --hub_model_id user/name`
then pushes checkpoint, numbers and card in one commit.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from modeling_implicitrec import (
    ModelScorer,
    check_numbers,
    did_it_happen,
    evaluate,
    evaluate_by_history_length,
    fit_baselines,
    load_checkpoint,
    load_sequences,
    parse_arguments,
    push_checkpoint,
    results_table,
    run_recipe,
    user_counts,
    write_model_card,
)

SHOWN = ("ndcg", "recall", "mrr", "map", "hit_rate", "coverage", "novelty", "gini")


@dataclass
class EvaluateArguments:
    """What to evaluate, on what, and how."""

    model: str = field(metadata={"help": "checkpoint folder or Hub name"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    split: str = field(default="test", metadata={"help": "test or validation"})
    train_split: str = field(
        default="train",
        metadata={"help": "what baselines learn from; before_test beside a model with refit"},
    )
    protocols: list = field(
        default_factory=lambda: ["new"],
        metadata={"help": "all (repeats allowed), new (unseen items)"},
    )
    baselines: list = field(
        default_factory=lambda: ["popularity", "cooccurrence"],
        metadata={"help": "names, or a name with its settings: {ease: {regularization: 300}}"},
    )
    ks: list = field(default_factory=lambda: [10], metadata={"help": "cut-offs"})
    history_lengths: list = field(
        default_factory=list, metadata={"help": "also with the last n events only: [0, 1, 2, 5]"}
    )
    did_it_happen: bool = field(
        default=True, metadata={"help": "also a held-out event against an unseen one, pairwise"}
    )
    seed: int = field(default=0, metadata={"help": "of the unseen events drawn"})
    push_to_hub: bool = field(default=False, metadata={"help": "push the evaluated folder"})
    hub_model_id: str = field(default="", metadata={"help": "user/name to push to"})

    def __post_init__(self) -> None:
        check_numbers(self, "ks >= 1", "history_lengths >= 0", "seed >= 0")


def main() -> None:
    (args,) = parse_arguments(EvaluateArguments)
    splits = load_sequences(Path(args.data_dir) / "sequences")
    model, processor = load_checkpoint(args.model, data_dir=args.data_dir)
    training = read_json(Path(args.model) / "training.json") or {}
    check_parts(args, splits, learnt_from=training.get("part", args.train_split))
    train, rows = splits[args.train_split], splits[args.split]
    baselines = fit_baselines(
        args.baselines,
        train,
        processor.vocab_size,
        negative_event_type_ids=processor.negative_event_type_ids,
    )
    scorers = [ModelScorer(model), *baselines]
    counts = processor.item_counts
    if not counts.any():  # of a catalogue: how many users had an item is as good for novelty
        counts = user_counts(train, processor.vocab_size)
    results = {name: full_ranking(args, name, scorers, rows, counts) for name in args.protocols}
    if args.history_lengths:
        for protocol, found in results.items():
            by_length(args, protocol, found, scorers, rows, num_items=processor.vocab_size - 1)
    if args.did_it_happen:
        print("\ndid it happen? a held-out event against one unseen item\n")
        print(pointwise_table(scorers, rows, counts, args.seed))
    if Path(args.model).is_dir():
        write_results(args, results)
        if args.split == "test":
            write_card(args, model, processor, results, {"users": len(train), **training})
        if args.push_to_hub:
            print(f"pushed to {push_checkpoint(args.model, args.hub_model_id).commit_url}")


def full_ranking(
    args: EvaluateArguments,
    protocol: str,
    scorers: list,
    rows: Dataset,
    item_counts: np.ndarray,
) -> dict:
    """Print the table of one protocol and return its numbers by scorer."""
    found = {
        scorer.name: evaluate(
            scorer,
            rows,
            ks=args.ks,
            seen="exclude" if protocol == "new" else "keep",
            target_filter=protocol,
            num_items=len(item_counts) - 1,
            item_counts=item_counts,
        )
        for scorer in scorers
    }
    title = {"new": "new items only", "all": "repeats allowed"}[protocol]
    model = found[scorers[0].name]
    asked = f"{model.num_users:,} people, {model.num_targets:,} held-out items"
    if model.num_unknown:
        share = f"{model.num_unknown / model.num_targets:.1%}"
        asked += f", {share} of them not among the {len(item_counts) - 1:,} items and in no list"
    print(f"\n{args.split}, {title}: {asked}\n")
    print(results_table(found, [f"{name}@{k}" for k in args.ks for name in SHOWN]), flush=True)
    results = {name: result.to_dict() for name, result in found.items()}
    for key, (low, high) in model.intervals.items():
        if key.startswith(SHOWN[0]):
            print(f"\n{key} of {scorers[0].name}: 95 % interval over users {low:.4f} to {high:.4f}")
    lengths = np.asarray(rows["length"])[model.user_rows]
    groups = length_groups(lengths)
    shortest_first = sorted(
        model.by_group(groups).items(), key=lambda one: lengths[groups == one[0]].min()
    )
    results[scorers[0].name]["groups"] = dict(shortest_first)
    return results


def length_groups(lengths: np.ndarray) -> np.ndarray:
    """The third of the users, by events in the history, that each belongs to."""
    low, high = np.quantile(lengths, [1 / 3, 2 / 3], method="higher")
    names = [f"up to {low:,} events", f"{low + 1:,} to {high:,} events", f"over {high:,} events"]
    return np.array(names)[np.digitize(lengths, [low, high], right=True)]


def write_results(args: EvaluateArguments, results: dict) -> None:
    """Write the numbers beside the weights, whole or not at all."""
    target = Path(args.model) / f"results_{args.split}.json"
    target.with_suffix(".partial").write_text(json.dumps(results, indent=2))
    os.replace(target.with_suffix(".partial"), target)


def write_card(args: EvaluateArguments, model, processor, results: dict, training: dict) -> None:
    report = read_json(Path(args.data_dir) / "cleaning_report.json")
    private = "differential privacy" in training  # its numbers would have no noise
    card = write_model_card(
        args.model,
        model=model,
        processor=processor,
        results=results,
        data_report=None if private else report,
        training=training,
        license=training.get("license"),
    )
    print(f"\nmodel card: {card}")
    print(f"next: python recipes/recommend.py --model {args.model} --data_dir {args.data_dir}")


def by_length(
    args: EvaluateArguments,
    protocol: str,
    results: dict,
    scorers: list,
    rows: Dataset,
    *,
    num_items: int,
) -> None:
    """Print, and add to the results, how NDCG grows with the events that are known of a user."""
    key = f"ndcg@{args.ks[0]}"
    print(f"\n{key}, {protocol}, the same users by how many of their last events are read\n")
    print("| model | " + " | ".join(map(str, args.history_lengths)) + " |")
    print("|---|" + "---:|" * len(args.history_lengths))
    for scorer in scorers:
        found = evaluate_by_history_length(
            scorer,
            rows,
            args.history_lengths,
            seen="exclude" if protocol == "new" else "keep",
            target_filter=protocol,
            num_items=num_items,
            ks=args.ks,
        )
        values = {str(length): result.metrics[key] for length, result in found.items()}
        results[scorer.name]["by_history_length"] = {key: values}
        print(f"| {scorer.name} | " + " | ".join(f"{v:.4f}" for v in values.values()) + " |")


def check_parts(args: EvaluateArguments, splits: DatasetDict, *, learnt_from: str) -> None:
    """Model and baselines learnt from the same events, none of them evaluated here."""
    if absent := sorted({args.split, args.train_split} - splits.keys()):
        raise SystemExit(f"{args.data_dir} has the parts {sorted(splits)}, got {absent}")
    if learnt_from != args.train_split:
        raise SystemExit(
            f"the model learnt from the part {learnt_from}, the baselines would learn from "
            f"{args.train_split}: give --train_split {learnt_from}"
        )
    if args.split == "validation" and args.train_split == "before_test":
        raise SystemExit("before_test holds the validation targets: evaluate on the test part")


def pointwise_table(scorers: list, rows: Dataset, item_counts: np.ndarray, seed: int) -> str:
    """AUC and accuracy of every scorer, with the unseen item drawn evenly and by popularity."""
    lines = ["| model | AUC, even | accuracy, even | AUC, popular | accuracy, popular |"]
    lines.append("|---|---:|---:|---:|---:|")
    for scorer in scorers:
        cells = []
        for negatives in ("uniform", "popularity"):
            generator = np.random.default_rng(seed)
            found = did_it_happen(
                scorer, rows, item_counts=item_counts, generator=generator, negatives=negatives
            )
            cells += [f"{found['auc']:.4f}", f"{found['paired_accuracy']:.4f}"]
        lines.append(f"| {scorer.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    run_recipe(main)
