"""Draw the figures of docs/weights.md: `python scripts/draw_weights.py`.

Every line is what a fitted processor or the model's own attention bias gives; equal code, equal files.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring, ImplicitRecProcessor

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
DAY = 86_400
INK, GRID = "#777777", "#7777773f"  # readable on white and on black
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377")
OWN = "implicitrec weights"


def new_figure(title: str, x_label: str, y_label: str):
    figure, axes = pyplot.subplots(figsize=(5.2, 3.2), layout="constrained")
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.title.set_fontsize(10)
    axes.set_prop_cycle(color=COLOURS)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure, axes, path: Path) -> None:
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def draw_counts(path: Path) -> None:
    """Raw weight against count."""
    one = ImplicitRecProcessor.fit({"item_id": ["a"], "count": [1]}, max_weight=1000)
    counts = np.arange(1, 51)
    figure, axes = new_figure("A count counts by its logarithm", "count", "part of the weight")
    axes.plot(counts, one.weights(counts=counts), label="log2(1 + count)")
    axes.plot(counts[:9], counts[:9], "--", label="the count itself, for comparison")
    save(figure, axes, path)


def draw_dwell(path: Path) -> None:
    """The dwell part against seconds, by the length of the content."""
    draw = np.random.default_rng(0)
    lengths = np.repeat([60.0, 300.0, 900.0, 1800.0, 3600.0], 2000)
    dwell = lengths * draw.beta(1.2, 2.0, len(lengths))
    log = {"item_id": ["a"] * len(dwell), "duration": dwell, "item_duration": lengths}
    processor = ImplicitRecProcessor.fit(log)
    figure, axes = new_figure(
        "A dwell is compared with others of content as long", "seconds", "part of the weight"
    )
    seconds = np.geomspace(1, 3600, 200)
    for length in np.unique(lengths):
        shown = seconds[seconds <= length]
        part = processor.weights(durations=shown, item_durations=np.full(len(shown), length))
        axes.plot(shown, part, label=f"content of {length / 60:.0f} min")
    axes.set_xscale("log")
    save(figure, axes, path)


def draw_ages(path: Path) -> None:
    """Weight against age, for some half-lives."""
    days = np.linspace(0, 120, 241)
    figure, axes = new_figure("Evidence grows old", "days before the last event", "weight")
    for half_life in (7, 30, 90):
        processor = ImplicitRecProcessor.fit({"item_id": ["a"]}, half_life=half_life * DAY)
        axes.plot(days, processor.weights(ages=days * DAY), label=f"half-life {half_life} days")
    save(figure, axes, path)


def attention_shares(beta: float, weights: np.ndarray, others: int = 9) -> np.ndarray:
    """What an event of each weight gets of the attention beside others of weight 1, all else equal."""
    config = ImplicitRecConfig(vocab_size=3, hidden_size=8, num_attention_heads=1)
    bias = ImplicitRecForScoring(config).model.evidence_bias
    rows = torch.ones(len(weights), others + 1)
    rows[:, 0] = torch.from_numpy(weights)
    with torch.no_grad():
        bias.position.weight.zero_()
        slopes = []
        for value in (0.0, 1.0):  # the parameter is scaled: find out by how much
            bias.beta.fill_(value)
            logits = bias(torch.tensor([[np.e, 1.0]]), None)[0, 0, -1]
            slopes.append(float(logits[0] - logits[1]))
        bias.beta.fill_((beta - slopes[0]) / (slopes[1] - slopes[0]))
        return bias(rows, None)[:, 0, -1].softmax(-1)[:, 0].numpy()


def draw_attention(path: Path) -> None:
    """Share of the attention against weight, for some betas."""
    weights = np.linspace(0.05, 10, 200).astype(np.float32)
    figure, axes = new_figure(
        "One event of weight w beside nine of weight 1", "weight w", "share of the attention"
    )
    for beta in (0.0, 0.5, 1.0, 1.5):
        start = ", the start" if beta == 1 else ""
        axes.plot(weights, attention_shares(beta, weights), label=f"β = {beta:g}{start}")
    save(figure, axes, path)


DRAWN = {
    "weight_count": draw_counts,
    "weight_dwell": draw_dwell,
    "weight_age": draw_ages,
    "weight_attention": draw_attention,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=FIGURES)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams |= {"svg.hashsalt": OWN, "svg.fonttype": "none", "font.size": 9}
    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    matplotlib.rcParams |= dict.fromkeys(inks, INK)
    for name, draw in DRAWN.items():
        draw(args.output_dir / f"{name}.svg")


if __name__ == "__main__":
    main()
