"""Trains implicitrec through its recipe: `python scripts/implicitrec_runner.py job.json`.

The job is that of `peer_marks.py`; `settings` are the words that `recipes/finetune.py` takes. The
budget of time is in charge: no evaluation and no checkpoint on the way, and a cosine schedule ends with the
budget, or with the recipe's last epoch where that comes first.
"""

import math
import runpy
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import DatasetDict
from peer_lists import read_splits
from peer_marks import Run, read_job
from step_profile import StepProfile
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from modeling_implicitrec import (
    ModelScorer,
    RowWiseAdamW,
    parse_arguments,
    positive_events,
    season_gain,
)

ROOT = Path(__file__).resolve().parents[1]


class CountingCollator:
    """Batches as another collator makes them, and how large each was, in order."""

    def __init__(self, collator) -> None:
        self.collator = collator
        self.sizes: deque[tuple[int, int, int]] = deque()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collator(rows)
        labels = batch["labels"] if "labels" in batch else batch["target_ids"]
        mask = batch["attention_mask"]
        self.sizes.append((int((labels != -100).sum()), int(mask.sum()), mask.numel()))
        return batch


class Marks(TrainerCallback):
    """Tells the run of every step, and lets the learning rate end with the time."""

    def __init__(self, run: Run, collator: CountingCollator, splits: DatasetDict) -> None:
        self.run, self.collator, self.splits = run, collator, splits
        self.model: torch.nn.Module | None = None
        self.gain = 0.0  # of what is in season, which the recipe adds after training

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs,
    ) -> None:
        self.model, optimizer = kwargs["model"], kwargs["optimizer"].optimizer
        last = self.run.seconds() >= min([self.run.job["seconds"], *self.run.marks])
        if last and isinstance(optimizer, RowWiseAdamW):
            optimizer.settle()
        control.should_training_stop |= self.run.step(self.score, self.collator.sizes.popleft())
        if args.lr_scheduler_type == SchedulerType.COSINE:
            done = max(
                self.run.seconds() / self.run.job["seconds"], state.global_step / state.max_steps
            )
            warm = min(1.0, (state.global_step + 1) / max(args.warmup_steps, 1))
            for group, rate in zip(optimizer.param_groups, kwargs["lr_scheduler"].base_lrs):
                group["lr"] = rate * warm * (1 + math.cos(math.pi * min(done, 1))) / 2

    def score(self, part: str, start: int, stop: int) -> torch.Tensor:
        """`[rows, vocab_size]` of the whole catalogue."""
        rows = self.splits[part][start:stop]
        listed = [dict(zip(rows, values)) for values in zip(*rows.values())]
        scores = ModelScorer(self.model).score(listed) + self.gain
        self.model.train()
        return scores


def build_trainer(run: Run) -> tuple[Trainer, Marks]:
    """The recipe's trainer without what a budget of time leaves no room for."""
    recipe = SimpleNamespace(**runpy.run_path(str(ROOT / "recipes" / "finetune.py")))
    args, training = parse_arguments(recipe.FinetuneArguments, TrainingArguments, args=run.settings)
    training.eval_strategy, training.load_best_model_at_end = IntervalStrategy.NO, False
    training.save_strategy, training.disable_tqdm = SaveStrategy.NO, True
    args.early_stopping_patience = 0
    args.calibrate = False  # which would come after the time
    set_seed(training.seed)
    train, validation, processor = recipe.load(args)
    splits = read_splits(Path(args.data_dir) / "sequences")
    run.start()
    model = recipe.build_model(args, processor, train)
    own = recipe.build_collator(args, training, model, processor)
    trainer = recipe.build_trainer(args, training, model, own, train, validation)
    trainer.data_collator = collator = CountingCollator(own)
    marks = Marks(run, collator, splits)
    if args.season_days:
        liked = positive_events(train, processor.negative_event_type_ids)
        marks.gain = season_gain(liked, processor.vocab_size, days=args.season_days)
    trainer.add_callback(marks)
    return trainer, marks


def main() -> None:
    run = read_job()
    trainer, marks = build_trainer(run)
    profile = StepProfile(run.job["warmup"])
    if run.job.get("profile"):
        trainer.add_callback(profile)
    trainer.train()
    facts = {"epochs": trainer.state.epoch, "profile": profile.report()}
    run.finish(marks.score, "implicitrec", **facts)


if __name__ == "__main__":
    main()
