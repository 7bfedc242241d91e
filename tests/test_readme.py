"""The code of the README runs, and the files and numbers it names are right."""

import re
import sys
from pathlib import Path

import pytest

from modeling_implicitrec import ImplicitRecProcessor

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
sys.path.append(str(ROOT / "scripts"))  # where scripts find each other

import benchmark_recipe  # noqa: E402


def test_the_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "[['milk'], ['tea']]"


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
    assert benchmark_recipe.with_results(README) == README
