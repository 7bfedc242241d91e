"""Train one body on the logs of several platforms, which stay where they are.

`python recipes/federated.py --platforms "{north: data/north, south: data/south}" --output_dir outputs/all`

Each platform is a folder that `prepare.py` wrote. In a round every platform takes the shared weights over,
learns on its own log, and gives back what it learnt; the mean, by people, starts the next round (FedAvg).
Tables of items stay private, where `--share_items true` does not say that all platforms have one catalogue;
popularity and co-occurrences, which are counts, stay in any case. Each platform gets a checkpoint of its
own, `<output_dir>/<name>`, for `evaluate.py` and `recommend.py`. `--num_train_epochs` is of one round.

Flower (https://flower.ai) carries the messages: here in a simulation, a process a platform on this machine.
It wants an environment of its own (docs/privacy.md). `--engine here` plays the same rounds one after the
other in this process, and needs no Flower.
"""

import copy
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    EpochCallback,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    SequenceRows,
    average_weights,
    check_numbers,
    fit_priors,
    load_sequences,
    load_shared_weights,
    parse_arguments,
    run_recipe,
    save_checkpoint,
    shared_weights,
)


@dataclass
class FederatedArguments:
    """Who takes part in what; everything else is a TrainingArgument, of one round."""

    platforms: dict = field(metadata={"help": "name: folder that prepare.py wrote"})
    model: dict = field(default_factory=dict, metadata={"help": "ImplicitRecConfig by key"})
    rounds: int = field(default=5, metadata={"help": "times that weights are averaged"})
    share_items: bool = field(default=False, metadata={"help": "all have one catalogue; share it"})
    target_window_days: float = field(
        default=0.0, metadata={"help": "learn all items of the days after a random cut; 0: labels"}
    )
    refit: bool = field(default=False, metadata={"help": "learn from all before the test"})
    engine: str = field(default="flower", metadata={"help": "or here: in this process"})

    def __post_init__(self) -> None:
        check_numbers(self, "rounds >= 1", "target_window_days >= 0")


@dataclass(frozen=True)
class Platform:
    """One that takes part: its log, and its checkpoint, which nobody else reads."""

    data: Path
    folder: Path
    args: FederatedArguments
    training: TrainingArguments

    @property
    def processor(self) -> ImplicitRecProcessor:
        return ImplicitRecProcessor.from_pretrained(self.data / "processor")

    @property
    def rows(self) -> Dataset:
        """The part of the log to learn from."""
        splits = load_sequences(self.data / "sequences")
        if self.args.refit and "before_test" not in splits:
            raise SystemExit(f"refit: {self.data} has no temporal split")
        return splits["before_test" if self.args.refit else "train"]

    def start(self) -> dict[str, Tensor]:
        """Make the model, with the platform's own counts; what would be shared of it."""
        set_seed(self.training.seed)
        processor = self.processor
        model = ImplicitRecForScoring(
            ImplicitRecConfig(
                vocab_size=processor.vocab_size,
                num_event_types=processor.num_event_types,
                vocabulary_fingerprint=processor.fingerprint,
                negative_event_type_ids=processor.negative_event_type_ids,
                **self.args.model,
            )
        )
        fit_priors(model, processor, self.rows)
        self.save(model)
        return shared_weights(model, share_items=self.args.share_items)

    def save(self, model: ImplicitRecForScoring) -> None:
        processor = self.processor
        processor.adapt_to(model.config)
        save_checkpoint(self.folder, model=model, processor=processor)

    def take(self, weights: dict[str, Tensor]) -> ImplicitRecForScoring:
        """The platform's model with the shared weights in it."""
        model = ImplicitRecForScoring.from_pretrained(self.folder)
        load_shared_weights(model, weights, share_items=self.args.share_items)
        return model

    def learn(self, weights: dict[str, Tensor], number: int) -> tuple[dict[str, Tensor], int]:
        """One round on the own log: what was learnt, and from how many people."""
        model, training = self.take(weights), copy.copy(self.training)
        training.seed += 1000 * number  # or each round would draw the same labels
        window = self.args.target_window_days * 86_400
        collator = DataCollatorForNextItem.for_model(
            model.config, target_window=window, seed=training.seed
        )
        train = self.rows.filter(lambda size: size > 1, input_columns="length")
        callbacks = [EpochCallback(collator)]
        with tempfile.TemporaryDirectory() as folder:
            training.output_dir = folder
            Trainer(model, training, collator, SequenceRows(train), callbacks=callbacks).train()
        self.save(model)
        return shared_weights(model, share_items=self.args.share_items), len(train)

    def finish(self, weights: dict[str, Tensor]) -> None:
        self.save(self.take(weights))


Weights = dict[str, Tensor]


def play_here(platforms: list[Platform], weights: Weights, rounds: int) -> Weights:
    for number in range(1, rounds + 1):
        learnt = [platform.learn(weights, number) for platform in platforms]
        weights = average_weights(*map(list, zip(*learnt)))
    return weights


def play_with_flower(platforms: list[Platform], weights: Weights, rounds: int) -> Weights:
    """The same with Flower: a server that averages, and a client a platform."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise SystemExit(
            "no Flower: pip install 'implicitrec[federated]', or --engine here"
        ) from error

    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message, context):
        number = int(message.content["config"]["server-round"])
        given = dict(message.content["arrays"].to_torch_state_dict())
        learnt, people = platforms[int(context.node_config["partition-id"])].learn(given, number)
        records = {"arrays": ArrayRecord(learnt), "metrics": MetricRecord({"num-examples": people})}
        return Message(content=RecordDict(records), reply_to=message)

    @server.main()
    def main(grid, context):
        strategy = all_or_nothing(len(platforms))
        found = strategy.start(grid, ArrayRecord(weights), num_rounds=rounds)
        save_file(dict(found.arrays.to_torch_state_dict()), result)

    backend = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1}}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "shared")
        run_simulation(server, client, num_supernodes=len(platforms), backend_config=backend)
        return load_file(result)


def all_or_nothing(size: int):
    """Flower's mean of so many platforms: one that fails stops the training, or it would go unnoticed."""
    from flwr.serverapp.strategy import FedAvg

    class AllOrNothing(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            failed = [reply.error.reason for reply in replies if reply.has_error()]
            if failed or len(replies) != size:
                raise RuntimeError(f"round {server_round}: {len(replies)} replied, failed {failed}")
            return super().aggregate_train(server_round, replies)

    return AllOrNothing(fraction_evaluate=0.0, min_train_nodes=size, min_available_nodes=size)


ENGINES: dict[str, Callable] = {"flower": play_with_flower, "here": play_here}


def main() -> None:
    args, training = parse_arguments(FederatedArguments, TrainingArguments)
    if args.engine not in ENGINES:
        raise SystemExit(f"engine: {' or '.join(ENGINES)}, got {args.engine!r}")
    training.save_strategy, training.eval_strategy = "no", "no"
    training.remove_unused_columns = False  # the collator reads columns that the model does not
    target = Path(training.output_dir).resolve()
    platforms = {
        name: Platform(Path(data).resolve(), target / name, args, training)
        for name, data in args.platforms.items()
    }
    prints = {name: platform.processor.fingerprint for name, platform in platforms.items()}
    if args.share_items and len(set(prints.values())) > 1:
        raise SystemExit(f"share_items: prepare all platforms with one --catalogue, got {prints}")
    starts = [platform.start() for platform in platforms.values()]
    weights = ENGINES[args.engine](list(platforms.values()), starts[0], args.rounds)
    for platform in platforms.values():
        platform.finish(weights)
    numbers = sum(value.numel() for value in weights.values())
    made = {"platforms": args.platforms, "rounds": args.rounds, "seed": training.seed}
    made |= {"engine": args.engine, "share_items": args.share_items, "numbers shared": numbers}
    Path(target, "federation.json").write_text(json.dumps(made, indent=2))
    print(f"{numbers:,} numbers shared in each of {args.rounds} rounds; saved to {target}")


if __name__ == "__main__":
    run_recipe(main)
