"""The code of README and docs runs, and the files and numbers they name are right."""

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modeling_implicitrec import ImplicitRecProcessor

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "[['milk'], ['tea']]"


def test_the_python_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    rows = {
        "listener": generator.integers(0, 30, 900),
        "artist": [f"artist {number}" for number in generator.integers(0, 12, 900)],
        "timestamp": 1_690_000_000 + 600 * generator.integers(0, 5000, 900),
        "plays": generator.integers(1, 9, 900),
    }
    pd.DataFrame(rows).to_csv(tmp_path / "log.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/guide.md").read_text(), re.S):
        exec(compile(block, "guide.md", "exec"), names)
    recommended = capsys.readouterr().out.strip().splitlines()[-1]
    assert recommended.count("artist ") == 5
    assert "'artist 3'" not in recommended


def test_the_python_of_the_weights_page_runs():
    names: dict = {}
    page = (ROOT / "docs/weights.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert sum("assert" in block for block in blocks) == 3
    for block in blocks:
        exec(compile(block, "weights.md", "exec"), names)
    kept = names["processor"].to_dict()
    parts = page.split("## The parts")[1].split("## Gaps")[0]
    for name in re.findall(r"`(\w+)`", parts):
        assert name in kept or name in ("fit", "raw", "None"), name


@pytest.mark.parametrize(
    "page", ["logs.md", "events.md", "state.md", "web.md", "new_items.md", "transfer.md"]
)
def test_the_python_of_the_other_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S):
        exec(compile(block, page, "exec"), names)


def test_the_worked_weight_is_what_the_processor_computes():
    processor = ImplicitRecProcessor.fit({"item_id": [*"aaaaaa"], "count": [1, 2, 1, 1, 1, 3]})
    weights = processor.weights(counts=[3, 1])
    assert weights.tolist() == pytest.approx([1.582, 0.791], abs=5e-4)


def test_the_files_and_targets_that_the_readme_names_exist():
    for name in re.findall(r"recipes/[\w./]+", README):
        assert (ROOT / name.rstrip(".")).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.M):
        assert f"\n{target}:" in makefile


def test_the_results_are_those_that_were_measured():
    script = runpy.run_path(str(ROOT / "scripts" / "benchmark_recipe.py"))
    assert script["with_results"](README) == README
