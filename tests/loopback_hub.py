"""A hub on loopback for tests: what `huggingface_hub` calls of the Hub's HTTP API, in memory.

    with LoopbackHub({"hf_alice": ("alice", "write")}) as hub:
        ...  # HF_ENDPOINT=hub.url HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_alice

A file that git would keep as text is stored as it is, another as LFS: its content goes to a storage under
another host name, addressed and checked by its SHA-256. `hub.fail(route, fault)` makes the next call of a
route go wrong; `hub.used` holds the routes that were called.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from loopback_http import Answer, Handler, HubError, Request, pattern, ranged
from loopback_repository import Repository, file_info, git_oid, metadata_of, repo_info, utc_now

LFS_SIZE = 10_000_000
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".onnx", ".png")
REPO = "/api/{kind}/{repo}"
ROUTES = {
    "GET /api/whoami-v2": "whoami",
    "GET /api/agent-harnesses": "agent_harnesses",
    "POST /api/validate-yaml": "validate_yaml",
    "POST /api/repos/create": "create_repo",
    "DELETE /api/repos/delete": "delete_repo",
    "GET /api/{kind}": "list_repos",
    f"GET {REPO}": "info",
    f"GET {REPO}/revision/{{rev}}": "info",
    f"PUT {REPO}/settings": "settings",
    f"GET {REPO}/refs": "list_refs",
    f"POST {REPO}/branch/{{rev}}": "create_branch",
    f"DELETE {REPO}/branch/{{rev}}": "delete_branch",
    f"POST {REPO}/tag/{{rev}}": "create_tag",
    f"DELETE {REPO}/tag/{{rev}}": "delete_tag",
    f"GET {REPO}/commits/{{rev}}": "list_commits",
    f"GET {REPO}/tree/{{rev}}{{/path}}": "tree",
    f"POST {REPO}/paths-info/{{rev}}": "paths_info",
    f"POST {REPO}/preupload/{{rev}}": "preupload",
    f"POST {REPO}/commit/{{rev}}": "commit",
    f"GET {REPO}/discussions": "list_pulls",
    f"POST {REPO}/discussions/{{number}}/merge": "merge",
    "POST /{kind/}{repo}.git/info/lfs/objects/batch": "lfs_batch",
    "PUT /lfs/{oid}": "lfs_upload",
    "POST /lfs/verify": "lfs_verify",
    "GET /lfs/{oid}": "lfs_download",
    "GET /{kind/}{repo}/resolve/{rev}/{path}": "resolve",
}


class LoopbackHub:
    """The server and what it keeps.

    Args:
        tokens: name and role (`"write"` or `"read"`) of the user behind each token.
    """

    def __init__(self, tokens: dict[str, tuple[str, str]]):
        self.tokens = tokens
        self.repos: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}  # by git oid, or by SHA-256 where LFS
        self.used: list[str] = []
        self.leaked: list[str] = []  # calls of the storage that carried a token
        self.faults: list[tuple[str, Any]] = []
        self.lock = threading.RLock()
        self.routes = ROUTES
        self.patterns = {route: pattern(route.split(" ")[1]) for route in ROUTES}
        handler = type("HubHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, route: str, fault: int | str | Callable[[], None], times: int = 1) -> None:
        """Let the next calls of a route go wrong.

        Args:
            fault: a status to answer with; `"drop"` hangs up half-way through the request, `"lose"`
                instead of answering what was done, `"garble"` turns a bit of what comes, `"corrupt"`
                of what is answered; a function is called before the route is.
        """
        assert route in ROUTES, route
        self.faults += [(route, fault)] * times

    def take_fault(self, route: str) -> Any:
        for place, (name, fault) in enumerate(self.faults):
            if name == route:
                del self.faults[place]
                return fault
        return None

    def read(self, repo: str, path: str, rev: str = "main", kind: str = "models") -> bytes:
        """A file as it is kept."""
        entry = self.files(repo, rev, kind)[path]
        return self.blobs[entry.get("lfs") or entry["oid"]]

    def files(self, repo: str, rev: str = "main", kind: str = "models") -> dict[str, dict]:
        kept = self.repos[kind, repo]
        return kept.commits[kept.find(rev)]["tree"]

    # The routes. Each takes a Request and gives an Answer or raises a HubError.

    def whoami(self, request: Request) -> Answer:
        name, role = self._user(request)
        access = {"displayName": "test", "role": role}
        user = {"type": "user", "id": "1", "name": name, "fullname": name, "email": None}
        user |= {"canPay": False, "isPro": False, "orgs": []}
        return Answer(user | {"auth": {"type": "access_token", "accessToken": access}})

    def agent_harnesses(self, _request: Request) -> Answer:
        return Answer({"standardEnvVars": [], "harnesses": {}})

    def validate_yaml(self, request: Request) -> Answer:
        errors = []
        try:
            if not isinstance(metadata_of(request.json["content"]), dict):
                errors.append({"message": "the metadata must be a mapping"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        return Answer({"errors": errors, "warnings": []}, status=400 if errors else 200)

    def create_repo(self, request: Request) -> Answer:
        name, role = self._user(request)
        given = request.json
        kind = given.get("type", "model") + "s"
        owner = given.get("organization") or name
        repo = f"{owner}/{given['name']}"
        if owner != name or role != "write":
            raise HubError(403, "Forbidden", f"You don't have the rights to create {repo}")
        url = f"{request.base}/{'' if kind == 'models' else kind + '/'}{repo}"
        if (kind, repo) in self.repos:
            return Answer({"error": "You already created this repo", "url": url}, status=409)
        private = given.get("visibility") == "private" or bool(given.get("private"))
        kept = self.repos[kind, repo] = Repository(private)
        kept.add_commit("refs/heads/main", {".gitattributes": self._store(b"")}, "initial commit")
        return Answer({"url": url, "name": repo, "id": repo})

    def delete_repo(self, request: Request) -> Answer:
        given = request.json
        request.kind = given.get("type", "model") + "s"
        request.repo = f"{given.get('organization') or self._user(request)[0]}/{given['name']}"
        self._repo(request, write=True)
        del self.repos[request.kind, request.repo]
        return Answer({})

    def list_repos(self, request: Request) -> Answer:
        author = request.query.get("author", [None])[0]
        found = []
        for (kind, repo), kept in self.repos.items():
            wanted = kind == request.kind and author in (None, repo.split("/")[0])
            if wanted and self._visible(kept, repo, request):
                found.append(repo_info(repo, kept, "main", self.blobs))
        return Answer(found)

    def info(self, request: Request) -> Answer:
        kept = self._repo(request)
        return Answer(repo_info(request.repo, kept, request.rev, self.blobs))

    def settings(self, request: Request) -> Answer:
        given = request.json
        private = given.get("visibility") == "private" or bool(given.get("private"))
        self._repo(request, write=True).private = private
        return Answer({})

    def list_refs(self, request: Request) -> Answer:
        found: dict = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        names = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, sha in self._repo(request).refs.items():
            _refs, folder, name = ref.split("/", 2)
            found[names[folder]].append({"name": name, "ref": ref, "targetCommit": sha})
        return Answer(found)

    def create_branch(self, request: Request) -> Answer:
        start = request.json.get("startingPoint") or "main"
        return self._add_ref(request, f"refs/heads/{unquote(request.rev)}", start)

    def create_tag(self, request: Request) -> Answer:
        return self._add_ref(request, f"refs/tags/{request.json['tag']}", request.rev)

    def delete_branch(self, request: Request) -> Answer:
        return self._delete_ref(request, f"refs/heads/{unquote(request.rev)}")

    def delete_tag(self, request: Request) -> Answer:
        return self._delete_ref(request, f"refs/tags/{unquote(request.rev)}")

    def list_commits(self, request: Request) -> Answer:
        kept, found = self._repo(request), []
        sha: str | None = kept.find(request.rev)
        while sha:
            commit = kept.commits[sha]
            found.append({"id": sha, "title": commit["title"], "date": commit["date"]})
            found[-1] |= {"message": "", "authors": [{"user": request.repo.split("/")[0]}]}
            sha = commit["parent"]
        return Answer(found)

    def tree(self, request: Request) -> Answer:
        kept = self._repo(request)
        files = kept.commits[kept.find(request.rev)]["tree"]
        folder = unquote(request.path).rstrip("/") + "/" if request.path else ""
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        found: dict[str, dict] = {}
        for path, entry in sorted(files.items()):
            if not path.startswith(folder):
                continue
            parts = path[len(folder) :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = folder + "/".join(parts[:depth])
                found[name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
            if recursive or len(parts) == 1:
                found[path] = file_info(path, entry)
        if folder and not found:
            raise HubError(404, "EntryNotFound", f"no folder {folder}")
        return Answer(list(found.values()))

    def paths_info(self, request: Request) -> Answer:
        kept = self._repo(request)
        files = kept.commits[kept.find(request.rev)]["tree"]
        asked = parse_qs(request.body.decode())["paths"]  # a form, not JSON
        return Answer([file_info(path, files[path]) for path in asked if path in files])

    def preupload(self, request: Request) -> Answer:
        pull = request.query.get("create_pr") == ["1"]
        kept = self._repo(request, write=not pull)
        files = kept.commits[kept.find(request.rev)]["tree"]
        found = []
        for given in request.json["files"]:
            path, sample = given["path"], base64.b64decode(given["sample"])
            large = given["size"] > LFS_SIZE or path.endswith(LFS_SUFFIXES) or b"\0" in sample
            mode = "lfs" if large else "regular"
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
            if path in files:
                found[-1]["oid"] = files[path].get("lfs") or files[path]["oid"]
        return Answer({"files": found})

    def commit(self, request: Request) -> Answer:
        pull = request.query.get("create_pr") == ["1"]
        kept = self._repo(request, write=not pull)
        base, lines = kept.find(request.rev), [json.loads(x) for x in request.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, base):
            raise HubError(412, "PreconditionFailed", "A commit has happened since.")
        tree = dict(kept.commits[base]["tree"])
        for line in lines[1:]:
            self._apply(tree, line["key"], line["value"])
        ref, extra = f"refs/heads/{unquote(request.rev)}", {}
        ref = unquote(request.rev) if unquote(request.rev).startswith("refs/") else ref
        if pull:
            number = len(kept.pulls) + 1
            kept.pulls.append(self._pull(request, number, header["summary"]))
            ref = f"refs/pr/{number}"
            kept.refs[ref] = base
            extra = {"pullRequestUrl": f"{request.base}/{request.repo}/discussions/{number}"}
        elif ref not in kept.refs:
            raise HubError(404, "RevisionNotFound", f"{request.rev} is no branch")
        sha = kept.add_commit(ref, tree, header["summary"])
        kind = "" if request.kind == "models" else f"{request.kind}/"
        url = f"{request.base}/{kind}{request.repo}/commit/{sha}"
        return Answer(
            {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""} | extra
        )

    def list_pulls(self, request: Request) -> Answer:
        pulls = self._repo(request).pulls
        return Answer({"discussions": pulls, "count": len(pulls), "start": 0})

    def merge(self, request: Request) -> Answer:
        kept = self._repo(request, write=True)
        sha = kept.find(f"refs/pr/{request.number}")
        kept.pulls[int(request.number) - 1]["status"] = "merged"
        kept.add_commit("refs/heads/main", kept.commits[sha]["tree"], kept.commits[sha]["title"])
        return Answer({})

    def lfs_batch(self, request: Request) -> Answer:
        self._user(request)
        request.kind = request.kind or "models"
        self._repo(request)
        storage, found = f"http://localhost:{self.port}/lfs", []
        for given in request.json["objects"]:
            entry = {"oid": given["oid"], "size": given["size"]}
            if given["oid"] not in self.blobs:
                upload = {"href": f"{storage}/{given['oid']}", "header": {}}
                verify = {"href": f"{request.base}/lfs/verify", "header": {}}
                entry["actions"] = {"upload": upload, "verify": verify}
            found.append(entry)
        return Answer({"transfer": "basic", "objects": found})

    def lfs_upload(self, request: Request) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != request.oid:
            raise HubError(400, "BadDigest", "the content does not have the SHA-256 of its name")
        self.blobs[request.oid] = request.body
        return Answer({})

    def lfs_verify(self, request: Request) -> Answer:
        given = request.json
        if len(self.blobs.get(given["oid"], b"")) != given["size"]:
            raise HubError(404, "EntryNotFound", f"no object {given['oid']}")
        return Answer({})

    def lfs_download(self, request: Request) -> Answer:
        return ranged(self.blobs[request.oid], request, {"ETag": f'"{request.oid}"'})

    def resolve(self, request: Request) -> Answer:
        request.kind = request.kind or "models"
        kept = self._repo(request)
        sha = kept.find(request.rev)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        entry = kept.commits[sha]["tree"].get(unquote(request.path or ""))
        if entry is None:
            raise HubError(404, "EntryNotFound", f"no file {request.path}", headers)
        headers["ETag"] = f'"{entry.get("lfs") or entry["oid"]}"'
        if "lfs" not in entry:
            return ranged(self.blobs[entry["oid"]], request, headers)
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry["size"])}
        headers["Location"] = f"http://localhost:{self.port}/lfs/{entry['lfs']}"
        return Answer(b"", headers, 302)

    # What the routes share.

    def _user(self, request: Request) -> tuple[str, str]:
        if request.user is None:
            raise HubError(401, "Unauthorized", "Invalid username or password.")
        return request.user

    def _visible(self, kept: Repository, repo: str, request: Request) -> bool:
        owner = repo.split("/")[0]
        return not kept.private or (request.user is not None and request.user[0] == owner)

    def _repo(self, request: Request, *, write: bool = False) -> Repository:
        kept = self.repos.get((request.kind or "models", request.repo))
        if kept is None or not self._visible(kept, request.repo, request):
            raise HubError(401 if request.user is None else 404, "RepoNotFound", "not found")
        if write and self._user(request) != (request.repo.split("/")[0], "write"):
            raise HubError(403, "Forbidden", f"You don't have the rights to write {request.repo}")
        return kept

    def _add_ref(self, request: Request, ref: str, start: str) -> Answer:
        kept = self._repo(request, write=True)
        if ref in kept.refs:
            raise HubError(409, "Conflict", "Reference already exists")
        kept.refs[ref] = kept.find(start)
        return Answer({})

    def _delete_ref(self, request: Request, ref: str) -> Answer:
        if self._repo(request, write=True).refs.pop(ref, None) is None:
            raise HubError(404, "RevisionNotFound", f"no {ref}")
        return Answer({})

    def _store(self, content: bytes) -> dict:
        self.blobs[git_oid(content)] = content
        return {"oid": git_oid(content), "size": len(content)}

    def _apply(self, tree: dict, key: str, value: dict) -> None:
        """One operation of a commit."""
        path = value["path"]
        if path.startswith("/") or ".." in path.split("/"):
            raise HubError(400, "BadPath", f"path {path} leads out of the repository")
        if key == "file":
            tree[path] = self._store(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.blobs:
                raise HubError(400, "LfsMissing", f"LFS object {value['oid']} is missing")
            size = len(self.blobs[value["oid"]])
            tree[path] = {"oid": value["oid"][:40], "size": size, "lfs": value["oid"]}
        elif key == "deletedFile":
            del tree[path]
        else:
            raise HubError(400, "BadOperation", f"{key} is not known here")

    def _pull(self, request: Request, number: int, title: str) -> dict:
        author = {"name": self._user(request)[0]}
        found = {"num": number, "title": title, "author": author, "createdAt": utc_now()}
        where = {"name": request.repo, "type": (request.kind or "models")[:-1]}
        return found | {"status": "open", "isPullRequest": True, "repo": where}
