"""What it is worth to know what just happened: `python scripts/measure_replay.py`.

The last weeks of a log are played again. At the moment of every event of someone who was there before, what
would a model that was trained on the weeks before recommend? Nobody trains it again; it is told step by
step of what happened since: first nothing, so that everybody has what was computed when training ended,
then what each person did up to the moment of asking, then what everybody does (the trend), then of the
items that are new. A new item enters the catalogue after its first event, with the last five known items of
who had it first as its neighbours; its first event counts as a miss of everybody. Nothing at or after the
moment of asking is read. *Popularity now* is told as much: what was had most in the day before, new items
included. The other baselines know each history up to that moment and count on the weeks before.

The log is prepared by a temporal split and keeps its events:

    python recipes/prepare.py recipes/deskdrop/prepare.yaml --split temporal --test_days 28 \\
        --keep_events true --output_dir data/deskdrop_replay
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from result_pages import TITLES, spread, table, what_is_measured, write_page

from modeling_implicitrec import (
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    Popularity,
    PopularityNow,
    SequenceRows,
    build_sequences,
    encode_splits,
    evaluate,
    fit_baselines,
    load_sequences,
    open_events,
    parse_arguments,
)

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS: dict[Literal["all", "new"], Literal["keep", "exclude"]] = {
    "all": "keep",
    "new": "exclude",
}
NEIGHBOURS = 5
WEEK = 7 * 86_400
MEASURE = "ndcg@10"
COLUMNS = ("input_ids", "input_weights", "event_type_ids", "timestamps")
STEPS = {
    "as of when training ended": {"history": False, "trend": False, "new_items": False},
    "and each person's own events since": {"trend": False, "new_items": False},
    "and what everybody does": {"new_items": False},
    "and new items": {},
}


@dataclass
class ReplayArguments:
    """The log, the recipe that trains on it, and the seeds."""

    data_dir: Path = field(default=ROOT / "data" / "deskdrop_replay")
    recipe: Path = field(default=ROOT / "recipes" / "deskdrop" / "finetune.yaml")
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    work_dir: Path = field(default=ROOT / "outputs" / "replay", metadata={"help": "checkpoints"})
    output_dir: Path = field(default=ROOT / "docs" / "results")


@dataclass(frozen=True)
class Replay:
    """The whole log in tokens, new items after the known ones, and what is asked of it.

    Args:
        log: a row a user, in order of time.
        questions: rows with the columns of a history, `query_time` and `target_ids`.
        start: seconds, when the weeks begin that are played again.
        first_had: `[vocab_size]` seconds of the first event of each item, 0 for those of the training.
        neighbours: `[new, NEIGHBOURS]` tokens of known items, 0 for none.
    """

    log: list[dict]
    questions: list[dict]
    start: int
    first_had: np.ndarray
    neighbours: np.ndarray


class Step:
    """The model, told of some of what happened since.

    Args:
        history: of the person's own events.
        trend: of everybody's events.
        new_items: of items that the training did not have, each from its first event on.
    """

    def __init__(
        self,
        name: str,
        model: ImplicitRecForScoring,
        replay: Replay,
        *,
        history: bool = True,
        trend: bool = True,
        new_items: bool = True,
    ) -> None:
        self.name, self.replay = name, replay
        self.scorer = ModelScorer(model)
        self.history, self.trend = history, trend
        hidden = replay.first_had > 0
        self.enters = np.where(hidden, replay.first_had if new_items else np.inf, -np.inf)

    def score(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """float `[rows, vocab_size]`, the lowest where an item is not in the catalogue yet."""
        asked = np.array([row["query_time"] for row in rows])
        scores = self.scorer.score([self._known(row) for row in rows]).numpy()
        return np.where(self.enters < asked[:, None], scores, -np.inf)

    def _known(self, row: Mapping[str, Any]) -> dict[str, Any]:
        told = dict(row)
        if not self.trend:
            del told["query_time"]
        if not self.history:
            kept = int(np.searchsorted(row["timestamps"], self.replay.start))
            told |= {name: row[name][:kept] for name in COLUMNS if name in row}
        return told


def read_replay(args: ReplayArguments, processor: ImplicitRecProcessor) -> Replay:
    """The log with its new items, of which the processor is told."""
    sequences = build_sequences(open_events(args.data_dir / "events"))
    known = processor.vocab_size
    items = list(dict.fromkeys(item for row in sequences["item_ids"] for item in row))
    unknown = processor.encode_items(items) < 1
    processor.add_items([item for item, new in zip(items, unknown) if new])
    log = list(SequenceRows(encode_splits({"log": sequences}, processor)["log"]))
    start = int(min(load_sequences(args.data_dir / "sequences")["validation"]["query_time"]))
    first_had, neighbours = meet_new_items(log, known, processor)
    return Replay(log, list(questions(log, start)), start, first_had, neighbours)


def meet_new_items(
    log: list[dict], known: int, processor: ImplicitRecProcessor
) -> tuple[np.ndarray, np.ndarray]:
    """When each new item was first had, and what who had it first had before; see [`Replay`]."""
    first_had = np.zeros(processor.vocab_size, dtype=np.int64)
    neighbours = np.zeros((processor.vocab_size - known, NEIGHBOURS), dtype=np.int64)
    popular = np.argsort(-processor.item_counts[:known], kind="stable")[:NEIGHBOURS]
    for row in log:
        tokens, times = row["input_ids"], row["timestamps"]
        for place in np.flatnonzero(tokens >= known):
            token, time = tokens[place], times[place]
            if first_had[token] and first_had[token] <= time:
                continue
            before = tokens[: np.searchsorted(times, time)]
            before = before[before < known][-NEIGHBOURS:] if (before < known).any() else popular
            first_had[token] = time
            neighbours[token - known] = 0
            neighbours[token - known, : len(before)] = before
    return first_had, neighbours


def questions(log: list[dict], start: int) -> Iterator[dict]:
    """Every moment from the start at which somebody did something who had been there before."""
    for row in log:
        times = row["timestamps"]
        for time in np.unique(times[times >= start]):
            first, last = np.searchsorted(times, [time, time + 1])
            if first:
                history = {name: row[name][:first] for name in COLUMNS if name in row}
                targets = np.unique(row["input_ids"][first:last])
                yield history | {"query_time": int(time), "target_ids": targets}


def train(args: ReplayArguments, seed: int) -> Path:
    """A checkpoint of the weeks before, for as many epochs as the recipe says."""
    output = args.work_dir / f"{args.data_dir.name}_{seed}"
    if not (output / "config.json").exists():
        words = [args.recipe, "--data_dir", args.data_dir, "--output_dir", output, "--seed", seed]
        words += ["--eval_strategy", "no", "--save_strategy", "no"]
        words += ["--load_best_model_at_end", "false"]
        words += ["--early_stopping_patience", 0, "--refit", "false"]
        command = [sys.executable, ROOT / "recipes" / "finetune.py", *words]
        subprocess.run([str(word) for word in command], check=True, cwd=ROOT)
    return output


def baselines(args: ReplayArguments, replay: Replay, vocab_size: int) -> list[Any]:
    """Popularity at the moment of asking, and what is counted from the weeks before and each history."""
    before = SequenceRows(load_sequences(args.data_dir / "sequences")["train"])
    counted = fit_baselines(["recent_frequency", "cooccurrence"], before, vocab_size)
    now = PopularityNow(replay.log, vocab_size)
    popular = Popularity(before, vocab_size).scores
    now.tie_break = 1e-4 * popular / popular.max()  # nothing of what is played again
    return [now, *counted]


def measure(args: ReplayArguments, seed: int) -> dict:
    """NDCG@10 by question, scorer and week, and how many questions each week has."""
    folder = train(args, seed)
    model = ImplicitRecForScoring.from_pretrained(folder)
    processor = ImplicitRecProcessor.from_pretrained(folder)
    replay = read_replay(args, processor)
    model.add_items(
        neighbours=torch.from_numpy(replay.neighbours),
        vocabulary_fingerprint=processor.fingerprint,
    )
    events = (
        np.concatenate([row[name] for row in replay.log]) for name in ("input_ids", "timestamps")
    )
    model.fit_trend(*events)
    scorers = [Step(name, model, replay, **told) for name, told in STEPS.items()]
    scorers += baselines(args, replay, processor.vocab_size)
    since = np.array([row["query_time"] for row in replay.questions]) - replay.start
    weeks = (
        1 + np.minimum(since, since.max() // WEEK * WEEK - 1) // WEEK
    )  # the last days are of the last
    found: dict[str, dict] = {}
    for protocol, seen in QUESTIONS.items():
        found[protocol] = {}
        for scorer in scorers:
            result = evaluate(
                scorer,
                replay.questions,
                seen=seen,
                target_filter=protocol,
                num_items=processor.vocab_size - 1,
            )
            by_week = result.by_group(weeks[result.user_rows])
            found[protocol][scorer.name] = {
                "all": result.metrics[MEASURE],
                "weeks": {week: told["metrics"][MEASURE] for week, told in by_week.items()},
                "questions": {week: told["num_users"] for week, told in by_week.items()},
            }
    return found


def page(report: dict) -> list[str]:
    lines = ["# Playing a log again", "", what_is_measured(__doc__, before=" The log is"), ""]
    lines += [f"`{report['command']}`; NDCG@10, mean ± standard deviation over seeds.", ""]
    for protocol, scorers in report["results"].items():
        asked = next(iter(scorers.values()))["questions"]
        header = ["told of", "all weeks", *(f"week {week}" for week in asked)]
        rows = [
            [name, spread(told["all"]), *(f"{mean(week):.3f}" for week in told["weeks"].values())]
            for name, told in scorers.items()
        ]
        rows.append(["questions", f"{sum(asked.values()):,}", *(f"{n:,}" for n in asked.values())])
        lines += [f"## {TITLES[protocol].capitalize()}", "", *table(header, rows), ""]
    return [*lines, "![NDCG@10 by week](replay.svg)"]


def draw(report: dict, target: Path) -> None:
    """NDCG@10 by week since the training, the steps as lines, baselines dotted."""
    matplotlib.rcParams["svg.hashsalt"] = "replay"  # equal results, equal file
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (protocol, scorers) in zip(figure.subplots(1, 2), report["results"].items()):
        for name, told in scorers.items():
            values = [mean(values) for values in told["weeks"].values()]
            style = {"marker": "o", "ms": 3} if name in STEPS else {"ls": ":"}
            axes.plot([int(week) for week in told["weeks"]], values, label=name, **style)
        axes.set(title=TITLES[protocol], xlabel="week since the training", ylabel="NDCG@10")
        axes.set_ylim(bottom=0)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(target, metadata={"Date": None})


def together(runs: list[dict]) -> dict:
    """The runs of all seeds: lists of values, for baselines of one, since they draw nothing."""
    return {
        protocol: {
            name: {
                "all": [
                    run[protocol][name]["all"] for run in (runs if name in STEPS else runs[:1])
                ],
                "weeks": {
                    w: [run[protocol][name]["weeks"][w] for run in runs] for w in one["weeks"]
                },
                "questions": one["questions"],
            }
            for name, one in scorers.items()
        }
        for protocol, scorers in runs[0].items()
    }


def main() -> None:
    (args,) = parse_arguments(ReplayArguments)
    report = {
        "command": f"python scripts/measure_replay.py --seeds {args.seeds}",
        "training seeds": args.seeds,
        "results": together([measure(args, seed) for seed in args.seeds]),
    }
    write_page(args.output_dir / "replay", report, page(report))
    draw(report, args.output_dir / "replay.svg")


if __name__ == "__main__":
    main()
