"""The top 10 of every user beside RecTools and implicit: `python scripts/benchmark_bulk.py --data_dir
data/beauty`.

One thread; the libraries take turns, each in a process of its own with its model in memory. Every list is
checked: ten items, none of which its user has seen. Results go to `docs/results/bulk.json` and `.md`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, DatasetDict
from peer_environments import peer_python
from peer_lists import read_lists, score_lists
from report_quality import machine

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    cooccurrence_table,
    load_sequences,
    parse_arguments,
)

SCRIPTS = Path(__file__).parent
BODY, PRIOR = "implicitrec", "implicitrec, co-occurrences"
PEER, FACTORS = "RecTools SASRec", "implicit ALS"
RUNNERS = {BODY: "implicitrec", PRIOR: "implicitrec", PEER: "rectools", FACTORS: "implicit"}
WIDTH, BLOCKS, HEADS, LENGTH, K = 64, 2, 2, 50, 10
SASREC = {"n_factors": WIDTH, "n_blocks": BLOCKS, "n_heads": HEADS, "session_max_len": LENGTH}
NOTES = (
    "Seconds of the processor, which other programs on the machine lengthen less than those on the wall, "
    "with the median, and in brackets the least and most, of all turns. All users at once: by "
    "`recommend_users`, the Parquet files included, by `recommend` of the others. One user: the median of "
    "some users, from the items to the list; that of implicit from factors that are there already.",
    f"Both transformers have {BLOCKS} blocks of width {WIDTH}, {HEADS} heads and windows of {LENGTH} "
    "events, ALS as many factors. `co-occurrences` also has the prior of the recipe, 64 neighbours of each "
    "of the last 3 items. Weights are of no training: time does not depend on them.",
)


@dataclass
class BulkArguments:
    """What to measure."""

    data_dir: Path = field(metadata={"help": "folder that prepare.py wrote"})
    libraries: list[str] = field(default_factory=lambda: list(RUNNERS))
    rounds: int = field(default=3, metadata={"help": "turns of each library"})
    singles: int = field(default=100, metadata={"help": "users asked for one by one"})
    peers_dir: Path = field(default=Path("outputs/peers"), metadata={"help": "environments"})
    work_dir: Path = field(default=Path("outputs/bulk"), metadata={"help": "checkpoints and runs"})
    output_dir: Path = field(default=Path("docs/results"), metadata={"help": "the report"})


def save_model(args: BulkArguments, splits: DatasetDict, library: str) -> Path:
    """A checkpoint with fitted popularity and prior, and a body as it is born."""
    folder = args.work_dir / RUNNERS[library] / ("prior" if library == PRIOR else "body")
    processor = ImplicitRecProcessor.from_pretrained(args.data_dir / "processor")
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS}
    neighbours = 64 if library == PRIOR else 0
    sizes |= {"max_position_embeddings": LENGTH, "num_cooccurrences": neighbours}
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=processor.vocab_size, **sizes))
    model.fit_item_counts(processor.item_counts)
    if neighbours:
        counts = np.asarray(processor.item_counts)
        table = cooccurrence_table(
            splits["train"], processor.vocab_size, neighbours, item_counts=counts
        )
        model.fit_cooccurrences(*table)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_job(args: BulkArguments, splits: DatasetDict, library: str) -> Path:
    """What a library is asked to do."""
    folder = args.work_dir / library.replace(" ", "_").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    rows = splits["test"].select_columns(["input_ids"]).with_format("arrow")[:]
    items = rows["input_ids"].combine_chunks().cast(pa.list_(pa.int64()))
    pq.write_table(pa.table({"items": items}), folder / "histories.parquet")
    users = np.random.default_rng(0).choice(len(items), args.singles, replace=False).tolist()
    job = {"histories": str(folder / "histories.parquet"), "data": str(args.data_dir), "k": K}
    job |= {"singles": users, "output": str(folder / "run.json")}
    job["library"] = RUNNERS[library]
    job["settings"] = SASREC if library == PEER else {"factors": WIDTH}
    if RUNNERS[library] == "implicitrec":
        job["model"] = str(save_model(args, splits, library))
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


def run(args: BulkArguments, library: str, job: Path, rows: Dataset) -> dict:
    """One turn of a library, whose lists are looked at."""
    runner, python = RUNNERS[library], sys.executable
    if library == PEER:
        python = str(peer_python(args.peers_dir, runner))
    command = [python, str(SCRIPTS / f"{runner}_bulk.py"), str(job)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    subprocess.run(command, check=True, env=os.environ | one_thread)
    ranked = read_lists(job.with_name("run.parquet"), "items")
    if ranked.shape != (len(rows), K) or not ranked.all():
        raise SystemExit(f"{library}: expected {K} items for each of {len(rows)} users")
    score_lists(ranked, rows, "new", k=K)  # refuses an item twice and one that was seen
    return json.loads(job.with_name("run.json").read_text())


def summarise(runs: list[dict], users: int) -> dict:
    """Medians over the turns, in seconds for all users and milliseconds for one."""
    every = [found["all"]["processor"] for found in runs]
    singles = [1000 * one["processor"] for found in runs for one in found["one"]]
    return {
        "seconds": median(every),
        "least and most": [min(every), max(every)],
        "wall": [found["all"]["wall"] for found in runs],
        "users a second": users / median(every),
        "one user, ms": median(singles),
        "one user, wall ms": median(1000 * one["wall"] for found in runs for one in found["one"]),
        "version": runs[-1]["version"],
    }


def markdown(report: dict) -> str:
    """The page of the results."""
    lines = ["# Lists for everyone", "", f"`{report['command']}`", "", f"{report['machine']}.", ""]
    lines += [f"The best {K} new items of {report['users']:,} users among {report['items']:,}.", ""]
    lines += [f"| | all users, s | users a second | {PEER} takes | one user, ms |"]
    lines += ["|---|---:|---:|---:|---:|"]
    peer = report["results"].get(PEER)
    for name, found in report["results"].items():
        least, most = found["least and most"]
        ratio = f"{peer['seconds'] / found['seconds']:.1f} ×" if peer else ""
        cells = [name, f"{found['seconds']:.2f} ({least:.2f} to {most:.2f})"]
        cells += [f"{found['users a second']:,.0f}", ratio, f"{found['one user, ms']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [line for note in NOTES for line in ("", note)]
    told = {RUNNERS[name]: found["version"] for name, found in report["results"].items()}
    told |= {"torch": version("torch")}
    return "\n".join([*lines, "", ", ".join(f"{n} {v}" for n, v in told.items())]) + "\n"


def main() -> None:
    (args,) = parse_arguments(BulkArguments)
    splits = load_sequences(args.data_dir / "sequences")
    rows = splits["test"]
    jobs = {library: write_job(args, splits, library) for library in args.libraries}
    turns: dict[str, list[dict]] = {library: [] for library in jobs}
    for _ in range(args.rounds):
        for library, job in jobs.items():
            turns[library].append(run(args, library, job, rows))
            print(library, turns[library][-1]["all"], flush=True)
    report = {
        "command": " ".join(["python scripts/benchmark_bulk.py", *sys.argv[1:]]),
        "machine": machine(1),
        "users": len(rows),
        "items": ImplicitRecProcessor.from_pretrained(args.data_dir / "processor").vocab_size - 1,
        "rounds": args.rounds,
        "results": {name: summarise(runs, len(rows)) for name, runs in turns.items()},
    }
    target = args.output_dir / "bulk.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
