"""A new event to a new top 10: `python scripts/benchmark_serving.py --items "[10000, 100000]"`.

On one thread, a model with untrained weights follows a user whose window is full: by a `LiveUser`, where
an event costs a step and now and then, when the oldest events go, the whole window; and by computing the
whole window with every event. `--index ivfpq` finds the candidates of the list in an approximate index.
Results go to `docs/results/serving.json` and `.md`; a run takes the place of an older one of the same
sizes, and the others stay.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import faiss
import numpy as np
import torch

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    LiveBody,
    LiveUser,
    Retriever,
    UserState,
    parse_arguments,
)
from modeling_implicitrec.ann_index import AnnIndex

STEPS = ("update", "top 10", "update + top 10", "history", "history + top 10")
SIZES = ("items", "index", "hidden_size", "num_hidden_layers", "length")
TITLES = {"num_hidden_layers": "blocks", "hidden_size": "width", "length": "window"}
NOTES = (
    "Milliseconds, median / 99th percentile. `update` takes one event into a `LiveUser` whose window is "
    "full, the computations of the whole window that are due now and then among them; `top 10` finds and "
    "scores the candidates and sorts them. `history` computes the states of the whole window, as every "
    "event does without a state, and `history + top 10` is `model.recommend` of it.",
    "`faster` is the median of `history` over that of `update`; and of both with `top 10`. How many of "
    "the best an approximate index finds is on the page about indexes: the vectors here are untrained, "
    "nearly alike, and where its candidates might not hold the best the whole catalogue is scanned too.",
)


@dataclass
class BenchmarkArguments:
    """The sizes of catalogue and model, and how much to measure."""

    items: list[int] = field(metadata={"help": "items of each catalogue"})
    index: str = field(default="exact", metadata={"help": "exact, hnsw or ivfpq"})
    hidden_size: int = field(default=64, metadata={"help": "of the model"})
    num_hidden_layers: int = field(default=2, metadata={"help": "of the model"})
    length: int = field(default=200, metadata={"help": "events of the window"})
    events: int = field(default=1000, metadata={"help": "updates measured"})
    histories: int = field(default=100, metadata={"help": "whole histories measured"})
    output_dir: str = field(default="docs/results", metadata={"help": "folder of the results"})
    seed: int = field(default=0, metadata={"help": "of weights and events"})

    def command(self) -> str:
        """What to type to measure again."""
        defaults = BenchmarkArguments(items=[])
        words = [f'python scripts/benchmark_serving.py --items "{self.items}"']
        names = ("index", "hidden_size", "num_hidden_layers", "length")
        names += ("events", "histories", "seed")
        changed = [name for name in names if getattr(self, name) != getattr(defaults, name)]
        return " ".join(words + [f"--{name} {getattr(self, name)}" for name in changed])


def make_model(args: BenchmarkArguments, items: int) -> ImplicitRecForScoring:
    torch.manual_seed(args.seed)
    config = ImplicitRecConfig(
        vocab_size=items + 1,
        num_event_types=4,
        hidden_size=args.hidden_size,
        intermediate_size=2 * args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        max_position_embeddings=args.length,
        copy_prior=True,
        num_cooccurrences=16,
    )
    model = ImplicitRecForScoring(config).eval()
    neighbours = torch.randint(1, items + 1, (items + 1, 16))
    model.fit_cooccurrences(neighbours, torch.rand(items + 1, 16))
    return model


def make_events(args: BenchmarkArguments, items: int) -> dict[str, torch.Tensor]:
    """One user's events, `[1, length + events]`."""
    shape = (1, args.length + args.events)
    return {
        "input_ids": torch.randint(1, items + 1, shape),
        "input_weights": torch.rand(shape) + 0.5,
        "timestamps": 1_700_000_000 + torch.randint(1, 100_000, shape).cumsum(1),
        "event_type_ids": torch.randint(0, 4, shape),
    }


def timed(action: Callable, *given: object, **named: object) -> tuple:
    """What an action gives, and its milliseconds."""
    start = time.perf_counter()
    result = action(*given, **named)
    return result, 1000 * (time.perf_counter() - start)


def run(args: BenchmarkArguments, items: int) -> dict:
    """One catalogue: percentiles of every step, and what a state weighs."""
    model, events = make_model(args, items), make_events(args, items)
    index = None if args.index == "exact" else AnnIndex.build(model, args.index)
    body, retriever = LiveBody(model), Retriever(model, index)
    taken: dict[str, list[float]] = {name: [] for name in STEPS}
    (user,) = body.start(**{name: values[:, : args.length] for name, values in events.items()})
    every = max(1, args.events // args.histories)

    def recommend(user: LiveUser) -> None:
        retriever.rank(torch.from_numpy(user.state)[None], [body.past(user)])

    for place in range(args.length, args.length + args.events):
        event = {name: values[0, place].item() for name, values in events.items()}
        user, update = timed(body.update, user, **event)
        _, top = timed(recommend, user)
        taken["update"].append(update)
        taken["top 10"].append(top)
        taken["update + top 10"].append(update + top)
        if place % every == 0:
            window = slice(place + 1 - args.length, place + 1)
            history = {name: values[:, window] for name, values in events.items()}
            with torch.no_grad():
                taken["history"].append(timed(model.model, **history)[1])
            taken["history + top 10"].append(timed(model.recommend, **history)[1])
    report = {name: getattr(args, name) for name in SIZES} | {"items": items}
    state = model.update(**{name: values[:, 1 : args.length] for name, values in events.items()})
    report |= {"events": args.events, "milliseconds": {}, "state": weigh(model, state)}
    for name, values in taken.items():
        p50, p99 = np.percentile(values, [50, 99])
        report["milliseconds"][name] = {"p50": p50, "p99": p99}
    return report


@torch.no_grad()
def weigh(model: ImplicitRecForScoring, state: UserState) -> dict:
    """Bytes of a stored state, whole and in half precision, and how far scores then differ."""
    whole, half = state.to_bytes(), state.to_bytes(torch.float16)
    last = {name: values[:, -1:] for name, values in state.events.items()}
    after, expected = (
        model(cache=model.update(UserState.from_bytes(data), **last)).logits[:, 1:]
        for data in (half, whole)
    )
    difference = (after - expected).abs().max().item()
    return {"events": int(state.num_events), "bytes": len(whole), "half": len(half)} | {
        "difference": difference
    }


def told(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"


def cells(run: dict) -> list[str]:
    times = run["milliseconds"]
    found = [told(run[name]) for name in SIZES]
    found += [f"{times[name]['p50']:.2f} / {times[name]['p99']:.2f}" for name in STEPS]
    for suffix in ("", " + top 10"):
        ratio = times["history" + suffix]["p50"] / times["update" + suffix]["p50"]
        found.append(f"{ratio:.1f} ×")
    return found


def markdown(report: dict) -> str:
    """The results as a page of the documentation."""
    titles = [TITLES.get(name, name) for name in SIZES]
    titles += [*STEPS, "faster", "faster with top 10"]
    lines = ["# A new event to a new top 10", "", f"{report['machine']}. One thread.", ""]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---:|" * len(titles)]
    lines += ["| " + " | ".join(cells(run)) + " |" for run in report["runs"]]
    lines += [line for note in NOTES for line in ("", note)]
    lines += ["", "## What a stored state weighs", ""]
    lines += ["| items | width | blocks | events | KiB | half precision, KiB | scores differ by |"]
    lines += ["|" + "---:|" * 7]
    for run in report["runs"]:
        if run["index"] != "exact":  # the states are the same
            continue
        state, sizes = run["state"], [told(run[name]) for name in ("items", *SIZES[2:4])]
        sizes += [f"{state['events']}", f"{state['bytes'] / 1024:.0f}"]
        sizes += [f"{state['half'] / 1024:.0f}", f"{state['difference']:.1e}"]
        lines.append("| " + " | ".join(sizes) + " |")
    lines += [
        "",
        "The largest difference of any item's score one event after a state was stored in half",
    ]
    lines[-1] += " precision."
    lines += ["", "## Measured with", ""]
    lines += [f"- `{command}`" for command in report["commands"]]
    lines.append("- " + ", ".join(f"{name} {v}" for name, v in report["versions"].items()))
    return "\n".join(lines) + "\n"


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB RAM, Python {platform.python_version()}"


def write_report(args: BenchmarkArguments, new: dict) -> dict:
    """Join a run to those of the same machine that are there, and write both files."""
    target = Path(args.output_dir)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "serving.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if report.get("machine") != machine():
        report = {"machine": machine(), "commands": [], "runs": []}
    known = {tuple(run[name] for name in SIZES): run for run in [*report["runs"], new]}
    report["runs"] = [
        known[key] for key in sorted(known, key=lambda key: (key[2:], key[1], key[0]))
    ]
    report["commands"] = list(dict.fromkeys([*report["commands"], args.command()]))
    report["versions"] = {name: version(name) for name in ("implicitrec", "torch", "transformers")}
    path.write_text(json.dumps(report, indent=2) + "\n")
    (target / "serving.md").write_text(markdown(report))
    return report


def main() -> None:
    (args,) = parse_arguments(BenchmarkArguments)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for items in args.items:
        report = write_report(args, run(args, items))
    print(markdown(report))


if __name__ == "__main__":
    main()
