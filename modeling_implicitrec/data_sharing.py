"""Prepared data to the Hub: users under pseudonyms, and only after somebody has said yes."""

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, HfApi

from .provenance import read_period
from .shards import load_sequences, save_sequences
from .sharing import Target, clear_refusals

logger = logging.getLogger(__name__)

TEMPLATE = Path(__file__).with_name("data_card_template.md")
KEY_BYTES = 32


def pseudonymise(rows: Dataset, key: bytes) -> Dataset:
    """The rows with `user_id` replaced by a keyed hash (HMAC-SHA-256, 32 hexadecimal digits).

    Equal users get equal pseudonyms under one key; without the key nobody can try out ids. Rows are
    sorted by pseudonym and numbered anew, since their first order told the order of the ids.

    Raises:
        ValueError: for a key of fewer than 32 bytes.

    >>> rows = pseudonymise(Dataset.from_dict({"user_id": [7, 8], "input_ids": [[1], [2]]}), b"k" * 32)
    >>> first, second = rows["user_id"]
    >>> first != second, len(first)
    (True, 32)
    """
    if len(key) < KEY_BYTES:
        raise ValueError(f"the key must have at least {KEY_BYTES} bytes, got {len(key)}")

    def hide(user: Any) -> str:
        return hmac.new(key, repr(user).encode(), hashlib.sha256).hexdigest()[:32]

    # One process' memory: nothing of this is kept under a name that a cache would find again.
    names = [hide(user) for user in rows["user_id"]]
    order = np.argsort(names, kind="stable")
    hidden = rows.remove_columns([name for name in ("user_id", "row") if name in rows.column_names])
    hidden = hidden.select(order).add_column("user_id", [names[place] for place in order])
    if "row" in rows.column_names:
        hidden = hidden.add_column("row", np.arange(len(order)))
    return hidden.select_columns(rows.column_names)


def push_sequences(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    confirmed: bool = False,
    key: bytes | None = None,
    private: bool = True,
    token: str | None = None,
    license: str = "other",
) -> CommitInfo:
    """Push data that `recipes/prepare.py` wrote: sequences, processor, cleaning report, card.

    Histories are personal data, and stay so under pseudonyms: what somebody did, and when, may tell who it
    was. The raw log, examples of bad rows, names of items and paths of this machine are not pushed.

    Args:
        folder: the `output_dir` of `recipes/prepare.py`.
        repo_id: `user/name` of the data set; made where it is missing.
        confirmed: somebody who may decide has decided that these histories leave this machine.
        key: of the pseudonyms, at least 32 bytes, never pushed. By default one that is drawn now and
            forgotten, so that two pushes cannot be matched.
        private: of a repository that is made.
        token: with the right to write; by default that of `hf auth login` or of `HF_TOKEN`.
        license: of the data, by its Hub identifier.

    Raises:
        ValueError: where it is not confirmed, or the key is too short.
        FileNotFoundError: where the folder holds no prepared data.
        PermissionError: where the token may not do this.
        RuntimeError: where somebody else has committed meanwhile.
    """
    source = Path(folder)
    parts = load_sequences(source / "sequences")
    users = max(map(len, parts.values()))
    if not confirmed:
        raise ValueError(
            f"this would send the histories of {users:,} users to {repo_id!r}, under pseudonyms: set "
            "confirmed=True if you may decide that"
        )
    logger.warning("the histories of %s users leave this machine for %s", f"{users:,}", repo_id)
    key = secrets.token_bytes(KEY_BYTES) if key is None else key
    with tempfile.TemporaryDirectory() as work:
        target = Path(work)
        hidden = {name: pseudonymise(rows, key) for name, rows in parts.items()}
        save_sequences(hidden, target / "sequences")
        report = json.loads((source / "cleaning_report.json").read_text(encoding="utf-8"))
        report["examples"] = {}  # rows of the log, with the ids of users
        (target / "cleaning_report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        _card(parts, report, license).save(target / "README.md")
        files = {p.relative_to(target).as_posix(): p for p in target.rglob("*") if p.is_file()}
        files |= {f"processor/{p.name}": p for p in (source / "processor").iterdir()}
        api = HfApi(token=token)
        with clear_refusals(repo_id, "dataset"):
            repo = api.create_repo(
                repo_id, repo_type="dataset", private=private, exist_ok=True
            ).repo_id
            return Target(api, repo, "dataset").commit(
                files, "Upload prepared data", stale=("sequences/*/*.parquet",)
            )


def _card(parts: Mapping[str, Dataset], report: Mapping[str, Any], license: str) -> DatasetCard:
    configs = [
        {"config_name": name, "data_files": [{"split": name, "path": f"sequences/{name}/*"}]}
        for name in parts
    ]
    data = DatasetCardData(
        license=license,
        tags=["recommendation", "implicit-feedback", "implicitrec"],
        configs=configs,
    )
    period = read_period(parts.get("before_test", parts["train"]))
    return DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        parts={name: f"{len(rows):,}" for name, rows in parts.items()},
        rows_in=f"{report['rows_in']:,}",
        rows_out=f"{report['rows_out']:,}",
        dropped={reason: f"{count:,}" for reason, count in report["dropped"].items()},
        period=" to ".join(period) if period else "not known",
    )
