"""What a request passes before it is answered: size, key and rate; and what is counted of it."""

import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

logger = logging.getLogger(__name__)
CALLERS = 10_000  # rates that are remembered


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter(
            "implicitrec_requests", "Answered requests.", labels, registry=self.registry
        )
        self.seconds = Histogram(
            "implicitrec_request_seconds", "Time to answer.", ["route"], registry=self.registry
        )
        self.batch = Histogram(
            "implicitrec_batch_size",
            "Requests of one model call.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.users = Counter(
            "implicitrec_users",
            "Users read: kept in memory, a step on, or made of their history.",
            ["how"],
            registry=self.registry,
        )
        self.events = Counter("implicitrec_events", "Events stored.", registry=self.registry)
        self.loaded = Gauge(
            "implicitrec_model_loaded_seconds",
            "When the model was loaded.",
            ["model"],
            registry=self.registry,
        )


class RateLimit:
    """A token bucket for every caller: `rate` requests a second, twice that at once.

    >>> limit = RateLimit(1)
    >>> [limit.wait("ann", now=0.0), limit.wait("ann", now=0.0), limit.wait("ann", now=0.0)]
    [0.0, 0.0, 1.0]
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, caller: str, *, now: float | None = None) -> float:
        """Seconds until the caller may ask; 0 takes a place."""
        now = time.monotonic() if now is None else now
        most = max(1.0, 2 * self.rate)
        left, since = self.left.pop(caller, (most, now))
        left = min(most, left + (now - since) * self.rate)
        passes = left >= 1
        self.left[caller] = (left - passes, now)
        if len(self.left) > CALLERS:
            self.left.popitem(last=False)
        return 0.0 if passes else (1 - left) / self.rate


def check_key(given: str | None, keys: Sequence[str]) -> None:
    """Raise 401 where keys are asked for and this is none of them."""
    known = [hmac.compare_digest((given or "").encode(), key.encode()) for key in keys]
    if keys and not any(known):
        raise HTTPException(
            401, "a valid X-API-Key header is needed", {"WWW-Authenticate": "ApiKey"}
        )


class Guard:
    """The outermost layer: bodies up to a limit, no error without an answer, all of it counted."""

    def __init__(self, app: Any, *, max_body: int, metrics: Metrics) -> None:
        self.app, self.max_body, self.metrics = app, max_body, metrics

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def counted_send(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, self._limited(scope, receive), counted_send)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await _answer(counted_send, 500, "internal error")
        route = getattr(scope.get("route"), "path", "unknown")
        self.metrics.requests.labels(scope["method"], route, status).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    def _limited(self, scope: dict, receive: Any) -> Any:
        """`receive` that counts the bytes, whatever the header says of their number."""
        told = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = told.isdigit() and int(told) > self.max_body
        size = self.max_body + 1 if too_large else 0

        async def limited() -> dict:
            nonlocal size
            message = {} if too_large else await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise HTTPException(413, f"a body may have {self.max_body} bytes")
            return message

        return limited


async def _answer(send: Any, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
