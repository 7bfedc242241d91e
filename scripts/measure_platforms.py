"""Do events of another platform help? `python scripts/measure_platforms.py`.

The films of MovieLens are parted into two platforms, dramas and all others, with no item on both. A model
of each platform alone reads and learns from the events of that platform only; a joined one reads and learns
from one history per user with the events of both, and is told whose each event is (`num_platforms`). The
target is the user's last event; all rank the films of its platform that the user has not had, with the
same settings and as many steps. Mean ± standard deviation of NDCG@10 over seeds.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from result_pages import spread
from short_training import train_briefly
from transformers import set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    load_sequences,
    ndcg_at_k,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "platforms.json"
PLATFORMS = {1: "dramas", 2: "other films"}
LONGEST = 50
K = 10
COLUMNS = ("input_ids", "input_weights", "timestamps")


def platform_of(processor, films: pd.DataFrame) -> np.ndarray:
    """The platform of each token, 0 for padding."""
    genres = films.set_index("movieId")["genres"]
    ids = processor.decode_items(range(1, processor.vocab_size))
    drama = genres.reindex([int(one) for one in ids]).fillna("").str.contains("Drama")
    return np.concatenate([[0], np.where(drama, 1, 2)])


def part(rows: Dataset, platform: np.ndarray, wanted: list[int]) -> Dataset:
    """The events of some platforms, with the platform of each; one row a user, maybe empty."""
    made: dict[str, list] = {name: [] for name in (*COLUMNS, "platform_ids", "length", "row")}
    for number, row in enumerate(rows):
        own = platform[np.asarray(row["input_ids"], dtype=int)]
        kept = np.isin(own, wanted)
        for name in COLUMNS:
            made[name].append(np.asarray(row[name])[kept].tolist())
        made["platform_ids"].append(own[kept].tolist())
        made["length"].append(int(kept.sum()))
        made["row"].append(number)
    return Dataset.from_dict(made)


def train(rows: Dataset, vocab_size: int, platforms: int, steps: int, seed: int):
    set_seed(seed)
    config = ImplicitRecConfig(
        vocab_size=vocab_size,
        num_platforms=platforms,
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=LONGEST,
    )
    model = ImplicitRecForScoring(config)
    tokens = np.concatenate([np.asarray(row, dtype=int) for row in rows["input_ids"]])
    model.fit_item_counts(np.bincount(tokens, minlength=vocab_size))
    return train_briefly(
        model,
        rows,
        DataCollatorForNextItem(LONGEST, seed=seed),
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
    )


@torch.no_grad()
def ndcg(model, rows: Dataset, targets: np.ndarray, seen: list, candidates: np.ndarray) -> float:
    """NDCG@10 of one target a user among the candidates that the user has not had."""
    collator, hits = DataCollatorForNextItem(LONGEST), []
    for first in range(0, len(rows), 128):
        batch = collator.histories(rows.select(range(first, min(first + 128, len(rows)))))
        if model.config.num_platforms == 1:
            del batch["platform_ids"]
        scores = model(**batch).logits.masked_fill(~torch.as_tensor(candidates), -torch.inf)
        for row, score in enumerate(scores, start=first):
            score[torch.as_tensor(np.setdiff1d(seen[row], targets[row]))] = -torch.inf
            hits.append(score.topk(K).indices.numpy() == targets[row])
    return float(ndcg_at_k(np.stack(hits), np.ones(len(hits), dtype=int), k=K).mean())


def measure(args: argparse.Namespace, seed: int) -> dict:
    """NDCG@10 of every arm for the users whose last event is of each platform."""
    processor = ImplicitRecProcessor.from_pretrained(Path(args.data_dir) / "processor")
    splits = load_sequences(Path(args.data_dir) / "sequences")
    platform = platform_of(processor, pd.read_csv(args.films))
    test = splits["test"]
    targets = np.array([row[0] for row in test["target_ids"]])
    size, found = processor.vocab_size, {}
    joined = train(part(splits["train"], platform, [1, 2]), size, 3, args.steps, seed)
    for number, name in PLATFORMS.items():
        mine = np.flatnonzero((targets > 0) & (platform[targets.clip(0)] == number))
        rows, wanted = test.select(mine), targets[mine]
        seen = [np.asarray(row, dtype=int) for row in rows["input_ids"]]
        alone = train(part(splits["train"], platform, [number]), size, 1, args.steps, seed)
        own, both = part(rows, platform, [number]), part(rows, platform, [1, 2])
        asked = (wanted, seen, platform == number)
        found[name] = {
            "users": len(mine),
            "alone": ndcg(alone, own, *asked),
            "joined, histories of this platform": ndcg(joined, own, *asked),
            "joined": ndcg(joined, both, *asked),
        }
        print(seed, name, found[name], flush=True)
    return {"seed": seed, "steps": args.steps, "results": found}


def markdown(report: dict) -> str:
    lines = ["# One user on two platforms", "", report["what"], ""]
    runs = report["runs"]
    arms = [name for name in runs[0]["results"]["dramas"] if name != "users"]
    lines += [f"{len(runs)} seeds, {runs[0]['steps']} steps of 32 users.", ""]
    lines += ["| platform | users | " + " | ".join(arms) + " |", "|---|---:|" + "---:|" * len(arms)]
    for name in PLATFORMS.values():
        of_platform = [run["results"][name] for run in runs]
        cells = [spread([one[arm] for one in of_platform]) for arm in arms]
        lines.append(f"| {name} | {of_platform[0]['users']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data/movielens", help="what prepare.py wrote")
    parser.add_argument("--films", default="data/raw/ml-latest-small/movies.csv")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    runs = []
    for seed in args.seeds:
        runs.append(measure(args, seed))
        report = {"what": " ".join(__doc__.split("\n\n", 1)[1].split()), "runs": runs}
        RESULTS.write_text(json.dumps(report, indent=1))
        RESULTS.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
