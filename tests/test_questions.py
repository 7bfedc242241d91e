"""Questions about users: labels by time, the classifier from a recommender's checkpoint, the recipe."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from modeling_implicitrec import (
    DataCollatorForQuestions,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecForSequenceClassification,
    ImplicitRecProcessor,
    Question,
    SequenceRows,
    answer_metrics,
    ask,
    ask_table,
    average_precision,
    calibration_error,
    log_loss,
    push_checkpoint,
    question_moments,
    save_checkpoint,
)

DAY = 86_400
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
HISTORY = torch.tensor([[3, 8, 1], [2, 9, 0]])
REMOTE = """
import json, sys, torch, transformers
from pathlib import Path
from transformers import AutoModelForSequenceClassification, AutoProcessor
assert not any("implicitrec" in path for path in sys.path)
options = {"trust_remote_code": True}
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], **options).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], **options)
classes = json.loads(Path(sys.argv[1], "config.json").read_text())["auto_map"]
loaded = {}
for name in classes:  # each entry leads to code that travelled
    found = getattr(transformers, name).from_pretrained(sys.argv[1], **options)
    loaded[name] = type(found).__module__.rpartition(".")[2] + "." + type(found).__name__
assert loaded == classes, (loaded, classes)
with torch.no_grad():
    logits = model(**processor([["a", "b"]])).logits.tolist()
print(json.dumps([logits, type(model).__module__, sorted(classes)]))
"""


def tiny(kind=ImplicitRecForSequenceClassification, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32}
    return kind(ImplicitRecConfig(**sizes | changes)).eval()


def rows_of(**columns) -> SequenceRows:
    length = [len(row) for row in columns["input_ids"]]
    weights = [[1.0] * size for size in length]
    return SequenceRows(Dataset.from_dict({"input_weights": weights, "length": length} | columns))


def test_an_answer_reads_its_own_days_only_and_history_ends_before_them():
    days = [0, 2, 5, 9, 12, 13]
    rows = rows_of(input_ids=[[1, 2, 3, 4, 5, 6]], timestamps=[[d * DAY for d in days]])
    asked = ask(rows, Question(days=4), [5.0 * DAY, 9.0 * DAY, 14.0 * DAY])
    assert asked.stops.tolist() == [2, 3, 6]  # the event at the moment itself is of the answer
    assert asked.labels.tolist() == [1, 1, 0]
    assert ask(rows, Question(days=4, absent=True), [14.0 * DAY]).labels.tolist() == [1]
    assert ask(rows, Question(days=4, items=[5]), [5.0 * DAY, 9.0 * DAY]).labels.tolist() == [0, 1]
    row = asked[0]
    assert row["input_ids"].tolist() == [1, 2] and row["length"] == 2
    changed = rows_of(input_ids=[[1, 2, 9, 9, 9, 9]], timestamps=[[d * DAY for d in days]])
    again = ask(changed, Question(days=4), [5.0 * DAY])
    assert np.array_equal(again.features[0], asked.features[0]) and again.rates[0] == asked.rates[0]


def test_who_is_not_active_is_not_asked_and_types_are_told_apart():
    rows = rows_of(
        input_ids=[[1, 2], [1, 2]],
        timestamps=[[0, 9 * DAY], [6 * DAY, 9 * DAY]],
        event_type_ids=[[1, 1], [1, 2]],
    )
    question = Question(days=4, active_days=3, event_type_ids=[1])
    asked = ask(rows, question, [8.0 * DAY])
    assert asked.places.tolist() == [1] and asked.labels.tolist() == [0]
    with pytest.raises(ValueError, match="nobody has a history"):
        ask(rows, question, [0.0])
    with pytest.raises(ValueError, match="days must be positive"):
        Question(days=0)


def test_own_frequency_counts_earlier_windows():
    rows = rows_of(input_ids=[[1, 1, 1]], timestamps=[[0, 3 * DAY, 21 * DAY]])
    (rate,) = ask(rows, Question(days=7), [28.0 * DAY]).rates
    assert rate == (2 + 1) / (4 + 2)  # of the windows that begin at days 0, 7, 14 and 21


def test_windows_of_answers_never_overlap():
    training, validation, test = question_moments(0, 365 * DAY, 28, number=3)
    moments = [*sorted(training), validation, test]
    assert (np.diff(moments) == 28 * DAY).all() and test + 28 * DAY == 365 * DAY
    with pytest.raises(ValueError, match="too short for three windows"):
        question_moments(0, 60 * DAY, 28, number=3)


def test_labels_of_a_table_are_split_by_time_where_it_has_times():
    rows = rows_of(
        user_id=[7, 8], input_ids=[[1, 2, 3], [4]], timestamps=[[0, DAY, 2 * DAY], [5 * DAY]]
    )
    times = [f"1970-01-{day:02}" for day in range(2, 12)]
    table = pd.DataFrame({"user_id": [7] * 10, "label": range(10), "timestamp": times[::-1]})
    parts, missed = ask_table(rows, table)
    assert missed == 0 and parts["train"].stops.tolist() == [1, 2, 3, 3, 3, 3, 3]
    assert parts["test"].labels.tolist() == [1, 0]
    rows = rows_of(user_id=[5, 6, 7, 8], input_ids=[[1]] * 4, timestamps=[[0]] * 4)
    table = pd.DataFrame({"user_id": [5, 6, 7, 8, 9], "label": [0.5, 1, 2, 3, 4]})
    parts, missed = ask_table(rows, table)
    assert missed == 1 and sum(map(len, parts.values())) == 4


def test_metrics_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    found = generator.random(500).round(2)  # with ties
    labels = (generator.random(500) < found).astype(int)
    assert average_precision(labels, found) == pytest.approx(
        metrics.average_precision_score(labels, found)
    )
    assert log_loss(labels, found) == pytest.approx(
        metrics.log_loss(labels, found.clip(1e-6, 1 - 1e-6))
    )
    assert answer_metrics(labels, found)["auc"] == pytest.approx(
        metrics.roc_auc_score(labels, found)
    )
    assert calibration_error(labels, found) < calibration_error(labels, found**3)
    with pytest.raises(ValueError, match="labels of 0 and 1"):
        log_loss(labels + 1, found)


@pytest.mark.parametrize(
    ("options", "labels", "problem_type"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2]), "single_label_classification"),
        ({"num_labels": 3}, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), "multi_label_classification"),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0]), "regression"),
    ],
)
def test_the_problem_type_follows_from_labels_and_the_loss_is_that_of_torch(
    options, labels, problem_type
):
    model = tiny(**options)
    out = model(HISTORY, labels=labels)
    assert model.config.problem_type == problem_type
    losses = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": lambda logits, wanted: ((logits[:, 0] - wanted) ** 2).mean(),
    }
    torch.testing.assert_close(out.loss, losses[problem_type](out.logits, labels))
    padded = model(torch.nn.functional.pad(HISTORY, (0, 4))).logits
    torch.testing.assert_close(padded, out.logits)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"user_features must be \[2, 3\], got \[2, 0\]"):
        tiny(user_feature_size=3)(HISTORY)
    with pytest.raises(ValueError, match=r"needs labels of shape \[2, 4\]"):
        tiny(num_labels=4, problem_type="regression")(HISTORY, labels=torch.ones(2, 3))
    with pytest.raises(ValueError, match="user_feature_size must not be negative"):
        ImplicitRecConfig(user_feature_size=-1)


def test_a_recommender_gives_the_body_and_the_head_starts_anew(tmp_path):
    scoring = tiny(ImplicitRecForScoring, copy_prior=True, num_cooccurrences=2)
    scoring.save_pretrained(tmp_path)
    model = ImplicitRecForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, user_feature_size=2
    ).eval()
    own, theirs = model.model.state_dict(), scoring.model.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[n], theirs[n]) for n in own)
    assert model.classifier.feature_deviation.tolist() == [1, 1]
    model.fit_user_features(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    same = model(HISTORY, user_features=torch.tensor([[2.0, 7.0]] * 2)).logits
    with torch.no_grad():
        model.classifier.wide.weight.add_(1.0)
    told = model(HISTORY, user_features=torch.tensor([[2.0, 7.0], [3.0, 7.0]])).logits
    torch.testing.assert_close(told[0], same[0])  # the mean tells nothing
    assert told.shape == (2, 3) and (told[1] - same[1] > 0.9).all()
    by_auto = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(by_auto) is ImplicitRecForSequenceClassification


def test_half_a_head_or_body_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    for gone in ("classifier.out.weight", "model.norm.weight"):
        tiny().save_pretrained(tmp_path)
        weights = load_file(path)
        del weights[gone]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=gone):
            ImplicitRecForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks the weights"):  # its body is no recommender
        ImplicitRecForScoring.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [ImplicitRecForScoring, ImplicitRecForSequenceClassification])
def test_it_loads_where_the_package_is_not_installed(kind, tmp_path):
    processor = ImplicitRecProcessor.fit({"item_id": ["a", "b", "b", "c"]})
    fingerprint = {"vocab_size": processor.vocab_size}
    fingerprint |= {"vocabulary_fingerprint": processor.fingerprint}
    model = tiny(kind, **fingerprint)
    save_checkpoint(tmp_path / "saved", model=model, processor=processor)
    command = [sys.executable, "-I", "-c", REMOTE, str(tmp_path / "saved")]
    environment = {"PATH": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logits, module, classes = json.loads(done.stdout.strip().splitlines()[-1])
    recommends = kind is ImplicitRecForScoring
    expected = ["AutoConfig", *["AutoModel"] * recommends, "AutoModelForSequenceClassification"]
    assert classes == expected
    kept = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert bool(kept["custom_pipelines"]) is recommends
    assert module.startswith("transformers_modules.")
    if kind is ImplicitRecForSequenceClassification:
        torch.testing.assert_close(torch.tensor(logits), model(**processor([["a", "b"]])).logits)


def test_a_classifier_is_pushed_and_pulled(hub, tmp_path):
    processor = ImplicitRecProcessor.fit({"item_id": ["a", "b", "b", "c"]})
    model = tiny(vocab_size=4, vocabulary_fingerprint=processor.fingerprint, num_labels=3)
    save_checkpoint(tmp_path / "churn", model=model, processor=processor)
    push_checkpoint(tmp_path / "churn", "alice/churn")
    assert "classification_implicitrec.py" in hub.files("alice/churn")
    pulled = ImplicitRecForSequenceClassification.from_pretrained("alice/churn").eval()
    batch = processor([["a", "b"]])
    torch.testing.assert_close(pulled(**batch).logits, model(**batch).logits)


def test_trainer_learns_a_world_whose_answer_is_in_the_history(tmp_path):
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 10, (200, 6))
    ids[:100, 5], ids[100:, 5] = 10, 9
    ids[:, :5][ids[:, :5] == 10] = 1
    rows = [
        {"input_ids": row, "input_weights": np.ones(6), "labels": int(row[5] == 10)} for row in ids
    ]
    model = tiny(hidden_dropout_prob=0.0)
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=60,
        per_device_train_batch_size=20,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    collator = DataCollatorForQuestions(6, with_features=False)
    Trainer(model, settings, collator, train_dataset=rows).train()
    chances = model.eval()(torch.as_tensor(ids)).logits.softmax(1)[:, 1].detach().numpy()
    assert answer_metrics((ids[:, 5] == 10).astype(int), chances)["auc"] > 0.99


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Users of even numbers buy every week, others once in three."""
    folder = tmp_path_factory.mktemp("log")
    generator = np.random.default_rng(0)
    events = [
        (user, int(generator.integers(0, 9)), "buy" if day % 2 else "view", day)
        for user in range(40)
        for day in range(user % 7, 120, 7 if user % 2 == 0 else 21)
    ]
    log = pd.DataFrame(events, columns=["user_id", "item_id", "event_type", "timestamp"])
    log["timestamp"] = 1_600_000_000 + DAY * log["timestamp"]
    log.to_csv(folder / "log.csv", index=False)
    options = {"source": folder / "log.csv", "output_dir": folder / "data", "split": "temporal"}
    options |= {"test_days": 10, "columns": "{event_type: event_type}", "report_page": "false"}
    run("prepare", options)
    return folder / "data"


def run(name: str, options: dict) -> None:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    before, sys.argv = sys.argv, [name, *words]
    try:
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


SMALL = {
    "model": "{hidden_size: 16, intermediate_size: 32, hidden_dropout_prob: 0.0}",
    "max_steps": 40,
    "learning_rate": 1e-2,
    "report_to": "none",
    "use_cpu": "true",
    "save_strategy": "no",
}


def test_the_recipe_asks_the_log(data, tmp_path):
    options = SMALL | {"data_dir": data, "output_dir": tmp_path, "days": 10, "absent": "true"}
    run("classify", options)
    results = json.loads((tmp_path / "results_test.json").read_text())
    assert set(results) == {"model", "activity regression", "own frequency"}
    assert results["model"]["auc"] > 0.9
    loaded = ImplicitRecForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "no", 1: "yes"}
    ImplicitRecProcessor.from_pretrained(tmp_path).check_model(loaded.config)


def test_the_recipe_goes_on_from_a_recommender_and_refuses_one_that_knows_the_answers(
    data, tmp_path
):
    start = SMALL | {"data_dir": data, "output_dir": tmp_path / "start", "max_steps": 2}
    run("finetune", start)
    options = SMALL | {"data_dir": data, "output_dir": tmp_path / "end", "days": 10, "max_steps": 2}
    options |= {"from_checkpoint": tmp_path / "start", "tune": "frozen", "event_types": "[buy]"}
    run("classify", options)
    own, old = load_file(tmp_path / "end" / "model.safetensors"), tmp_path / "start"
    old = load_file(old / "model.safetensors")
    blocks = [name for name in own if name.startswith("model.blocks.")]
    assert blocks and all(torch.equal(own[name], old[name]) for name in blocks)
    with pytest.raises(SystemExit, match="learnt from events until"):
        run("classify", options | {"days": 25})
    with pytest.raises(SystemExit, match="knows none"):
        run("classify", options | {"items": "[77]"})


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_the_recipe_takes_labels_of_a_table(problem_type, data, tmp_path):
    values = {u: u % 2 * 2.5 if problem_type else ("low", "high", "odd")[u % 3] for u in range(40)}
    table = pd.DataFrame({"user_id": list(values), "label": list(values.values())})
    if problem_type:
        moments = [1_600_000_000 + DAY * day for day in (60, 75, 90, 105)]
        table = pd.concat([table.assign(timestamp=moment) for moment in moments])
    table.to_csv(tmp_path / "labels.csv", index=False)
    options = SMALL | {"data_dir": data, "output_dir": tmp_path / "out", "max_steps": 60}
    options |= {"labels": tmp_path / "labels.csv"}
    run("classify", options | ({"problem_type": problem_type} if problem_type else {}))
    results = json.loads((tmp_path / "out" / "results_test.json").read_text())
    config = ImplicitRecConfig.from_pretrained(tmp_path / "out")
    if problem_type:
        assert config.num_labels == 1
        assert results["model"]["mse"] < results["mean of the training labels"]["mse"] / 2
    else:
        assert config.id2label == {0: "high", 1: "low", 2: "odd"}


def test_labels_of_a_table_are_asked_after_the_whole_history(data, tmp_path):
    """Also of the days that evaluation holds out, which end the log."""
    table = pd.DataFrame({"user_id": range(40), "label": [n % 2 for n in range(40)]})
    table.to_parquet(tmp_path / "labels.parquet")
    options = {"data_dir": data, "labels": tmp_path / "labels.parquet", "output_dir": tmp_path}
    recipe = runpy.run_path(str(RECIPES / "classify.py"))
    args = recipe["ClassifyArguments"](data_dir=str(data), labels=str(options["labels"]))
    rows, _ = recipe["load"](args)
    parts, _ = recipe["read_table"](args, rows)
    log = pd.read_csv(data.parent / "log.csv")
    assert sum(int(part.stops.sum()) for part in parts.values()) == len(log)


@pytest.mark.parametrize(
    ("text", "problem_type", "message"),
    [
        ("", None, "cannot be read as a table"),
        ("user_id;label", None, "needs the columns"),
        ("user_id,label\n1,x\n2,x\n3,x", None, "at least two classes, got \\['x'\\]"),
        ("user_id,label\n1,.5\n2,1\n3,2", None, "say --problem_type regression"),
        ("user_id,label\n1,x\n2,y\n3,z", "regression", "numbers as labels, got 'x'"),
        (None, None, "cannot be read as a table: .* No such file"),
    ],
)
def test_a_wrong_labels_file_is_one_line(text, problem_type, message, data, tmp_path):
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    options = {"data_dir": data, "labels": tmp_path / "labels.csv", "output_dir": tmp_path / "out"}
    with pytest.raises(SystemExit, match=message):
        run("classify", options | ({"problem_type": problem_type} if problem_type else {}))
    with pytest.raises(SystemExit, match="cannot be read|needs the columns"):
        options = {"data_dir": data, "items_file": tmp_path / "labels.csv", "days": 5}
        run("classify", options | {"output_dir": tmp_path / "out"})
