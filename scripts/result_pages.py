"""Pages of results: tables, means over seeds, and the JSON beside them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

TITLES = {"all": "repeats allowed", "new": "new items only"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table: names to the left, numbers to the right.

    >>> table(["model", "users"], [["EASE", "7"]])
    ['| model | users |', '|---|---:|', '| EASE | 7 |']
    """
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return [lines[0], "|---|" + "---:|" * (len(header) - 1), *lines[1:]]


def cell(value: dict[str, float]) -> str:
    """A mean with its standard deviation, where it has one."""
    return f"{value['mean']:.4f}" + (f" ± {value['std']:.4f}" if value["std"] else "")


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, four decimals."""
    found = f"{mean(values):.4f}"
    return found if len(values) == 1 else f"{found} ± {stdev(values):.4f}"


def signed(gap: dict[str, float]) -> str:
    """A difference with its standard error."""
    return f"{gap['mean']:+.4f} ± {gap['error']:.4f}"


def what_is_measured(doc: str | None, before: str | None = None) -> str:
    """A script's own words after its first paragraph, up to where it speaks of its files."""
    words = " ".join((doc or "").split("\n\n", 1)[1].split())
    return words if before is None else words.split(before)[0]


def opening(title: str, doc: str | None, report: dict, told: tuple[str, str]) -> list[str]:
    """The head of a study's page: what it measures, the command, what numbers and differences are."""
    numbers, differences = told
    seeds = f"mean ± standard deviation over {len(report['training seeds'])} seeds"
    how = f"`{report['command']}`; {numbers}, {seeds}; {differences}"
    return [f"# {title}", "", what_is_measured(doc, before=" Runs are kept"), "", how, ""]


def write_page(target: Path, report: dict, lines: Sequence[str]) -> None:
    """`<target>.json` and the page `<target>.md`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")
    print("\n".join(lines))


def add_run(target: Path, log: str, made: dict, what: str, page: Callable[[dict], str]) -> None:
    """Put the run of a seed among those of its log in `<target>.json`, and write the page anew."""
    report = json.loads(target.read_text()) if target.exists() else {"logs": {}}
    report["what"] = what
    runs = [one for one in report["logs"].get(log, []) if one["seed"] != made["seed"]]
    report["logs"][log] = sorted([*runs, made], key=lambda one: one["seed"])
    target.write_text(json.dumps(report, indent=1))
    target.with_suffix(".md").write_text(page(report))
    print(json.dumps(made, indent=1), flush=True)
