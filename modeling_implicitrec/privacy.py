"""Differential privacy of users: each one's gradient is clipped, the sum noised, the budget counted."""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments

from .configuration_implicitrec import ImplicitRecConfig
from .matrices import binary_matrix
from .processing_implicitrec import ImplicitRecProcessor

SIGMA_TOLERANCE = 1e-3  # relative, of the noise multiplier that is searched for
MAX_SIGMA = 1e5


@dataclass(frozen=True)
class PrivacyPlan:
    """What a private run does to the data, and what that costs.

    A step takes each user with the chance `sample_rate` (Poisson sampling), clips the gradient of each
    one's own mean loss to the norm `clip_norm`, adds Gaussian noise of `noise_multiplier * clip_norm` to
    their sum (DP-SGD, Abadi et al., 2016), and divides by the number of users expected. With a
    `count_noise` the popularity that the item bias starts from is a noised sum too, of one vector of
    norm 1 a user. All of it together is (epsilon, delta)-differentially private under adding or
    removing one user.

    Args:
        num_users: users learnt from, one row each; taken as public.
        users_per_step: expected number.
        steps: optimiser steps.
        noise_multiplier: of the gradients.
        count_noise: standard deviation of the noise on item counts; 0: no counts are read.
        delta: chance that the bound `epsilon` does not hold, well below `1 / num_users`.
        clip_norm: largest norm of a user's gradient.

    Raises:
        ValueError: for a number out of range.

    >>> plan = PrivacyPlan(num_users=1000, users_per_step=50, steps=100, noise_multiplier=1.0)
    >>> plan.sample_rate
    0.05
    """

    num_users: int
    users_per_step: int
    steps: int
    noise_multiplier: float
    count_noise: float = 0.0
    delta: float = 1e-5
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.users_per_step <= self.num_users:
            raise ValueError(
                f"users_per_step must lie in 1..{self.num_users} (num_users), got {self.users_per_step}"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, got {self.delta}")
        for name in ("steps", "noise_multiplier", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.count_noise < 0:
            raise ValueError(f"count_noise must not be negative, got {self.count_noise}")

    @classmethod
    def of_run(
        cls, training: TrainingArguments, num_users: int, **settings: float
    ) -> "PrivacyPlan":
        """The plan of a run of [`PrivateTrainer`], with a noise multiplier of 1 for now.

        Args:
            training: whose `per_device_train_batch_size` is the users of a step.
            settings: `count_noise`, `delta` and `clip_norm`.
        """
        users = min(training.per_device_train_batch_size, num_users)
        steps = math.ceil(training.num_train_epochs * max(1, round(num_users / users)))
        steps = training.max_steps if training.max_steps > 0 else steps
        return cls(num_users, users, steps, noise_multiplier=1.0, **settings)

    @property
    def sample_rate(self) -> float:
        """The chance of a user to be in a step."""
        return self.users_per_step / self.num_users

    @property
    def releases(self) -> list[tuple[float, float, int]]:
        """Noise multiplier, sample rate and number of every Gaussian mechanism, as Opacus has them."""
        counts = [(self.count_noise, 1.0, 1)] if self.count_noise else []
        return [*counts, (self.noise_multiplier, self.sample_rate, self.steps)]

    @cached_property
    def epsilon(self) -> float:
        """What it costs, by the accountant of Opacus (Gopi et al., 2021): an upper bound.

        Raises:
            ImportError: where `opacus` is not installed.
        """
        return spent_epsilon(self.releases, self.delta)

    def for_epsilon(self, epsilon: float) -> "PrivacyPlan":
        """The same with the least noise on gradients that costs no more than `epsilon`.

        Raises:
            ValueError: where no noise is enough, since the counts alone cost more.
        """
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        low, high = 0.0, 1.0
        while replace(self, noise_multiplier=high).epsilon > epsilon:
            low, high = high, 2 * high
            if high > MAX_SIGMA:
                raise ValueError(
                    f"epsilon {epsilon} is not enough, even for the count_noise {self.count_noise} alone"
                )
        while high - low > SIGMA_TOLERANCE * high:
            middle = (low + high) / 2
            if replace(self, noise_multiplier=middle).epsilon > epsilon:
                low = middle
            else:
                high = middle
        return replace(self, noise_multiplier=high)

    def to_dict(self) -> dict[str, Any]:
        """The plan and its cost, as plain JSON values."""
        return {"epsilon": self.epsilon, **asdict(self)}


def spent_epsilon(releases: Sequence[tuple[float, float, int]], delta: float) -> float:
    """Epsilon of subsampled Gaussian mechanisms `(noise multiplier, sample rate, number)` together."""
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        raise ImportError(
            "differential privacy needs: pip install 'implicitrec[privacy]'", name=error.name
        ) from error
    accountant = PRVAccountant()
    accountant.history = list(releases)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a sample rate of 1
        return float(accountant.get_epsilon(delta))


def secret_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose seed comes from the operating system and is kept nowhere.

    A run's own seed is in its card: who knows the noise can take it off.
    """
    return torch.Generator(device).manual_seed(secrets.randbits(63))


def check_private(
    config: ImplicitRecConfig, processor: ImplicitRecProcessor, train: Dataset
) -> None:
    """Raise `ValueError` where a part of the model reads the users' data without noise.

    Args:
        train: encoded rows with `user_id`.
    """
    if processor.item_counts.any():
        raise ValueError(
            "the vocabulary was learnt from the log, its counts and its order are people's: private "
            "training needs data that was prepared with a catalogue"
        )
    if config.num_cooccurrences:
        raise ValueError(
            "the co-occurrence table is read from the log without noise: private training needs "
            f"num_cooccurrences 0, got {config.num_cooccurrences}"
        )
    if config.num_trend_events:
        raise ValueError(
            "the trend prior holds people's events, without names: private training needs "
            f"num_trend_events 0, got {config.num_trend_events}"
        )
    if config.loss_type != "softmax" and config.in_batch_share:
        raise ValueError(
            "negatives from the batch are other users' labels: private training needs "
            f"in_batch_share 0, got {config.in_batch_share}"
        )
    users = train["user_id"]
    if len(set(users)) < len(users):
        raise ValueError("private training needs one row a user, some have more")


def noisy_item_counts(
    rows: Any, vocab_size: int, *, noise: float, generator: torch.Generator | None = None
) -> Tensor:
    """How many users had each item, by a vote of norm 1 a user and noise: float `[vocab_size]`.

    A user of m distinct items adds `1 / sqrt(m)` to each. What lies below the noise is not told apart
    from it, so all such items get the noise's own size.

    Args:
        noise: standard deviation.
        generator: of the noise; a secret one by default.
    """
    held = binary_matrix(rows, vocab_size)
    votes = held.T @ (1 / np.sqrt(np.maximum(held.getnnz(1), 1)))
    total = torch.from_numpy(np.asarray(votes, dtype=np.float64))
    total += noise * torch.randn(
        vocab_size, dtype=torch.float64, generator=generator or secret_generator()
    )
    total = total.clamp_min(noise).float()
    total[0] = 0
    return total


def private_gradient(
    model: nn.Module,
    users: Sequence[dict[str, Tensor]],
    plan: PrivacyPlan,
    generator: torch.Generator,
) -> tuple[Tensor, list[Tensor]]:
    """The users' mean loss, and the noised gradient of each parameter that learns.

    The gradients are taken one user at a time, so that a shared parameter, a tied table or a loss in
    chunks needs no rule of its own: whatever the model does, a user adds a vector of norm `clip_norm`
    at most. One that is not finite adds nothing.

    Args:
        users: the batch of each user alone; none for an empty step, which is noise only.
        generator: of the noise, on the parameters' device.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    total = parameters[0].new_zeros((), dtype=torch.float32)
    for batch in users:
        with torch.enable_grad():
            loss = model(**batch).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        total += loss.detach().float()
        add_clipped(sums, found, plan.clip_norm)
    scale = plan.noise_multiplier * plan.clip_norm
    for part in sums:
        noise = torch.randn(part.shape, generator=generator, device=part.device)
        part.add_(noise, alpha=scale).div_(plan.users_per_step)
    return total / max(len(users), 1), [s.to(p.dtype) for s, p in zip(sums, parameters)]


def add_clipped(sums: Sequence[Tensor], found: Sequence[Tensor | None], clip_norm: float) -> None:
    """Add one user's gradient, made `clip_norm` long where it is longer, to the sums."""
    norms = [torch.linalg.vector_norm(g.double()) for g in found if g is not None]
    if not norms:
        return
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if not torch.isfinite(norm):
        return
    factor = float((clip_norm / norm.clamp_min(1e-12)).clamp_max(1.0))
    for part, gradient in zip(sums, found):
        if gradient is not None:
            part.add_(gradient, alpha=factor)


class _PrivateLoss(torch.autograd.Function):
    """The users' mean loss; its gradient is the private one, which the forward pass has made."""

    @staticmethod
    def forward(ctx, model, users, plan, generator, *parameters):
        loss, ctx.grads = private_gradient(model, users, plan, generator)
        return loss

    @staticmethod
    def backward(ctx, grad_output):
        return None, None, None, None, *(grad * grad_output for grad in ctx.grads)


class PoissonSampler(Sampler[list[int]]):
    """Batches that hold each of `num_users` with a chance of its own; they may be empty."""

    def __init__(self, plan: PrivacyPlan, generator: torch.Generator) -> None:
        self.plan = plan
        self.generator = generator

    def __len__(self) -> int:
        return max(1, round(1 / self.plan.sample_rate))

    def __iter__(self):
        for _step in range(len(self)):
            drawn = torch.rand(self.plan.num_users, generator=self.generator)
            yield torch.nonzero(drawn < self.plan.sample_rate)[:, 0].tolist()


class PrivateTrainer(Trainer):
    """Trainer whose gradients are private; all that it does with them is a function of these alone.

    Two methods differ: which users a step reads, and what its loss's gradient is. Optimiser, schedule,
    norms, checkpoints and logs are Trainer's own. The losses that it logs have no noise: they are for who
    holds the data.

    Args:
        plan: of the rows of `train_dataset`.
        settings: of Trainer.

    Raises:
        ValueError: for several processes or GPUs, accumulated steps, a plan of other rows or fewer steps
            than the run has, or a checkpoint chosen by what held-out users did.
    """

    def __init__(self, plan: PrivacyPlan, **settings: Any) -> None:
        super().__init__(**settings)
        self.plan = plan
        rows, args = len(settings["train_dataset"]), self.args
        if rows != plan.num_users:
            raise ValueError(f"the plan is of {plan.num_users} users, the training set has {rows}")
        if args.world_size > 1 or args.n_gpu > 1 or args.gradient_accumulation_steps > 1:
            raise ValueError(
                "private training is of one process, one device and gradient_accumulation_steps 1, got "
                f"{args.world_size}, {args.n_gpu} and {args.gradient_accumulation_steps}"
            )
        if args.load_best_model_at_end:
            raise ValueError("load_best_model_at_end chooses by people's data without noise")
        model: Any = self.model
        model.state_centre.fixed = True  # its mean of the states would have no noise
        self.secret = secret_generator(args.device)
        self.collate: Callable = self.data_collator

    def get_train_dataloader(self) -> DataLoader:
        """Each step's users, every one of them a batch of its own; dropout is drawn in secret too."""
        torch.manual_seed(secrets.randbits(63))
        sampler = PoissonSampler(self.plan, secret_generator())
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self._each)  # type: ignore[arg-type]

    def _each(self, rows: Sequence[Any]) -> dict[str, Any]:
        return {"users": [self.collate([row]) for row in rows]}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's own where it evaluates."""
        if "users" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.state.global_step >= self.plan.steps:
            raise ValueError(f"the plan is of {self.plan.steps} steps, all of which are done")
        parameters = [p for p in model.parameters() if p.requires_grad]
        return _PrivateLoss.apply(model, inputs["users"], self.plan, self.secret, *parameters)
