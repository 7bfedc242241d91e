"""Ask a question about users: `python recipes/classify.py --data_dir data/shop --days 28 ...`.

Will they buy within so many days? The labels are made from the prepared log itself: `--items` and
`--event_types` say what counts, `--absent` asks whether nothing of it happens (churn). The test's days come
after those of validation, and these after all that is learnt from. Or `--labels table.csv`, a table of your
own with `user_id`, `label` and maybe the `timestamp` of asking: risk, segments, or with `--problem_type
regression` a number. `--from_checkpoint` starts from a trained recommender of the same prepared data.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

from modeling_implicitrec import (
    ActivityRegression,
    AskedRows,
    DataCollatorForQuestions,
    ImplicitRecConfig,
    ImplicitRecForSequenceClassification,
    ImplicitRecProcessor,
    Question,
    SequenceRows,
    answer_metrics,
    ask,
    ask_table,
    check_numbers,
    choose_tuning,
    load_sequences,
    merge_lora,
    parse_arguments,
    push_checkpoint,
    question_moments,
    run_recipe,
)


@dataclass
class ClassifyArguments:
    """The question and the model; everything else is a TrainingArgument."""

    data_dir: str = field(
        metadata={"help": "folder that prepare.py wrote; without labels with a temporal split"}
    )
    days: float = field(default=28.0, metadata={"help": "in which it happens or does not"})
    items: list = field(default_factory=list, metadata={"help": "ids that count; none: all"})
    items_file: str = field(default="", metadata={"help": "or a CSV or Parquet file of item_id"})
    event_types: list = field(default_factory=list, metadata={"help": "that count; none: all"})
    absent: bool = field(default=False, metadata={"help": "is it missing? (churn)"})
    active_days: float = field(default=0.0, metadata={"help": "ask who was active in; 0: all"})
    max_moments: int = field(default=6, metadata={"help": "of asking, for training"})
    labels: str = field(
        default="", metadata={"help": "in place of a question: CSV or Parquet of user_id, label"}
    )
    problem_type: str | None = field(
        default=None, metadata={"help": "regression: label is a number"}
    )
    use_activity: bool = field(default=True, metadata={"help": "tell recency, frequency, tenure"})
    model: dict = field(default_factory=dict, metadata={"help": "ImplicitRecConfig by key"})
    from_checkpoint: str = field(default="", metadata={"help": "folder or Hub name to start from"})
    tune: str = field(default="full", metadata={"help": "or frozen (body), or lora"})
    early_stopping_patience: int = field(default=0, metadata={"help": "evaluations; 0: never"})

    def __post_init__(self) -> None:
        check_numbers(self, "days > 0", "max_moments >= 1")
        check_numbers(self, "active_days early_stopping_patience >= 0")


Parts = dict[str, AskedRows]


def load(args: ClassifyArguments) -> tuple[SequenceRows, ImplicitRecProcessor]:
    data = Path(args.data_dir)
    if not data.exists():
        raise SystemExit(f"no prepared data in {data}; run recipes/prepare.py first")
    processor = ImplicitRecProcessor.from_pretrained(data / "processor")
    if args.labels:
        return SequenceRows(load_sequences(data / "latest")["latest"]), processor
    splits = load_sequences(data / "sequences")
    if "before_test" not in splits:
        raise SystemExit("questions to the log need its temporal split (prepare.py), or labels")
    return SequenceRows(splits["before_test"]), processor


def read_file(path: str, columns: set[str]) -> pd.DataFrame:
    """A CSV or Parquet file that has these columns."""
    try:
        table = pd.read_parquet(path) if path.endswith(".parquet") else pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} cannot be read as a table: {error}") from error
    if missing := columns - set(table):
        raise SystemExit(f"{path} needs the columns {sorted(missing)}, has {list(table)}")
    return table


def ask_log(args: ClassifyArguments, rows: SequenceRows, processor) -> Parts:
    """The question at moments of the log, each part's days after those of the one before."""
    wanted = [*args.items]
    if args.items_file:
        wanted += read_file(args.items_file, {"item_id"})["item_id"].tolist()
    question = Question(
        args.days,
        items=known("items", processor.encode_items(wanted)),
        event_type_ids=known("event_types", processor.encode_event_types(args.event_types)),
        absent=args.absent,
        active_days=args.active_days,
    )
    times = [(row["timestamps"][0], row["timestamps"][-1]) for row in rows if row["length"]]
    start, end = min(first for first, _ in times), max(last for _, last in times) + 1
    moments = question_moments(start, end, args.days, number=args.max_moments)
    check_checkpoint(args, until=moments[2])
    names = ("train", "validation", "test")
    asked = (moments[0], [moments[1]], [moments[2]])
    return {name: ask(rows, question, part) for name, part in zip(names, asked)}


def known(name: str, ids: np.ndarray) -> list[int]:
    """Of what was named, that which the processor knows."""
    found = [int(one) for one in ids if one > 0]
    if len(ids) and not found:
        raise SystemExit(f"{name}: the prepared log knows none of them")
    if len(found) < len(ids):
        print(f"{name}: {len(ids) - len(found)} of {len(ids)} are not in the prepared log")
    return found


def check_checkpoint(args: ClassifyArguments, until: float) -> None:
    """Refuse a checkpoint that learnt from the days of the test."""
    made = Path(args.from_checkpoint, "training.json")
    if args.from_checkpoint and made.exists():
        period = json.loads(made.read_text()).get("period")
        last = pd.Timestamp(period[1]) if period else None
        if last is not None and last > pd.Timestamp(until, unit="s", tz=last.tz):
            raise SystemExit(
                f"{args.from_checkpoint} learnt from events until {last}, and the test's days begin "
                f"at {pd.Timestamp(until, unit='s')}: train it without --refit, or ask for fewer days"
            )


def read_table(args: ClassifyArguments, rows: SequenceRows) -> tuple[Parts, Sequence[str]]:
    """The labels of a table, and the names of its classes."""
    table = read_file(args.labels, {"user_id", "label"})
    labels = table["label"].dropna()  # a row without one is refused by ask_table
    if args.problem_type == "regression":
        if not pd.api.types.is_numeric_dtype(labels):
            raise SystemExit(f"regression needs numbers as labels, got {labels.iloc[0]!r}")
        values, names = table["label"].astype(np.float32), ["value"]
    else:
        kinds = labels.drop_duplicates().sort_values().tolist()
        if pd.api.types.is_float_dtype(labels) and (labels % 1).any():
            raise SystemExit("labels with fractions are no classes: say --problem_type regression")
        if len(kinds) < 2:
            raise SystemExit(f"labels must be of at least two classes, got {kinds}")
        values = table["label"].map({kind: place for place, kind in enumerate(kinds)})
        names = [str(kind) for kind in kinds]
    parts, missed = ask_table(rows, table.assign(label=values))
    print(f"{len(table)} labels, {missed} of them of users without a history at that moment")
    return parts, names


def build_model(args: ClassifyArguments, processor, names: Sequence[str], train: AskedRows):
    settings: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: place for place, name in enumerate(names)},
        "user_feature_size": train.features.shape[1] if args.use_activity else 0,
        "problem_type": args.problem_type or "single_label_classification",
    }
    if args.from_checkpoint:
        model = ImplicitRecForSequenceClassification.from_pretrained(
            args.from_checkpoint, **settings | args.model
        )
        processor.adapt_to(model.config)
    else:
        settings |= {
            "vocab_size": processor.vocab_size,
            "num_event_types": processor.num_event_types,
            "vocabulary_fingerprint": processor.fingerprint,
            "negative_event_type_ids": processor.negative_event_type_ids,
        }
        model = ImplicitRecForSequenceClassification(ImplicitRecConfig(**settings | args.model))
    if args.use_activity:
        model.fit_user_features(train.features, train.labels)
    choose_tuning(model, args.tune)
    return model


def build_trainer(args: ClassifyArguments, training, model, parts: Parts) -> Trainer:
    training.remove_unused_columns = False  # the collator reads columns that the model does not
    training.label_names = ["labels"]
    training.dataloader_pin_memory = torch.cuda.is_available()
    config = model.config
    collator = DataCollatorForQuestions(
        config.max_position_embeddings,
        collapse_repeats=config.collapse_repeats,
        with_features=args.use_activity,
    )
    patience = args.early_stopping_patience
    return Trainer(
        model=model,
        args=training,
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        data_collator=collator,
        callbacks=[EarlyStoppingCallback(patience)] if patience else None,
    )


def measure(trainer: Trainer, parts: Parts) -> dict[str, dict[str, float]]:
    """What the model and the baselines make of the test's questions."""
    test, train = parts["test"], parts["train"]
    logits = torch.as_tensor(trainer.predict(test).predictions)
    if trainer.model.config.problem_type == "regression":
        guess = np.full(len(test), train.labels.mean())
        error = {"model": logits[:, 0].numpy(), "mean of the training labels": guess}
        return {name: {"mse": float(((y - test.labels) ** 2).mean())} for name, y in error.items()}
    chances = logits.softmax(1).numpy()
    if trainer.model.num_labels > 2:
        right = {"model": chances.argmax(1), "most frequent": np.bincount(train.labels).argmax()}
        return {name: {"accuracy": float((y == test.labels).mean())} for name, y in right.items()}
    regression = ActivityRegression(train.features, train.labels)
    answers = {"model": chances[:, 1], "activity regression": regression(test.features)}
    if not np.isnan(test.rates).any():
        answers["own frequency"] = test.rates
    return {name: answer_metrics(test.labels, found) for name, found in answers.items()}


def save(args: ClassifyArguments, trainer: Trainer, processor, results: dict) -> None:
    folder = Path(trainer.args.output_dir)
    processor.adapt_to(trainer.model.config)
    processor.save_pretrained(folder)
    made = {"question": vars(args), "steps": trainer.state.global_step, "seed": trainer.args.seed}
    (folder / "training.json").write_text(json.dumps(made, indent=2))
    (folder / "results_test.json").write_text(json.dumps(results, indent=2))
    print(f"saved to {folder}")


def main() -> None:
    args, training = parse_arguments(ClassifyArguments, TrainingArguments)
    if args.problem_type not in (None, "regression", "single_label_classification"):
        raise SystemExit(f"problem_type: regression or none, got {args.problem_type!r}")
    set_seed(training.seed)
    push_to_hub, training.push_to_hub = training.push_to_hub, False
    rows, processor = load(args)
    if args.labels:
        parts, names = read_table(args, rows)
    else:
        parts, names = ask_log(args, rows, processor), ["no", "yes"]
    print(", ".join(f"{name}: {len(part):,} asked" for name, part in parts.items()))
    model = build_model(args, processor, names, parts["train"])
    trainer = build_trainer(args, training, model, parts)
    trainer.train()
    if args.tune == "lora":
        merge_lora(model)
    trainer.save_model(training.output_dir)
    results = measure(trainer, parts)
    print(pd.DataFrame(results).T.round(4).to_string())
    if trainer.is_world_process_zero():
        save(args, trainer, processor, results)
        if push_to_hub:
            name = training.hub_model_id or Path(training.output_dir).name
            done = push_checkpoint(training.output_dir, name, private=training.hub_private_repo)
            print(f"pushed to {done.commit_url}")


if __name__ == "__main__":
    run_recipe(main)
