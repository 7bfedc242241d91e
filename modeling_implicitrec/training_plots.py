"""A picture of a training: the loss and the validation metric over its steps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curve = list[tuple[int, float]]
NAMES = {"loss": "loss on training events", "eval_loss": "loss on the validation part"}
METRIC = "eval_ndcg@10"
INK, COLOURS = "#333333", ("#1f6fb4", "#d2691e")


def read_curves(log_history: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Steps and values of each loss and of the validation metric that `Trainer` logged.

    >>> read_curves([{"step": 5, "loss": 2.5}, {"step": 10, "eval_ndcg@10": 0.1}, {"step": 10}])
    {'loss': [(5, 2.5)], 'eval_ndcg@10': [(10, 0.1)]}
    """
    keys = (*NAMES, METRIC)
    curves = {
        key: [(int(entry["step"]), float(entry[key])) for entry in log_history if key in entry]
        for key in keys
    }
    return {key: curve for key, curve in curves.items() if curve}


def plot_training(
    log_history: Sequence[Mapping[str, Any]], folder: str | os.PathLike
) -> Path | None:
    """Draw `plots/training.png` into a checkpoint's folder, where its card finds it.

    Args:
        log_history: `trainer.state.log_history`.

    Returns:
        The path, or `None` where nothing was logged that could be drawn.

    Raises:
        ImportError: without matplotlib.
    """
    from matplotlib.figure import Figure

    curves = read_curves(log_history)
    panels = [("loss", [key for key in NAMES if key in curves])]
    panels += [("NDCG@10, validation part", [METRIC])] if METRIC in curves else []
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    figure = Figure(figsize=(4.2 * len(panels), 2.9), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for key, colour in zip(keys, COLOURS):
            steps, values = zip(*curves[key])
            axes.plot(steps, values, color=colour, marker=".", label=NAMES.get(key))
        if len(keys) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("step", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    path = Path(folder, "plots", "training.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".training.{os.getpid()}.png")
    figure.savefig(partial, dpi=144)
    os.replace(partial, path)
    return path
