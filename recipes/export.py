"""Write a checkpoint as ONNX and measure it: `python recipes/export.py recipes/<log>/export.yaml`.

The files are written beside the weights; the table says what 8-bit weights cost.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modeling_implicitrec import (
    ModelScorer,
    OnnxScorer,
    check_numbers,
    evaluate,
    export_onnx,
    load_checkpoint,
    load_sequences,
    parse_arguments,
    quantize_onnx,
    results_table,
    run_recipe,
)


@dataclass
class ExportArguments:
    """Which checkpoint to export, and on what to measure it."""

    model: str = field(metadata={"help": "checkpoint folder"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    split: str = field(default="test", metadata={"help": "test or validation"})
    int8: bool = field(default=True, metadata={"help": "also with weights of 8 bits"})
    seen: str = field(default="keep", metadata={"help": "keep or exclude items of the history"})
    max_users: int = field(default=2000, metadata={"help": "users measured, the first ones"})
    threads: int = field(default=1, metadata={"help": "of ONNX Runtime"})

    def __post_init__(self) -> None:
        check_numbers(self, "max_users threads >= 1")


def main() -> None:
    (args,) = parse_arguments(ExportArguments)
    rows = load_sequences(Path(args.data_dir) / "sequences")[args.split]
    rows = rows.select(range(min(args.max_users, len(rows))))
    model, processor = load_checkpoint(args.model, data_dir=args.data_dir)
    scorers: list = [ModelScorer(model)]
    floats = Path(args.model) / "model.onnx"
    files = {"onnx": export_onnx(model, floats, times="timestamps" in rows.column_names)}
    if args.int8:
        files["onnx int8"] = quantize_onnx(floats, floats.with_name("model.int8.onnx"))
    for name, path in files.items():
        scorers.append(OnnxScorer(path, model.config, name=name, threads=args.threads))
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    some = [rows[place] for place in range(min(64, len(rows)))]
    expected = scorers[0].score(some).numpy()[:, 1:]
    for scorer in scorers[1:]:
        start = time.perf_counter()
        found = [scorer.score([row]).numpy()[:, 1:] for row in some]
        each = (time.perf_counter() - start) / len(some)
        difference = np.abs(np.concatenate(found) - expected).max()
        print(f"{scorer.name}: max abs difference {difference:.1e}, {each * 1e3:.2f} ms a history")
    measured = {
        scorer.name: evaluate(scorer, rows, seen=args.seen, num_items=processor.vocab_size - 1)
        for scorer in scorers
    }
    print(f"\n{args.split}, {len(rows)} users\n")
    print(results_table(measured, ["ndcg@10", "recall@10", "coverage@10"]))


if __name__ == "__main__":
    run_recipe(main)
