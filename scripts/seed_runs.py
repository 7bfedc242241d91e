"""Short trainings over seeds on prepared logs, and what the differences between them are worth."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from short_training import train_briefly
from transformers import set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    cooccurrence_table,
    evaluate,
    fit_baselines,
    load_sequences,
)


@dataclass(frozen=True)
class Log:
    """Encoded parts and the processor that encoded them."""

    splits: DatasetDict
    processor: ImplicitRecProcessor

    @classmethod
    def read(cls, folder: Path) -> "Log":
        """What prepare.py wrote."""
        processor = ImplicitRecProcessor.from_pretrained(folder / "processor")
        return cls(load_sequences(folder / "sequences"), processor)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model learns; `max_steps` above 0 overrules `epochs`."""

    epochs: float = 6.0
    max_steps: int = -1
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


def new_model(log: Log, train: Dataset, seed: int, **settings: Any) -> ImplicitRecForScoring:
    """An untrained model that knows how often items were had, and together."""
    set_seed(seed)
    known = log.processor
    sizes = {"vocab_size": known.vocab_size, "num_event_types": known.num_event_types}
    config = ImplicitRecConfig(**sizes | settings)
    model = ImplicitRecForScoring(config)
    tokens = np.concatenate([np.asarray(row) for row in train["input_ids"]]).astype(np.int64)
    counts = np.bincount(tokens, minlength=config.vocab_size)
    model.fit_item_counts(counts)
    if config.num_cooccurrences:
        size, neighbours = config.vocab_size, config.num_cooccurrences
        model.fit_cooccurrences(*cooccurrence_table(train, size, neighbours, item_counts=counts))
    return model


def learn(
    model: ImplicitRecForScoring,
    train: Dataset,
    seed: int,
    schedule: Schedule,
    **labels: Any,
) -> float:
    """Train in place by a cosine schedule; the CPU seconds that it took.

    Args:
        labels: settings of the collator.
    """
    collator = DataCollatorForNextItem(model.config.max_position_embeddings, seed=seed, **labels)
    started = time.process_time()
    train_briefly(
        model,
        train,
        collator,
        seed=seed,
        num_train_epochs=schedule.epochs,
        max_steps=schedule.max_steps,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        train_sampling_strategy="group_by_length",
        logging_strategy="no",
    )
    return time.process_time() - started


def ndcg(scorer: Any, log: Log, rows: Dataset, *, repeats: bool = False) -> np.ndarray:
    """NDCG@10 of each person, of all items or of those that are new to them."""
    result = evaluate(
        scorer,
        rows,
        seen="keep" if repeats else "exclude",
        target_filter="all" if repeats else "new",
        num_items=log.processor.vocab_size - 1,
        progress=False,
    )
    return result.per_user["ndcg@10"]


def floors(log: Log) -> list:
    """The baselines of a study."""
    names = ("popularity", "cooccurrence", "item_knn")
    return fit_baselines(names, log.splits["train"], log.processor.vocab_size)


def difference(ours: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean of a paired difference and its standard error, over the same users and seeds.

    The error has two parts, added as squares: that of the users (of their differences, averaged over
    seeds) and that of the seeds (of the mean differences).

    Args:
        ours: `[users]` for each seed.
        others: likewise; one for all seeds where nothing was drawn.
    """
    gaps = np.array(list(ours)) - np.array(list(others))  # [seeds, users]
    users = gaps.mean(0).std(ddof=1) / np.sqrt(gaps.shape[1])
    seeds = gaps.mean(1).std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return {"mean": float(gaps.mean()), "error": float(np.hypot(users, seeds))}


def kept(path: Path, make: Callable[[], dict]) -> dict:
    """What a run found: from its file where it has one, else made and written, whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(make()))
        partial.rename(path)
        print(f"{path.parent.name}: {path.stem}", flush=True)
    return json.loads(path.read_text())
