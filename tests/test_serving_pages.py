"""What the pages about state and service say is what was measured."""

import json
from pathlib import Path

KINDS = ("paced", "full")
ROOT = Path(__file__).resolve().parents[1]
STATE, WEB, TREND = (
    " ".join((ROOT / f"docs/{name}.md").read_text().split()) for name in ("state", "web", "trend")
)


def read(name: str) -> dict:
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())


def test_lists_for_everyone():
    report = read("bulk")
    results = report["results"]
    assert report["rounds"] >= 3
    assert f"best ten new items of all {report['users']:,} users of Amazon Beauty" in WEB
    peer = results["RecTools SASRec"]["seconds"]
    ours, prior, factors = (
        results[name]["seconds"]
        for name in ("implicitrec", "implicitrec, co-occurrences", "implicit ALS")
    )
    assert f"take {ours:.1f} seconds of the processor, {peer / ours:.1f} times less" in WEB
    assert f"and {prior:.1f} seconds with the co-occurrence prior of the recipe" in WEB
    assert f"{peer / prior:.1f} times less; `implicit`'s ALS" in WEB
    assert f"takes {factors:.1f} seconds ([results]" in WEB


def test_steps_and_states():
    runs = read("serving")["runs"]
    assert "One user in a fraction of a millisecond" in STATE
    assert all(run["milliseconds"]["update"]["p50"] < 1 for run in runs)
    assert "for catalogues of ten thousand to a million items" in STATE
    assert {10_000, 1_000_000} <= {run["items"] for run in runs}
    assert "with a window of 200 and two blocks of width 64 each takes some 200 KiB" in WEB
    sizes = [run for run in runs if (run["length"], run["hidden_size"]) == (200, 64)]
    assert sizes and all(190 < run["state"]["bytes"] / 1024 < 210 for run in sizes)
    assert "`to_bytes(torch.float16)` halves what the blocks keep" in STATE
    assert all(0.48 < run["state"]["half"] / run["state"]["bytes"] < 0.53 for run in runs)


def test_a_server_that_was_killed():
    found = read("serving_chaos")
    assert f"a [run of {found['kills']} kills](results/serving_chaos.md) found none of them" in WEB
    problems = ("lost", "stored twice", "5xx", "excluded items shown and other wrong answers")
    assert all(found[name] == 0 for name in problems) and found["acknowledged events"] > 1000
    page = (ROOT / "docs/results/serving_chaos.md").read_text()
    assert found["command"] in page and f"--kills {found['kills']}" in found["command"]


def test_what_a_trend_costs_a_server():
    found = read("serving_trend")
    spent = [found[name]["processor ms a request"] for name in ("with", "without")]
    assert "[{} milliseconds of the processor a request instead of {}]".format(*spent) in TREND
    assert not any(
        found[name][kind]["5xx"] for name in found if name != "command" for kind in KINDS
    )
    largest = read("serving_store")["runs"][-1]
    assert largest["events"] == 1_000_000 and "that starts on a million events" in TREND
    start = [largest[name]["at the start"] for name in ("with", "without")]
    assert "[{:,.0f} milliseconds instead of {:,.0f}]".format(*start) in TREND
    assert f"what is new before a batch in {largest['with']['before a batch']:.2f}." in TREND


def test_two_servers_of_one_store():
    found = read("serving_trend_chaos")
    assert found["servers"] == 2 and f"was killed {found['kills']} times while events" in TREND
    assert found["problems"] == found["lists that differ"] == 0 < found["acknowledged events"]


def test_when_an_index_pays():
    report = read("serving_retrieval")["results"]

    def index(items: str, name: str) -> tuple[float, float]:
        found = report[items][name]
        return found["list ms p50"], found["list recall@10"]

    (fast, found), (exact, _) = (index("100,000 drawn", n) for n in ("ivfpq", "float32"))
    assert f"list of ten takes {fast:.2f} milliseconds of the processor among 100,000" in WEB
    assert f"items, against {exact:.1f} by the exact index" in WEB
    (fast, more), (exact, _) = (index("1,000,000 drawn", n) for n in ("ivfpq", "float32"))
    assert f"and {fast:.1f} among a million, against {exact:.1f}" in WEB
    assert f"with {100 * min(found, more):.1f} % of the exact best ten or more" in WEB
    graph, found = index("100,000 drawn", "hnsw")
    assert f"`hnsw` takes {graph:.2f} milliseconds and finds {100 * found:.1f} % among" in WEB
    small, found = index("deskdrop_0", "ivfpq")
    assert small > 0.5 * index("deskdrop_0", "float32")[0]
    assert f"and `ivfpq` finds {100 * found:.0f} % there" in WEB
    megabytes = {name: found["MB"] for name, found in report["1,000,000 drawn"].items()}
    assert "# a quarter of the table's memory" in WEB
    assert 3.9 < megabytes["float32"] / megabytes["int8"] < 4.1
    runs = {run["index"]: run for run in read("serving")["runs"] if run["items"] == 1_000_000}
    exact, index_too = (runs[name]["milliseconds"]["top 10"]["p50"] for name in ("exact", "ivfpq"))
    assert "shows no gain at a million items" in WEB and index_too >= exact
