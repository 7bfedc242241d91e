"""Pretrain on several logs: `python recipes/pretrain.py --logs "{shop: data/shop, films: data/films}" ...`.

Each log is a folder that `prepare.py` wrote. Catalogues stay apart (`shop:123`); the body, and with
`--use_item_features` the projection of content, are shared. `finetune.py --from_checkpoint` goes on from
the result, on one of the logs (`--namespace shop`) or on another one. Beside the next item the model may
learn to tell hidden items from both sides, and the next event's type and time: `--model "{masked_loss: 0.5,
event_type_loss: 0.1, gap_loss: 0.1}"`. What learns that is left out of the checkpoint.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import Trainer, TrainingArguments, set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    EpochCallback,
    GroupedRows,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    JoinedLogs,
    SequenceRows,
    check_numbers,
    compute_hit_metrics,
    fit_priors,
    join_logs,
    load_sequences,
    parse_arguments,
    reduce_logits_to_hits,
    run_recipe,
)


@dataclass
class PretrainArguments:
    """The logs and the model; everything else is a TrainingArgument."""

    logs: dict = field(metadata={"help": "name: folder that prepare.py wrote"})
    model: dict = field(default_factory=dict, metadata={"help": "ImplicitRecConfig by key"})
    use_item_features: bool = field(
        default=False, metadata={"help": "items have content: what describe.py wrote, of one size"}
    )
    target_window_days: float = field(
        default=0.0, metadata={"help": "learn all items of the days after a random cut; 0: labels"}
    )

    def __post_init__(self) -> None:
        check_numbers(self, "target_window_days >= 0")


def load(args: PretrainArguments) -> JoinedLogs:
    logs = {}
    for name, folder in args.logs.items():
        if not Path(folder).exists():
            raise SystemExit(f"no prepared data in {folder}; run recipes/prepare.py first")
        processor = ImplicitRecProcessor.from_pretrained(Path(folder) / "processor")
        logs[name] = (processor, load_sequences(Path(folder) / "sequences"))
    return join_logs(logs)


def item_features(args: PretrainArguments, joined: JoinedLogs) -> np.ndarray:
    """Features of the joined catalogue, `[vocab_size, features]`."""
    paths = {name: Path(d) / "item_features.safetensors" for name, d in args.logs.items()}
    missing = [str(path) for path in paths.values() if not path.exists()]
    if missing:
        raise SystemExit(f"no {', '.join(missing)}; run recipes/describe.py first")
    parts = {name: load_file(path)["features"] for name, path in paths.items()}
    sizes = {name: part.shape[1] for name, part in parts.items()}
    if len(set(sizes.values())) > 1:
        raise SystemExit(f"the logs' items must have features of one size, got {sizes}")
    whole = np.zeros((joined.processor.vocab_size, next(iter(sizes.values()))), np.float32)
    for name, part in parts.items():
        whole[joined.tokens[name]] = part
    return whole


def build_model(args: PretrainArguments, joined: JoinedLogs) -> ImplicitRecForScoring:
    processor, features = joined.processor, None
    if args.use_item_features:
        features = item_features(args, joined)
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        vocabulary_fingerprint=processor.fingerprint,
        negative_event_type_ids=processor.negative_event_type_ids,
        item_feature_size=0 if features is None else features.shape[1],
        **args.model,
    )
    if config.event_type_loss and not processor.event_types:
        raise SystemExit("event_type_loss: the events of the logs have no types")
    if args.target_window_days and "timestamps" not in joined.splits["train"].column_names:
        raise SystemExit("target_window_days: not every log has times")
    if args.target_window_days and config.num_cooccurrences:
        raise SystemExit(
            "target_window_days: the pairs would tell the answers; num_cooccurrences must be 0"
        )
    model = ImplicitRecForScoring(config)
    fit_priors(model, processor, joined.splits["train"])
    if features is not None:
        model.fit_item_features(features)
    return model


def drop_objectives(model: ImplicitRecForScoring) -> None:
    """Leave the next item alone to be learnt by those who start from the checkpoint."""
    model.objectives = None
    model.config.update(dict.fromkeys(("masked_loss", "event_type_loss", "gap_loss"), 0.0))


def build_trainer(
    args: PretrainArguments, training, model: ImplicitRecForScoring, joined: JoinedLogs
) -> Trainer:
    training.label_names = ["target_ids"]
    training.remove_unused_columns = False
    training.dataloader_pin_memory = torch.cuda.is_available()
    window = args.target_window_days * 86_400
    collator = DataCollatorForNextItem.for_model(
        model.config, target_window=window, seed=training.seed
    )
    train = joined.splits["train"].filter(lambda size: size > 1, input_columns="length")
    rows = SequenceRows(train)
    if training.train_sampling_strategy == "group_by_length":
        rows = GroupedRows.of_run(train, collator.lengths, training)
    return Trainer(
        model=model,
        args=training,
        train_dataset=rows,
        eval_dataset=SequenceRows(joined.splits["validation"]),
        data_collator=collator,
        preprocess_logits_for_metrics=reduce_logits_to_hits,
        compute_metrics=compute_hit_metrics,
        callbacks=[EpochCallback(collator)],
    )


def main() -> None:
    args, training = parse_arguments(PretrainArguments, TrainingArguments)
    set_seed(training.seed)
    started = time.monotonic()
    joined = load(args)
    for name, tokens in joined.tokens.items():
        print(f"{name}: {len(tokens) - 1:,} items")
    model = build_model(args, joined)
    trainer = build_trainer(args, training, model, joined)
    trainer.train()
    drop_objectives(model)
    trainer.save_model(training.output_dir)
    if trainer.is_world_process_zero():
        joined.processor.adapt_to(model.config)
        joined.processor.save_pretrained(training.output_dir)
        made = {"logs": args.logs, "steps": trainer.state.global_step, "seed": training.seed}
        made |= {"epochs": math.ceil(trainer.state.epoch or 0)}
        made |= {"seconds": round(time.monotonic() - started, 1)}
        Path(training.output_dir, "pretraining.json").write_text(json.dumps(made, indent=2))
        print(f"saved to {training.output_dir}")


if __name__ == "__main__":
    run_recipe(main)
