"""Train, document, push and check the reference checkpoints: `python scripts/release.py me`.

Each is made by its recipe, evaluated, pushed in one commit, pulled back and evaluated again: a number that
differs stops the release. Finished cards go to `model_cards/`. After an interruption the same command goes
on. `--quick` does all of it in a minute, with a made log in place of the real ones and a few steps of
training. The hub is the one of HF_ENDPOINT, the token that of HF_TOKEN or `hf auth login`; repositories are
private, where `--public` is not given.
"""

import argparse
import json
import re
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi
from transformers import pipeline

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    push_checkpoint,
    save_checkpoint,
    write_model_card,
)

ROOT = Path(__file__).resolve().parents[1]
TINY = "tiny-random"
LICENSE = "apache-2.0"
# Name of the checkpoint: folder of the recipe, training YAML in it.
RELEASES = {
    "complete-journey": ("complete_journey", "demo.yaml"),
    "deskdrop": ("deskdrop", "finetune.yaml"),  # several kinds of behaviour
}
QUICK_LOG = {"rows": 4000, "users": 80, "items": 40, "days": 90, "threads": 1}
QUICK_PREPARE = {
    "columns": "{count: count}",
    "cleaning": "{}",
    "event_type_weights": "{purchase: 4}",
}
QUICK_PREPARE |= {"report_page": "false"}
QUICK_TRAINING = {"max_steps": 4, "use_cpu": "true", "early_stopping_patience": 0}
QUICK_TRAINING |= {f"{event}_strategy": "steps" for event in ("eval", "save")}
QUICK_TRAINING |= {"eval_steps": 2, "save_steps": 2}


@dataclass
class Release:
    """Where a release goes.

    Args:
        namespace: user or organisation on the Hub.
        work: folder of prepared data and trained checkpoints; what is there is used again, and a training
            that was interrupted goes on from its last checkpoint.
        quick: a made log and a few steps.
        private: of repositories that are made.
    """

    namespace: str
    work: Path
    quick: bool
    private: bool

    def make(self, name: str) -> Path:
        """Prepare, train and evaluate by a recipe; the checkpoint with its card."""
        folder, config = RELEASES[name]
        data, output = self.work / "data" / folder, self.work / name
        recipe = ROOT / "recipes" / folder
        if not data.exists():
            options = QUICK_PREPARE | {"source": self.made_log()} if self.quick else {}
            run("prepare", recipe / "prepare.yaml", output_dir=data, **options)
        if not (output / "training.json").exists():
            options = (QUICK_TRAINING if self.quick else {}) | {"license": LICENSE}
            options["resume"] = str(any(output.glob("checkpoint-*/trainer_state.json"))).lower()
            run("finetune", recipe / config, data_dir=data, output_dir=output, **options)
        run("evaluate", recipe / "evaluate.yaml", **self.evaluation(name, output))
        return output

    def evaluation(self, name: str, model: Path, **options: str) -> dict:
        if self.quick:
            options |= {"baselines": "[popularity]", "did_it_happen": "false"}
        return {"model": model, "data_dir": self.work / "data" / RELEASES[name][0]} | options

    def made_log(self) -> Path:
        log = self.work / "log"
        if not log.exists():
            run_script(ROOT / "scripts" / "make_events.py", *words(QUICK_LOG | {"output_dir": log}))
        return log

    def push(self, name: str, folder: Path, pulled: Path) -> None:
        """Push a checkpoint and pull it back, each file as its SHA-256 says."""
        repo = f"{self.namespace}/implicitrec-{name}"
        done = push_checkpoint(folder, repo, private=self.private, message=f"Release {name}")
        api = HfApi()
        api.snapshot_download(done.repo_url.repo_id, revision=done.oid, local_dir=pulled)
        api.verify_repo_checksums(repo, revision=done.oid, local_dir=pulled)
        print(f"pushed {name}: {done.commit_url}")

    def check(self, name: str, folder: Path, pulled: Path) -> None:
        """Evaluate what was pulled: every number of the model is the one that was pushed."""
        before = json.loads((folder / "results_test.json").read_text())
        recipe = ROOT / "recipes" / RELEASES[name][0]
        options = {"baselines": "[popularity]", "did_it_happen": "false"}
        run("evaluate", recipe / "evaluate.yaml", **self.evaluation(name, pulled, **options))
        after = json.loads((pulled / "results_test.json").read_text())
        for protocol, scorers in before.items():
            model = next(iter(scorers))
            if after[protocol][model] != scorers[model]:
                raise SystemExit(f"{name}: the pulled checkpoint has other results, {protocol}")
        print(f"reproduced {name}: {', '.join(before)}")


def make_tiny(folder: Path) -> Path:
    """Random weights over a few letters: a checkpoint for tests of other libraries."""
    torch.manual_seed(0)
    processor = ImplicitRecProcessor.fit({"item_id": [*"implicitfeedback"]})
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        vocabulary_fingerprint=processor.fingerprint,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        max_position_embeddings=16,
    )
    model = ImplicitRecForScoring(config)
    save_checkpoint(folder, model=model, processor=processor)
    write_model_card(folder, model=model, processor=processor, results={}, license=LICENSE)
    return folder


def release_tiny(release: Release, pulled: Path) -> None:
    folder = make_tiny(release.work / TINY)
    release.push(TINY, folder, pulled)
    here, there = (
        pipeline(task="recommendation", model=str(p), device="cpu") for p in (folder, pulled)
    )
    if here([*"feedback"]) != there([*"feedback"]):
        raise SystemExit(f"{TINY}: the pulled checkpoint gives other scores")
    print(f"reproduced {TINY}")


def keep_card(name: str, checkpoint: Path) -> None:
    """The finished card among those of this repository, without the plot, which lies in the checkpoint."""
    folder, config = RELEASES[name]
    stem = folder if config == "finetune.yaml" else f"{folder}_{Path(config).stem}"
    text = re.sub(r"\n!\[.*\]\(plots/.*\)\n", "", (checkpoint / "README.md").read_text())
    (ROOT / "model_cards" / f"{stem}.md").write_text(text)


def words(options: dict) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def run(recipe: str, config: Path, **options: object) -> None:
    run_script(ROOT / "recipes" / f"{recipe}.py", str(config), *words(options))


def run_script(path: Path, *arguments: str) -> None:
    """Run a script in this process, as `python <path> ...` would."""
    before, sys.argv = sys.argv, [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespace", help="user or organisation to push to")
    parser.add_argument("names", nargs="*", default=[TINY, *RELEASES], help="checkpoints, or all")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "release")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--public", action="store_true")
    args = parser.parse_args()
    release = Release(args.namespace, args.work, args.quick, private=not args.public)
    release.work.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        with tempfile.TemporaryDirectory() as temporary:
            pulled = Path(temporary) / name
            if name == TINY:
                release_tiny(release, pulled)
                continue
            folder = release.make(name)
            release.push(name, folder, pulled)
            release.check(name, folder, pulled)
            if not args.quick:
                keep_card(name, folder)


if __name__ == "__main__":
    main()
