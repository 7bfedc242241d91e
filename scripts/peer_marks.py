"""What every runner of the benchmarks shares: its job, the clock, and the lists at every mark.

A runner is started as `python <name>_runner.py job.json`, by the interpreter of the library that it
runs; so this file imports nothing of this package. The clock stands still while lists are written.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

BATCH = 256


class Run:
    """One training run of a library.

    The job holds `data` (folder of `train.parquet` and the parts to rank), `output` (folder of what
    comes out), `settings` of the model, `seconds` of training, `marks` (seconds at which lists are
    written), `warmup` (steps before speed is counted), `seed`, `threads` and `k`. With `speed`, the seconds
    are those after the first step.
    """

    def __init__(self, path: str) -> None:
        self.job = json.loads(Path(path).read_text())
        self.settings = self.job["settings"]
        self.output = Path(self.job["output"]).absolute()
        self.output.mkdir(parents=True, exist_ok=True)
        random.seed(self.job["seed"])
        np.random.seed(self.job["seed"])
        torch.manual_seed(self.job["seed"])
        torch.set_num_threads(self.job["threads"])
        data = Path(self.job["data"])
        self.vocab_size = json.loads((data / "facts.json").read_text())["vocab_size"]
        rows = read_lists(data / "train.parquet", "items")
        self.train = [row for row in rows if len(row) > 1]
        counts = np.bincount(np.concatenate(self.train), minlength=self.vocab_size)
        self.popularity = torch.from_numpy(counts).float()
        self.known = self.popularity > 0
        self.parts = {
            part: read_lists(data / f"{part}.parquet", "items") for part in self.job["parts"]
        }
        self.marks = sorted(self.job["marks"])
        self.written: list[dict] = []
        self.steps: list[tuple[float, int, int, int]] = []
        self.spent, self.since = 0.0, 0.0

    def start(self) -> None:
        """Data is read: what a library does from here on is training."""
        self.since = time.perf_counter()

    def seconds(self) -> float:
        """Training time so far."""
        return self.spent + time.perf_counter() - self.since

    def histories(self, part: str, start: int, stop: int, length: int) -> list[np.ndarray]:
        """The last known items of rows of a part; token 0 alone where a row has none."""
        known = self.known.numpy()
        kept = [row[known[row]][-length:] for row in self.parts[part][start:stop]]
        return [row if len(row) else np.zeros(1, np.int64) for row in kept]

    def step(
        self, score: Callable[[str, int, int], torch.Tensor], sizes: tuple[int, int, int]
    ) -> bool:
        """Count a step, write the lists that are due; True once the time is over.

        Args:
            score: part, first and last row to `[rows, vocab_size]`.
            sizes: labels that were learnt, real events, and positions computed, padding included.
        """
        elapsed = self.seconds()
        self.steps.append((elapsed, *sizes))
        due = [mark for mark in self.marks if mark <= elapsed]
        if due:
            self.marks = self.marks[len(due) :]
            self.write(score, due[-1], elapsed)
        if self.job.get("speed"):  # making examples may take longer than the steps that are timed
            enough = len(self.steps) >= self.job["warmup"] + 3
            return enough and elapsed - self.steps[0][0] >= self.job["seconds"]
        return elapsed >= self.job["seconds"]

    @torch.no_grad()
    def write(self, score: Callable, mark: float, elapsed: float) -> None:
        """The lists of all parts, while the clock stands."""
        for part, rows in self.parts.items():
            lists: dict[str, list] = {"keep": [], "exclude": []}
            for start in range(0, len(rows), BATCH):
                stop = min(start + BATCH, len(rows))
                scores = score(part, start, stop).detach().float()
                for name, chosen in self.rank(scores, rows[start:stop]).items():
                    lists[name] += chosen.tolist()
            table = pa.table(lists)
            pq.write_table(table, self.output / f"{part}_{mark:g}.parquet")
        self.written.append({"mark": mark, "seconds": elapsed})
        self.spent, self.since = elapsed, time.perf_counter()

    def rank(self, scores: torch.Tensor, rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """The best tokens with repeats allowed and without; a history without known items gets
        the most popular."""
        empty = torch.tensor([not self.known[row].any() for row in rows])
        scores[empty] = self.popularity
        scores[:, ~self.known] = -torch.inf
        own = [(place, token) for place, row in enumerate(rows) for token in row]
        keep = top(scores, self.job["k"])
        if own:
            places, tokens = torch.tensor(own).T
            scores[places, tokens] = -torch.inf
        return {"keep": keep, "exclude": top(scores, self.job["k"])}

    def finish(self, score: Callable, library: str, **facts: object) -> None:
        """Write the lists of a run that ended early, and what the run took."""
        elapsed = self.seconds() if not self.steps else self.steps[-1][0]
        if self.marks:
            self.write(score, self.marks[0], elapsed)
        table = np.array(self.steps)
        timed = table[self.job["warmup"] :]
        speed = {}
        if len(timed) > 1:
            labels, real, positions = timed[1:, 1:].sum(0)
            speed["labels a second"] = labels / (timed[-1, 0] - timed[0, 0])
            speed["step seconds"] = float(np.median(np.diff(timed[:, 0])))
            speed["real share"] = real / positions
        report = {
            "seconds": elapsed,
            "steps": len(table),
            "labels": int(table[:, 1].sum()),
            **speed,
            "written": self.written,
            "versions": {name: version(name) for name in (library, "torch", "numpy")},
            **facts,
        }
        (self.output / "run.json").write_text(json.dumps(report, indent=2))


def read_lists(path: Path, column: str) -> list[np.ndarray]:
    """A list column as arrays."""
    values = pq.read_table(path, columns=[column])[column].combine_chunks()
    flat = values.flatten().to_numpy().astype(np.int64)
    lengths = np.diff(values.offsets.to_numpy())
    return np.split(flat, np.cumsum(lengths)[:-1])


def top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k best tokens of each row, 0 where fewer are left."""
    values, tokens = scores.topk(k, dim=1)
    return tokens.masked_fill(values == -torch.inf, 0)


def read_job() -> Run:
    """The run that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} job.json")
    run = Run(sys.argv[1])
    sys.argv = sys.argv[:1]  # libraries read the command line too
    return run
