"""Does a pretrained body help a log of other items? `python scripts/measure_transfer.py --help`.

A model is pretrained on the source logs (`join_logs`), then fine-tuned on 1 %, 10 % and 100 % of the users
of the target log, beside one that starts from scratch with the same steps, labels and seeds. Both are
tested on the same users of the target. Runs add up in `docs/results/transfer.json`; the page beside it
shows them all.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from safetensors.numpy import load_file
from short_training import train_briefly
from transformers import TrainerCallback, set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    evaluate,
    join_logs,
    load_sequences,
    transfer_weights,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "transfer.json"
SHARES = (0.01, 0.1, 1.0)
STEPS = (60, 120, 240)  # of each share
PRETRAINING_STEPS = 600
POINTS = 6  # evaluations on the way
TEST_USERS = 600


class Curve(TrainerCallback):
    """NDCG@10 on the test users every few steps."""

    def __init__(self, model, rows, num_items: int, every: int) -> None:
        self.model, self.rows, self.num_items, self.every = model, rows, num_items, every
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0:
            found = evaluate(
                ModelScorer(self.model),
                self.rows,
                seen="exclude",
                target_filter="new",
                num_items=self.num_items,
                progress=False,
            )
            self.points.append((state.global_step, found.metrics["ndcg@10"]))
            self.model.train()


def new_model(processor, features, counts) -> ImplicitRecForScoring:
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        negative_event_type_ids=processor.negative_event_type_ids,
        item_feature_size=0 if features is None else features.shape[1],
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=30,
    )
    model = ImplicitRecForScoring(config)
    model.fit_item_counts(counts)
    if features is not None:
        model.fit_item_features(features)
    return model


def learn(model, rows, steps: int, seed: int, callbacks=()) -> None:
    collator = DataCollatorForNextItem(model.config.max_position_embeddings, seed=seed)
    train_briefly(
        model,
        rows,
        collator,
        seed=seed,
        callbacks=callbacks,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        warmup_steps=10,
    )


def read(folder: str, use_features: bool):
    """Processor, rows and features of a prepared log."""
    processor = ImplicitRecProcessor.from_pretrained(Path(folder) / "processor")
    path = Path(folder) / "item_features.safetensors"
    features = load_file(path)["features"] if use_features else None
    return processor, load_sequences(Path(folder) / "sequences"), features


def pretrain(sources: list[str], use_features: bool, steps: int, seed: int):
    logs = {Path(folder).name: read(folder, use_features) for folder in sources}
    joined = join_logs({name: log[:2] for name, log in logs.items()})
    features = None
    if use_features:
        width = next(iter(logs.values()))[2].shape[1]
        features = np.zeros((joined.processor.vocab_size, width), np.float32)
        for name, log in logs.items():
            features[joined.tokens[name]] = log[2]
    set_seed(seed)
    model = new_model(joined.processor, features, joined.processor.item_counts)
    learn(model, joined.splits["train"], steps, seed)
    return model, joined.processor


def run(args: argparse.Namespace, seed: int) -> dict:
    """The curves of both arms for every share of the target log."""
    source, joined = pretrain(args.sources, args.features, args.pretraining_steps, seed)
    processor, splits, features = read(args.target, args.features)
    generator = np.random.default_rng(seed)
    test = splits["test"]
    test = test.select(np.sort(generator.permutation(len(test))[:TEST_USERS]))
    train = splits["train"].filter(lambda size: size > 1, input_columns="length")
    order, curves = generator.permutation(len(train)), {}
    for share, steps in zip(SHARES, args.steps):
        rows = train.select(np.sort(order[: max(2, int(share * len(train)))]))
        known = np.concatenate([np.asarray(row) for row in rows["input_ids"]])
        counts = np.bincount(known, minlength=processor.vocab_size)
        for arm in ("from scratch", "pretrained"):
            set_seed(seed)
            model = new_model(processor, features, counts)
            if arm == "pretrained":
                transfer_weights(model, source, (joined, processor))
            curve = Curve(model, test, processor.vocab_size - 1, steps // POINTS)
            learn(model, rows, steps, seed, [curve])
            curves.setdefault(f"{share:.0%}", {})[arm] = curve.points
    return {"seed": seed, "users": len(train), "test users": len(test), "curves": curves}


def steps_to_reach(points: list, level: float) -> int | None:
    return next((step for step, value in points if value >= level), None)


def markdown(report: dict) -> str:
    lines = ["# From other catalogues to a new one", "", report["what"], ""]
    for name, runs in report["worlds"].items():
        lines += [f"## {name}", ""]
        lines.append(
            f"{len(runs)} seeds; {runs[0]['users']:,} users to learn from, {runs[0]['test users']:,} "
            "to test on; NDCG@10 of new items, mean ± standard deviation over seeds at the best point of "
            "each curve; steps until the pretrained model is as good as the other at its best."
        )
        lines += [
            "",
            "| share of the log | from scratch | pretrained | difference | steps | instead of |",
        ]
        lines.append("|---|---:|---:|---:|---:|---:|")
        lines += [row(share, runs) for share in runs[0]["curves"]] + [""]
    return "\n".join(lines).rstrip() + "\n"


def row(share: str, runs: list[dict]) -> str:
    best: dict[str, list] = {"from scratch": [], "pretrained": []}
    steps: list[tuple] = []
    for one in runs:
        curves = one["curves"][share]
        for arm, values in best.items():
            values.append(max(value for _, value in curves[arm]))
        level = best["from scratch"][-1]
        reached = steps_to_reach(curves["pretrained"], level)
        steps.append((reached, steps_to_reach(curves["from scratch"], level)))
    cells = [f"{mean(v):.4f}" + (f" ± {stdev(v):.4f}" if len(v) > 1 else "") for v in best.values()]
    gain = mean(best["pretrained"]) / mean(best["from scratch"]) - 1
    fewer = "never" if any(s is None for s, _ in steps) else f"{mean(s for s, _ in steps):.0f}"
    others = f"{mean(s for _, s in steps):.0f}"
    return f"| {share} | {cells[0]} | {cells[1]} | {gain:+.1%} | {fewer} | {others} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="folder that prepare.py wrote")
    parser.add_argument("--sources", nargs="+", required=True, help="folders of other logs")
    parser.add_argument("--features", action="store_true", help="items have content (describe.py)")
    parser.add_argument("--steps", type=int, nargs=3, default=STEPS, help="for each share")
    parser.add_argument("--pretraining_steps", type=int, default=PRETRAINING_STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    names = " and ".join(Path(folder).name for folder in args.sources)
    world = f"{Path(args.target).name}, pretrained on {names}"
    world += ", with content" if args.features else ", ids only"
    report: dict = {"what": "", "worlds": {}}
    for seed in args.seeds:
        made = run(args, seed)
        if RESULTS.exists():
            report = json.loads(RESULTS.read_text())
        report["what"] = " ".join(__doc__.split("\n\n", 1)[1].split())
        runs = [one for one in report["worlds"].get(world, []) if one["seed"] != seed]
        report["worlds"][world] = sorted([*runs, made], key=lambda one: one["seed"])
        RESULTS.write_text(json.dumps(report, indent=1))
        RESULTS.with_suffix(".md").write_text(markdown(report))
        print(markdown({"what": "", "worlds": {world: [made]}}), flush=True)


if __name__ == "__main__":
    main()
