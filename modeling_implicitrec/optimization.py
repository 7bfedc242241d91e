"""AdamW for tables of items: a step costs what the rows that it read cost, not the catalogue."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import AdamW
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RowWiseAdamW(AdamW):
    """AdamW (Loshchilov and Hutter, 2019) that updates of a sparse gradient its rows alone.

    A row is an Adam of its own, which steps when the row has a gradient: its moments and their bias
    correction know no other steps. The second moment is one number a row, the mean over the row, as in
    row-wise Adagrad (Gupta et al., 2014), so the state of a table `[rows, size]` is one more such table
    and three numbers a row. Weight decay is that of all steps: a row gets what it missed when it is next
    read, and every row on [`~RowWiseAdamW.settle`]. Dense gradients are stepped as by AdamW.

    Args:
        params, lr, betas, eps, weight_decay: as of AdamW.

    >>> table = torch.nn.Embedding(1000, 8, sparse=True)
    >>> optimizer = RowWiseAdamW(table.parameters(), lr=0.1)
    >>> before = table.weight.detach().clone()
    >>> table(torch.tensor([3, 5])).sum().backward()
    >>> optimizer.step()
    >>> (table.weight != before).any(1).nonzero()[:, 0].tolist()
    [3, 5]
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; gradients stay as they are.

        Raises:
            ValueError: for a closure.
        """
        if closure is not None:
            raise ValueError("RowWiseAdamW takes no closure")
        sparse = [(p, p.grad, g) for g in self.param_groups for p in g["params"] if _is_sparse(p)]
        for parameter, _gradient, _group in sparse:
            parameter.grad = None
        super().step()
        for parameter, gradient, group in sparse:
            self._step_rows(parameter, gradient.coalesce(), group)
            parameter.grad = gradient

    def _step_rows(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            # Of each row: its steps, its moments, and the log of the weight decay that it has had;
            # `decay` is that of all steps so far.
            state["step"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table[:, 0])
            state["decayed"] = torch.zeros_like(table[:, 0])
            state["decay"] = torch.zeros_like(table[0, 0])
        state["decay"] += torch.log1p(torch.tensor(-group["lr"] * group["weight_decay"]))
        rows, values = gradient.indices()[0], gradient.values()
        beta1, beta2 = group["betas"]
        step = state["step"][rows] + 1
        first = state["exp_avg"][rows].lerp_(values, 1 - beta1)
        second = state["exp_avg_sq"][rows].lerp_(values.square().mean(1), 1 - beta2)
        scale = (second / (1 - beta2**step)).sqrt_().add_(group["eps"]) * (1 - beta1**step)
        kept = (state["decay"] - state["decayed"][rows]).exp()
        table[rows] = table[rows] * kept[:, None] - group["lr"] * first / scale[:, None]
        state["step"][rows] = step
        state["exp_avg"][rows] = first
        state["exp_avg_sq"][rows] = second
        state["decayed"][rows] = state["decay"]

    @torch.no_grad()
    def settle(self) -> None:
        """Give every row the weight decay that it has missed, as before an evaluation."""
        for table, state in self.state.items():
            if "decayed" in state:
                table *= (state["decay"] - state["decayed"]).exp_()[:, None]
                state["decayed"].fill_(state["decay"])


def _vector_norm(
    gradient: Tensor,
    ord: float = 2,
    dim: list[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.linalg.vector_norm(gradient.coalesce().values(), ord, dtype=dtype)


# Trainer takes the norm of all gradients, and torch has none of a sparse one.
_NORMS = torch.library.Library("aten", "IMPL")
for _kind in ("SparseCPU", "SparseCUDA"):
    _NORMS.impl("linalg_vector_norm", _vector_norm, _kind)


def _is_sparse(parameter: Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.is_sparse


class SettleCallback(TrainerCallback):
    """Settles Trainer's [`RowWiseAdamW`] before an evaluation, a checkpoint and the end.

    Raises:
        ValueError: at the start of a training under FSDP2, which divides dense gradients only.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if isinstance(kwargs["model"], FSDPModule):
            raise ValueError(
                "RowWiseAdamW expects the whole table in every process, whose gradient is sparse; got a "
                "model that FSDP2 divides. Train without row_wise_optimizer, or without FSDP2"
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if control.should_evaluate or control.should_save or control.should_training_stop:
            kwargs["optimizer"].optimizer.settle()  # inside of accelerate's wrapper

    on_epoch_end = on_step_end
