"""Time, memory and recall of exact and approximate indexes, in processor time of one core.

`python scripts/benchmark_retrieval.py --output docs/results/serving_retrieval.json` measures catalogues
whose item vectors are drawn in clusters, with a bias of log popularity; `--model` adds a checkpoint's own
items and the states of its users. Writes a table beside the JSON file.
"""

import json
import os
import shlex
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from modeling_implicitrec import (
    ExactIndex,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    LiveBody,
    Retriever,
    batch_histories,
    item_vectors,
    load_sequences,
    parse_arguments,
)
from modeling_implicitrec.ann_index import AnnIndex

CLUSTERS = 200
NOTE = (
    "Drawn items lie in clusters, with a bias of log popularity. `recall@k` is the share of the exact "
    "best k that an index finds, `best 10 in k` that of the exact best 10 among its k: those are scored "
    "exactly afterwards. The graph (hnsw) is left out where it would take too long to build. `list` is "
    "what `Retriever.rank` gives, ten items: the index, the exact scores of what it finds and, in the "
    "share `scanned`, the scan of the whole catalogue where what it finds may not be enough. "
    "Milliseconds of the processor."
)
SPREAD = 0.5  # of the items around their cluster, against a spread of 1 of the clusters


@dataclass
class RetrievalArguments:
    """Catalogues, queries and what is asked."""

    items: list = field(
        default_factory=lambda: [10_000, 100_000, 1_000_000], metadata={"help": "catalogue sizes"}
    )
    hidden_size: int = field(default=64, metadata={"help": "of the item vectors"})
    queries: int = field(default=200, metadata={"help": "asked one by one"})
    most_hnsw: int = field(
        default=200_000,
        metadata={"help": "items of the largest graph that is built"},
    )
    k: int = field(default=100, metadata={"help": "of the recall"})
    model: str | None = field(default=None, metadata={"help": "checkpoint folder, measured too"})
    data_dir: str | None = field(default=None, metadata={"help": "its prepared data"})
    seed: int = field(default=0, metadata={"help": "of the drawn catalogues"})
    output: str | None = field(default=None, metadata={"help": "JSON file"})


def drawn_model(items: int, args: RetrievalArguments) -> tuple[ImplicitRecForScoring, torch.Tensor]:
    """A model of drawn items, and states that lean to a cluster each."""
    generator = torch.Generator().manual_seed(args.seed)
    size = args.hidden_size
    config = ImplicitRecConfig(vocab_size=items + 1, hidden_size=size, num_hidden_layers=1)
    model = ImplicitRecForScoring(config)
    centres = torch.randn(CLUSTERS, size, generator=generator)
    own = torch.randint(CLUSTERS, (items + 1,), generator=generator)
    noise = torch.randn(items + 1, size, generator=generator)
    with torch.no_grad():
        model.item_decoder.weight.copy_((centres[own] + SPREAD * noise) / size**0.5)
    model.fit_item_counts(1e6 / torch.arange(1, items + 2))
    lean = torch.randint(CLUSTERS, (args.queries,), generator=generator)
    states = 2 * (centres[lean] + torch.randn(args.queries, size, generator=generator))
    return model, states


def own_model(args: RetrievalArguments) -> tuple[ImplicitRecForScoring, torch.Tensor]:
    """A checkpoint and the last states of its users."""
    model = ImplicitRecForScoring.from_pretrained(args.model).eval()
    rows = load_sequences(Path(str(args.data_dir)) / "sequences")["test"]
    batch = batch_histories(model.config, rows.select(range(args.queries)))
    return model, model.last_states(**batch)[0]


def measure(model: ImplicitRecForScoring, states: torch.Tensor, args: RetrievalArguments) -> dict:
    """Figures of every index of one catalogue."""
    vectors, k = item_vectors(model), args.k
    exact = ExactIndex(*vectors)
    truth, _ = exact.search(states, k)
    found = {}
    for name in ("float32", "bfloat16", "int8", "hnsw", "ivfpq"):
        if name == "hnsw" and len(vectors[0]) > args.most_hnsw + 1:
            continue
        started = time.process_time()
        index = AnnIndex.build(model, name) if name in ("hnsw", "ivfpq") else None
        index = index or ExactIndex(*vectors, dtype=name)
        built = time.process_time() - started
        tokens, took = [], []
        for state in states:
            started = time.process_time()
            tokens.append(index.search(state[None], k)[0][0])
            took.append(time.process_time() - started)
        hits = [np.isin(t, wanted) for t, wanted in zip(tokens, truth)]
        best = [np.isin(wanted[:10], t) for t, wanted in zip(tokens, truth)]
        found[name] = {
            "seconds to build": round(built, 2),
            "MB": round(megabytes(index), 1),
            "ms p50": round(1000 * float(np.percentile(took, 50)), 3),
            "ms p99": round(1000 * float(np.percentile(took, 99)), 3),
            f"recall@{k}": round(float(np.mean(hits)), 4),
            f"best 10 in {k}": round(float(np.mean(best)), 4),
        }
        found[name] |= measure_lists(Retriever(model, index), states, truth)
        print(name, found[name], flush=True)
    return found


def measure_lists(retriever: Retriever, states: torch.Tensor, truth: torch.Tensor) -> dict:
    """Lists of ten from these states, of users without a past, beside the best ten of the catalogue."""
    took, hits, scans = [], [], []
    body = LiveBody(retriever.model)
    past = body.past(body.start(input_ids=torch.tensor([[0]]))[0])
    candidates = retriever._candidates

    def counted(index: Any, *given: Any) -> tuple:
        scans[-1] += index is retriever.exact and index is not retriever.index
        return candidates(index, *given)

    retriever._candidates = counted  # type: ignore[method-assign]
    for state, best in zip(states, truth):
        scans.append(0)
        started = time.process_time()
        tokens = retriever.rank(state[None], [past]).item_tokens[0]
        took.append(time.process_time() - started)
        hits.append(np.isin(best[:10], tokens))
    return {
        "list ms p50": round(1000 * float(np.percentile(took, 50)), 3),
        "list recall@10": round(float(np.mean(hits)), 4),
        "scanned": round(float(np.mean(scans)), 3),
    }


def megabytes(index: ExactIndex | AnnIndex) -> float:
    if isinstance(index, ExactIndex):
        return index.table.nbytes / 1e6
    with tempfile.TemporaryDirectory() as folder:
        return index.save(folder).stat().st_size / 1e6


def markdown(report: dict) -> str:
    """The figures as a page of the documentation."""
    results = report["results"]
    names = list(next(iter(next(iter(results.values())).values())))
    lines = ["# Indexes of items", "", f"`{report['command']}`", ""]
    lines += [f"One thread of {os.cpu_count()} CPU cores; one query at a time.", ""]
    lines.append("| catalogue | index | " + " | ".join(names) + " |")
    lines.append("|---|---|" + "---:|" * len(names))
    for catalogue, indexes in results.items():
        for index, figures in indexes.items():
            cells = " | ".join(str(figures[name]) for name in names)
            lines.append(f"| {catalogue} | {index} | {cells} |")
    lines += ["", *textwrap.wrap(NOTE, 108)]
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = parse_arguments(RetrievalArguments)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    results = {}
    if args.model is not None:
        print(args.model)
        results[f"{Path(args.model).name}"] = measure(*own_model(args), args)
    for items in args.items:
        print(f"{items:,} items")
        results[f"{items:,} drawn"] = measure(*drawn_model(items, args), args)
    command = " ".join(["python scripts/benchmark_retrieval.py", *map(shlex.quote, sys.argv[1:])])
    report = {"command": command, "results": results}
    print(markdown(report))
    if args.output is not None:
        Path(args.output).write_text(json.dumps(report, indent=2) + "\n")
        Path(args.output).with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
