"""Does a pretrained body help a log of other items? `python scripts/measure_transfer.py --help`.

A model is pretrained on the source logs (`join_logs`), then fine-tuned on 1 %, 10 % and 100 % of the users
of the target log, beside one that starts from scratch with the same steps, labels and seeds. Logs that were
split by time are learnt as the recipes do: all items of the weeks after a cut, histories with one event an
item, and a copy prior. A step is chosen on users of the validation part; the test part
is read there, and before the first step.
Runs add up in `docs/results/transfer.json`; the page beside it shows them all.
"""

import argparse
import json
from copy import deepcopy
from pathlib import Path
from statistics import mean

import numpy as np
from result_pages import TITLES, spread, table, what_is_measured
from safetensors.numpy import load_file
from short_training import train_briefly
from transformers import TrainerCallback, set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    SameForAll,
    evaluate,
    fit_priors,
    join_logs,
    load_sequences,
    transfer_weights,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "transfer.json"
DAY = 86_400
SHARES = (0.01, 0.1, 1.0)
STEPS = (40, 60, 80)  # of each share
POINTS = (0, 5, 10, 20, 40, 60, 80)  # steps that are looked at
PRETRAINING_STEPS = 200
CHOOSING_USERS, TEST_USERS = 200, 400
NEARLY = 0.99  # of the best from scratch
ARMS = ("from scratch", "pretrained")
SEEN = {"all": "keep", "new": "exclude"}


def ndcg(scorer, rows, num_items: int, protocol: str) -> float:
    found = evaluate(
        scorer,
        rows,
        seen=SEEN[protocol],
        target_filter=protocol,
        num_items=num_items,
        progress=False,
    )
    return found.metrics["ndcg@10"]


class Curve(TrainerCallback):
    """NDCG@10 on validation users by step, and the weights at the best step of each protocol."""

    def __init__(self, model, rows, protocols) -> None:
        self.model, self.rows, self.num_items = model, rows, model.config.vocab_size - 1
        self.points: dict[str, list] = {protocol: [] for protocol in protocols}
        self.best: dict[str, dict] = {}

    def look(self, step: int) -> None:
        scorer = ModelScorer(self.model.eval())
        for protocol, points in self.points.items():
            value = ndcg(scorer, self.rows, self.num_items, protocol)
            if not points or value > max(before for _, before in points):
                self.best[protocol] = deepcopy(self.model.state_dict())
            points.append((step, value))
        self.model.train()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.look(0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step in POINTS:
            self.look(state.global_step)


class Log:
    """A prepared log, and how it is learnt."""

    def __init__(self, folder: str, use_features: bool) -> None:
        path = Path(folder)
        self.name, self.splits = path.name, load_sequences(path / "sequences")
        self.processor = ImplicitRecProcessor.from_pretrained(path / "processor")
        features = path / "item_features.safetensors"
        self.features = load_file(features)["features"] if use_features else None
        self.by_time = json.loads((path / "prepare.json").read_text())["split"] == "temporal"
        self.protocols = ("all", "new") if self.by_time else ("new",)


def event_counts(rows, vocab_size: int) -> np.ndarray:
    known = np.concatenate([np.asarray(row) for row in rows["input_ids"]])
    return np.bincount(known, minlength=vocab_size)


def new_model(log: Log, processor, features, rows, **settings) -> ImplicitRecForScoring:
    """A model that is told of the rows, and of no others, what `finetune.py` tells one."""
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        negative_event_type_ids=processor.negative_event_type_ids,
        item_feature_size=0 if features is None else features.shape[1],
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=64,
        copy_prior=log.by_time,
        collapse_repeats=log.by_time,
        **settings,
    )
    model = ImplicitRecForScoring(config)
    if log.by_time:  # counts of users, and how much comes again
        fit_priors(model, processor, rows)
    else:
        model.fit_item_counts(event_counts(rows, processor.vocab_size))
    if features is not None:
        model.fit_item_features(features)
    return model


def learn(log: Log, model, rows, steps: int, seed: int, callbacks=()) -> None:
    collator = DataCollatorForNextItem(
        model.config.max_position_embeddings,
        target_window=28 * DAY if log.by_time else 0.0,
        collapse_repeats=log.by_time,
        seed=seed,
    )
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


def pretrain(args: argparse.Namespace, target: Log, seed: int):
    """A model of all sources, with the labels of the target, and its processor."""
    logs = {Path(folder).name: Log(folder, args.features) for folder in args.sources}
    joined = join_logs({name: (log.processor, log.splits) for name, log in logs.items()})
    features = None
    if args.features:
        features = np.zeros((joined.processor.vocab_size, target.features.shape[1]), np.float32)
        for name, log in logs.items():
            features[joined.tokens[name]] = log.features
    set_seed(seed)
    settings = {"use_item_ids": not (args.features and args.content_only)}
    rows = joined.splits["train"]
    model = new_model(target, joined.processor, features, rows, **settings)
    learn(target, model, rows, args.pretraining_steps, seed)
    return model, joined.processor


def some(rows, number: int, generator: np.random.Generator):
    return rows.select(np.sort(generator.permutation(len(rows))[:number]))


def asked(scorer, log: Log, test) -> dict[str, float]:
    """NDCG@10 on the test users by protocol."""
    size = log.processor.vocab_size
    return {protocol: ndcg(scorer, test, size - 1, protocol) for protocol in log.protocols}


def learnt(log: Log, model, rows, users: tuple, steps: int, seed: int) -> dict:
    """The curve of a training, and what the test says before it and at the chosen step."""
    choosing, test = users
    untrained = asked(ModelScorer(model.eval()), log, test)
    curve, chosen = Curve(model, choosing, log.protocols), {}
    learn(log, model, rows, steps, seed, [curve])
    for protocol, weights in curve.best.items():
        model.load_state_dict(weights)
        scorer = ModelScorer(model.eval())
        chosen[protocol] = ndcg(scorer, test, log.processor.vocab_size - 1, protocol)
    return {"untrained": untrained, "test": chosen, "curve": curve.points}


def run(args: argparse.Namespace, seed: int) -> dict:
    """Curves on the validation part and results on the test, by share of the target log."""
    log = Log(args.target, args.features)
    source, joined = pretrain(args, log, seed)
    generator = np.random.default_rng(seed)
    choosing = some(log.splits["validation"], CHOOSING_USERS, generator)
    test = some(log.splits["test"], TEST_USERS, generator)
    train = log.splits["train"].filter(lambda size: size > 1, input_columns="length")
    order, found = generator.permutation(len(train)), {}
    for share, steps in zip(SHARES, args.steps):
        rows = train.select(np.sort(order[: max(2, int(share * len(train)))]))
        counts = event_counts(rows, log.processor.vocab_size)
        made: dict = {"users": len(rows)}
        made["popularity"] = asked(SameForAll("popularity", counts), log, test)
        for arm in ARMS:
            set_seed(seed)
            model = new_model(log, log.processor, log.features, rows)
            if arm == "pretrained":
                transfer_weights(model, source, (joined, log.processor))
            made[arm] = learnt(log, model, rows, (choosing, test), steps, seed)
        found[f"{share:.0%}"] = made
    return {"seed": seed, "choosing users": len(choosing), "test users": len(test), "shares": found}


def steps_to_reach(points: list, level: float) -> int | None:
    return next((step for step, value in points if value >= level), None)


def mean_steps(runs: list[dict], arm: str, protocol: str, part: float) -> str:
    """Mean steps until an arm's curve has this part of the best from scratch."""
    found = []
    for made in runs:
        level = part * max(value for _, value in made[ARMS[0]]["curve"][protocol])
        found.append(steps_to_reach(made[arm]["curve"][protocol], level))
    reached = [step for step in found if step is not None]
    never = len(found) - len(reached)
    told = f"{mean(reached):.0f}" if reached else ""
    return f"{told} ({never} never)".strip() if never else told


HEADER = ["share of the log", "users", "popularity", "from scratch", "pretrained", "difference"]
HEADER += ["no step, from scratch", "no step, pretrained", "steps to equal", "instead of"]
HEADER += ["steps to 99 %", "instead of"]


def row(share: str, runs: list[dict], protocol: str) -> list[str]:
    made = [one["shares"][share] for one in runs]
    tested = {arm: [one[arm]["test"][protocol] for one in made] for arm in ARMS}
    gain = mean(tested["pretrained"]) / mean(tested["from scratch"]) - 1
    cells = [share, f"{made[0]['users']:,}", spread([one["popularity"][protocol] for one in made])]
    cells += [*map(spread, tested.values()), f"{gain:+.1%}"]
    cells += [spread([one[arm]["untrained"][protocol] for one in made]) for arm in ARMS]
    for part in (1.0, NEARLY):
        cells += [mean_steps(made, arm, protocol, part) for arm in reversed(ARMS)]
    return cells


def markdown(report: dict) -> str:
    lines = ["# From other catalogues to a new one", "", report["what"], ""]
    lines += [
        "NDCG@10 on the test users, mean ± standard deviation over seeds, at the step that validation "
        "users choose; *no step* is what a model is worth before it learns from the target. "
        "Steps are read on the validation curve, until a model is as good as the one from scratch at its "
        "best, and until it has 99 % of that.",
        "",
    ]
    for name, runs in report["worlds"].items():
        lines += [f"## {name}", ""]
        seeds = f"{len(runs)} seed" + "s" * (len(runs) > 1)
        lines += [f"{seeds}; {runs[0]['test users']:,} users to test on.", ""]
        for protocol in runs[0]["shares"]["1%"]["popularity"]:
            lines += [f"### {TITLES[protocol].capitalize()}", ""]
            rows = [row(share, runs, protocol) for share in runs[0]["shares"]]
            lines += [*table(HEADER, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="folder that prepare.py wrote")
    parser.add_argument("--sources", nargs="+", required=True, help="folders of other logs")
    parser.add_argument("--features", action="store_true", help="items have content (describe.py)")
    parser.add_argument(
        "--content_only", action="store_true", help="pretrain without rows of items"
    )
    parser.add_argument("--steps", type=int, nargs=3, default=STEPS, help="for each share")
    parser.add_argument("--pretraining_steps", type=int, default=PRETRAINING_STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    names = " and ".join(Path(folder).name for folder in args.sources)
    world = f"{Path(args.target).name}, pretrained on {names}"
    content = "content alone" if args.content_only else "ids and content"
    world += f", {content}" if args.features else ", ids only"
    report: dict = {"what": "", "worlds": {}}
    for seed in args.seeds:
        made = run(args, seed)
        if RESULTS.exists():
            report = json.loads(RESULTS.read_text())
        report["what"] = what_is_measured(__doc__, before=" Runs add up")
        runs = [one for one in report["worlds"].get(world, []) if one["seed"] != seed]
        report["worlds"][world] = sorted([*runs, made], key=lambda one: one["seed"])
        RESULTS.write_text(json.dumps(report, indent=1))
        RESULTS.with_suffix(".md").write_text(markdown(report))
        print(markdown({"what": "", "worlds": {world: [made]}}), flush=True)


if __name__ == "__main__":
    main()
