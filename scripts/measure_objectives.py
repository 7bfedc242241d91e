"""Do the other objectives of pretraining help? `python scripts/measure_objectives.py`.

A model of one log is pretrained with the next item alone, or also with hidden items (`masked_loss`), the
next event's type (`event_type_loss`) or its time (`gap_loss`), as `recipes/pretrain.py` does, and then
fine-tuned on the next item alone, on the same log with a new optimiser. All arms have the same steps,
labels and seeds; the first is the baseline of the others. Small models of the last 50 events, without what
others read at the time or with it: the body alone is asked. NDCG@10 over the whole catalogue. Runs add up
in `docs/results/objectives.json`; the page beside it shows them all.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from result_pages import TITLES, add_run, spread, table, what_is_measured
from seed_runs import Log, ndcg
from short_training import train_briefly
from transformers import set_seed

from modeling_implicitrec import (
    DataCollatorForNextItem,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ModelScorer,
    fit_priors,
)

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "objectives.json"
ARMS: dict[str, dict[str, float]] = {
    "the next item alone": {},
    "and hidden items": {"masked_loss": 0.5},
    "and the next event's type": {"event_type_loss": 0.1},
    "and the time until then": {"gap_loss": 0.1},
    "and all three": {"masked_loss": 0.5, "event_type_loss": 0.1, "gap_loss": 0.1},
}
EPOCHS = (3, 3)  # of pretraining and of fine-tuning
PROTOCOLS = ("all", "new")
PARTS = ("validation", "test")


def learn(model: ImplicitRecForScoring, rows, epochs: int, seed: int) -> None:
    collator = DataCollatorForNextItem.for_model(model.config, seed=seed)
    train_briefly(
        model,
        rows,
        collator,
        seed=seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        weight_decay=0.01,
    )


def pretrained(processor: ImplicitRecProcessor, rows, arm: dict, seed: int):
    """A model after pretraining, without what learnt the other objectives."""
    set_seed(seed)
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        vocabulary_fingerprint=processor.fingerprint,
        hidden_size=32,
        intermediate_size=64,
        hidden_dropout_prob=0.3,
        max_position_embeddings=50,
        **arm,
    )
    model = ImplicitRecForScoring(config)
    fit_priors(model, processor, rows)
    learn(model, rows, EPOCHS[0], seed)
    model.objectives = None
    model.config.update(dict.fromkeys(("masked_loss", "event_type_loss", "gap_loss"), 0.0))
    return model


def ranked(model: ImplicitRecForScoring, log: Log, part: str) -> dict[str, float]:
    """NDCG@10 by protocol."""
    scorer, rows = ModelScorer(model), log.splits[part]
    return {
        name: float(ndcg(scorer, log, rows, repeats=name == "all").mean()) for name in PROTOCOLS
    }


def measure(folder: Path, seed: int) -> dict:
    """NDCG@10 of every arm, by part and protocol, before and after fine-tuning."""
    log = Log.read(folder)
    results, train = {}, log.splits["train"]
    for name, arm in ARMS.items():
        model = pretrained(log.processor, train, arm, seed)
        before = {part: ranked(model, log, part) for part in PARTS}
        learn(model, train, EPOCHS[1], seed + 1000)
        results[name] = {
            "pretrained": before,
            "fine-tuned": {part: ranked(model, log, part) for part in PARTS},
        }
    return {"seed": seed, "results": results}


def gain(runs: list[dict], name: str, protocol: str) -> str:
    """Mean difference from the first arm on the test, fine-tuned, with its standard error over seeds."""
    first = next(iter(ARMS))
    if name == first:
        return ""
    tested = [
        [run["results"][arm]["fine-tuned"]["test"][protocol] for arm in (name, first)]
        for run in runs
    ]
    gaps = [own - base for own, base in tested]
    error = f" ± {stdev(gaps) / len(gaps) ** 0.5:.4f}" if len(gaps) > 1 else ""
    return f"{mean(gaps):+.4f}{error}"


def markdown(report: dict) -> str:
    lines = ["# Other objectives of pretraining", "", report["what"], ""]
    header = ["pretrained on", "validation, pretrained", "validation, fine-tuned"]
    header += ["test, pretrained", "test, fine-tuned", "difference on the test"]
    for log, runs in report["logs"].items():
        for protocol in PROTOCOLS:
            lines += [f"## {log}, {TITLES[protocol]}", ""]
            lines += [
                f"Mean ± standard deviation, seeds: {len(runs)}; {EPOCHS[0]} epochs of "
                f"pretraining and {EPOCHS[1]} of fine-tuning; the difference with its standard error.",
                "",
            ]
            rows = []
            for name in ARMS:
                of_arm = [run["results"][name] for run in runs]
                cells = [
                    spread([one[when][part][protocol] for one in of_arm])
                    for part in PARTS
                    for when in ("pretrained", "fine-tuned")
                ]
                rows.append([name, *cells, gain(runs, name, protocol)])
            lines += [*table(header, rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="data/deskdrop", help="what prepare.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    folder = Path(args.data_dir)
    for seed in args.seeds:
        made = measure(folder, seed)
        add_run(RESULTS, folder.name, made, what_is_measured(__doc__), markdown)


if __name__ == "__main__":
    main()
