"""Which data files a path, a glob, a folder or a URL names, and of what kind they are."""

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import fsspec
import ibis
from fsspec.implementations.http import HTTPFileSystem
from fsspec.registry import known_implementations

logger = logging.getLogger(__name__)

KINDS = {
    ".parquet": "Parquet",
    ".parq": "Parquet",
    ".pq": "Parquet",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".inter": "CSV",  # RecBole's
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON lines",
}
COMPRESSED = (".gz", ".zst")
PARTITION = re.compile(r"([^/=]+)=([^/]*)/")
SECRET = re.compile(
    r"([?&;][^=&;]*(?:password|passwd|pwd|secret|token|key|credential|signature|sig)=)[^&;#]*",
    re.IGNORECASE,
)

Paths: TypeAlias = str | Path | Sequence[str | Path]


class WebFiles(HTTPFileSystem):
    """Files of a web server, with the date that DuckDB asks for and the server need not tell."""

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_kwargs: object) -> list[str]:
        """The file itself: a server lists nothing, and a ? in a URL is no pattern."""
        return [re.sub(r"\[([?*[])\]", r"\1", path)]


def hide_secrets(text: str) -> str:
    """A URL without the password, or the key or token among its parameters.

    >>> hide_secrets("postgresql://me:secret@host/shop?table=events")
    'postgresql://me:***@host/shop?table=events'
    """
    return SECRET.sub(r"\1***", re.sub(r"(\w://[^:/?#@\s]*):[^?#\s]*@", r"\1:***@", text))


def scheme_of(source: Any) -> str:
    """The part of a URL before `://`; "" for a path, or what is no text."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(?:::[^/]*)?://", str(source))
    return found.group(1).lower() if found and isinstance(source, str) else ""


def find_files(connection: ibis.BaseBackend, source: Paths) -> tuple[list[str], str]:
    """The data files in the order of their paths (of a list: in its order), and their kind.

    A folder stands for all data files below it; hidden files and markers such as `_SUCCESS` are none.
    The file system of a URL is made known to the connection, which is DuckDB's.

    Raises:
        FileNotFoundError: if there is no data file.
        ImportError: if a URL needs a package that is not installed; the message names it.
        ValueError: for files of several kinds, or of a kind that is not read.
    """
    patterns = [source] if isinstance(source, (str, Path)) else source
    paths: list[str] = []
    for pattern in patterns:
        if not isinstance(pattern, (str, Path)):
            raise ValueError(
                f"a log's files must be paths, got {type(pattern).__name__} in a list; rows or "
                "columns in memory are a log as a data frame: pd.DataFrame(...)"
            )
        remote = scheme_of(pattern) not in ("", "file")
        paths += _remote(connection, str(pattern)) if remote else _local(str(pattern))
    paths = list(dict.fromkeys(paths))
    if not paths:
        shown = ", ".join(hide_secrets(str(pattern)) for pattern in patterns)
        raise FileNotFoundError(f"no file matches {shown or 'an empty list'}")
    kinds: dict[str, str] = {}
    for path in paths:
        kinds.setdefault(_kind(path), hide_secrets(path))
    if len(kinds) > 1 or "" in kinds:
        shown = ", ".join(f"{path} ({kind or 'unknown'})" for kind, path in kinds.items())
        raise ValueError(f"files must be all of one kind of {sorted(KINDS)}, got {shown}")
    return paths, kinds.popitem()[0]


def _kind(path: str) -> str:
    """What the ending tells; "" where it tells nothing."""
    if scheme_of(path) in ("http", "https"):
        path = re.split(r"[?#]", path)[0]
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    packed = suffixes[-1:] and suffixes[-1] in COMPRESSED
    kind = KINDS.get(suffixes[-2] if packed and len(suffixes) > 1 else "".join(suffixes[-1:]), "")
    return "" if packed and kind == "Parquet" else kind


def partitions_of(path: str) -> dict[str, str]:
    """Keys and values of the folders `key=value` that a path leads through."""
    return dict(PARTITION.findall(path))


def _local(pattern: str) -> list[str]:
    pattern = re.sub(r"^file:(//)?", "", pattern)
    if os.path.isfile(pattern):
        return [pattern]

    def below(folder: str) -> Iterable[str]:
        for parent, _folders, names in os.walk(folder, followlinks=True):
            yield from (os.path.join(parent, name) for name in names)

    found = [pattern] if os.path.isdir(pattern) else glob.glob(pattern, recursive=True)
    return _expand(found, os.path.isdir, below)


def _remote(connection: ibis.BaseBackend, url: str) -> list[str]:
    if "::" in url:
        raise ValueError(f"chained URLs are not read, got {hide_secrets(url)}")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ImportError(
            f"{scheme_of(url)}:// needs a package: pip install {_package(scheme_of(url))} ({error})"
        ) from error
    except ValueError as error:
        raise ValueError(f"cannot read {hide_secrets(url)}: {error}") from None
    # DuckDB asks a registered file system before any of its own.
    is_web = scheme_of(url) in ("http", "https")
    if scheme_of(url) not in connection.con.list_filesystems():
        connection.con.register_filesystem(WebFiles() if is_web else files)
    if is_web:
        return [url] if files.exists(root) else []
    if files.isfile(root):
        return [files.unstrip_protocol(root)]
    found = [root] if files.isdir(root) else sorted(files.glob(root))
    return [files.unstrip_protocol(path) for path in _expand(found, files.isdir, files.find)]


def _package(scheme: str) -> str:
    """What to install for a protocol, as fsspec itself tells where it knows."""
    told = known_implementations.get(scheme, {}).get("err", "")
    found = re.search(r"\b(s3fs|gcsfs|adlfs|huggingface_hub|aiohttp|paramiko|ocifs)\b", told)
    return found.group(1) if found else f"what fsspec's {scheme} needs"


def _expand(
    found: list[str], is_folder: Callable[[str], bool], below: Callable[[str], Iterable[str]]
) -> list[str]:
    """Data files among what was found and in its folders, sorted; others are told of in the log."""
    paths: set[str] = set()
    ignored: list[str] = []
    for place in found:
        if not is_folder(place):
            if not _is_hidden(os.path.basename(place)):
                paths.add(place)
            continue
        for path in below(place):
            if any(map(_is_hidden, path[len(place) :].strip("/").split("/"))):
                continue
            paths.add(path) if _kind(path) else ignored.append(path)
    if ignored:
        shown = ", ".join(sorted(ignored)[:3])
        logger.warning("ignored %d files of no known kind: %s", len(ignored), hide_secrets(shown))
    return sorted(paths)


def _is_hidden(name: str) -> bool:
    """As Spark has it: dot files, checksums, and what begins with _ but is no partition."""
    return name.startswith(".") or name.endswith(".crc") or (name[:1] == "_" and "=" not in name)
