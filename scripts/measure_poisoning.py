"""What fake users and random events do to recommendations: `python scripts/measure_poisoning.py`.

Fake users want one seldom read article in other people's lists. They are added to the log before it is
cleaned, in three ways: *quiet* ones copy the history of a real user and put the article after every
third event, *loud* ones read it and popular articles in turn, all day, every ten seconds, *heavy* ones
are quiet and claim a billion counts for it, where labels are weighted. Measured is the share of real
users who never had the article and find it in their first ten. Random events, of articles as popular as
the log's, are put into histories before the last two events, in all parts; measured is NDCG@10 of the
real last event. Models are small; every number is the mean ± standard deviation over seeds, each with an
article of its own.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd
from short_training import train_briefly
from transformers import set_seed

from modeling_implicitrec import (
    CleaningOptions,
    DataCollatorForNextItem,
    EventSchema,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    build_sequences,
    encode_splits,
    evaluate,
    fit_baselines,
    fit_priors,
    leave_last_out,
    load_events,
    rank_histories,
    training_columns,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "poisoning.json"
SCHEMA = EventSchema("personId", "contentId", "timestamp", event_type="eventType", count="count")
FACTORS = {"VIEW": 1, "LIKE": 2, "BOOKMARK": 2.5, "FOLLOW": 3, "COMMENT CREATED": 4}
CLEANED = {"merge_repeats": True, "min_user_events": 3}
NO_BOTS = {"bot_events_per_day": None, "max_events_per_day": None}
UNCLIPPED = {"clip_quantile": None}
ATTACK_BASELINES = ["popularity", "cooccurrence", "item_knn", {"ease": {"regularization": 30}}]
NOISE_BASELINES = [*ATTACK_BASELINES, "own_frequency", "als"]
LONGEST = 50
EPOCHS = 6


@dataclass(frozen=True)
class Defence:
    """How a log is cleaned and weighed."""

    cleaning: dict = field(default_factory=dict)
    max_weight: float = 10.0
    label_weight_power: float = 0.0  # above 0, strong events are also learnt more


ARMS = {  # name: kind of fake users, how many of 100 real ones, defence
    "no fake users": ("quiet", 0, Defence()),
    "quiet, 1 %": ("quiet", 1, Defence()),
    "quiet, 5 %": ("quiet", 5, Defence()),
    "quiet, 10 %": ("quiet", 10, Defence()),
    "loud, 5 %, bots are kept": ("loud", 5, Defence(cleaning=NO_BOTS)),
    "loud, 5 %, bots are dropped": ("loud", 5, Defence()),
    "heavy, 5 %, nothing clipped": (
        "heavy",
        5,
        Defence(cleaning=UNCLIPPED, max_weight=1e6, label_weight_power=1),
    ),
    "heavy, 5 %, weights up to 10": ("heavy", 5, Defence(label_weight_power=1)),
    "heavy, 5 %, weights up to 2": ("heavy", 5, Defence(max_weight=2, label_weight_power=1)),
}


def quiet(log: pd.DataFrame, target: int, number: int, draw: np.random.Generator) -> pd.DataFrame:
    """Copies of real histories with the target after every third event."""
    sizes = log["personId"].value_counts()
    chosen = draw.choice(sizes.index[(sizes >= 9) & (sizes <= 200)], number, replace=False)
    copies = []
    for place, person in enumerate(chosen):
        rows = log[log["personId"] == person].sort_values("timestamp", kind="stable")
        added = rows.iloc[2::3].assign(contentId=target, eventType="VIEW")
        added["timestamp"] += 30
        copies.append(pd.concat([rows, added]).assign(personId=f"fake {place}"))
    return pd.concat(copies)


def loud(log: pd.DataFrame, target: int, number: int, draw: np.random.Generator) -> pd.DataFrame:
    """Target and popular articles in turn, 1,000 events in one day by a clock."""
    popular = log["contentId"].value_counts().index[:5].to_numpy()
    start, copies = log["timestamp"].median(), []
    for place in range(number):
        items = np.full(1000, target)
        items[::2] = draw.choice(popular, 500)
        times = start + 10 * np.arange(1000)
        rows = {"contentId": items, "timestamp": times.astype(int), "eventType": "VIEW", "count": 1}
        copies.append(pd.DataFrame(rows).assign(personId=f"fake {place}"))
    return pd.concat(copies)


def heavy(log: pd.DataFrame, target: int, number: int, draw: np.random.Generator) -> pd.DataFrame:
    rows = quiet(log, target, number, draw)
    return rows.assign(count=np.where(rows["contentId"] == target, 10**9, rows["count"]))


ATTACKS: dict[str, Callable] = {"quiet": quiet, "loud": loud, "heavy": heavy}


def with_noise(log: pd.DataFrame, share: float, draw: np.random.Generator) -> pd.DataFrame:
    """Random events until they are this share of what stands before each user's last two."""
    noise = []
    for person, rows in log.sort_values("timestamp", kind="stable").groupby("personId"):
        times = rows["timestamp"].to_numpy()
        if len(times) < 3 or not share:
            continue
        number = draw.binomial(len(times) - 2, share) / (1 - share)
        items = draw.choice(log["contentId"].to_numpy(), round(number))
        moments = draw.integers(times[0], times[-3] + 1, round(number))
        added = {"contentId": items, "timestamp": moments, "eventType": "VIEW", "count": 1}
        noise.append(pd.DataFrame(added).assign(personId=person))
    return pd.concat([log, *noise])


def prepare(log: pd.DataFrame, defence: Defence) -> tuple:
    """The encoded splits and the processor."""
    events = load_events(log, SCHEMA, cleaning=CleaningOptions(**CLEANED | defence.cleaning))
    splits = leave_last_out(build_sequences(events))
    processor = ImplicitRecProcessor.fit(
        training_columns(splits["train"]),
        event_type_weights=FACTORS,
        max_weight=defence.max_weight,
    )
    return encode_splits(splits, processor), processor


def train(rows, processor, defence: Defence, seed: int) -> ImplicitRecForScoring:
    set_seed(seed)
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        hidden_size=32,
        hidden_dropout_prob=0.2,
        num_hidden_layers=1,
        max_position_embeddings=LONGEST,
        num_cooccurrences=64,
    )
    model = ImplicitRecForScoring(config)
    fit_priors(model, processor, rows)
    power = defence.label_weight_power
    collator = DataCollatorForNextItem(LONGEST, seed=seed, label_weight_power=power)
    return train_briefly(
        model,
        rows,
        collator,
        seed=seed,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        train_sampling_strategy="group_by_length",
    )


def exposure(scorer, rows, token: int) -> float:
    """Share of the users who find a token in their first ten; users who had it do not count."""
    without = [row for row in rows if token not in row["input_ids"]]
    ranked = rank_histories(scorer.score, without, k=10, seen="keep", progress=False)
    return float((ranked == token).any(axis=1).mean())


def scorers_of(rows, processor, defence: Defence, seed: int, names: list) -> list:
    model = train(rows, processor, defence, seed)
    return [ModelScorer(model), *fit_baselines(names, rows, processor.vocab_size)]


def measure_attacks(log: pd.DataFrame, seed: int) -> dict:
    """Exposure of the seed's article by arm and scorer, and the share of fake users that cleaning left."""
    readers = log.groupby("contentId")["personId"].nunique()
    target = np.random.default_rng(seed).choice(readers.index[(readers >= 8) & (readers <= 12)])
    report = {}
    for name, (kind, percent, defence) in ARMS.items():
        number = round(log["personId"].nunique() * percent / 100)
        fakes = ATTACKS[kind](log, target, number, np.random.default_rng(seed)) if number else None
        splits, processor = prepare(pd.concat([log, fakes]), defence)
        users = splits["train"]["user_id"]
        left = sum(str(user).startswith("fake") for user in users)
        real = [row for row in splits["test"] if not str(row["user_id"]).startswith("fake")]
        (token,) = processor.encode_items([str(target)])
        fitted = scorers_of(splits["train"], processor, defence, seed, ATTACK_BASELINES)
        shown = {one.name: exposure(one, real, token) for one in fitted}
        quality = ndcg(fitted[0], real, processor.vocab_size)
        report[name] = {"fakes": number, "left": left, "exposure": shown, "ndcg@10": quality}
        print(name, report[name], flush=True)
    return report


def ndcg(scorer, rows, vocab_size: int) -> float:
    found = evaluate(scorer, rows, seen="keep", num_items=vocab_size - 1, progress=False)
    return float(found.metrics["ndcg@10"])


def measure_noise(log: pd.DataFrame, seed: int) -> dict:
    """NDCG@10 by share of random events and scorer."""
    report = {}
    for share in (0.0, 0.1, 0.3):
        noisy = with_noise(log, share, np.random.default_rng(seed))
        splits, processor = prepare(noisy, Defence())
        fitted = scorers_of(splits["train"], processor, Defence(), seed, NOISE_BASELINES)
        size = processor.vocab_size
        report[f"{share:.0%}"] = {one.name: ndcg(one, splits["test"], size) for one in fitted}
        print(share, report[f"{share:.0%}"], flush=True)
    return report


def spread(values: list[float], form: str) -> str:
    deviation = stdev(values) if len(values) > 1 else 0.0
    return f"{format(mean(values), form)} ± {format(deviation, form)}"


def table(first: str, names: list[str], lines: dict[str, list[str]]) -> list[str]:
    head = [f"| {first} | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    return [*head, *(f"| {name} | {' | '.join(cells)} |" for name, cells in lines.items()), ""]


def noise_cells(noise: list[dict], scorer: str) -> list[str]:
    """NDCG@10 at each share of noise, and by how much its mean changes from none."""
    values = [[run[share][scorer] for run in noise] for share in noise[0]]
    changes = [mean(one) / mean(values[0]) - 1 for one in values[1:]]
    return [*(spread(one, ".4f") for one in values), *(f"{change:+.1%}" for change in changes)]


def markdown(report: dict) -> str:
    runs = [report["runs"][seed] for seed in sorted(report["runs"])]
    seeds = ", ".join(sorted(report["runs"]))
    attacks, noise = [run["attacks"] for run in runs], [run["noise"] for run in runs]
    first = attacks[0]
    scorers = list(next(iter(first.values()))["exposure"])
    lines: dict[str, list[str]] = {}
    for arm in first:
        cells = [f"{first[arm]['fakes']}", f"{mean(run[arm]['left'] for run in attacks):.0f}"]
        cells += [spread([run[arm]["exposure"][s] for run in attacks], ".1%") for s in scorers]
        lines[arm] = [*cells, spread([run[arm]["ndcg@10"] for run in attacks], ".4f")]
    noisy = {scorer: noise_cells(noise, scorer) for scorer in noise[0]["0%"]}
    shares = list(noise[0])
    heads = ["added", "left by cleaning", *scorers, "NDCG@10 of real users"]
    return "\n".join(
        ["# Fake users and random events", "", report["what"], ""]
        + [f"Deskdrop, seeds {seeds}: `{report['command']}`", "", "## Fake users", ""]
        + ["Share of real users who find the article in their first ten:", ""]
        + table("fake users", heads, lines)
        + ["## Random events", "", "NDCG@10, by the share of random events in histories:", ""]
        + table("ranked by", [*shares, *(f"change at {share}" for share in shares[1:])], noisy)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", default="data/raw/deskdrop/users_interactions.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--users", type=int, default=500, help="the first of the log, so many")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    log = pd.read_csv(args.log).assign(count=1)
    log = log.astype({"personId": str, "contentId": str})
    log = log[log["personId"].isin(log["personId"].unique()[: args.users])]
    report = {"what": " ".join(__doc__.split("\n\n", 1)[1].split()), "runs": {}}
    seeds = " ".join(map(str, args.seeds))
    report["command"] = f"python scripts/measure_poisoning.py --users {args.users} --seeds {seeds}"
    for seed in args.seeds:
        made = {"attacks": measure_attacks(log, seed), "noise": measure_noise(log, seed)}
        report["runs"][str(seed)] = made
        args.output.write_text(json.dumps(report, indent=1) + "\n")
        args.output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
