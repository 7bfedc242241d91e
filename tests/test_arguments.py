"""A dataclass is filled from YAML, then the command line; whatever does not fit is named."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from transformers import TrainingArguments

from modeling_implicitrec.arguments import parse_arguments, run_recipe


@dataclass
class Data:
    data_dir: str = field(metadata={"help": "folder of the sequences"})
    model: dict = field(default_factory=dict)
    ks: list[int] = field(default_factory=lambda: [10])
    half_life: float | None = None
    user: str | None = None
    packed: bool = False
    verbose: bool = True
    epochs: int = 1
    split: Literal["train", "test"] = "train"
    cache: Path = Path("cache")


@dataclass
class Clash:
    epochs: int = 2


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    path = write(
        tmp_path, "data_dir: a\nepochs: 3\nmodel: {hidden_size: 64, rate: 1e-3}\nhalf_life: 7\n"
    )
    (data,) = parse_arguments(Data, args=[path, "--epochs", "5", "--ks=[5, 20]", "--cache", "x/y"])
    assert data == Data(
        data_dir="a",
        model={"hidden_size": 64, "rate": 0.001},
        ks=[5, 20],
        half_life=7.0,
        epochs=5,
        cache=Path("x/y"),
    )
    assert type(data.half_life) is float


@pytest.mark.parametrize(
    ("words", "packed", "verbose"),
    [
        ([], False, True),
        (["--packed"], True, True),
        (["--packed", "false", "--no-verbose"], False, False),
        (["--packed=true", "--no_verbose"], True, False),
        (["--packed", "--epochs", "2"], True, True),
    ],
)
def test_flags(words, packed, verbose):
    (data,) = parse_arguments(Data, args=["--data_dir", "a", *words])
    assert (data.packed, data.verbose) == (packed, verbose)


@pytest.mark.parametrize("text", ["123", "true", "[a", "a: b", "x #y", "1e5"])
def test_a_text_field_takes_the_word_as_it_was_typed(text):
    (data,) = parse_arguments(Data, args=["--data_dir", text, "--user", text])
    assert (data.data_dir, data.user) == (text, text)


def test_null_and_negative_numbers():
    (data,) = parse_arguments(Data, args=["--data_dir", "a", "--user", "null", "--epochs", "-1"])
    assert data.user is None
    assert data.epochs == -1


def test_an_unknown_key_in_the_file_is_named_with_its_file_and_close_matches(tmp_path):
    path = write(tmp_path, "data_dir: a\nepoch: 3\n")
    with pytest.raises(
        ValueError, match=r"unknown key 'epoch' in .*recipe\.yaml; did you mean 'epochs'"
    ):
        parse_arguments(Data, args=[path])


def test_an_unknown_key_on_the_command_line_is_named():
    with pytest.raises(
        ValueError, match="unknown key 'pakced' in the command line; did you mean 'packed'"
    ):
        parse_arguments(Data, args=["--data_dir", "a", "--pakced"])
    with pytest.raises(ValueError, match="unknown key 'no_epochs'"):
        parse_arguments(Data, args=["--data_dir", "a", "--no-epochs"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epochs: many", "'epochs' in .* expected int, got str 'many'"),
        ("epochs: 1.5", "'epochs' in .* expected int, got float 1.5"),
        ("epochs: true", "'epochs' in .* expected int, got bool True"),
        ("packed: yes", "'packed' in .* expected bool, got str 'yes'"),
        ("packed: 1", "'packed' in .* expected bool, got int 1"),
        ("half_life: [1]", r"'half_life' in .* expected float \| null, got list"),
        ("ks: [1, a]", r"'ks' in .* expected list\[int\], got list"),
        ("model: 3", "'model' in .* expected dict, got int 3"),
        ("split: dev", "'split' in .* expected Literal.*got str 'dev'"),
        ("user: 12", r"'user' in .* expected str \| null, got int 12"),
        ("epochs: null", "'epochs' in .* expected int, got NoneType None"),
        ("epochs: 1\nepochs: 2", "key 'epochs' is given twice"),
        ("epochs: [1", "not valid YAML"),
    ],
)
def test_a_wrong_value_names_key_expected_and_got(tmp_path, line, message):
    path = write(tmp_path, f"data_dir: a\n{line}\n")
    with pytest.raises(ValueError, match=message):
        parse_arguments(Data, args=[path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing required 'data_dir'"),
        (["nowhere.yaml"], "no YAML file at 'nowhere.yaml'"),
        (["--data_dir"], "--data_dir on the command line expects a str, got nothing"),
        (["--data_dir", "a", "stray"], "unexpected 'stray'"),
        (
            ["--data_dir", "a", "--epochs", "x"],
            "'epochs' in the command line: expected int, got str 'x'",
        ),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(Data, args=words)


def test_a_list_at_the_top_of_the_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected a YAML file of keys and values"):
        parse_arguments(Data, args=[write(tmp_path, "- a\n")])


def test_a_key_of_two_dataclasses_is_an_error():
    with pytest.raises(ValueError, match="'epochs' is a field of both Data and Clash"):
        parse_arguments(Data, Clash, args=["--data_dir", "a"])


def test_help_prints_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(Data, TrainingArguments, args=["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--data_dir  str, required\n      folder of the sequences" in text
    assert "--ks  list[int], default [10]" in text
    assert "--learning_rate  float, default 5e-05" in text


def test_from_the_real_command_line_an_error_has_no_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--nothing", "1"])
    with pytest.raises(SystemExit, match="error: unknown key 'nothing' in the command line"):
        parse_arguments(Data)


def test_what_a_dataclass_refuses_is_one_line(monkeypatch):
    words = ["--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "epoch"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
    with pytest.raises(SystemExit, match="^error: .*save and eval strategy to match.*EPOCH$"):
        parse_arguments(TrainingArguments)


def test_values_are_adjusted_before_they_are_used():
    def adjust(given: dict) -> dict:
        return given | {"data_dir": given["data_dir"].upper()}

    assert parse_arguments(Data, args=["--data_dir", "a"], adjust=adjust)[0].data_dir == "A"


def test_training_arguments(tmp_path):
    path = write(
        tmp_path,
        "data_dir: a\nlearning_rate: 3e-4\neval_strategy: no\nsave_strategy: epoch\n"
        "warmup_steps: 50\n"
        "num_train_epochs: 2\nlabel_names: [labels]\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "use_cpu: true\n"
        f"lr_scheduler_type: cosine\nreport_to: none\noutput_dir: {tmp_path}\n",
    )
    data, training = parse_arguments(
        Data, TrainingArguments, args=[path, "--seed", "7", "--optim=adamw_torch"]
    )
    assert data.data_dir == "a"
    assert isinstance(training, TrainingArguments)
    assert training.learning_rate == 3e-4
    assert training.eval_strategy == "no"
    assert training.save_strategy == "epoch"
    assert training.lr_scheduler_type == "cosine"
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.label_names == ["labels"]
    assert (training.seed, training.optim) == (7, "adamw_torch")
    with pytest.raises(
        ValueError, match=r"unknown key 'lerning_rate' .* did you mean 'learning_rate'"
    ):
        parse_arguments(TrainingArguments, args=["--lerning_rate", "1"])


def test_a_recipe_ends_with_the_message_of_what_the_package_refuses(monkeypatch):
    def refused():
        parse_arguments(Data, args=["--nothing", "1"])

    def failed():
        int("no number")

    with pytest.raises(SystemExit, match="^error: unknown key 'nothing'"):
        run_recipe(refused)
    with pytest.raises(ValueError, match="invalid literal"):  # a fault: its traceback is wanted
        run_recipe(failed)


def test_an_interrupted_recipe_ends_without_a_traceback(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        run_recipe(interrupted)
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_help_has_plain_per_cent_signs(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(TrainingArguments, args=["--help"])
    text = capsys.readouterr().out
    assert "20%" in text and "%%" not in text


def test_help_begins_with_what_the_recipe_does(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "Bake a cake: `python cake.py`.\n")
    with pytest.raises(SystemExit):
        parse_arguments(Data, args=["--help"])
    usage, _, told, *_ = capsys.readouterr().out.splitlines()
    assert usage.startswith("usage: ") and told == "Bake a cake: `python cake.py`."
