"""Kill a training run again and again, resume it, and compare its weights with a run that was left alone:
`python scripts/measure_resume.py`.

The run is `recipes/finetune.py` on a generated log, in a process of its own that gets SIGKILL after a
random share of the undisturbed run's time: while it loads, trains, evaluates or writes. The report goes to
`docs/results/resuming.json` and `.md`.
"""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from report_quality import machine
from safetensors.numpy import load_file

from modeling_implicitrec import (
    ImplicitRecProcessor,
    build_sequences,
    encode_splits,
    last_checkpoint,
    leave_last_out,
    load_events,
    parse_arguments,
    save_sequences,
    training_columns,
)

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {
    "model": "{hidden_size: 32, hidden_dropout_prob: 0.3, num_cooccurrences: 16}",
    "max_steps": 300,
    "num_train_epochs": 99,
    "early_stopping_patience": 99,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 10,
    "save_steps": 10,
    "use_cpu": "true",
    "disable_tqdm": "true",
}


@dataclass
class ResumeArguments:
    """What to generate, and how often to kill."""

    kills: int = 10
    users: int = 2000
    items: int = 500
    seed: int = 0
    work_dir: Path = field(default=Path("outputs/resuming"), metadata={"help": "the two runs"})
    output_dir: Path = field(default=Path("docs/results"), metadata={"help": "the report"})


def prepare(args: ResumeArguments) -> Path:
    """A log of Zipf's law with histories of all lengths, prepared."""
    folder = args.work_dir / "data"
    if folder.exists():
        return folder
    generator = np.random.default_rng(args.seed)
    lengths = (4 + generator.exponential(12, args.users)).astype(int)
    ranks = np.exp(generator.random(lengths.sum()) * np.log(args.items)).astype(int)
    times = 1_600_000_000 + generator.integers(0, 10**7, lengths.sum())
    users = np.repeat(np.arange(args.users), lengths)
    log = Dataset.from_dict({"user_id": users, "item_id": ranks, "timestamp": times})
    splits = leave_last_out(build_sequences(load_events(log)))
    processor = ImplicitRecProcessor.fit(training_columns(splits["train"]))
    processor.save_pretrained(folder / "processor")
    save_sequences(encode_splits(splits, processor), folder / "sequences")
    return folder


def start(data: Path, output: Path) -> subprocess.Popen:
    """The recipe in a process of its own."""
    settings = OPTIONS | {"data_dir": data, "output_dir": output, "resume": "true"}
    words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
    recipe = [str(ROOT / "recipes" / "finetune.py"), str(ROOT / "recipes/beauty/finetune.yaml")]
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "log.txt", "ab") as log:
        return subprocess.Popen([sys.executable, *recipe, *words], stdout=log, stderr=log)


def disturb(args: ResumeArguments, data: Path, seconds: float) -> list[dict]:
    """Start, kill and start again; what each kill left behind.

    A kill comes within the interval after a checkpoint that was drawn beforehand, or, for one in five, soon
    after the start, most of which a run spends on loading.
    """
    output, draws = args.work_dir / "killed", random.Random(args.seed)
    places = range(1, OPTIONS["max_steps"] // OPTIONS["save_steps"])
    marks = sorted(draws.sample(places, args.kills))
    interval = seconds / len(places)
    found: list[dict] = []
    for number, mark in enumerate(marks):
        process = start(data, output)
        early = number % 5 == 2
        sign = output / f"checkpoint-{mark * OPTIONS['save_steps']}"
        while not (early or sign.exists()):
            time.sleep(0.001)
            if process.poll() is not None:
                raise SystemExit(f"the run ended by itself: {output}/log.txt")
        time.sleep(draws.uniform(0, seconds / 4 if early else interval))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"the run ended before kill {number + 1}")
        whole = last_checkpoint(output)
        steps = [int(path.name.rpartition("-")[2]) for path in output.glob("checkpoint-*")]
        kept = int(whole.name.rpartition("-")[2]) if whole else 0
        found.append({"early": early, "whole": kept, "newest": max(steps, default=0)})
        print(found[-1], flush=True)
    return found


def differences(left: Path, right: Path) -> int:
    """Bytes of the two checkpoints that differ."""
    ours, theirs = load_file(left), load_file(right)
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{left} and {right} hold other tensors")
    pairs = ((values.tobytes(), theirs[name].tobytes()) for name, values in ours.items())
    return sum(a != b for left_bytes, right_bytes in pairs for a, b in zip(left_bytes, right_bytes))


def markdown(report: dict) -> str:
    """The page of the results."""
    kills, options = report["kills"], report["options"]
    half = sum(kill["newest"] > kill["whole"] for kill in kills)
    lines = [
        "# Runs that were killed",
        "",
        f"`{report['command']}`",
        "",
        f"{report['machine']}.",
        "",
    ]
    lines += [
        f"`recipes/finetune.py` on {report['users']:,} generated users, {options['max_steps']} steps "
        f"with an evaluation and a checkpoint every {options['save_steps']}, got SIGKILL {len(kills)} "
        f"times at random moments and went on each time with `--resume`. {half} of the kills left "
        "a half-written checkpoint behind; a test kills within one. "
        "Bytes of the final weights that differ from the run that was left alone: "
        f"**{report['differing bytes']}**.",
        "",
        "| kill | soon after a start | last whole checkpoint | newest folder |",
        "|---:|---|---:|---:|",
    ]
    for number, kill in enumerate(kills, 1):
        early = "yes" if kill["early"] else ""
        lines.append(f"| {number} | {early} | {kill['whole']} | {kill['newest']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = parse_arguments(ResumeArguments)
    data = prepare(args)
    started = time.perf_counter()
    if start(data, args.work_dir / "undisturbed").wait():
        raise SystemExit(f"failed: {args.work_dir}/undisturbed/log.txt")
    seconds = time.perf_counter() - started
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    kills = disturb(args, data, seconds)
    if start(data, args.work_dir / "killed").wait():
        raise SystemExit(f"failed: {args.work_dir}/killed/log.txt")
    weights = (args.work_dir / name / "model.safetensors" for name in ("killed", "undisturbed"))
    report = {
        "command": " ".join(["python scripts/measure_resume.py", *sys.argv[1:]]),
        "machine": machine(1),
        "users": args.users,
        "options": OPTIONS,
        "undisturbed seconds": seconds,
        "kills": kills,
        "differing bytes": differences(*weights),
    }
    target = args.output_dir / "resuming.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
