"""The index of recipes is complete, and its numbers are those that were measured."""

import re
import sys
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "recipes" / "README.md").read_text()
sys.path.append(str(ROOT / "scripts"))  # where scripts find each other

from benchmark_recipe import recipe_index, with_results  # noqa: E402


def test_the_index_is_what_was_measured():
    assert with_results(PAGE, recipe_index) == PAGE
    measured = {"demo": {"results": {"new": {"model": {}, "weak": {}, "strong": {}}}}}
    for name, value in (("model", 0.3), ("weak", 0.1), ("strong", 0.2)):
        measured["demo"]["results"]["new"][name] = {"ndcg@10": {"mean": value, "std": 0.0}}
    table = recipe_index({"movielens": measured["demo"]})
    assert "| new items only | 0.3000 | 0.2000, strong |" in table
    assert "| not measured | |" in table  # of all the others
    assert "told when it is asked" not in table
    told = recipe_index({"deskdrop": measured["demo"]})
    assert "| new items only, [told when it is asked](../docs/trend.md) | 0.3000 |" in told


def test_every_recipe_is_in_the_index_and_whole():
    folders = [path.parent for path in (ROOT / "recipes").glob("*/prepare.yaml")]
    assert folders
    for folder in folders:
        assert f"[{folder.name}]({folder.name}/prepare.yaml)" in PAGE
        assert (folder / "evaluate.yaml").exists() and (folder / "finetune.yaml").exists()
        text = (folder / "prepare.yaml").read_text()
        assert text.startswith("#"), "where the log comes from"
        assert yaml.safe_load(text)["output_dir"] == f"data/{folder.name}"


def test_what_the_page_names_exists_and_adding_one_takes_ten_lines():
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "recipes" / link).exists(), link
    for name in re.findall(r"(?:recipes|scripts|tests)/[\w/]+\.(?:py|yaml)", PAGE):
        assert (ROOT / name).exists(), name
    steps = PAGE.split("## Adding one\n\n")[1].strip().splitlines()
    assert len(steps) <= 10


def test_the_finished_cards_are_cards_of_the_hub():
    cards = sorted((ROOT / "model_cards").glob("*.md"))
    assert cards
    for path in cards:
        card = ModelCard.load(path)
        assert card.data.license and "recommendation" in card.data.tags, path
        shown = {(e.dataset_config, e.metric_type): e.metric_value for e in card.data.eval_results}
        for (_protocol, metric), value in shown.items():
            assert f"{value:.4f}" in card.text, (path, metric)
