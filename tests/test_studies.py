"""The studies of behaviours, "did it happen?", mixers and ideas: what they compare is what they say."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from modeling_implicitrec import (
    EventSchema,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    build_sequences,
    encode_splits,
    fit_season,
    leave_last_out,
    load_events,
    load_sequences,
    save_sequences,
    temporal_split,
    training_columns,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))  # where scripts find each other

import ablate_model  # noqa: E402
import evaluate_cold_items  # noqa: E402
import measure_behaviours  # noqa: E402
import measure_did_it_happen as happened  # noqa: E402
import measure_ease  # noqa: E402
import measure_mixers  # noqa: E402
import measure_objectives  # noqa: E402
import measure_replay  # noqa: E402
import measure_season  # noqa: E402
import seed_runs  # noqa: E402

DAY = 86_400


@pytest.fixture
def seasonal(tmp_path) -> Path:
    """A recipe of a prepared log in which four weeks have three items of twelve of their own."""
    draw, rows = np.random.default_rng(0), []
    for day in range(112):
        for _ in range(12):
            item = draw.integers(12) if draw.random() < 0.3 else day // 28 * 3 + draw.integers(3)
            rows.append((draw.integers(40), f"item {item}", 1_600_000_000 + DAY * day))
    events = load_events(pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]))
    splits = temporal_split(build_sequences(events), test_seconds=14 * DAY)
    processor = ImplicitRecProcessor.fit(training_columns(splits["train"]))
    save_sequences(encode_splits(splits, processor), tmp_path / "sequences")
    processor.save_pretrained(tmp_path / "processor")
    prepared = {"split": "temporal", "test_days": 14.0}
    (tmp_path / "prepare.json").write_text(json.dumps(prepared))
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump({"data_dir": str(tmp_path)}))
    (tmp_path / "evaluate.yaml").write_text("protocols: [all]")
    return tmp_path / "finetune.yaml"


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """A folder with the prepared log `small`: people who walk along a ring of twenty items."""
    draw, rows = np.random.default_rng(0), []
    for user in range(30):
        start = draw.integers(20)
        for step in range(draw.integers(5, 12)):
            rows.append((user, f"item {(start + step) % 20}", 1_600_000_000 + 60 * step, "view"))
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "kind"])
    splits = leave_last_out(build_sequences(load_events(frame, EventSchema(event_type="kind"))))
    processor = ImplicitRecProcessor.fit(training_columns(splits["train"]))
    folder = tmp_path_factory.mktemp("data")
    save_sequences(encode_splits(splits, processor), folder / "small" / "sequences")
    processor.save_pretrained(folder / "small" / "processor")
    return folder


def test_a_difference_has_the_errors_of_people_and_of_seeds():
    ours = [np.array([1.0, 3.0]), np.array([2.0, 4.0])]
    found = seed_runs.difference(ours, [np.zeros(2), np.zeros(2)])
    assert found["mean"] == pytest.approx(2.5)
    people, seeds = np.std([1.5, 3.5], ddof=1), np.std([2.0, 3.0], ddof=1)
    assert found["error"] == pytest.approx(np.hypot(people, seeds) / np.sqrt(2))
    assert seed_runs.difference(ours, ours) == {"mean": 0.0, "error": 0.0}


def test_a_run_that_is_there_is_not_made_again(tmp_path):
    made = []
    for _ in range(2):
        found = seed_runs.kept(tmp_path / "a" / "run.json", lambda: made.append(1) or {"n": 1})
    assert found == {"n": 1} and len(made) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run.json"]


def test_a_visit_is_at_its_last_moment_and_of_its_strongest_type():
    columns = ["user", "item", "time", "kind"]
    rows = [
        ("u", "a", 0, "view"),
        ("u", "b", 5, "view"),
        ("u", "a", 10, "like"),
        ("u", "a", 20, "view"),
        ("u", "a", 20 + 3601, "view"),
        ("v", "a", 30, "view"),
    ]
    found = measure_behaviours.visits(pd.DataFrame(rows, columns=columns), {"view": 1, "like": 2})
    assert sorted(found[columns].itertuples(index=False, name=None)) == [
        ("u", "a", 20, "like"),
        ("u", "a", 3621, "view"),
        ("u", "b", 5, "view"),
        ("v", "a", 30, "view"),
    ]


def test_ways_read_what_they_say(tmp_path):
    kinds = ["view", "buy", "view", "buy", "view", "buy"]
    frame = pd.DataFrame({"user_id": 1, "item_id": list("abcdef"), "timestamp": range(6)})
    schema = EventSchema(event_type="kind")
    events = load_events(frame.assign(kind=kinds), schema)
    splits = leave_last_out(build_sequences(events), target_event_types=["buy"])
    columns = training_columns(splits["train"])
    processor = ImplicitRecProcessor.fit(columns, event_type_weights={"buy": 3.0})
    world = seed_runs.Log(encode_splits(splits, processor), processor)
    targets = processor.encode_event_types(["buy"])
    read = {
        name: measure_behaviours.seen_by(way, world, targets)["train"][0]
        for name, way in measure_behaviours.WAYS.items()
    }
    assert processor.decode_items(read["target types alone"]["input_ids"]) == ["b"]
    assert read["all types alike"]["length"] == 3
    assert set(read["all types alike"]["input_weights"]) == {1.0}
    weights = read["all types, told apart and weighted"]["input_weights"]
    assert weights[1] == pytest.approx(3 * weights[0])


class Oracle:
    """Knows what happened, or the opposite."""

    def __init__(self, rows: list[dict], sign: float) -> None:
        self.name = "oracle"
        self.scores = np.zeros((len(rows), 9))
        for row in rows:
            self.scores[row["place"], row["target_ids"]] = sign

    def score(self, rows: list[dict]) -> np.ndarray:
        return self.scores[[row["place"] for row in rows]]


@pytest.mark.parametrize(("sign", "right"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)])
def test_pairs_are_told_apart_by_who_knows(sign, right):
    rows = [{"place": n, "input_ids": [1, 2], "target_ids": [2, 3 + n]} for n in range(5)]
    found = happened.ask(Oracle(rows, sign), rows, np.ones(9), seeds=[0, 1])
    assert list(found) == ["all, uniform", "all, popularity", "new, uniform", "new, popularity"]
    for answers in found.values():
        assert answers["paired_accuracy"] == [right, right]
        assert answers["num_pairs"] == [5, 5]
    assert [row["target_ids"].tolist() for row in happened.new_targets(rows)] == [
        [3 + n] for n in range(5)
    ]


@pytest.mark.parametrize("layers", [1, 2])
def test_mixers_are_of_one_size(layers):
    settings = {"hidden_size": 32, "num_hidden_layers": layers, "max_position_embeddings": 50}
    sizes = {
        mixer: measure_mixers.block_parameters(
            settings | {"sequence_mixer": mixer, "intermediate_size": width}
        )
        for mixer, width in measure_mixers.equal_widths(settings, 128).items()
    }
    assert list(sizes) == list(measure_mixers.MIXERS)
    assert max(sizes.values()) / min(sizes.values()) < 1.02


def test_the_mixers_are_measured(log, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_mixers, "WORLDS", {"small": {"max_position_embeddings": 20}})
    words = ["--logs", "[small]", "--seeds", "[0]", "--seconds", "0.01", "--data_dir", str(log)]
    words += ["--work_dir", str(tmp_path / "work"), "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["measure_mixers.py", *words])
    measure_mixers.main()
    report = json.loads((tmp_path / "mixers.json").read_text())["logs"]["small"]
    for kind in measure_mixers.KINDS:
        assert all(len(found["test"]) == 1 for found in report["kinds"][kind].values())
        assert "against attention" in report["kinds"][kind]["gru"]


def test_seasons_are_measured_as_they_would_be_fitted(seasonal, tmp_path, monkeypatch):
    world = measure_season.World.read(seasonal)

    def untrained(seed: int) -> ImplicitRecForScoring:
        torch.manual_seed(seed)
        size = world.log.processor.vocab_size
        model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=size, hidden_size=16))
        model.fit_item_counts(world.log.processor.item_counts)
        return model

    def train(world, seed: int, output: Path) -> None:
        untrained(seed).save_pretrained(output)
        world.log.processor.save_pretrained(output)

    monkeypatch.setattr(measure_season, "train", train)
    words = ["--recipes", f"[{seasonal}]", "--seeds", "[0, 1]", "--windows", "[1]"]
    words += ["--work_dir", str(tmp_path / "work"), "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["measure_season.py", *words])
    measure_season.main()
    (report,) = json.loads((tmp_path / "season.json").read_text())["logs"].values()
    found, rows = report["questions"]["all"], world.log.splits["validation"]
    for seed in (0, 1):
        model = untrained(seed)
        values = [seed_runs.ndcg(ModelScorer(model), world.log, rows, repeats=True)]
        for settings in ({}, {"power": 1.0, "smoothing": 10.0}):
            fitted = untrained(seed)
            fit_season(fitted, world.taken, days=14, **settings)
            values.append(seed_runs.ndcg(ModelScorer(fitted), world.log, rows, repeats=True))
        names = [found["without"], found["own"], found["grid"]["14 days, smoothing 10, power 1"]]
        assert [one[seed] for one in names] == pytest.approx([v.mean() for v in values], abs=1e-5)
    assert found["difference"]["mean"] > 0 and report["evidence"]["14"] > 0.02
    page = (tmp_path / "season.md").read_text()
    assert page.count("| 14 days, smoothing ") == 3 and "| **" in page


def test_an_arm_without_a_change_is_not_run_and_the_base_is_the_base(log, tmp_path, monkeypatch):
    worlds = {"small": {"max_position_embeddings": 20, "exclude_seen": True}}
    monkeypatch.setattr(ablate_model, "WORLDS", worlds)
    words = ["--logs", "[small]", "--seeds", "[0, 1]", "--epochs", "1", "--data_dir", str(log)]
    words += ["--arms", "[base, no copy prior, no blocks, without times, states not centred]"]
    words += ["--work_dir", str(tmp_path / "work"), "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ablate_model.py", *words])
    ablate_model.main()
    arms = json.loads((tmp_path / "ablation.json").read_text())["logs"]["small"]["arms"]
    assert list(arms) == ["base", "no blocks", "without times", "states not centred"]
    assert arms["base"]["test difference"] == {"mean": 0.0, "error": 0.0}
    text = (tmp_path / "ablation.md").read_text()
    assert "| no blocks |" in text and "no copy prior" not in text


@pytest.mark.parametrize(
    ("mean", "error", "said"), [(0.03, 0.01, "better"), (-0.03, 0.01, "worse"), (0.01, 0.01, "no")]
)
def test_a_difference_within_twice_its_error_is_none(mean, error, said):
    found = {"validation difference": {"mean": mean, "error": error}}
    assert ablate_model.verdict(found).startswith(said)


def test_the_shelf_holds_the_latest_events_of_new_items_and_what_goes_with_them():
    rows = [
        {"input_ids": [6, 1, 2, 5, 3], "timestamps": [0, 1, 2, 10, 11]},
        {"input_ids": [4, 5, 1], "timestamps": [9, 12, 20]},
    ]
    frequency = np.array([1.0, 9.0, 1.0, 4.0, 1.0, 1.0, 1.0])
    shelf = evaluate_cold_items.Shelf.of(rows, np.array([5, 6]), 1, frequency)
    assert shelf.counts.tolist() == [0, 1, 0, 1, 0, 2, 0]  # since 10, when the last but one came
    assert shelf.neighbours[0, :4].tolist() == [2, 4, 1, 3]  # once each or twice, by the root
    assert not shelf.neighbours[0, 4:].any() and not shelf.neighbours[1].any()


def test_the_objectives_are_measured(log, tmp_path, monkeypatch):
    monkeypatch.setattr(measure_objectives, "RESULTS", tmp_path / "objectives.json")
    monkeypatch.setattr(measure_objectives, "EPOCHS", (3, 1))
    words = ["--data_dir", str(log / "small"), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["measure_objectives.py", *words])
    measure_objectives.main()
    report = json.loads((tmp_path / "objectives.json").read_text())
    for run in report["logs"]["small"]:
        assert list(run["results"]) == list(measure_objectives.ARMS)
    assert (tmp_path / "objectives.md").read_text().count("| and hidden items |") == 2
    rows = load_sequences(log / "small" / "sequences")["train"]
    processor = ImplicitRecProcessor.from_pretrained(log / "small" / "processor")
    bodies = set()
    for arm in measure_objectives.ARMS.values():
        model = measure_objectives.pretrained(processor, rows, arm, seed=0)
        assert model.objectives is None and not model.config.masked_loss
        bodies.add(model.model.item_embedding.weight.sum().item())
    assert len(bodies) == len(measure_objectives.ARMS)  # each objective changes what is learnt


def test_a_replay_asks_each_moment_with_what_was_there_before_it():
    log = [
        {"input_ids": np.array([1, 2, 4, 3]), "timestamps": np.array([10, 20, 30, 30])},
        {"input_ids": np.array([4, 2]), "timestamps": np.array([25, 40])},
    ]
    asked = list(measure_replay.questions(log, 20))
    told = [
        (row["input_ids"].tolist(), row["query_time"], row["target_ids"].tolist()) for row in asked
    ]
    assert told == [([1], 20, [2]), ([1, 2], 30, [3, 4]), ([4], 40, [2])]
    processor = ImplicitRecProcessor.fit({"item_id": ["a", "a", "b", "b", "c"]})
    processor.add_items(["d"])
    first_had, neighbours = measure_replay.meet_new_items(log, 4, processor)
    assert first_had.tolist() == [0, 0, 0, 0, 25]
    assert neighbours.tolist() == [[1, 2, 3, 0, 0]]  # who had it first had nothing: what is popular


def test_a_step_of_a_replay_knows_what_it_is_told():
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=5, use_query_time=True)).eval()
    first_had = np.array([0, 0, 0, 0, 25])
    replay = measure_replay.Replay([], [], 15, first_had, np.zeros((1, 5), dtype=np.int64))
    row = {"input_ids": np.array([1, 2]), "timestamps": np.array([10, 20])}
    rows = [row | {"query_time": time, "target_ids": [3]} for time in (25, 26)]

    def score(name):
        return measure_replay.Step(name, model, replay, **measure_replay.STEPS[name]).score(rows)

    before, own, everybody, all_of_it = map(score, measure_replay.STEPS)
    for scores in (before, own, everybody):
        assert np.isinf(scores[:, 4]).all()
    assert np.isinf(all_of_it[0, 4]) and np.isfinite(
        all_of_it[1, 4]
    )  # not at its first event itself
    early = {name: values[:1] for name, values in row.items()}
    expected = ModelScorer(model).score([early])[0].numpy()
    assert np.allclose(before[0, :4], expected[:4]) and not np.allclose(before[0, :4], own[0, :4])


def test_what_the_training_part_chose_stands_beside_the_validation_part(log):
    for split, days in (
        ({"split": "leave_last_out"}, ["all alike"]),
        ({"split": "temporal", "test_days": 2}, ["all alike", "the last 3 more"]),
    ):
        (log / "small" / "prepare.json").write_text(json.dumps(split))
        told = measure_ease.measure(log / "small")
        assert list(told["values"]) == days and told["values"]["all alike"]["30"] > 0
        row, column = told["chosen"]
        assert column in told["values"][row]
    values = {"30": 0.2, "100": 0.4, "300": 0.1, "1000": 0.1}
    worst = {"values": {"all alike": values, "the last 3 more": values}}
    worst["chosen"] = ["the last 3 more", "30"]
    rows = measure_ease.page({"command": "", "logs": {"small": worst}})[-2:]
    assert rows == [
        "| small | all alike | 0.2000 | 0.4000 | 0.1000 | 0.1000 |  |",
        "| small | the last 3 more | **0.2000** | 0.4000 | 0.1000 | 0.1000 | 50% |",
    ]
