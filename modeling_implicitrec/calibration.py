"""How much each part of a score counts, fitted to answers that were held out of training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import Tensor
from transformers import (
    EvalPrediction,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .collation import DataCollatorForNextItem
from .evaluation import compute_hit_metrics, reduce_logits_to_hits
from .head_implicitrec import lowest_at
from .kernels_implicitrec import SCALAR_STEP
from .loss_implicitrec import targets_loss
from .modeling_implicitrec import ImplicitRecForScoring
from .rows import SequenceRows

METRIC = "ndcg@10"
STEPS = 200
BATCH_ROWS = 256
SCORES = 4_000_000  # of a batch
MOST_ROWS = 20_000  # so few numbers need no more answers
LEARNING_RATE = 0.01

Numbers = list[Tensor]


class Answers(NamedTuple):
    """Held-out rows of one batch.

    Attributes:
        states: `[rows, hidden_size]`, centred.
        history: what the priors read.
        seen: `[rows, length]` tokens of the histories.
        targets: `[rows, targets]` tokens; those that no list can hold are not positive.
    """

    states: Tensor
    history: dict[str, Tensor]
    seen: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Calibration:
    """What a calibration did.

    Attributes:
        before: NDCG@10 of the held-out answers.
        after: the same with numbers that other people's answers were fitted to, halves in turn.
        answers: rows that were read.
        kept: whether the model now has numbers that were fitted to all of them: where they ranked better.
    """

    before: float
    after: float
    answers: int

    @property
    def kept(self) -> bool:
        return self.after > self.before

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "kept": self.kept}

    def __str__(self) -> str:
        done = "calibrated" if self.kept else "not calibrated"
        return (
            f"{done} on {self.answers:,} held-out answers: NDCG@10 of the half that was not fitted "
            f"{self.before:.4f} -> {self.after:.4f}"
        )


def calibrate(
    model: ImplicitRecForScoring,
    rows: Dataset,
    *,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> Calibration:
    """Fit a trained model's few numbers to answers that it was not trained on, where that ranks better.

    They are what the head sums its parts up with: the level and power of each prior, what it forgets by
    time and place, the power of popularity, and how much the body's match counts. Training learns them on
    histories that the body comes to know by heart, so it trusts the body more, and popularity and the
    priors less, than new histories bear out. As the weights of a stack they want predictions for cases
    that were not learnt from (Wolpert, 1992, Stacked generalization); they are fitted by likelihood, as a
    temperature is (Guo et al., 2017, On calibration of modern neural networks). Tables and layers stay as
    they are; the part of the body is taken into its last norm.

    People are halved, and the numbers that are fitted to one half are tried on the other: only where both
    together rank better than before are they fitted to all.

    Args:
        model: trained, in its place; changed where the calibration is kept.
        rows: held-out encoded rows with `target_ids`, as the validation part's. What is measured on the
            same rows afterwards is no longer held out.
        steps: of Adam, for each of the three fits.
        learning_rate: at the first step, from which it falls to 0.
        seed: of the halves and of the order of the answers.

    Raises:
        ValueError: see [`check_calibration`]; and for fewer than two rows with a known target.
    """
    check_calibration(model, rows)
    training = model.training
    model.eval()
    halves = _held_out(model, rows, np.random.default_rng(seed))
    stack = _Stack(model)
    start = stack.copy()
    before = [_hits(stack, half) for half in halves]
    after = []
    for fitted, tried in (halves, halves[::-1]):
        _fit(stack, fitted, steps, learning_rate, seed)
        after.append(_hits(stack, tried))
        stack.restore(start)
    done = Calibration(_ndcg(before), _ndcg(after), sum(len(hits) for hits in before))
    if done.kept:
        _fit(stack, halves[0] + halves[1], steps, learning_rate, seed)
        stack.settle()
    model.train(training)
    return done


def check_calibration(model: ImplicitRecForScoring, rows: Dataset) -> None:
    """Refuse what [`calibrate`] cannot do, before hours of training.

    Raises:
        ValueError: for rows without targets, or a model without a prior of others' events or of own ones.
    """
    if "target_ids" not in rows.column_names:
        raise ValueError(f"a calibration expects rows with target_ids, got {rows.column_names}")
    if model.head.copy is None and not model.head.prior_numbers():
        raise ValueError(
            "a calibration expects a model with a prior, got num_cooccurrences 0, num_trend_events 0 and "
            "copy_prior false"
        )


class CalibrationCallback(TrainerCallback):
    """Calibrates the model at the end of its training: the best checkpoint, where that is loaded then.

    Under FSDP, which divides the weights, a model stays as it is.

    Args:
        rows: as [`calibrate`] takes them.

    Attributes:
        done: what was done, once it is.

    Raises:
        ValueError: when training begins, see [`check_calibration`].
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self.done: Calibration | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        check_calibration(kwargs["model"], self.rows)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if AcceleratorState().distributed_type != DistributedType.FSDP:
            self.done = calibrate(kwargs["model"], self.rows, seed=args.seed)
        if state.is_world_process_zero:
            print(self.done or "not calibrated: FSDP has the weights in parts")


class _Stack:
    """The numbers that a model's parts are summed up with, and the scores that they give.

    Attributes:
        numbers: those of the head, which no item has of its own, and the part of the body.
    """

    def __init__(self, model: ImplicitRecForScoring) -> None:
        self.model = model
        tables = {id(table.weight) for table in model.head.item_tables()}
        own = [p for p in model.head.parameters() if p.requires_grad and id(p) not in tables]
        self.body = torch.zeros(1, device=model.device, requires_grad=True)
        self.numbers: Numbers = [*own, self.body]
        with torch.no_grad():
            self.table = model.item_table()

    def __call__(self, batch: Answers) -> Tensor:
        """`[rows, vocab_size]`; those of the history lowest where people take an item once."""
        states = batch.states * (1 + SCALAR_STEP * self.body)
        scores = self.model.head(states, self.table, batch.history)
        return lowest_at(scores, batch.seen) if self.model.config.exclude_seen else scores

    def copy(self) -> Numbers:
        return [number.detach().clone() for number in self.numbers]

    @torch.no_grad()
    def restore(self, values: Numbers) -> None:
        for number, value in zip(self.numbers, values):
            number.copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """Take the part of the body into the model: states are what the last norm gives, less a mean."""
        part = 1 + SCALAR_STEP * self.body
        self.model.model.norm.weight *= part
        self.model.state_centre.mean *= part


def _held_out(
    model: ImplicitRecForScoring, rows: Dataset, rng: np.random.Generator
) -> tuple[list[Answers], list[Answers]]:
    """The batches of two halves of the rows."""
    read = SequenceRows(rows)
    chosen = [i for i in rng.permutation(len(read)) if (read[int(i)]["target_ids"] > 0).any()]
    chosen = chosen[:MOST_ROWS]
    if len(chosen) < 2:
        raise ValueError(f"a calibration expects two rows with a known target, got {len(chosen)}")
    collator = DataCollatorForNextItem.for_model(model.config)
    size = max(8, min(BATCH_ROWS, SCORES // model.config.vocab_size))
    halves = []
    for part in (chosen[::2], chosen[1::2]):
        by_length = sorted((read[int(i)] for i in part), key=lambda row: len(row["input_ids"]))
        starts = range(0, len(by_length), size)
        halves.append([_answers(model, collator, by_length[at : at + size]) for at in starts])
    return halves[0], halves[1]


@torch.no_grad()
def _answers(
    model: ImplicitRecForScoring, collator: DataCollatorForNextItem, rows: Sequence[dict]
) -> Answers:
    """Rows as the head reads them."""
    batch = {name: values.to(model.device) for name, values in collator(rows).items()}
    targets = batch.pop("target_ids")
    states, history = model.last_states(**batch)
    seen = batch["input_ids"]
    if model.config.exclude_seen:
        targets = targets.masked_fill((targets[:, :, None] == seen[:, None, :]).any(2), -1)
    return Answers(states, history, seen, targets)


def _fit(stack: _Stack, batches: list[Answers], steps: int, rate: float, seed: int) -> None:
    """Raise the likelihood of the answers."""
    optimizer = torch.optim.Adam(stack.numbers, lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    order = np.random.default_rng(seed)
    places: list[int] = []
    for _ in range(steps):
        places = places or order.permutation(len(batches)).tolist()
        batch = batches[places.pop()]
        loss = targets_loss(stack(batch), batch.targets)
        grads = torch.autograd.grad(loss, stack.numbers, allow_unused=True)
        for number, grad in zip(stack.numbers, grads):
            number.grad = grad
        optimizer.step()
        decay.step()
    for number in stack.numbers:
        number.grad = None


@torch.no_grad()
def _hits(stack: _Stack, batches: list[Answers]) -> Tensor:
    """Of all rows what [`reduce_logits_to_hits`] gives."""
    hits = [reduce_logits_to_hits(stack(batch), batch.targets).cpu() for batch in batches]
    return torch.cat(hits)


def _ndcg(hits: list[Tensor]) -> float:
    told = torch.cat(hits).numpy()
    return compute_hit_metrics(EvalPrediction(told, told))[METRIC]
