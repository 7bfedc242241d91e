"""Where the time of a training step goes: operations by share, and how near matrix products are to the
machine's limit."""

import time

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import TrainerCallback

STEPS = 4
SHOWN = 12
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "scaled_dot_product")


def is_product(name: str) -> bool:
    """Whether an operation of the profiler is a matrix product, forward or backward."""
    return name.removeprefix("aten::").lstrip("_").startswith(PRODUCTS)


def product_limit(size: int = 1024, seconds: float = 2.0) -> float:
    """FLOP/s of float32 matrix products here, with as many threads as torch has."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    left @ right
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        left @ right
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - start)


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of matrix products, forward and backward; torch's own counter also follows
    modules, which the chunked loss does not allow."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


class StepProfile(TrainerCallback):
    """Measures three times a few steps: their plain time, their FLOPs, and their operations.

    Args:
        first: steps before it starts.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.clock: list[float] = []
        self.flops = FlopCounter()
        self.operations = profile(activities=[ProfilerActivity.CPU])
        self.step = 0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.step = state.global_step - self.first
        if self.step == STEPS:
            self.flops.__enter__()
        if self.step == 2 * STEPS:
            self.flops.__exit__(None, None, None)
            self.operations.__enter__()
        if 0 <= self.step <= STEPS:
            self.clock.append(time.perf_counter())

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.step == 3 * STEPS - 1:
            self.operations.__exit__(None, None, None)
            control.should_training_stop = True

    def report(self) -> dict | None:
        """Shares and rates; None for a run that was not profiled to its end."""
        if self.step < 3 * STEPS - 1:
            return None
        events = self.operations.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        shares = {event.key: event.self_cpu_time_total / total for event in events}
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])
        flops = self.flops.total / STEPS
        seconds = (self.clock[-1] - self.clock[0]) / STEPS
        limit = product_limit()
        return {
            "step seconds": seconds,
            "step FLOPs": flops,
            "FLOP/s": flops / seconds,
            "limit FLOP/s": limit,
            "share of the limit": flops / seconds / limit,
            "share of time in matrix products": sum(v for n, v in shares.items() if is_product(n)),
            "operations": dict(ranked[:SHOWN]),
        }
