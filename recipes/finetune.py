"""Train a recommender on prepared data: `python recipes/finetune.py recipes/<log>/<name>.yaml`.

Runs alike under `accelerate launch` and `torchrun`. The checkpoint with the best validation NDCG@10
is kept; `--resume` goes on from the last whole one, to the weights of a run without a break. With `refit`,
settings that were chosen on the validation part are trained on all that came before the test.
`--from_checkpoint` starts from a trained model, of the same catalogue or another one, and prints what of
it was kept. With `--push_to_hub true --hub_model_id user/name` the checkpoint goes to the Hub at the end,
in one commit. With `--dp_epsilon 8` training is differentially private (docs/privacy.md).
"""

import json
import secrets
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from safetensors.numpy import load_file
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

from modeling_implicitrec import (
    CalibrationCallback,
    DataCollatorForNextItem,
    EpochCallback,
    GroupedRows,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    PriorCallback,
    PrivacyPlan,
    PrivateTrainer,
    ProcessorCallback,
    RowWiseAdamW,
    RunRecord,
    SequenceRows,
    SettleCallback,
    check_numbers,
    check_private,
    check_season,
    choose_tuning,
    compute_hit_metrics,
    fit_priors,
    fit_season,
    load_checkpoint,
    load_sequences,
    merge_lora,
    noisy_item_counts,
    parse_arguments,
    plot_training,
    positive_events,
    push_checkpoint,
    read_period,
    reduce_logits_to_hits,
    resume_point,
    run_recipe,
    set_aside_checkpoints,
    transfer_weights,
    write_model_card,
)


@dataclass
class FinetuneArguments:
    """The data, the model and the labels; everything else is a TrainingArgument."""

    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    model: dict = field(default_factory=dict, metadata={"help": "ImplicitRecConfig by key"})
    cooccurrence_source: str = field(default="sequence", metadata={"help": "of pairs; or ease"})
    ease_regularization: float = field(default=300.0, metadata={"help": "lambda, in users"})
    recent_days: float = field(default=0.0, metadata={"help": "last days that count most; 0: no"})
    cooccurrence_folds: int = field(
        default=0, metadata={"help": "read counts of other users only; 0: take out the label's own"}
    )
    weighted_cooccurrences: bool = field(default=False, metadata={"help": "by weight; needs folds"})
    label_weight_power: float = field(
        default=0.0, metadata={"help": "p of a label's weight w^p in the loss; 0: alike"}
    )
    target_event_types: list | None = field(
        default=None, metadata={"help": "of labels; left out: those of prepare.py; []: all"}
    )
    label_horizon_days: float = field(default=0.0, metadata={"help": "0: the next moment"})
    moment_ends_only: bool = field(default=False, metadata={"help": "label ends of baskets only"})
    within_moments: bool = field(default=False, metadata={"help": "label by the next of a basket"})
    target_window_days: float = field(
        default=0.0, metadata={"help": "learn all items of the days after a random cut; 0: labels"}
    )
    season_days: float = field(default=0.0, metadata={"help": "raise what these last had more of"})
    from_checkpoint: str = field(default="", metadata={"help": "to start from; its settings stay"})
    namespace: str | None = field(
        default=None, metadata={"help": "of this log's items in a checkpoint of pretrain.py"}
    )
    tune: str = field(default="full", metadata={"help": "or frozen (body), or lora"})
    lora_rank: int = field(default=8, metadata={"help": "of the adapters, merged at the end"})
    use_item_features: bool = field(default=False, metadata={"help": "what describe.py wrote"})
    use_platforms: bool = field(default=False, metadata={"help": "tell platforms apart"})
    row_wise_optimizer: bool = field(
        default=False, metadata={"help": "update only items that a step reads; for sampled losses"}
    )
    refit: bool = field(default=False, metadata={"help": "learn from all before the test"})
    prior_steps: int = field(default=0, metadata={"help": "the prior learns in these only; 0: all"})
    prior_dropout: float = field(default=0.0, metadata={"help": "share that then does not see it"})
    calibrate: bool = field(
        default=False, metadata={"help": "at the end fit the head's numbers to the validation part"}
    )
    dp_epsilon: float = field(default=0.0, metadata={"help": "differential privacy, as 8; 0: none"})
    dp_delta: float = field(default=1e-5, metadata={"help": "well below 1 / users"})
    dp_clip_norm: float = field(default=1.0, metadata={"help": "of a user's gradient"})
    dp_count_noise: float = field(
        default=10.0, metadata={"help": "on the item counts of the bias; 0: they are not read"}
    )
    license: str | None = field(default=None, metadata={"help": "of the weights, such as mit"})
    early_stopping_patience: int = field(default=0, metadata={"help": "bad evaluations; 0: never"})
    resume: bool = field(default=False, metadata={"help": "go on from the last checkpoint"})

    def __post_init__(self) -> None:
        check_numbers(self, "recent_days season_days label_horizon_days target_window_days >= 0")
        check_numbers(self, "cooccurrence_folds label_weight_power prior_steps prior_dropout >= 0")
        check_numbers(self, "early_stopping_patience dp_epsilon dp_count_noise >= 0")
        check_numbers(self, "lora_rank >= 1", "prior_dropout dp_delta < 1")
        check_numbers(self, "ease_regularization dp_delta dp_clip_norm > 0")


def skip_evaluation(given: dict) -> dict:
    """What the arguments are made of: where nothing is evaluated, nothing is chosen by it."""
    if given.get("refit") or given.get("dp_epsilon"):  # learnt from; or people's data without noise
        given |= {"eval_strategy": "no"}
    needs = {"load_best_model_at_end": False, "early_stopping_patience": 0, "calibrate": False}
    left = [name for name in needs if given.get(name)]
    if left and given.get("eval_strategy", "no") == "no":
        print(f"nothing is evaluated: the last weights are kept, without {' and '.join(left)}")
        given |= needs
    return given


def build_model(args: FinetuneArguments, processor, train) -> ImplicitRecForScoring:
    if args.use_platforms and not processor.platforms:
        raise SystemExit(f"use_platforms: the events in {args.data_dir} name no platform")
    source, features = None, item_features(args)
    settings: dict = {}
    if args.from_checkpoint:
        source, known = load_checkpoint(args.from_checkpoint)
        settings = {n: getattr(source.config, n) for n in ImplicitRecConfig.__annotations__}
    settings |= {
        "vocab_size": processor.vocab_size,
        "num_event_types": processor.num_event_types,
        "vocabulary_fingerprint": processor.fingerprint,
        "negative_event_type_ids": processor.negative_event_type_ids,
        "num_platforms": processor.num_platforms if args.use_platforms else 1,
        "item_feature_size": 0 if features is None else features.shape[1],
    }
    model = ImplicitRecForScoring(ImplicitRecConfig(**settings | args.model))
    if features is not None:
        model.fit_item_features(features)
    fit_counts(args, model, processor, train)
    if source is not None:
        print(transfer_weights(model, source, (known, processor), namespace=args.namespace))
    choose_tuning(model, args.tune, lora_rank=args.lora_rank)
    return model


def fit_counts(args: FinetuneArguments, model: ImplicitRecForScoring, processor, train) -> None:
    """Tell the model what was had how often, and together; a private run tells counts with noise."""
    if not args.dp_epsilon:
        return fit_priors(
            model,
            processor,
            train,
            source=args.cooccurrence_source,
            regularization=args.ease_regularization,
            recent_days=args.recent_days or None,
            folds=args.cooccurrence_folds,
            weighted=args.weighted_cooccurrences,
        )
    train = positive_events(train, processor.negative_event_type_ids)
    check_private(model.config, processor, train)
    if noise := args.dp_count_noise:
        model.fit_item_counts(noisy_item_counts(train, processor.vocab_size, noise=noise))


def item_features(args: FinetuneArguments) -> np.ndarray | None:
    """What describe.py wrote, `[vocab_size, features]`."""
    path = Path(args.data_dir, "item_features.safetensors")
    if not args.use_item_features:
        return None
    if not path.exists():
        raise SystemExit(f"no {path}; run recipes/describe.py first")
    return load_file(path)["features"]


def load(args: FinetuneArguments) -> tuple[Dataset, Dataset, ImplicitRecProcessor]:
    """The rows to learn from, those that choose the checkpoint, and the fitted processor."""
    data = Path(args.data_dir)
    if not data.exists():
        raise SystemExit(f"no prepared data in {data}; run recipes/prepare.py first")
    splits = load_sequences(data / "sequences")
    if args.refit and "before_test" not in splits:
        raise SystemExit("refit needs a temporal split, whose validation part ends at the test")
    train = splits["before_test" if args.refit else "train"]
    processor = ImplicitRecProcessor.from_pretrained(data / "processor")
    args.target_event_types = target_types(args, processor)
    return train, splits["validation"], processor


def target_types(args: FinetuneArguments, processor: ImplicitRecProcessor) -> list[str]:
    """The event types that labels are of; none for all."""
    types, prepared = args.target_event_types, Path(args.data_dir, "prepare.json")
    if types is None and prepared.exists():
        types = json.loads(prepared.read_text()).get("target_event_types")
    known, types = processor.event_types, types or []
    if absent := sorted(set(types) - set(known)):
        raise SystemExit(f"target_event_types must be among {known}, got also {absent}")
    return types


def build_collator(args: FinetuneArguments, training, model, processor) -> DataCollatorForNextItem:
    return DataCollatorForNextItem.for_model(
        model.config,
        label_horizon=args.label_horizon_days * 86_400,
        moment_ends_only=args.moment_ends_only,
        within_moments=args.within_moments,
        target_window=args.target_window_days * 86_400,
        negative_labels=bool(model.config.negative_event_loss),
        num_folds=args.cooccurrence_folds,
        label_weight_power=args.label_weight_power,
        target_event_type_ids=processor.encode_event_types(args.target_event_types).tolist(),
        # A private run's draws are as secret as its noise; the card tells the run's own seed.
        seed=secrets.randbits(63) if args.dp_epsilon else training.seed,
    )


def build_trainer(args: FinetuneArguments, training, model, collator, train, validation) -> Trainer:
    training.label_names = ["target_ids"]  # of evaluation rows; training rows have labels
    training.remove_unused_columns = False  # the collator reads columns that the model does not
    training.dataloader_pin_memory = torch.cuda.is_available()
    callbacks: list = [EpochCallback(collator)]
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    if args.prior_steps or args.prior_dropout:
        callbacks.append(PriorCallback(args.prior_steps, args.prior_dropout))
    if args.calibrate:
        callbacks.append(CalibrationCallback(validation))
    optimizer = None
    if args.row_wise_optimizer:
        model.use_sparse_gradients()
        callbacks.append(SettleCallback())
        betas = (training.adam_beta1, training.adam_beta2)
        settings = {"lr": training.learning_rate, "betas": betas, "eps": training.adam_epsilon}
        optimizer = (RowWiseAdamW, settings)
    rows = training_rows(args, training, train, collator)
    settings = {
        "model": model,
        "args": training,
        "train_dataset": rows,
        "eval_dataset": SequenceRows(validation),
        "data_collator": collator,
        "preprocess_logits_for_metrics": reduce_logits_to_hits,
        "compute_metrics": compute_hit_metrics,
        "callbacks": callbacks,
        "optimizer_cls_and_kwargs": optimizer,
    }
    if not args.dp_epsilon:
        return Trainer(**settings)
    return PrivateTrainer(plan_privacy(args, training, num_users=len(rows)), **settings)


def training_rows(args: FinetuneArguments, training, train, collator) -> SequenceRows:
    """What Trainer reads; histories of like length together where that is asked for."""
    train = train.filter(lambda size: size > 1, input_columns="length")
    if training.train_sampling_strategy != "group_by_length" or args.dp_epsilon:
        return SequenceRows(train)
    # Less padding than with Trainer's own, and an order that a resumed run finds again.
    return GroupedRows.of_run(train, collator.lengths, training)


def plan_privacy(args: FinetuneArguments, training: TrainingArguments, num_users: int):
    """The noise that the run needs for its epsilon."""
    plan = PrivacyPlan.of_run(
        training,
        num_users,
        count_noise=args.dp_count_noise,
        delta=args.dp_delta,
        clip_norm=args.dp_clip_norm,
    ).for_epsilon(args.dp_epsilon)
    print(f"differential privacy: epsilon {plan.epsilon:.3f}, {plan}")
    return plan


def summary(args: FinetuneArguments, trainer: Trainer) -> dict:
    """How the checkpoint was made, for its card."""
    training, state = trainer.args, trainer.state
    batch = training.train_batch_size * training.gradient_accumulation_steps
    best = {} if training.eval_strategy == "no" else {"best validation NDCG@10": state.best_metric}
    private = isinstance(trainer, PrivateTrainer)
    period = None if private else read_period(trainer.train_dataset.rows)
    if args.from_checkpoint:
        best |= {"started from": args.from_checkpoint, "tuned": args.tune}
    if args.target_event_types:
        best |= {"predicts events of": args.target_event_types}
    if private:
        best |= {"differential privacy": trainer.plan.to_dict()}
    if args.license:
        best |= {"license": args.license}
    if (calibration := trainer.pop_callback(CalibrationCallback)) and calibration.done:
        best |= {"calibration": calibration.done.to_dict()}
    return best | {
        "period": list(period) if period else None,
        "users": len(trainer.train_dataset),
        "epochs": round(state.epoch or 0, 2),
        "steps": state.global_step,
        "examples a step": batch * training.world_size,
        "processes": training.world_size,
        "learning rate": training.learning_rate,
        "loss": trainer.model.config.loss_type,
        "seed": training.seed,
        "part": "before_test" if args.refit else "train",
    }


def save(args: FinetuneArguments, trainer: Trainer, processor, made: dict) -> None:
    """Write what goes with the weights: processor, record, and a card without results yet."""
    folder = Path(trainer.args.output_dir)
    processor.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(made, indent=2))
    for results in folder.glob("results_*.json"):  # of an earlier training
        results.unlink()
    draw(args, trainer, folder)
    report = Path(args.data_dir, "cleaning_report.json")
    known = report.exists() and not args.dp_epsilon  # its numbers are people's, without noise
    write_model_card(
        folder,
        model=trainer.model,
        processor=processor,
        results={},
        data_report=json.loads(report.read_text()) if known else None,
        training=made,
        license=args.license,
    )
    print(f"saved to {folder}")


def draw(args: FinetuneArguments, trainer: Trainer, folder: Path) -> None:
    """The plot of the training, which the card shows; of a private run none, as its losses are exact."""
    (folder / "plots" / "training.png").unlink(missing_ok=True)
    if not args.dp_epsilon and find_spec("matplotlib") is None:
        print("no plot of the training: it needs pip install 'implicitrec[report]'")
    elif not args.dp_epsilon:
        plot_training(trainer.state.log_history, folder)


def push(training: TrainingArguments) -> None:
    done = push_checkpoint(
        training.output_dir,
        training.hub_model_id or Path(training.output_dir).name,
        revision=training.hub_revision,
        private=training.hub_private_repo,
        token=training.hub_token,
    )
    print(f"pushed to {done.commit_url}")


def main() -> None:
    args, training = parse_arguments(FinetuneArguments, TrainingArguments, adjust=skip_evaluation)
    if Path(training.output_dir).is_file():
        raise SystemExit(f"output_dir must be a folder, got the file {training.output_dir}")
    set_seed(training.seed)
    record = RunRecord()
    # Trainer would push every save, and its pickled arguments with it.
    push_to_hub, training.push_to_hub = training.push_to_hub, False
    train, validation, processor = load(args)
    resumed_from = resume_point(training, processor) if args.resume else None
    if not args.resume:
        set_aside_checkpoints(training)
    model = build_model(args, processor, train)
    processor.adapt_to(model.config)
    collator = build_collator(args, training, model, processor)
    trainer = build_trainer(args, training, model, collator, train, validation)
    trainer.add_callback(ProcessorCallback(processor))
    if args.season_days:
        check_season(model, train, days=args.season_days)
        if args.dp_epsilon or trainer.is_fsdp_enabled:
            raise SystemExit("season_days counts events, in whole weights: no dp_epsilon, no FSDP")
    trainer.train(resume_from_checkpoint=resumed_from)
    if args.tune == "lora":
        merge_lora(model)
    if args.season_days:
        fit_season(model, train, days=args.season_days)
    trainer.save_model(training.output_dir)
    if trainer.is_world_process_zero():
        facts = {"processes": training.world_size, "resumed_from": resumed_from}
        made = summary(args, trainer) | record.to_dict(**facts)
        save(args, trainer, processor, made)
        if push_to_hub:
            push(training)


if __name__ == "__main__":
    run_recipe(main)
