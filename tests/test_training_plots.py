"""The plot of a training: what is drawn of the log, where it goes, and what does not get one."""

import warnings

import pytest
from tiny_models import tiny

from modeling_implicitrec import (
    ImplicitRecProcessor,
    plot_training,
    save_checkpoint,
    write_model_card,
)

Axes = pytest.importorskip("matplotlib.axes").Axes

LOG = [
    {"step": 10, "loss": 5.0, "learning_rate": 1e-3},
    {"step": 10, "eval_loss": 5.5, "eval_ndcg@10": 0.1},
    {"step": 20, "loss": 4.0},
    {"step": 20, "eval_loss": 4.5, "eval_ndcg@10": 0.2},
    {"step": 20, "train_runtime": 3.0, "train_loss": 4.5},
]


def test_losses_and_the_metric_are_drawn_over_steps(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot

    def noted(self, x, y, **style):
        drawn.append([*zip(x, y)])
        return plot(self, x, y, **style)

    monkeypatch.setattr(Axes, "plot", noted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of a legend that has nothing to name
        path = plot_training(LOG, tmp_path)
    assert path == tmp_path / "plots" / "training.png"
    assert drawn == [
        [(10, 5.0), (20, 4.0)],
        [(10, 5.5), (20, 4.5)],
        [(10, 0.1), (20, 0.2)],
    ]
    assert [p.name for p in path.parent.iterdir()] == ["training.png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_training_that_logged_nothing_has_no_plot(tmp_path):
    assert plot_training([{"step": 3, "train_runtime": 1.0}], tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_card_shows_the_plot_where_there_is_one(tmp_path):
    processor = ImplicitRecProcessor.fit({"item_id": [*"abcabdab"]})
    model = tiny(vocab_size=processor.vocab_size, vocabulary_fingerprint=processor.fingerprint)
    folder = save_checkpoint(tmp_path / "shop", model=model, processor=processor)
    options = {"model": model, "processor": processor, "results": {}}
    assert "plots/" not in write_model_card(folder, **options).read_text()
    plot_training(LOG, folder)
    assert "(plots/training.png)" in write_model_card(folder, **options).read_text()
