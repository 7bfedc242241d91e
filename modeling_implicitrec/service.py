"""An HTTP service of recommendations from stored histories (extra `serve`)."""

import asyncio
import contextlib
import logging
import math
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from prometheus_client import generate_latest
from starlette.convertors import StringConvertor, register_url_convertor

from .history_store import HistoryStore
from .micro_batching import MicroBatcher, Overloaded
from .service_limits import Guard, Metrics, RateLimit, check_key
from .service_schema import (
    ASKED,
    LATEST,
    EventsIn,
    Forgotten,
    Health,
    Problem,
    Recommendations,
    ScoreIn,
    Scores,
    Stored,
    Text,
)
from .serving import ServingModel, Wish
from .user_cache import UserCache

logger = logging.getLogger(__name__)


class _AnyText(StringConvertor):
    """What is left of a path, slashes and line breaks included."""

    regex = r"[\s\S]*"


register_url_convertor("text", _AnyText())
User = Annotated[Text, Path()]
KEY = APIKeyHeader(name="X-API-Key", auto_error=False)
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "not a request that can be read"},
    401: {"model": Problem, "description": "no valid key"},
    413: {"model": Problem, "description": "body too large"},
    422: {"model": Problem, "description": "not a valid request"},
    429: {"model": Problem, "description": "too many requests"},
    503: {"model": Problem, "description": "overloaded, ask again"},
}


@dataclass(frozen=True)
class ServiceSettings:
    """How a service runs.

    Args:
        model: checkpoint folder or Hub name, read again at a reload.
        store: URL of the histories' database, see [`open_store`].
        api_keys: of callers; none asks for no key.
        admin_keys: of those who may reload; without any, only SIGHUP reloads.
        catalogue: Parquet file about the items, see [`Catalogue`].
        find_index: see [`ServingModel`].
        history_events: latest events of a user that are read.
        cached_users: users whose state is kept in memory, see [`UserCache`].
        max_body_bytes: of a request.
        requests_per_second: of each key, or address where there are no keys.
        max_batch: requests of one model call.
        max_waiting: requests that may wait for the model before 503 is answered.
        clock: tells the time in seconds since 1970.
    """

    model: str
    store: str = "sqlite:///histories.db"
    api_keys: Sequence[str] = ()
    admin_keys: Sequence[str] = ()
    catalogue: str | None = None
    find_index: Any = None
    history_events: int = 1000
    cached_users: int = 2000
    max_body_bytes: int = 1_000_000
    requests_per_second: float = 200.0
    max_batch: int = 32
    max_waiting: int = 1000
    clock: Callable[[], float] = time.time


@dataclass
class Service:
    """The model, its users and the store of a running application; the first two are replaced whole."""

    settings: ServiceSettings
    store: Any
    metrics: Metrics = field(default_factory=Metrics)
    reloading: threading.Lock = field(default_factory=threading.Lock)
    deleted: list[int] = field(default_factory=list)  # places of events, since a reload began

    def __post_init__(self) -> None:
        self.reload()
        self.answering = self.users  # the memory that answered last

    @property
    def model(self) -> ServingModel:
        return self.users.model

    def reload(self) -> str:
        """Read the checkpoint again; requests that run keep the old one, and so do all if it fails."""
        asked = self.settings
        with self.reloading:
            model = ServingModel(
                asked.model,
                catalogue=asked.catalogue,
                find_index=asked.find_index,
                clock=asked.clock,
            )
            self.users = UserCache(
                model,
                self.store,
                size=asked.cached_users,
                history_events=asked.history_events,
                on_read=lambda how: self.metrics.users.labels(how).inc(),
            )
            self.metrics.loaded.clear()
            self.metrics.loaded.labels(model.fingerprint).set(time.time())
            return model.fingerprint

    def try_reload(self) -> str | None:
        """[`~Service.reload`]; None where the checkpoint cannot be loaded, and the log says why."""
        try:
            name = self.reload()
        except Exception:  # whatever is wrong with it, the old one is there
            logger.exception("the checkpoint was not loaded; the earlier one is served on")
            return None
        logger.info("serving %s", name)
        return name

    def answer(self, questions: Sequence[tuple]) -> list[tuple[str, Any]]:
        """Recommendations or scores for each question, from the model that is there at this moment.

        A `"forget"` takes a user out of memory, in its turn among the questions.
        """
        users = self.users
        model = users.model
        self._forget(users, [asked for kind, asked in questions if kind == "forget"])
        places = [place for place, (kind, _) in enumerate(questions) if kind == "recommend"]
        asked = [questions[place][1] for place in places]
        known = users.read([one["user"] for one in asked])
        wishes = [Wish(user.live, user.seen, **one["wish"]) for user, one in zip(known, asked)]
        answers: list[Any] = [None] * len(questions)
        for place, items in zip(places, model.recommend(wishes)):
            answers[place] = items
        for place, (kind, asked) in enumerate(questions):
            if kind == "score":
                history = self._history(users, asked)
                answers[place] = model.score(history, asked.item_ids, asked.query_time)
        return [(model.fingerprint, answer) for answer in answers]

    def _forget(self, users: UserCache, gone: Sequence[tuple[str, Sequence[int]]]) -> None:
        """Take users out of memory, and out of that of a reload which may have read their events before."""
        if users is not self.answering:  # the first time since the reload
            users.trend.forget(self.deleted)
            self.answering, self.deleted = users, []
        for user_id, places in gone:
            users.forget(user_id, places)
            if self.reloading.locked() or users is not self.users:
                self.deleted += places

    def _history(self, users: UserCache, asked: ScoreIn) -> Any:
        if asked.history is not None:
            return [event.row() for event in asked.history]
        return users.read([str(asked.user_id)])[0].live

    def write(self, changes: Sequence[tuple]) -> list[Any]:
        """Store events and forget users, in the order that they came.

        Returns:
            Of each, how many events were new; of a user, how many there were, and their places.
        """
        results: list[Any] = []
        for kind, group in groupby(changes, key=itemgetter(0)):
            values = [value for _, value in group]
            if kind == "add":  # in one transaction
                results += self.store.add_together(values)
            else:
                for value in values:
                    places = self.store.places(value)
                    results.append((self.store.forget(value), places))
        return results


def open_store(url: str) -> Any:
    """The store of a URL: of `redis://...` a [`RedisStore`], else a [`HistoryStore`]."""
    if not url.startswith(("redis://", "rediss://")):
        return HistoryStore(url)
    from .redis_store import RedisStore  # redis is an extra of its own

    return RedisStore(url)


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application; the model is loaded here, so that it is there before the first request.

    Raises:
        OSError: where there is no checkpoint.
        ValueError: where its parts do not belong together.
    """
    service = Service(settings, open_store(settings.store))
    model = MicroBatcher(
        service.answer,
        max_size=settings.max_batch,
        max_waiting=settings.max_waiting,
        on_batch=service.metrics.batch.observe,
    )
    writer = MicroBatcher(service.write, max_waiting=settings.max_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(
                signal.SIGHUP, lambda: loop.run_in_executor(None, service.try_reload)
            )
        async with model, writer:
            yield
        service.store.close()

    app = FastAPI(
        title="implicitrec",
        description="Recommendations from behaviour, kept and updated as it comes in.",
        lifespan=lifespan,
        responses=REFUSALS,
    )
    app.state.service = service
    app.add_middleware(Guard, max_body=settings.max_body_bytes, metrics=service.metrics)
    app.add_exception_handler(Overloaded, _overloaded)
    checked = [Depends(_gate(settings))]
    _add_user_routes(app, model, writer, checked)
    _add_operator_routes(app, service, checked)
    return app


def _gate(settings: ServiceSettings) -> Any:
    """What lets a request in: its key, its rate, and parameters that are known."""
    limit = RateLimit(settings.requests_per_second)

    def let_in(request: Request, key: Annotated[str | None, Security(KEY)] = None) -> None:
        admin = request.url.path.startswith("/admin")
        keys = settings.admin_keys if admin else [*settings.api_keys, *settings.admin_keys]
        if admin and not settings.admin_keys:
            raise HTTPException(401, "reloading over HTTP needs an admin key; SIGHUP does not")
        check_key(key, keys if settings.api_keys or admin else ())
        caller = key if settings.api_keys and key else request.client.host if request.client else ""
        wait = limit.wait(caller)
        if wait:
            raise HTTPException(429, "too many requests", {"Retry-After": str(math.ceil(wait))})
        known = [field.alias for field in request.scope["route"].dependant.query_params]
        if unknown := sorted(set(request.query_params) - set(known)):
            expected = f"expected some of {known}" if known else "none are expected"
            raise HTTPException(422, f"unknown query parameters {unknown}: {expected}")

    return let_in


def _overloaded(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})


def _add_user_routes(
    app: FastAPI, model: MicroBatcher, writer: MicroBatcher, checked: list[Any]
) -> None:
    @app.post("/events", status_code=201, dependencies=checked)
    async def store_events(body: EventsIn) -> Stored:
        """Store what users did; once answered, it is on disk."""
        stored = await writer(("add", [event.row() for event in body.events]))
        app.state.service.metrics.events.inc(stored)
        return Stored(stored=stored)

    @app.get("/recommendations/{user:text}", dependencies=checked)
    async def recommend(
        user: User,
        k: Annotated[int, Query(ge=1, le=200, description="length of the list")] = 10,
        exclude_seen: Annotated[bool, Query(description="only items new to the user")] = False,
        category: Annotated[Text | None, Query(description="only items of this category")] = None,
        diversity: Annotated[float, Query(ge=0, le=1, description="share of diversity")] = 0.0,
        query_time: Annotated[int | None, Query(ge=1, le=LATEST, description=ASKED)] = None,
    ) -> Recommendations:
        """The best items for a user; for an unknown one, the most popular."""
        wish: dict[str, Any] = {"top_k": k, "exclude_seen": exclude_seen}
        wish |= {"category": category, "diversity": diversity, "query_time": query_time}
        made_by, items = await model(("recommend", {"user": user, "wish": wish}))
        return Recommendations(user_id=user, items=items, model=made_by)

    @app.post("/score", dependencies=checked)
    async def score(body: ScoreIn) -> Scores:
        """Scores of chosen items after a history."""
        if (body.user_id is None) == (body.history is None):
            raise HTTPException(422, "expected user_id or history, one of the two")
        made_by, scores = await model(("score", body))
        return Scores(scores=scores, model=made_by)

    @app.delete("/users/{user:text}", dependencies=checked)
    async def forget(user: User) -> Forgotten:
        """Delete every event of a user."""
        deleted, places = await writer(("forget", user))
        await model(("forget", (user, places)))
        return Forgotten(deleted=deleted)


def _add_operator_routes(app: FastAPI, service: Service, checked: list[Any]) -> None:
    @app.post("/admin/reload", dependencies=checked, responses={409: {"model": Problem}})
    async def reload() -> Health:
        """Read the checkpoint again, without dropping a request."""
        made_by = await asyncio.get_running_loop().run_in_executor(None, service.try_reload)
        if made_by is None:
            raise HTTPException(409, "the checkpoint cannot be loaded; see the log")
        return Health(status="ok", model=made_by)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the store answers, and which model is served."""
        await asyncio.get_running_loop().run_in_executor(None, service.store.check)
        return Health(status="ok", model=service.model.fingerprint)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters in the format of Prometheus."""
        text = generate_latest(service.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
