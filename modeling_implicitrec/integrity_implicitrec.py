"""What a load checks of a checkpoint's files: JSON is an object, weights fit and are those saved."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

KEY = "weights_sha256"
WEIGHTS = "model*.safetensors"
# What tells a load where files are; its other arguments say what to do with them.
WHERE = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


def where(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of a load those that say where files are."""
    return {name: options[name] for name in WHERE if options.get(name) is not None}


def _find(source: Any, name: str, options: Mapping[str, Any]) -> str | None:
    return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **where(options))


@contextmanager
def objects_only(source: Any, name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """A load in whose place, where it fails, a `ValueError` names a JSON file that holds no object.

    Only a load that failed has the file looked at, which may cost a request. One that is missing or no
    JSON is left to the load, which says so itself.

    Args:
        source: folder, Hub repository, or the file.
        name: of the file in `source`.
        options: the arguments of the load.
    """
    try:
        yield
    except (AttributeError, TypeError, ValueError):
        path = source if os.path.isfile(source) else _find(source, name, options)
        content = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            raise
        got = json.dumps(content)[:40]
        raise ValueError(f"{name} of {source} must hold a JSON object, got {got}") from None


def check_shapes(source: Any, mismatched: Iterable[tuple]) -> None:
    """Refuse weights of other shapes than the configuration makes.

    Args:
        source: folder or Hub repository.
        mismatched: name, shape in the file, and shape in the model of each.

    Raises:
        ValueError: where there are any.
    """
    told = [
        f"{name} must be {list(expected)}, got {list(got)}"
        for name, got, expected in sorted(mismatched)
    ]
    if told:
        more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
        raise ValueError(
            f"the weights of {source} do not have the shapes that its config.json and this version make: "
            f"{'; '.join(told[:3])}{more}. Another version may have written it: install that version, "
            "or train anew"
        )


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


def check_weights(source: Any, expected: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Compare the files of weights with what was written when they were saved.

    Args:
        source: folder or Hub repository.
        expected: SHA-256 by file name.
        options: the arguments of the load.

    Raises:
        ValueError: for a file that is missing or has other bytes.
    """
    for name, digest in expected.items():
        path = _find(source, name, options)
        got = "no such file" if path is None else file_sha256(path)
        if got != digest:
            raise ValueError(
                f"the weights of {source} are not those that were saved: {name} must have the SHA-256 "
                f"{digest}, got {got}. Get the checkpoint anew; if you changed the weights yourself, "
                f"take {KEY} out of config.json"
            )
