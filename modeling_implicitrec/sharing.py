"""Folders to the Hub: one commit each, so that nobody ever pulls half of one."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from .classification_implicitrec import ImplicitRecForSequenceClassification
from .configuration_implicitrec import ImplicitRecConfig
from .modeling_implicitrec import ImplicitRecForScoring
from .processing_implicitrec import ImplicitRecProcessor

logger = logging.getLogger(__name__)

# What loading reads: of an earlier push, such a file goes where the new one has none of its name.
LOADED: tuple[str, ...] = ("config.json", "processor_config.json", "item_vocabulary.safetensors")
LOADED += ("model*.safetensors", "model.safetensors.index.json", "*_implicitrec.py")
CHECKPOINT: tuple[str, ...] = (
    *LOADED,
    "README.md",
    "training.json",
    "results_*.json",
    "plots/*.svg",
    "plots/*.png",
)
TRIES = 3
WAIT = 1.0  # seconds before the second try, twice as long before the third


def push_checkpoint(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    token: str | None = None,
    message: str = "Upload checkpoint",
) -> CommitInfo:
    """Push a checkpoint: weights, processor, remote code, card, metrics and plots in one commit.

    The checkpoint is loaded first, so that only one that loads is pushed. Files of the folder that are
    none of these, such as Trainer's `checkpoint-*` and its pickled arguments, stay here.

    Args:
        folder: that `save_checkpoint` or the recipes wrote.
        repo_id: `user/name`; made where it is missing.
        revision: branch to push to, made from `main` where it is missing; `main` by default.
        private: of a repository that is made; what the Hub does by default where `None`.
        create_pr: propose the commit as a pull request in place of making it.
        token: with the right to write; by default that of `hf auth login` or of `HF_TOKEN`.
        message: title of the commit.

    Returns:
        The commit: `oid` for `from_pretrained(repo_id, revision=oid)`, `commit_url`, `pr_url`.

    Raises:
        ValueError: where the folder is no whole checkpoint.
        PermissionError: where the token may not do this.
        RuntimeError: where somebody else has committed meanwhile, or the upload of a file fails.
    """
    source = Path(folder)
    if not (source / "config.json").is_file():
        raise ValueError(f"expected a checkpoint with a config.json, got {source.name!r}")
    named = ImplicitRecConfig.from_pretrained(source).architectures or []
    answers = ImplicitRecForSequenceClassification.__name__ in named
    kind = ImplicitRecForSequenceClassification if answers else ImplicitRecForScoring
    model = kind.from_pretrained(source)
    ImplicitRecProcessor.from_pretrained(source).check_model(model.config)
    files = {path: source / path for path in _matching(source, CHECKPOINT)}
    api = HfApi(token=token)
    with clear_refusals(repo_id, "model"):
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo, branch=revision, exist_ok=True)
        target = Target(api, repo, "model", revision)
        return target.commit(files, message, stale=LOADED, create_pr=create_pr)


def _matching(source: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and name.count("/") <= 1 and matches(name, patterns):
            yield name


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path is of a pattern and in the pattern's folder.

    >>> matches("plots/loss.svg", CHECKPOINT), matches("checkpoint-5/config.json", CHECKPOINT)
    (True, False)
    """
    return any(fnmatch(name, p) and name.count("/") == p.count("/") for p in patterns)


class Target:
    """Where commits go.

    Args:
        repo: `user/name` of a repository that exists.
        kind: `"model"` or `"dataset"`.
        revision: branch, `main` where `None`.
    """

    def __init__(self, api: HfApi, repo: str, kind: str, revision: str | None = None) -> None:
        self.api = api
        self.where: dict[str, Any] = {"repo_id": repo, "repo_type": kind, "revision": revision}

    def commit(
        self,
        files: Mapping[str, str | os.PathLike],
        message: str,
        *,
        stale: tuple[str, ...],
        create_pr: bool = False,
    ) -> CommitInfo:
        """Commit `files` (by their path there) and delete others that match `stale`; all or nothing.

        What the network breaks is tried again. That makes no second commit where the first was made and
        only its answer lost: files that are there already are left out, and the parent is the same.
        """
        parent = self.api.repo_info(**self.where).sha
        tries = 1 if create_pr else TRIES  # a second try might propose the same twice
        for number in range(1, tries + 1):
            there = self.api.list_repo_files(**self.where)
            old = [name for name in there if name not in files and matches(name, stale)]
            operations: list = [CommitOperationDelete(path_in_repo=name) for name in old]
            operations += [CommitOperationAdd(name, str(path)) for name, path in files.items()]
            try:
                return self.api.create_commit(
                    operations=operations,
                    commit_message=message,
                    parent_commit=parent,
                    create_pr=create_pr,
                    **self.where,
                )
            except (httpx2.TransportError, HfHubHTTPError) as error:
                if number == tries or not _passes(error):
                    raise
                logger.warning("try %d of %d failed: %s", number, tries, type(error).__name__)
                time.sleep(WAIT * number)
        raise AssertionError("the last try returns or raises")


def _passes(error: Exception) -> bool:
    """Whether the same call may go well a moment later."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code >= 500


@contextmanager
def clear_refusals(repo_id: str, kind: str) -> Iterator[None]:
    """Say in plain words why the Hub refused."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
            raise PermissionError(
                f"the Hub refuses to write the {kind} {repo_id!r}: log in with `hf auth login`, or set "
                f"HF_TOKEN, with a token that has the role `write` there (status {status})"
            ) from error
        if status == 412:
            raise RuntimeError(
                f"{repo_id!r} got another commit meanwhile; nothing was pushed: look at it, push again"
            ) from error
        raise
