"""The code of every page runs, and what the pages name is there.

A Python block runs unless its title says `not run` or names another library; the blocks of a page share
their names and an empty folder.
"""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import modeling_implicitrec

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.M | re.S)
ELSEWHERE = {"hub.md": "test_data_sharing.py"}  # it needs a hub
OF_OTHERS = 4  # blocks of RecTools, RecBole, implicit and transformers4rec
NOT_RUN = 4


def blocks(page: Path, language: str = "python") -> list[tuple[str, str]]:
    """`(title, code)` of a page's blocks."""
    found = FENCE.findall(page.read_text())
    return [(title.strip(), code) for name, title, code in found if name == language]


def runnable(page: Path) -> list[str]:
    return [code for title, code in blocks(page) if not title]


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if runnable(p) and p.name not in ELSEWHERE],
    ids=lambda page: page.stem,
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in runnable(page):
        exec(compile(code, page.name, "exec"), names)
    check = CHECKS.get(page.name)
    if check:
        check(page.read_text(), names)


def guide_is_right(text: str, names: dict) -> None:
    found = names["processor"].decode_items(names["top"].item_tokens[0])
    assert len(found) == 5 and "artist 3" not in found


def weights_are_right(text: str, names: dict) -> None:
    assert text.count("assert ") == 7
    kept = names["processor"].to_dict()
    parts = text.split("## The parts")[1].split("## In the model")[0]
    for name in re.findall(r"`(\w+)`", parts):
        assert name in kept or name in ("fit", "raw", "None"), name


CHECKS = {"guide.md": guide_is_right, "weights.md": weights_are_right}


def test_few_blocks_are_not_run_and_each_says_why():
    titles = [title for page in PAGES for title, _code in blocks(page) if title]
    assert all(re.fullmatch(r'title=".*"', title) for title in titles)
    assert sum("(not run here)" in title for title in titles) == OF_OTHERS
    rest = [title for title in titles if "(not run here)" not in title]
    assert len(rest) == NOT_RUN
    assert all(re.fullmatch(r'title="not run: .+"', title) for title in rest)
    for name, test in ELSEWHERE.items():
        assert f"docs/{name}" in (ROOT / "tests" / test).read_text()


def test_no_code_hides_in_other_blocks():
    languages = {name for page in PAGES for name, _title, _code in FENCE.findall(page.read_text())}
    assert languages == {"python", "bash", "yaml"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_links_of_a_page_name_what_is_there(page):
    text = page.read_text()
    for name in re.findall(r"(?:recipes|scripts|tests)/[\w/]+\.(?:py|yaml)", text):
        assert (ROOT / name).exists(), name
    for code in (code for _title, code in blocks(page, "bash")):
        for target in re.findall(r"^make (\w+)", code, re.M):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for names in re.findall(r"(?:implicitrec|\.)\[([\w,]+)\]'", text):
        assert set(names.split(",")) <= set(extras), names
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load(re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text()))["nav"]
    listed = [path for part in nav for one in next(iter(part.values())) for path in one.values()]
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(listed) == pages and len(listed) == len(pages)


def test_every_public_name_is_in_the_reference():
    documented = set()
    for path, members in re.findall(
        r"^::: modeling_implicitrec\.([\w.]+)(?:\n +options: \{members: \[(.*?)\]\})?",
        (DOCS / "api.md").read_text(),
        re.M,
    ):
        module, _, name = path.partition(".")
        if name or members:
            documented |= {(module, one.strip()) for one in (members or name).split(",")}
        else:
            documented.add((module, "*"))
    for name in modeling_implicitrec.__all__:
        module = getattr(modeling_implicitrec, name).__module__.rpartition(".")[2]
        assert (module, name) in documented or (module, "*") in documented, name


def test_the_figures_of_weights_are_what_the_script_draws(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import runpy

    script = runpy.run_path(str(ROOT / "scripts" / "draw_weights.py"))
    shares = script["attention_shares"](1.0, script["np"].array([3.0], dtype="float32"))
    assert shares[0] == pytest.approx(3 / 12)  # as three copies beside nine
    for name in script["DRAWN"]:
        assert (DOCS / "figures" / f"{name}.svg").exists()
        assert f"figures/{name}.svg" in (DOCS / "weights.md").read_text()
