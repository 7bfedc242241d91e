"""A checkpoint's way to the Hub and back, step by step: `python scripts/hub_round_trip.py me/round-trip`.

Trains a tiny model, pushes it, deletes all that is local, pulls it in a process that has torch,
transformers and safetensors only, compares the scores, goes on training there and pushes that as a branch,
and pulls the first commit again. The hub is the one of HF_ENDPOINT, the token that of HF_TOKEN or
`hf auth login`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import pipeline

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    RunRecord,
    push_checkpoint,
    save_checkpoint,
    write_model_card,
)

LOG = {"item_id": [*"teammate", *"meatate"], "count": [1, 2, 1, 1, 3, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1]}
HISTORIES = [[*"tea"], [{"item_id": "m", "count": 2}, {"item_id": "e", "count": 1}]]
BRANCH = "tuned"
STRANGER = """
import json, sys

repo, commit, branch, folder, histories, packages = sys.argv[1:]
sys.path.append(packages)
import torch
from huggingface_hub import HfApi
from transformers import pipeline

histories = json.loads(histories)
torch.manual_seed(0)
options = {"model": repo, "revision": commit, "trust_remote_code": True, "device": "cpu"}
recommend = pipeline("recommendation", **options)
print(json.dumps(recommend(histories, exclude_seen=False)))

model, processor = recommend.model, recommend.processor
batch = processor(histories)
labels = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
model.train()
losses = []
for _step in range(8):
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
model.eval()
recommend.save_pretrained(folder)
api = HfApi()
api.create_branch(repo, branch=branch, exist_ok=True)
done = api.upload_folder(repo_id=repo, folder_path=folder, revision=branch, commit_message="Go on training")
print(json.dumps([losses[0], losses[-1], done.oid]))
print(json.dumps(recommend(histories, exclude_seen=False)))
"""


def make_checkpoint(folder: Path) -> None:
    """Train a tiny model for a few steps and write all that is pushed."""
    record = RunRecord()
    torch.manual_seed(0)
    processor = ImplicitRecProcessor.fit(LOG)
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        vocabulary_fingerprint=processor.fingerprint,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        hidden_dropout_prob=0.0,
    )
    model = ImplicitRecForScoring(config)
    model.fit_item_counts(processor.item_counts)
    batch = processor([LOG["item_id"]])
    labels = torch.cat([batch["input_ids"][:, 1:], torch.tensor([[-100]])], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _step in range(8):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_checkpoint(folder, model=model, processor=processor)
    made = record.to_dict()
    write_model_card(folder, model=model, processor=processor, results={}, training=made)


def recommend(model: str | Path, revision: str | None = None) -> list:
    """What a checkpoint recommends, every item with its score."""
    made = pipeline("recommendation", model=str(model), revision=revision, device="cpu")
    return made(HISTORIES, exclude_seen=False)


def link_packages(folder: Path) -> None:
    """Fill a folder with torch, transformers, safetensors and what these require: nothing else is there."""
    folder.mkdir()
    wanted, done = ["torch", "transformers", "safetensors"], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in done:
            continue
        done.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # required on other machines
            continue
        needs = map(Requirement, found.requires or [])
        wanted += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))


def run_stranger(repo: str, commit: str, work: Path) -> list:
    """Pull, score, train and push in a clean process with an empty cache."""
    link_packages(work / "packages")
    passed = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET", "PATH", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in passed if name in os.environ}
    environment["HF_HOME"] = str(work / "stranger")
    arguments = [repo, commit, BRANCH, str(work / "tuned")]
    arguments += [json.dumps(HISTORIES), str(work / "packages")]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STRANGER, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=work,
    )
    if done.returncode:
        raise SystemExit(f"the clean process failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.strip().splitlines()]


def check(same: bool, what: str) -> None:
    if not same:
        raise SystemExit(f"   NOT {what}")
    print(f"   {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo", help="user/name to push to; made where it is missing, private")
    repo = parser.parse_args().repo
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        print(f"1. train a tiny model, hub {constants.ENDPOINT}")
        make_checkpoint(work / "made")
        first = recommend(work / "made")
        print(f"2. push it to {repo}")
        commit = push_checkpoint(work / "made", repo, private=True).oid
        print(f"   commit {commit}")
        print("3. delete everything local")
        shutil.rmtree(work / "made")
        print("4. pull it in a clean process: torch, transformers, safetensors and what they need")
        scores, (loss, last_loss, tuned), tuned_scores = run_stranger(repo, commit, work)
        check(scores == first, "identical scores")
        print(
            f"5. there: went on training, loss {loss:.3f} to {last_loss:.3f}, pushed {BRANCH}: {tuned}"
        )
        shutil.rmtree(work / "stranger")
        shutil.rmtree(work / "tuned")
        check(
            recommend(repo, revision=BRANCH) == tuned_scores,
            "the new revision gives the new scores",
        )
        check(tuned_scores != first, "which differ from the first")
        print(f"6. pull the old revision {commit[:12]}")
        check(recommend(repo, revision=commit) == first, "the first scores again")
        print("round trip done")


if __name__ == "__main__":
    main()
