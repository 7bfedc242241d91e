"""Speed of training beside RecTools and RecBole: `python scripts/benchmark_training.py --data_dir
data/beauty`.

Equal logs, sizes and losses; the libraries take turns, each run in a process of its own whose peak memory
the operating system counts. Ours goes through Trainer, with weights and times. A last run of ours is
profiled. The results go to `docs/benchmarks/training.json`, `.md` and `.svg`; `docs/benchmarks.md`
explains them.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from peer_environments import peer_python
from peer_lists import export_splits
from report_quality import machine

from modeling_implicitrec import (
    EventSchema,
    ImplicitRecProcessor,
    build_sequences,
    encode_splits,
    leave_last_out,
    load_events,
    load_sequences,
    parse_arguments,
    save_sequences,
    training_columns,
)

SCRIPTS = Path(__file__).parent
OURS = "implicitrec"
LENGTHS = {"beauty": 50, "films": 200}
TITLES = {"beauty": "Amazon Beauty", "films": "a log of the shape of MovieLens-1M"}
FILMS = {"users": 6040, "items": 3416, "events": 166}
NEGATIVES = 256
SIZES = {"hidden": 64, "blocks": 2, "heads": 2, "inner": 128, "dropout": 0.2, "batch": 128}


@dataclass
class TrainingSpeedArguments:
    """What to measure, and for how long."""

    data_dir: Path = field(metadata={"help": "prepared data of Beauty"})
    logs: list[str] = field(default_factory=lambda: list(LENGTHS))
    losses: list[str] = field(default_factory=lambda: ["softmax", "sampled_softmax"])
    libraries: list[str] = field(default_factory=lambda: [OURS, "rectools", "recbole"])
    seconds: float = field(default=60.0, metadata={"help": "time of each run after its first step"})
    warmup: int = field(default=3, metadata={"help": "steps before speed is counted"})
    rounds: int = field(default=3, metadata={"help": "turns of each library"})
    threads: int = 2
    peers_dir: Path = field(default=Path("outputs/peers"), metadata={"help": "environments"})
    work_dir: Path = field(default=Path("outputs/training"), metadata={"help": "logs and runs"})
    output_dir: Path = field(default=Path("docs/benchmarks"), metadata={"help": "the report"})
    name: str = field(default="training", metadata={"help": "of the report's files"})


def read_log(name: str, data_dir: Path) -> list[np.ndarray]:
    """Every user's items in order: those of Beauty, or drawn by Zipf's law."""
    if name == "beauty":
        rows = load_sequences(data_dir / "sequences")["test"]
        return [np.asarray(row) for row in rows["input_ids"]]
    generator = np.random.default_rng(0)
    shape = (FILMS["users"], FILMS["events"])
    ranks = np.exp(generator.random(shape) * np.log(FILMS["items"])).astype(np.int64)
    ranks[0] = np.arange(FILMS["events"]) + 1
    return list(ranks)


def prepare(args: TrainingSpeedArguments, name: str) -> Path:
    """The log with times and counts, encoded for ours and exported for the peers."""
    folder = args.work_dir / name
    if (folder / "splits").exists():
        return folder
    histories = read_log(name, args.data_dir)
    lengths = [len(row) for row in histories]
    generator = np.random.default_rng(1)
    events = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(lengths)), lengths),
            "item_id": np.concatenate(histories),
            "timestamp": 1_600_000_000
            + np.concatenate([generator.integers(60, 86_400, n).cumsum() for n in lengths]),
            "count": generator.integers(1, 6, sum(lengths)),
        }
    )
    splits = leave_last_out(build_sequences(load_events(events, EventSchema(count="count"))))
    processor = ImplicitRecProcessor.fit(training_columns(splits["train"]))
    encoded = encode_splits(splits, processor)
    save_sequences(encoded, folder / "data" / "sequences")
    processor.save_pretrained(folder / "data" / "processor")
    export_splits(encoded, folder / "splits", vocab_size=processor.vocab_size)
    return folder


def settings(library: str, loss: str, length: int, folder: Path) -> dict | list[str] | None:
    """Equal sizes in each library's words; None where it has no such loss."""
    if library == "rectools":
        found = {"class": "SASRecModel", "n_factors": SIZES["hidden"], "loss": loss, "lr": 0.001}
        found |= {"n_blocks": SIZES["blocks"], "n_heads": SIZES["heads"], "n_negatives": NEGATIVES}
        found |= {"dropout_rate": SIZES["dropout"], "batch_size": SIZES["batch"]}
        return found | {"session_max_len": length}
    if library == "recbole":
        found = {"class": "SASRec", "hidden_size": SIZES["hidden"], "n_layers": SIZES["blocks"]}
        found |= {"n_heads": SIZES["heads"], "inner_size": SIZES["inner"]}
        found |= {"hidden_dropout_prob": SIZES["dropout"], "attn_dropout_prob": SIZES["dropout"]}
        found |= {"MAX_ITEM_LIST_LENGTH": length, "train_batch_size": 2048}
        return found if loss == "softmax" else None
    model = {"hidden_size": SIZES["hidden"], "num_hidden_layers": SIZES["blocks"]}
    model |= {"num_attention_heads": SIZES["heads"], "intermediate_size": SIZES["inner"]}
    model |= {"hidden_dropout_prob": SIZES["dropout"], "max_position_embeddings": length}
    model |= {"loss_type": loss, "num_negatives": NEGATIVES}
    told = {"data_dir": folder / "data", "output_dir": folder / "trainer", "max_steps": 10**6}
    told |= {"model": json.dumps(model), "per_device_train_batch_size": SIZES["batch"]}
    told |= {"learning_rate": 0.001, "weight_decay": 0.01, "report_to": "none", "use_cpu": "true"}
    told |= {"train_sampling_strategy": "group_by_length", "logging_strategy": "no"}
    told |= {"row_wise_optimizer": str(loss == "sampled_softmax").lower()}
    return [str(word) for key, value in told.items() for word in (f"--{key}", value)]


def run(
    args: TrainingSpeedArguments, folder: Path, library: str, loss: str, *, profile: bool = False
) -> dict | None:
    """One measurement in a process of its own; None where the library has no such loss."""
    chosen = settings(library, loss, LENGTHS[folder.name], folder)
    if chosen is None:
        return None
    output = folder / f"{library}_{loss}"
    output.mkdir(exist_ok=True)
    seconds = 3600.0 if profile else args.seconds  # a profile ends by itself
    job = {"data": str(folder / "splits"), "output": str(output), "settings": chosen}
    job |= {"seconds": seconds, "marks": [], "warmup": args.warmup, "seed": 0}
    job |= {"threads": args.threads, "k": 10, "parts": [], "profile": profile, "speed": True}
    (output / "job.json").write_text(json.dumps(job))
    python = sys.executable if library == OURS else str(peer_python(args.peers_dir, library))
    command = [sys.executable, str(SCRIPTS / "measure_process.py"), str(output / "process.json")]
    command += ["{}", python, str(SCRIPTS / f"{library}_runner.py"), str(output / "job.json")]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    (output / "run.json").unlink(missing_ok=True)
    subprocess.run(command, check=True, env=environment)
    measured = json.loads((output / "process.json").read_text())
    if measured["exit_code"]:
        raise SystemExit(f"{library} with {loss} ended with {measured['exit_code']}")
    found = json.loads((output / "run.json").read_text())
    if "labels a second" not in found:
        raise SystemExit(f"{library} with {loss}: {found['steps']} steps are too few to time")
    return found | {"peak_bytes": measured["peak_bytes"]}


def summarise(runs: list[dict]) -> dict:
    """Medians over the rounds."""
    speeds = [found["labels a second"] for found in runs]
    return {
        "events a second": median(speeds),
        "slowest and fastest": [min(speeds), max(speeds)],
        "step seconds": median(found["step seconds"] for found in runs),
        "real share": median(found["real share"] for found in runs),
        "peak_bytes": max(found["peak_bytes"] for found in runs),
        "versions": runs[-1]["versions"],
    }


def measure(args: TrainingSpeedArguments) -> dict:
    """All turns of all libraries: log, loss, library to what was measured."""
    results: dict = {}
    for name in args.logs:
        folder = prepare(args, name)
        for loss in args.losses:
            turns: dict[str, list[dict]] = {library: [] for library in args.libraries}
            for _ in range(args.rounds):
                for library, runs in turns.items():
                    found = run(args, folder, library, loss)
                    runs += [found] if found else []
                    print(name, loss, library, found and found["labels a second"], flush=True)
            told = {library: summarise(runs) for library, runs in turns.items() if runs}
            if OURS in told:
                profiled = run(args, folder, OURS, loss, profile=True)
                told[OURS]["profile"] = profiled and profiled["profile"]
            results.setdefault(name, {})[loss] = told
    return results


def markdown(report: dict) -> str:
    """The page of the results."""
    args, lines = report["settings"], ["# Speed of training", ""]
    lines += [f"`{report['command']}`", "", f"{report['machine']}.", ""]
    lines += [
        f"Hidden size {SIZES['hidden']}, {SIZES['blocks']} blocks, {SIZES['heads']} heads; the median "
        f"of {args['rounds']} turns of {args['seconds']:g} seconds. An event counts where a label was "
        "learnt from it, padding does not. Ours has weights and times on. What the columns mean: "
        "[the benchmarks](../benchmarks.md).",
        "",
    ]
    for name, losses in report["results"].items():
        for loss, libraries in losses.items():
            words = "full softmax" if loss == "softmax" else f"sampled, {NEGATIVES} negatives"
            lines += [f"## {TITLES[name]}, length {LENGTHS[name]}, {words}", ""]
            lines.append("| library | events/s | from, to | ours is | real positions | peak GiB |")
            lines.append("|---|---:|---:|---:|---:|---:|")
            ours = libraries.get(OURS, {}).get("events a second")
            for library, found in libraries.items():
                low, high = found["slowest and fastest"]
                speed = found["events a second"]
                cells = [library, f"{speed:,.0f}", f"{low:,.0f}, {high:,.0f}"]
                cells += [f"{ours / speed:.1f}×" if ours and library != OURS else ""]
                cells += [f"{found['real share']:.0%}", f"{found['peak_bytes'] / 2**30:.2f}"]
                lines.append("| " + " | ".join(cells) + " |")
            lines += ["", *profile_lines(libraries.get(OURS, {}).get("profile")), ""]
    lines += [f"![Events a second]({args['name']}.svg)", ""]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return "\n".join([*lines, f"Versions: {versions}."]) + "\n"


def profile_lines(profile: dict | None) -> list[str]:
    """What a step of ours spends its time on."""
    if not profile:
        return []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in profile["operations"].items())
    return [
        f"A step of ours does {profile['step FLOPs'] / 1e9:.1f} GFLOP in {profile['step seconds']:.3f} s: "
        f"{profile['FLOP/s'] / 1e9:.0f} GFLOP/s, {profile['share of the limit']:.0%} of the "
        f"{profile['limit FLOP/s'] / 1e9:.0f} that large products reach here. Matrix products take "
        f"{profile['share of time in matrix products']:.0%} of its time. Operations: {shares}."
    ]


def draw(report: dict, target: Path) -> None:
    """Bars of events a second."""
    from matplotlib.figure import Figure

    groups = [(n, loss) for n, losses in report["results"].items() for loss in losses]
    figure = Figure(figsize=(3.2 * len(groups), 3), layout="constrained")
    for axes, (name, loss) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups):
        found = report["results"][name][loss]
        axes.bar(list(found), [one["events a second"] for one in found.values()])
        axes.set(title=f"{name}, {loss}", ylabel="events a second")
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    (args,) = parse_arguments(TrainingSpeedArguments)
    results = measure(args)
    versions: dict[str, str] = {}
    for losses in results.values():
        for libraries in losses.values():
            for found in libraries.values():
                versions |= found.pop("versions")
    report = {
        "command": "python scripts/benchmark_training.py " + " ".join(sys.argv[1:]),
        "machine": machine(args.threads),
        "settings": {
            name: str(v) if isinstance(v, Path) else v for name, v in asdict(args).items()
        },
        "versions": versions,
        "results": results,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    target = args.output_dir / f"{args.name}.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    draw(report, target.with_suffix(".svg"))
    print(markdown(report))


if __name__ == "__main__":
    main()
