"""What the pages on benchmarks say is what was measured."""

import json
from pathlib import Path

import numpy as np

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_what_the_page_says_of_films_is_what_was_measured():
    page = DOCS / "benchmarks" / "movielens.json"
    report = json.loads(page.read_text())
    assert len(report["seeds"]) >= 3 and report["train_split"] == "train"
    models, gap = report["results"]["new"], report["differences"]["new"]
    assert gap["best of the others"].startswith("co-occurrence") and gap["interval"][0] > 0
    curves = {name: model["curve"] for name, model in models.items() if "curve" in model}
    first = curves.pop("implicitrec")[0][1]
    assert len(curves) >= 5
    for curve in curves.values():
        assert max(value for _, value in curve) < first
        assert len(curve) < 2 or curve[-1][1] > curve[-2][1]  # still rising


def test_what_the_page_says_of_five_minutes_is_what_was_measured():
    page = DOCS / "benchmarks" / "five_minutes" / "movielens.json"
    models = json.loads(page.read_text())["results"]["new"]
    ours = models.pop("implicitrec")
    assert ours["curve"][-1][0] < 90
    peers = {name: model for name, model in models.items() if "curve" in model}
    assert len(peers) == 3
    for name, model in peers.items():
        assert max(value for _, value in model["curve"]) < ours["metrics"]["ndcg@10"]["mean"]
        assert not name.startswith("RecTools") or model["seconds"] < 290


def test_what_the_page_says_of_articles_is_what_was_measured():
    report = json.loads((DOCS / "benchmarks" / "deskdrop.json").read_text())
    assert len(report["seeds"]) >= 3
    gaps = report["differences"]
    assert gaps["all"]["best of the others"].startswith("co-occurrence")
    assert gaps["all"]["interval"][0] > 0 > gaps["new"]["interval"][1]
    assert gaps["new"]["best of the others"].startswith("recent popularity")
    models = report["results"]["all"]
    found = models["implicitrec"]["metrics"]["ndcg@10"]["mean"]
    best = models[gaps["all"]["best of the others"]]["metrics"]["ndcg@10"]["mean"]
    assert 1.15 < found / best < 1.2


def test_what_the_page_says_of_a_hundred_million_events_is_what_was_measured():
    runs = json.loads((DOCS / "results" / "events.json").read_text())["runs"]
    found = {(run["rows"], run["system"]): run for run in runs}
    most, page = found[100_000_000, "implicitrec"], (DOCS / "events.md").read_text()
    assert f"{round(most['rows'] / most['seconds'], -3):,.0f} events a second" in page
    assert f"a peak of {most['peak_bytes'] / 2**30:.1f} GiB" in page
    ours, pandas = (found[10_000_000, system] for system in ("implicitrec", "pandas"))
    assert 1.4 < pandas["seconds"] / ours["seconds"] < 1.6
    assert pandas["peak_bytes"] > ours["peak_bytes"]
    assert found[1_000_000, "pandas"]["seconds"] < found[1_000_000, "implicitrec"]["seconds"]


def test_what_the_page_says_of_speed_on_long_histories_is_what_was_measured():
    page = DOCS / "benchmarks" / "training_films.json"
    found = json.loads(page.read_text())["results"]["films"]

    def times(loss: str, other: str) -> float:
        speeds = [found[loss][name] for name in ("implicitrec", other)]
        ours, theirs = (speed["events a second"] for speed in speeds)
        return ours / theirs

    assert 2.9 < times("softmax", "rectools") < 3.1
    assert 5 < times("sampled_softmax", "rectools") < 5.5
    assert times("softmax", "recbole") > 300


def test_what_the_page_on_trends_says_is_what_was_measured():
    told = json.loads((DOCS / "results" / "deskdrop.json").read_text())
    untold = json.loads((DOCS / "benchmarks" / "deskdrop.json").read_text())
    assert len(told["seeds"]) >= 3 and len(untold["seeds"]) >= 3
    page = (DOCS / "trend.md").read_text()
    now, late = "popularity now (1 days)", "recent popularity (28 days)"
    asked, unasked = told["results"], untold["results"]
    figures = [asked["all"]["implicitrec"], asked["all"][now], asked["new"][late]]
    figures += [unasked["all"]["implicitrec"]["metrics"], unasked["new"][now]["metrics"]]
    for found in figures:
        assert f"{found['ndcg@10']['mean']:.3f}".lstrip("0") in page
    assert (
        asked["new"]["implicitrec"]["ndcg@10"]["mean"] > 1.05 * asked["new"][now]["ndcg@10"]["mean"]
    )


def test_what_the_page_says_of_beauty_is_what_was_measured():
    report = json.loads((DOCS / "benchmarks" / "five_minutes" / "beauty.json").read_text())
    models, gap = report["results"]["new"], report["differences"]["new"]
    assert gap["best of the others"].startswith("co-occurrence") and gap["interval"][0] > 0.002
    best = models[gap["best of the others"]]["metrics"]["ndcg@10"]["mean"]
    first, *_, last = [value for _, value in models.pop("implicitrec")["curve"]]
    assert last / best > 1.1
    curves = [model["curve"] for model in models.values() if "curve" in model]
    assert len(curves) == 6 and all(value < first for curve in curves for _, value in curve)
    whole = json.loads((DOCS / "results" / "beauty.json").read_text())["results"]["new"]
    assert f"{whole['implicitrec']['ndcg@10']['mean']:.4f}" == "0.0623"
    calibrated = json.loads((DOCS / "results" / "calibration.json").read_text())["logs"]["beauty"]
    before, after = np.mean([run["test"]["ndcg@10"] for run in calibrated], axis=0)
    assert f"{after:.4f}" == "0.0623" and len(calibrated) >= 3
    page = (DOCS / "benchmarks.md").read_text()
    assert f"[{before:.4f}".replace("[0", "[") + " before it]" in page and "[.0623 after" in page


def test_what_the_page_says_of_held_out_events_is_what_was_measured():
    path = DOCS / "results" / "did_it_happen.json"
    report = json.loads(path.read_text())
    assert len(report["training seeds"]) >= 3 and "--max_steps -1" in report["command"]
    reached = {}
    for log, scorers in report["logs"].items():
        means = {
            name: {asked: np.mean(found["paired_accuracy"]) for asked, found in answers.items()}
            for name, answers in scorers.items()
        }
        ours = means.pop("implicitrec")
        assert all(other[asked] < ours[asked] for other in means.values() for asked in ours)
        reached[log] = round(float(ours["all, uniform"]), 2)
    assert reached == {"complete_journey": 0.84, "online_retail": 0.9, "movielens": 0.83}
    groceries = report["logs"]["complete_journey"]["implicitrec"]["new, popularity"]
    assert 0.5 < np.mean(groceries["paired_accuracy"]) < 0.55


def test_what_the_page_says_of_mixers_is_what_was_measured():
    path = DOCS / "results" / "mixers.json"
    report = json.loads(path.read_text())
    assert len(report["training seeds"]) >= 3
    for log in report["logs"].values():
        for kind, mixers in log["kinds"].items():
            for name in ("gru", "convolution"):
                gap = mixers[name]["against attention"]
                behind = gap["mean"] < -2 * gap["error"]
                assert behind == (kind == "without" and name == "gru")


def test_what_the_page_says_of_speed_is_what_was_measured():
    report = json.loads((DOCS / "benchmarks" / "training.json").read_text())
    losses = report["results"]["beauty"]

    def times(loss: str, peer: str) -> float:
        found = losses[loss]
        return found["implicitrec"]["events a second"] / found[peer]["events a second"]

    assert 15 < times("softmax", "rectools") < 20 < times("sampled_softmax", "rectools") < 30
    assert 7 < times("softmax", "recbole") < 8
    share = losses["softmax"]["implicitrec"]["profile"]["share of the limit"]
    assert 0.22 < share < 0.3
