"""The SHA-256 of a checkpoint's weights: written into `config.json` by a save, compared by a load."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

KEY = "weights_sha256"
WEIGHTS = "model*.safetensors"
# What tells a load where files are; its other arguments say what to do with them.
WHERE = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


def file_sha256(path: str | os.PathLike) -> str:
    """Of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_weights(folder: str | os.PathLike) -> None:
    """Write the SHA-256 of each file of weights into the `config.json` beside them."""
    config = Path(folder, "config.json")
    found = {path.name: file_sha256(path) for path in sorted(Path(folder).glob(WEIGHTS))}
    content = json.loads(config.read_text(encoding="utf-8")) | {KEY: found}
    partial = config.with_name(f".config.{os.getpid()}.tmp")
    text = json.dumps(dict(sorted(content.items())), indent=2)
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, config)


def check_weights(source: Any, expected: Mapping[str, str], where: Mapping[str, Any]) -> None:
    """Compare the files of weights with what was written when they were saved.

    Args:
        source: folder or Hub repository.
        expected: SHA-256 by file name.
        where: the arguments of the load; of them those count that say where files are.

    Raises:
        ValueError: for a file that is missing or has other bytes.
    """
    options = {name: where[name] for name in WHERE if where.get(name) is not None}
    for name, digest in expected.items():
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
        got = "no such file" if path is None else file_sha256(path)
        if got != digest:
            raise ValueError(
                f"the weights of {source} are not those that were saved: {name} must have the SHA-256 "
                f"{digest}, got {got}. Get the checkpoint anew; if you changed the weights yourself, "
                f"take {KEY} out of config.json"
            )
