"""The HTTP side of the hub on loopback: requests in, answers, errors and faults out."""

import json
import re
import secrets
import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlparse

PARTS = {
    "{kind}": "(?P<kind>models|datasets)",
    "{kind/}": "(?:(?P<kind>datasets)/)?",
    "{repo}": "(?P<repo>[^/]+/[^/]+)",
    "{rev}": "(?P<rev>[^/]+)",
    "{path}": "(?P<path>.+)",
    "{/path}": "(?:/(?P<path>.+))?",
    "{number}": "(?P<number>[0-9]+)",
    "{oid}": "(?P<oid>[0-9a-f]{64})",
}


class HubError(Exception):
    """An answer that is an error, with the code that the client tells errors apart by."""

    def __init__(self, status: int, code: str, message: str, headers: dict | None = None):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}
        self.headers |= headers or {}


@dataclass
class Request:
    base: str
    query: dict[str, list[str]]
    body: bytes
    user: tuple[str, str] | None  # name and role
    range: str = ""
    kind: str | None = None
    repo: str = ""
    rev: str = "main"
    path: str | None = None
    number: str = ""
    oid: str = ""

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    content: bytes | dict | list = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


def ranged(content: bytes, request: Request, headers: dict) -> Answer:
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range)
    headers = headers | {"Content-Type": "application/octet-stream"}
    if not found:
        return Answer(content, headers)
    start, size = int(found[1]), len(content)
    if start >= size:
        raise HubError(416, "BadRange", "past the end", {"Content-Range": f"bytes */{size}"})
    end = min(int(found[2] or size - 1), size - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Answer(content[start : end + 1], headers, 206)


def flipped(content: bytes) -> bytes:
    """The same but for one bit at the end."""
    return content[:-1] + bytes([content[-1] ^ 1])


def pattern(template: str) -> re.Pattern:
    """What the path of a route matches."""
    text = re.sub(r"[.+]", r"\\\g<0>", template)
    for name, expression in PARTS.items():
        text = text.replace(name, expression)
    return re.compile(text)


class Handler(BaseHTTPRequestHandler):
    """HTTP in front of the hub that is set on the class."""

    protocol_version = "HTTP/1.1"
    hub: Any

    def log_message(self, *_arguments: Any) -> None:
        """Say nothing."""

    def answer(self) -> None:
        url = urlparse(self.path)
        route, found = self._route(url.path)
        self.hub.used.append(route.replace("GET", self.command, 1))
        fault = self.hub.take_fault(route)
        size = int(self.headers.get("Content-Length") or 0)
        if fault == "drop":
            self.rfile.read(size // 2)
            return self._hang_up()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and url.path.startswith("/lfs/") and "verify" not in url.path:
            self.hub.leaked.append(route)
        request = Request(
            base=f"http://{self.headers['Host']}",
            query=parse_qs(url.query),
            body=self._chunks() if self.headers.get("Transfer-Encoding") else self.rfile.read(size),
            user=self.hub.tokens.get(token),
            range=self.headers.get("Range", ""),
            **{name: value for name, value in found.items() if value is not None},
        )
        if callable(fault):
            fault()
        if fault == "garble":
            request.body = flipped(request.body)
        answer = self._call(route, request, fault)
        if fault == "lose":
            return self._hang_up()
        self._send(answer, corrupt=fault == "corrupt")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _route(self, path: str) -> tuple[str, dict]:
        for route, expression in self.hub.patterns.items():
            method = route.split(" ")[0]
            found = expression.fullmatch(path)
            if found and self.command in (method, "HEAD" if method == "GET" else method):
                return route, found.groupdict()
        return f"no route for {self.command} {path}", {}

    def _call(self, route: str, request: Request, fault: Any) -> Answer:
        try:
            if isinstance(fault, int):
                raise HubError(fault, "Fault", f"a fault of the test, {fault}")
            if route not in self.hub.routes:
                raise HubError(404, "NotImplemented", route)
            with self.hub.lock:
                return getattr(self.hub, self.hub.routes[route])(request)
        except HubError as error:
            return Answer({"error": str(error)}, error.headers, error.status)

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, answer: Answer, *, corrupt: bool) -> None:
        content = answer.content
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        if corrupt:
            content = flipped(content)
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "X-Request-Id": secrets.token_hex(8)}
        for name, value in (headers | answer.headers | {"Content-Length": len(content)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
