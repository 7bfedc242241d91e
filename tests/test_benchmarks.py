"""The benchmarks beside peers: exported splits, the clock, one scorer for all lists, and the reports."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

import modeling_implicitrec as package

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.append(str(SCRIPTS))  # where scripts find each other

import benchmark_training  # noqa: E402
import implicitrec_runner  # noqa: E402
import peer_lists  # noqa: E402
import peer_marks  # noqa: E402
import peer_models  # noqa: E402
import report_quality  # noqa: E402
import step_profile  # noqa: E402

VOCAB = 30


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    """Histories of 40 users; two targets each, one of them out of the vocabulary for some."""
    generator = np.random.default_rng(0)
    rows = []
    for user in range(40):
        history = generator.choice(np.arange(1, VOCAB - 5), 6, replace=user % 2 == 0).tolist()
        targets = generator.choice(np.arange(1, VOCAB), 2, replace=False).tolist()
        rows.append(
            {"input_ids": history, "target_ids": [targets[0], -1 if user % 3 else history[0]]}
        )
    rows[3]["input_ids"] = [VOCAB - 1]  # nobody's training item
    train = Dataset.from_list(
        [{"input_ids": row["input_ids"]} for row in rows if len(row["input_ids"]) > 1]
    )
    for row in rows:
        row["target_ids"] = list(dict.fromkeys(row["target_ids"]))
    held = Dataset.from_list(rows)
    return DatasetDict({"train": train, "validation": held, "test": held})


def job(folder: Path, splits: DatasetDict, **changes) -> Path:
    """Exported splits and the job of a run on them."""
    peer_lists.export_splits(splits, folder / "splits", vocab_size=VOCAB)
    told = {"data": str(folder / "splits"), "output": str(folder / "run"), "settings": {}}
    told |= {"seconds": 0.2, "marks": [0.05, 0.1], "warmup": 0, "seed": 0, "threads": 1}
    told |= {"k": 10, "parts": ["validation", "test"]} | changes
    (folder / "job.json").write_text(json.dumps(told))
    return folder / "job.json"


def scores_of(part: str, start: int, stop: int) -> torch.Tensor:
    """Fixed random scores of the rows of a part."""
    everything = torch.rand(40, VOCAB, generator=torch.Generator().manual_seed(len(part)))
    return everything[start:stop].clone()


@pytest.mark.parametrize(("protocol", "seen"), [("all", "keep"), ("new", "exclude")])
def test_lists_are_scored_as_evaluate_does(splits, protocol, seen):
    scores = scores_of("test", 0, 40)
    rows = splits["test"].add_column("place", list(range(40)))
    scorer = SimpleNamespace(name="random", score=lambda rows: scores[[r["place"] for r in rows]])
    ranked = package.rank_histories(scorer.score, rows, k=10, seen=seen, progress=False)
    found = peer_lists.score_lists(ranked, rows, protocol)
    ours = package.evaluate(
        scorer, rows, seen=seen, num_items=VOCAB - 1, target_filter=protocol, progress=False
    )
    for name, values in found.items():
        np.testing.assert_allclose(values, ours.per_user[name])
    assert len(found["ndcg@10"]) == ours.num_users


@pytest.mark.parametrize(
    ("ranked", "problem"),
    [([[2, 2]], "twice"), ([[1, 2]], "of its history"), ([[2, 3]] * 2, "1 rows, got 2")],
)
def test_lists_that_break_the_rules_are_refused(ranked, problem):
    row = {"input_ids": [1], "target_ids": [3]}
    with pytest.raises(ValueError, match=problem):
        peer_lists.score_lists(np.array(ranked), [row], "new", k=2)


def test_a_run_writes_lists_at_its_marks_while_the_clock_stands(splits, tmp_path):
    run = peer_marks.Run(str(job(tmp_path, splits)))
    calls = []

    def score(part: str, start: int, stop: int) -> torch.Tensor:
        calls.append(part)
        time.sleep(0.3)  # longer than the whole run
        return scores_of(part, start, stop)

    run.start()
    steps = 0
    while not run.step(score, (3, 4, 5)):
        steps += 1
        time.sleep(0.02)
    run.finish(score, "torch")
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [point["mark"] for point in told["written"]] == [0.05, 0.1]
    assert all(point["seconds"] < 0.2 for point in told["written"])
    assert 0.2 <= told["seconds"] < 0.3 and steps >= 3
    assert told["real share"] == pytest.approx(0.8)
    assert told["labels"] == 3 * told["steps"] and calls == ["validation", "test"] * 2


def test_speed_is_timed_from_the_first_step_on(splits, tmp_path):
    run = peer_marks.Run(str(job(tmp_path, splits, marks=[], speed=True, warmup=1)))
    run.since = time.perf_counter() - 60  # a minute went into making examples
    over = []
    while not over or not over[-1]:
        over.append(run.step(scores_of, (1, 1, 1)))
        time.sleep(0.06)
    assert over == [False] * 4 + [True]


def test_lists_of_a_run_keep_to_known_and_unseen_items(splits, tmp_path):
    run = peer_marks.Run(str(job(tmp_path, splits, seconds=9, marks=[5])))
    run.start()
    assert not run.step(scores_of, (1, 1, 1))
    run.finish(scores_of, "torch")  # an early end still writes the lists of the mark
    known = {token for row in splits["train"]["input_ids"] for token in row}
    histories = splits["test"]["input_ids"]
    keep, exclude = (
        peer_lists.read_lists(tmp_path / "run" / "test_5.parquet", name)
        for name in ("keep", "exclude")
    )
    assert keep.shape == exclude.shape == (40, 10)
    assert set(keep.ravel()) <= known
    assert all(not set(row) & set(history) for row, history in zip(exclude, histories))
    scores = scores_of("test", 0, 40)[0]
    best = [token for token in scores.argsort(descending=True).tolist() if token in known]
    assert keep[0].tolist() == best[:10]
    counts = np.bincount(np.concatenate(splits["train"]["input_ids"]), minlength=VOCAB)
    shown = counts[keep[3]]  # the history without a known item: by popularity
    assert shown.tolist() == np.sort(counts)[::-1][:10].tolist()


@pytest.fixture(scope="module")
def world(splits, tmp_path_factory) -> SimpleNamespace:
    """Lists of three models: ours finds everything at its first mark and loses it, a peer, a baseline."""
    folder = tmp_path_factory.mktemp("quality")
    rows = splits["test"]
    perfect = np.zeros((40, 10), dtype=np.int64)
    for place, row in enumerate(rows):
        known = [token for token in row["target_ids"] if token > 0]
        perfect[place, : len(known)] = known
    half = perfect.copy()
    half[::2] = 0
    lists = {"implicitrec_0": [perfect, half], "Peer_A_0": [half, half]}
    for name, marks in lists.items():
        for mark, ranked in zip((60, 120), marks):
            for part in ("validation", "test"):
                peer_lists.write_lists({"keep": ranked}, folder / name / f"{part}_{mark}.parquet")
        points = [{"mark": mark, "seconds": mark + 1.0} for mark in (60, 120)]
        told = {"written": points, "versions": {"torch": "1"}}
        (folder / name / "run.json").write_text(json.dumps(told))
    peer_lists.write_lists({"keep": np.zeros_like(half)}, folder / "nothing" / "test.parquet")
    return SimpleNamespace(
        name="toy", folder=folder, rows=splits, train_split="train", protocols=["all"]
    )


def test_the_report_takes_the_mark_that_validation_chose_and_compares_with_the_best(
    world, tmp_path, capsys
):
    args = SimpleNamespace(seeds=[0], threads=1, minutes=2.0, output_dir=tmp_path)
    chosen = {name: {"source": "here", "settings": {}} for name in ("implicitrec", "Peer A")}
    report_quality.write_report(args, world, chosen, ["nothing"])
    report = json.loads((tmp_path / "toy.json").read_text())
    models = report["results"]["all"]
    ours, peer = models["implicitrec"], models["Peer A"]
    assert ours["seconds"] == 61 and ours["metrics"]["hit_rate@10"]["mean"] == 1.0
    assert [point[0] for point in ours["curve"]] == [61, 121]
    assert ours["curve"][1][1] == pytest.approx(peer["curve"][1][1])
    assert models["nothing"]["metrics"]["ndcg@10"]["mean"] == 0
    gap = report["differences"]["all"]
    assert gap["best of the others"] == "Peer A"
    assert gap["interval"][0] > 0 and gap["relative"] > 0.5
    assert gap["mean"] == pytest.approx(
        ours["metrics"]["ndcg@10"]["mean"] - peer["metrics"]["ndcg@10"]["mean"]
    )
    assert "## Repeats allowed" in (tmp_path / "toy.md").read_text()
    assert (tmp_path / "toy.svg").read_text().startswith("<?xml")


def test_where_validation_was_learnt_from_the_last_mark_counts(world):
    learnt = SimpleNamespace(**vars(world) | {"train_split": "before_test"})
    told = report_quality.summarise_model([world.folder / "implicitrec_0"], learnt, "all")
    assert told["seconds"] == 121


def test_peers_have_one_environment_and_runner_each():
    from peer_environments import PEERS

    for long_histories in (False, True):
        for model in peer_models.peer_models(long_histories).values():
            assert model["peer"] in PEERS
            assert (SCRIPTS / f"{model['peer']}_runner.py").exists()


def test_flops_of_products_are_counted_forward_and_backward():
    left, right = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with step_profile.FlopCounter() as counter:
        (left @ right).relu().sum().backward()
    assert counter.total == 3 * 2 * 3 * 4 * 5
    assert step_profile.is_product("aten::addmm") and step_profile.is_product("aten::mm")
    assert not step_profile.is_product("aten::mul")


def test_our_runner_trains_a_generated_log_and_is_profiled(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_training, "FILMS", {"users": 60, "items": 40, "events": 8})
    args = benchmark_training.TrainingSpeedArguments(data_dir=tmp_path, work_dir=tmp_path)
    folder = benchmark_training.prepare(args, "films")
    told = benchmark_training.settings("implicitrec", "sampled_softmax", 8, folder)
    at = told.index("--per_device_train_batch_size") + 1
    told[at] = "4"
    changes = {"settings": told, "data": str(folder / "splits"), "profile": True}
    threads = torch.get_num_threads()
    path = tmp_path / "job.json"
    made = {"output": str(tmp_path / "run"), "seconds": 60, "marks": [0.01], "warmup": 2}
    made |= {"seed": 0, "threads": threads, "k": 5, "parts": ["test"]}
    path.write_text(json.dumps(made | changes))
    monkeypatch.setattr(step_profile, "product_limit", lambda: 1e9)
    monkeypatch.setattr(sys, "argv", ["runner", str(path)])
    implicitrec_runner.main()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["steps"] == 2 + 3 * step_profile.STEPS and run["labels"] == run["steps"] * 4 * 5
    assert run["profile"]["step FLOPs"] > 0 and run["real share"] == 1
    assert 0 < run["profile"]["share of time in matrix products"] < 1
    lists = peer_lists.read_lists(tmp_path / "run" / "test_0.01.parquet", "exclude")
    assert lists.shape == (60, 5) and lists.max() <= 40


def test_recbole_has_no_sampled_softmax(tmp_path):
    assert benchmark_training.settings("recbole", "sampled_softmax", 50, tmp_path) is None


def test_the_report_of_speed_compares_medians_of_all_turns(tmp_path, monkeypatch, capsys):
    turns = {
        "implicitrec": iter([900.0, 1000.0, 5000.0, 1.0]),
        "rectools": iter([90.0, 100.0, 110.0]),
    }
    profile = {"step seconds": 0.5, "step FLOPs": 1e9, "FLOP/s": 2e9, "limit FLOP/s": 8e9}
    profile |= {"share of the limit": 0.25, "share of time in matrix products": 0.6}
    profile |= {"operations": {"aten::mm": 0.6}}

    def run(args, folder, library, loss, **options) -> dict:
        found = {"labels a second": next(turns[library]), "step seconds": 0.1, "real share": 0.97}
        found |= {"peak_bytes": 2**30, "versions": {library: "1"}}
        return found | ({"profile": profile} if options else {})

    monkeypatch.setattr(benchmark_training, "run", run)
    monkeypatch.setattr(benchmark_training, "prepare", lambda args, name: tmp_path / name)
    words = ["--data_dir", "none", "--logs", "[films]", "--losses", "[sampled_softmax]"]
    words += ["--libraries", "[implicitrec, rectools]", "--output_dir", str(tmp_path)]
    words += ["--name", "speed"]
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", *words])
    benchmark_training.main()
    found = json.loads((tmp_path / "speed.json").read_text())["results"]["films"]
    assert found["sampled_softmax"]["implicitrec"]["events a second"] == 1000
    page = (tmp_path / "speed.md").read_text()
    assert "| rectools | 100 | 90, 110 | 10.0× | 97% | 1.00 |" in page
    assert "2 GFLOP/s, 25% of the 8 that large products reach here" in page
    assert "(speed.svg)" in page and (tmp_path / "speed.svg").exists()
