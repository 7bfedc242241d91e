"""Attention, GRU or convolution at equal parameters and time: `python scripts/measure_mixers.py`.

The three mixers of the sequence stand in the same model: the same table of items, head and number of
blocks, and a width of the MLP that makes the parameters of the blocks equal to within two per cent.
Each trains for the same CPU seconds: a few steps tell what one costs, and the cosine schedule ends
after as many as the time holds. With the co-occurrence prior the mixer adds to what counting already
knows; without the prior it stands alone. Validation and test are both shown; nothing was chosen by the
test. Runs are kept in `work_dir`, and one that is there is not made again; the report goes to
docs/results/mixers.json and .md.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from result_pages import opening, signed, spread, table, write_page
from seed_runs import Log, Schedule, difference, floors, kept, learn, ndcg, new_model

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ModelScorer,
    parse_arguments,
)

MIXERS = ("attention", "gru", "convolution")
WORLDS = {
    "movielens": {"exclude_seen": True, "cooccurrence_context": 10, "max_position_embeddings": 100},
    "deskdrop": {"max_position_embeddings": 50},
}
KINDS = {"with the co-occurrence prior": 64, "without": 0}
WARM_STEPS = 4


@dataclass
class MixerArguments:
    """Which runs to make, and where results go."""

    logs: list[str] = field(default_factory=lambda: list(WORLDS))
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    seconds: float = field(default=10.0, metadata={"help": "of CPU time that each model trains"})
    hidden_size: int = field(default=32)
    num_hidden_layers: int = field(default=2)
    data_dir: Path = field(default=Path("data"), metadata={"help": "folder of prepared logs"})
    work_dir: Path = field(default=Path("outputs/mixers"), metadata={"help": "results of runs"})
    output_dir: Path = field(default=Path("docs/results"))


def block_parameters(settings: dict) -> int:
    """What the blocks of a model hold, and what the mixer reads: its biases of place and time."""
    config = ImplicitRecConfig(vocab_size=2, **settings)
    body = ImplicitRecForScoring(config).model
    read = [body.blocks] + ([body.evidence_bias] if config.sequence_mixer == "attention" else [])
    return sum(one.numel() for part in read for one in part.parameters())


def equal_widths(settings: dict, intermediate_size: int) -> dict[str, int]:
    """The MLP's width for each mixer, so that all have the parameters of the attention's blocks.

    >>> widths = equal_widths({"hidden_size": 32, "num_hidden_layers": 1}, 128)
    >>> widths["attention"], widths["convolution"] < widths["gru"] < 128
    (128, True)
    """

    def size(mixer: str, width: int) -> int:
        return block_parameters(settings | {"sequence_mixer": mixer, "intermediate_size": width})

    wanted, found = size("attention", intermediate_size), {}
    for mixer in MIXERS:
        one, two = size(mixer, 1), size(mixer, 2)
        found[mixer] = max(1, round(1 + (wanted - one) / (two - one)))
    return found


def seconds_a_step(build, log: Log) -> float:
    """CPU seconds of a training step, by a model that is thrown away."""
    train, model = log.splits["train"], build()
    learn(model, train, 0, Schedule(max_steps=WARM_STEPS))
    return learn(model, train, 0, Schedule(max_steps=3 * WARM_STEPS)) / (3 * WARM_STEPS)


def run(args: MixerArguments, log: Log, settings: dict, seed: int) -> dict:
    """Train one model for the time and measure it."""
    build = partial(new_model, log, log.splits["train"], seed, **settings)
    steps = max(1, round(args.seconds / seconds_a_step(build, log)))
    model = build()
    seconds = learn(model, log.splits["train"], seed, replace(Schedule(), max_steps=steps))
    found: dict = {"steps": steps, "seconds": seconds}
    for part in ("validation", "test"):
        found[part] = ndcg(ModelScorer(model), log, log.splits[part]).round(6).tolist()
    return found


def run_log(args: MixerArguments, name: str) -> dict:
    """Every mixer of one log, with and without the prior."""
    log = Log.read(args.data_dir / name)
    sizes = WORLDS[name] | {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_hidden_layers,
        "hidden_dropout_prob": 0.3,
        "num_event_types": log.processor.num_event_types,
    }
    widths = equal_widths(sizes, 4 * args.hidden_size)
    folder = args.work_dir / f"{name}_{args.seconds:g}"
    world: dict = {"parameters": {}, "kinds": {}}
    told: dict[str, list] = {}
    for mixer, width in widths.items():
        own = sizes | {"sequence_mixer": mixer, "intermediate_size": width}
        world["parameters"][mixer] = {"MLP": width, "blocks": block_parameters(own)}
        for kind, neighbours in KINDS.items():
            settings = own | {"num_cooccurrences": neighbours}
            runs = [
                kept(
                    folder / f"{mixer}_{neighbours}_{s}.json", partial(run, args, log, settings, s)
                )
                for s in args.seeds
            ]
            world["kinds"].setdefault(kind, {})[mixer] = summary(runs)
            told.setdefault(kind, [one["test"] for one in runs])  # attention comes first
            if mixer != "attention":
                gap = difference([one["test"] for one in runs], told[kind])
                world["kinds"][kind][mixer]["against attention"] = gap
    world["floors"] = {
        one.name: {p: float(ndcg(one, log, log.splits[p]).mean()) for p in ("validation", "test")}
        for one in floors(log)
    }
    return world


def summary(runs: list[dict]) -> dict:
    """One number a seed."""
    found = {name: [float(np.mean(one[name])) for one in runs] for name in ("validation", "test")}
    return found | {name: [one[name] for one in runs] for name in ("steps", "seconds")}


def page(report: dict) -> list[str]:
    told = ("NDCG@10 of new items", "differences are paired, ± standard error.")
    lines = opening("Attention, GRU, convolution", __doc__, report, told)
    for name, world in report["logs"].items():
        lines += [f"## {name}", ""]
        sizes = [f"{m} {p['blocks']:,} (MLP {p['MLP']})" for m, p in world["parameters"].items()]
        lines += [f"Parameters of the blocks: {', '.join(sizes)}.", ""]
        for kind, mixers in world["kinds"].items():
            lines += [f"### {name}, {kind}", ""]
            header = ["mixer", "steps", "CPU seconds", "validation", "test", "against attention"]
            rows = []
            for mixer, found in mixers.items():
                gap = found.get("against attention")
                cells = [f"{np.mean(found['steps']):.0f}", f"{np.mean(found['seconds']):.1f}"]
                cells += [spread(found["validation"]), spread(found["test"])]
                rows.append([mixer, *cells, signed(gap) if gap else ""])
            lines += [*table(header, rows), ""]
        rows = [
            (floor, f"{found['validation']:.4f}", f"{found['test']:.4f}")
            for floor, found in world["floors"].items()
        ]
        lines += [*table(["floor", "validation", "test"], rows), ""]
    return lines


def main() -> None:
    (args,) = parse_arguments(MixerArguments)
    report = {
        "command": f"python scripts/measure_mixers.py --seconds {args.seconds:g}",
        "training seeds": args.seeds,
        "logs": {name: run_log(args, name) for name in args.logs},
    }
    write_page(args.output_dir / "mixers", report, page(report))


if __name__ == "__main__":
    main()
