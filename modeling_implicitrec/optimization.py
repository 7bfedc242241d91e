"""AdamW for tables of items: a step costs what the rows that it read cost, not the catalogue."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
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
        max_grad_norm: largest norm of all gradients together, 0 for no limit; torch's own clipping knows
            no sparse ones.

    >>> table = torch.nn.Embedding(1000, 8, sparse=True)
    >>> optimizer = RowWiseAdamW(table.parameters(), lr=0.1)
    >>> before = table.weight.detach().clone()
    >>> table(torch.tensor([3, 5])).sum().backward()
    >>> optimizer.step()
    >>> (table.weight != before).any(1).nonzero()[:, 0].tolist()
    [3, 5]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        max_grad_norm: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.max_grad_norm = max_grad_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step.

        Raises:
            ValueError: for a closure.
        """
        if closure is not None:
            raise ValueError("RowWiseAdamW takes no closure")
        parameters = [(p, group) for group in self.param_groups for p in group["params"]]
        for parameter, _group in parameters:
            if _is_sparse(parameter):
                parameter.grad = parameter.grad.coalesce()
        if self.max_grad_norm:
            self._clip([p.grad for p, _group in parameters if p.grad is not None])
        sparse = [(p, p.grad, group) for p, group in parameters if _is_sparse(p)]
        for parameter, _gradient, _group in sparse:
            parameter.grad = None
        super().step()
        for parameter, gradient, group in sparse:
            self._step_rows(parameter, gradient, group)
            parameter.grad = gradient

    def _clip(self, gradients: list[Tensor]) -> None:
        values = [g.values() if g.is_sparse else g for g in gradients]
        norm = torch.stack([torch.linalg.vector_norm(value) for value in values]).norm()
        for value in values:
            value *= (self.max_grad_norm / (norm + 1e-6)).clamp_max(1)

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


def _is_sparse(parameter: Tensor) -> bool:
    return parameter.grad is not None and parameter.grad.is_sparse


class SettleCallback(TrainerCallback):
    """Settles Trainer's [`RowWiseAdamW`] before an evaluation, a checkpoint and the end."""

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
