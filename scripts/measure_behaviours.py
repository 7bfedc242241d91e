"""Are all types of behaviour worth reading where one is asked for? `python scripts/measure_behaviours.py`.

The next item that a person will react to (articles: like, bookmark, comment; Taobao: category put into the
cart, marked or bought) is predicted from different parts of the same history. A person's events of one
item within an hour are one visit, at its last event and of its strongest type, so that a like does not
only say what was opened a moment ago. All ways are asked the same questions: the last visit of a target
type is the test, the one before the validation. Runs are kept in `work_dir`, and one that is there is not
made again; the report goes to docs/results/behaviours.json and .md.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import DatasetDict
from result_pages import signed, spread, table, what_is_measured, write_page
from seed_runs import Log, Schedule, difference, kept, learn, new_model

from modeling_implicitrec import (
    EventSchema,
    ImplicitRecProcessor,
    ModelScorer,
    build_sequences,
    encode_splits,
    evaluate,
    fit_baselines,
    leave_last_out,
    load_events,
    parse_arguments,
    training_columns,
)

HOUR = 3600
LISTS = ("input_ids", "input_weights", "event_type_ids", "timestamps")
BASELINES = ["popularity", "cooccurrence", "item_knn"]


@dataclass(frozen=True)
class World:
    """A log, the worth of its types, and what is asked."""

    source: str
    columns: dict[str, str]
    factors: dict[str, float]
    targets: tuple[str, ...]
    new_only: bool


WORLDS = {
    "deskdrop": World(
        "deskdrop/users_interactions.csv",
        {"personId": "user", "contentId": "item", "eventType": "kind", "timestamp": "time"},
        {"VIEW": 1, "LIKE": 2, "BOOKMARK": 2.5, "FOLLOW": 3, "COMMENT CREATED": 4},
        ("LIKE", "BOOKMARK", "COMMENT CREATED"),
        new_only=True,
    ),
    "taobao": World(
        "taobao.csv",
        {"user": "user", "category": "item", "behavior": "kind", "ts": "time"},
        {"pv": 1, "fav": 2, "cart": 3, "buy": 4},
        ("cart", "fav", "buy"),
        new_only=False,
    ),
}


@dataclass(frozen=True)
class Way:
    """What of a history is read, and which events are labels."""

    others: bool = True  # events of types that are not asked for
    types: bool = True  # the model is told each event's type
    weights: bool = True
    all_labels: bool = False
    longer: int = 1  # times as many epochs
    power: bool = False  # the copy prior learns the power of a weight


WAYS = {
    "target types alone": Way(others=False),
    "target types alone, 5 x the epochs": Way(others=False, longer=5),
    "all types alike": Way(types=False, weights=False),
    "all types, told apart": Way(weights=False),
    "all types, told apart and weighted": Way(),
    "the same, copy power learnt": Way(power=True),
    "told apart and weighted, labels of all types": Way(all_labels=True),
}
FIRST, ALIKE, OURS = (
    "target types alone, 5 x the epochs",
    "all types alike",
    "all types, told apart and weighted",
)


@dataclass
class BehaviourArguments:
    """Which runs to make, and where results go."""

    logs: list[str] = field(default_factory=lambda: list(WORLDS))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    epochs: float = field(default=4.0)
    data_dir: Path = field(default=Path("data/raw"), metadata={"help": "folder of the logs"})
    work_dir: Path = field(default=Path("outputs/behaviours"), metadata={"help": "results of runs"})
    output_dir: Path = field(default=Path("docs/results"))


def visits(log: pd.DataFrame, factors: dict[str, float]) -> pd.DataFrame:
    """One row a visit: its last moment and its strongest type."""
    log = log.sort_values(["user", "item", "time"], kind="stable")
    new = (log.user != log.user.shift()) | (log["item"] != log["item"].shift())
    log["visit"] = (new | (log.time - log.time.shift() > HOUR)).cumsum()
    end = log.groupby("visit").time.transform("max")
    log = log.assign(time=end, strength=log.kind.map(factors))
    return log.sort_values(["visit", "strength"], kind="stable").drop_duplicates(
        "visit", keep="last"
    )


def read_world(world: World, folder: Path) -> Log:
    log = pd.read_csv(folder / world.source, usecols=list(world.columns))
    log = log.rename(columns=world.columns)
    schema = EventSchema("user", "item", "time", event_type="kind")
    events = load_events(visits(log, world.factors)[list(world.columns.values())], schema)
    splits = leave_last_out(build_sequences(events), target_event_types=world.targets)
    columns = training_columns(splits["train"])
    processor = ImplicitRecProcessor.fit(columns, event_type_weights=world.factors)
    return Log(encode_splits(splits, processor), processor)


def seen_by(way: Way, log: Log, target_ids: np.ndarray) -> DatasetDict:
    """The histories as the way reads them."""

    def change(row: dict) -> dict:
        read = np.isin(row["event_type_ids"], target_ids) | way.others
        found = {name: np.asarray(row[name])[read] for name in LISTS}
        if not way.weights:
            found["input_weights"] = np.ones_like(found["input_weights"])
        return found | {"length": int(read.sum())}

    return log.splits.map(change, load_from_cache_file=False)


def measured(scorer, log: Log, world: World, parts: DatasetDict) -> dict:
    """NDCG@10 of each person who is asked, by part; what is new is new to the whole history."""
    found = {}
    for name in ("validation", "test"):
        rows, asked = parts[name], log.splits[name]
        if world.new_only:
            seen = [set(ids) for ids in asked["input_ids"]]
            kept_rows = [i for i, t in enumerate(asked["target_ids"]) if t and t[0] not in seen[i]]
            rows = rows.select(kept_rows)
        result = evaluate(
            scorer,
            rows,
            seen="exclude" if world.new_only else "keep",
            num_items=log.processor.vocab_size - 1,
            progress=False,
        )
        found[name] = result.per_user["ndcg@10"].round(6).tolist()
    return found


def run(args: BehaviourArguments, log: Log, world: World, way: Way, seed: int) -> dict:
    """Train one way and measure it."""
    targets = log.processor.encode_event_types(world.targets)
    parts = seen_by(way, log, targets)
    train = parts["train"]
    model = new_model(
        log,
        train,
        seed,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        hidden_dropout_prob=0.3,
        max_position_embeddings=50,
        num_cooccurrences=64,
        copy_prior=not world.new_only,
        learn_copy_power=way.power,
    )
    if not way.types:
        model.model.event_type_embedding.requires_grad_(False).weight.zero_()
    labels = [] if way.all_labels else targets.tolist()
    seconds = learn(
        model, train, seed, Schedule(args.epochs * way.longer), target_event_type_ids=labels
    )
    return measured(ModelScorer(model), log, world, parts) | {"CPU seconds": round(seconds, 1)}


def floors(log: Log, world: World) -> dict:
    """Baselines that learn from, and read, all types or the target types alone."""
    targets, found = log.processor.encode_event_types(world.targets), {}
    for name, way in (("all types", Way()), ("target types", Way(others=False))):
        parts = seen_by(way, log, targets)
        for scorer in fit_baselines(BASELINES, parts["train"], log.processor.vocab_size):
            found[f"{scorer.name}, {name}"] = measured(scorer, log, world, parts)
    return found


def summary(runs: dict[str, list[dict]]) -> dict:
    """Every way beside the two that all types with weights must beat."""
    found = {}
    for name, of_seeds in runs.items():
        found[name] = {
            part: [float(np.mean(one[part])) for one in of_seeds] for part in ("validation", "test")
        }
        for other in (FIRST, ALIKE):
            values = [[one["test"] for one in runs[way]] for way in (name, other)]
            if name != other and len(of_seeds) == len(runs[other]):
                found[name][f"against {other}"] = difference(*values)
    return found


def page(report: dict) -> list[str]:
    lines = ["# One behaviour out of many", ""]
    lines += [what_is_measured(__doc__, before=" Runs are kept"), ""]
    lines += [f"`{report['command']}`; NDCG@10, mean ± standard deviation over seeds, test part; "]
    lines += ["differences are paired, ± standard error over people and seeds.", ""]
    for name, world in report["worlds"].items():
        asked = "items that are new to the person" if world["new only"] else "repeats allowed"
        lines += [
            f"## {name}",
            "",
            f"{world['people']:,} people, {world['items']:,} items, {asked}; ",
        ]
        lines += [f"asked for: {', '.join(world['targets'])}. {len(world['seeds'])} seeds.", ""]
        header = ["read", "validation", "test", "against the target types alone, 5 x"]
        rows = []
        for way, values in world["ways"].items():
            gaps = [values.get(f"against {other}") for other in (FIRST, ALIKE)]
            cells = [spread(values["validation"]), spread(values["test"])]
            cells += [signed(gap) if gap else "" for gap in gaps]
            rows.append([way, *cells])
        for floor, values in world["floors"].items():
            cells = [f"{np.mean(values[part]):.4f}" for part in ("validation", "test")]
            rows.append([floor, *cells, "", ""])
        lines += [*table([*header, "against all alike"], rows), "", *verdict(world), ""]
    return lines


def verdict(world: dict) -> list[str]:
    """What the test says of all types with weights, beside the two that they should beat."""
    lines = []
    for other in (FIRST, ALIKE):
        gap = world["ways"][OURS][f"against {other}"]
        told = abs(gap["mean"]) > 2 * gap["error"]
        said = ("better" if gap["mean"] > 0 else "worse") if told else "not to be told apart"
        lines.append(f"- *{OURS}* against *{other}*: {signed(gap)}, {said}.")
    return lines


def main() -> None:
    (args,) = parse_arguments(BehaviourArguments)
    report: dict = {"command": f"python scripts/measure_behaviours.py --epochs {args.epochs:g}"}
    report["worlds"] = {}
    for name in args.logs:
        world, folder = WORLDS[name], args.work_dir / f"{name}_{args.epochs:g}"
        log = read_world(world, args.data_dir)
        ways = {way: one for way, one in WAYS.items() if not (one.power and world.new_only)}
        runs: dict[str, list[dict]] = {way: [] for way in ways}
        for seed in args.seeds:
            for way, settings in ways.items():
                path = folder / f"{way}_{seed}.json"
                made = kept(path, partial(run, args, log, world, settings, seed))
                runs[way].append(made)
        base = kept(folder / "floors.json", partial(floors, log, world))
        report["worlds"][name] = {
            "targets": world.targets,
            "new only": world.new_only,
            "people": len(runs[OURS][0]["test"]),
            "items": log.processor.vocab_size - 1,
            "seeds": args.seeds,
            "ways": summary(runs),
            "floors": {n: {p: float(np.mean(v)) for p, v in x.items()} for n, x in base.items()},
        }
    write_page(args.output_dir / "behaviours", report, page(report))


if __name__ == "__main__":
    main()
