"""What the hub on loopback keeps of a repository, and how the Hub's API tells of it."""

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import yaml
from loopback_http import HubError


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


@dataclass
class Repository:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)  # full names, such as refs/heads/main
    commits: dict[str, dict] = field(default_factory=dict)  # newest last
    pulls: list[dict] = field(default_factory=list)
    created: str = field(default_factory=utc_now)

    def add_commit(self, ref: str, tree: dict, title: str) -> str:
        sha = secrets.token_hex(20)
        parent = self.refs.get(ref)
        self.commits[sha] = {"tree": tree, "title": title, "parent": parent, "date": utc_now()}
        self.refs[ref] = sha
        return sha

    def find(self, rev: str) -> str:
        rev = unquote(rev)
        for name in (rev, f"refs/heads/{rev}", f"refs/tags/{rev}"):
            if name in self.refs:
                return self.refs[name]
        if rev in self.commits:
            return rev
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {rev}")


def metadata_of(card: str) -> Any:
    found = re.match(r"---\s*\n(.*?)\n---", card, re.S)
    return yaml.safe_load(found.group(1)) if found else {}


def repo_info(name: str, kept: Repository, rev: str, blobs: Mapping[str, bytes]) -> dict:
    sha = kept.find(rev)
    commit = kept.commits[sha]
    card: dict = {}
    if "README.md" in commit["tree"]:
        card = metadata_of(blobs[commit["tree"]["README.md"]["oid"]].decode())
    found = {"_id": "0" * 24, "id": name, "modelId": name, "author": name.split("/")[0], "sha": sha}
    found |= {
        "private": kept.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
    }
    found |= {"createdAt": kept.created, "lastModified": commit["date"], "spaces": []}
    found |= {"tags": card.get("tags", []), "library_name": card.get("library_name")}
    found |= {"pipeline_tag": card.get("pipeline_tag"), "cardData": card, "usedStorage": 0}
    return found | {"siblings": [{"rfilename": path} for path in commit["tree"]]}


def file_info(path: str, entry: dict) -> dict:
    found = {"type": "file", "oid": entry["oid"], "size": entry["size"], "path": path}
    if "lfs" in entry:
        found["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": 130}
    return found
