"""The service: what is acknowledged stays, limits hold, models are swapped, nothing leaks."""

import asyncio
import os
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import torch

pytest.importorskip("fastapi", reason="the service is tested with the extra `serve`")
pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi.testclient import TestClient

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    ServingModel,
    Wish,
    save_checkpoint,
)
from modeling_implicitrec.history_store import HistoryStore
from modeling_implicitrec.micro_batching import MicroBatcher, Overloaded
from modeling_implicitrec.service import ServiceSettings, create_app, open_store

ITEMS = 30


def write_checkpoint(folder: Path, seed: int = 0, names: bool = True) -> Path:
    ids = [f"item {n}" for n in range(ITEMS)] if names else list(range(100, 100 + ITEMS))
    log = {"item_id": ids + ids[:10], "event_type": ["view", "buy"] * 20, "count": [1.0, 2.0] * 20}
    processor = ImplicitRecProcessor.fit(log, event_type_weights={"buy": 3})
    torch.manual_seed(seed)
    config = ImplicitRecConfig(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        hidden_size=16,
        max_position_embeddings=20,
        copy_prior=True,
        vocabulary_fingerprint=processor.fingerprint,
    )
    model = ImplicitRecForScoring(config)
    torch.nn.init.normal_(model.item_decoder.weight, std=0.5)
    model.fit_item_counts(processor.item_counts)
    torch.nn.init.constant_(model.head.copy.level, 0.3)  # what was there comes back
    processor.adapt_to(config)
    return save_checkpoint(folder, model=model, processor=processor)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("catalogue") / "items.parquet"
    columns = {
        "item_id": [f"item {n}" for n in range(ITEMS)],
        "name": [f"name {n}" for n in range(ITEMS)],
        "category": ["even" if n % 2 == 0 else "odd" for n in range(ITEMS)],
        "in_stock": [n not in (3, 4) for n in range(ITEMS)],
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture()
def settings(checkpoint, catalogue, tmp_path) -> ServiceSettings:
    store = f"sqlite:///{tmp_path}/histories.db"
    return ServiceSettings(
        model=str(checkpoint),
        store=store,
        catalogue=str(catalogue),
        requests_per_second=10_000,
        admin_keys=["root"],
    )


@pytest.fixture()
def client(settings):
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def event(user: str, item: int, **more) -> dict:
    return {"user_id": user, "item_id": f"item {item}", "timestamp": 1000 + item} | more


def test_events_change_the_list_and_are_forgotten(client):
    popular = client.get("/recommendations/ann").json()["items"]
    sent = [event("ann", n, event_type="buy", count=2) for n in (7, 9)]
    assert client.post("/events", json={"events": sent}).json() == {"stored": 2}
    answer = client.get("/recommendations/ann?k=30&exclude_seen=true").json()
    shown = [item["item_id"] for item in answer["items"]]
    assert len(shown) == ITEMS - 4  # two seen, two out of stock
    assert not {"item 7", "item 9", "item 3", "item 4"} & set(shown)
    assert answer["items"][0]["name"].startswith("name ")
    again = client.get("/recommendations/ann?k=2").json()["items"]
    assert {item["item_id"] for item in again} == {"item 7", "item 9"}
    even = client.get("/recommendations/ann?category=even&k=30&diversity=0.5").json()["items"]
    assert even and all(int(item["item_id"].split()[1]) % 2 == 0 for item in even)
    assert client.delete("/users/ann").json() == {"deleted": 2}
    assert client.get("/recommendations/ann").json()["items"] == popular


def test_any_text_may_be_a_users_name(client):
    name = "a/b\nc ~\u00e2"
    assert client.post("/events", json={"events": [event(name, 7)]}).json() == {"stored": 1}
    path = quote(name, safe="")
    assert client.get(f"/recommendations/{path}").json()["user_id"] == name
    assert [client.delete(f"/users/{path}").json()["deleted"] for _ in range(2)] == [1, 0]


def test_a_user_whose_id_is_an_integer_is_the_user_of_that_text(client):
    assert client.post("/events", json={"events": [event(17, 7)]}).json() == {"stored": 1}
    seen = client.get("/recommendations/17?k=30&exclude_seen=true").json()
    assert seen["user_id"] == "17" and len(seen["items"]) == ITEMS - 3
    asked = {"item_ids": ["item 7", "item 8"]}
    scores = [client.post("/score", json=asked | {"user_id": u}).json() for u in (17, "17", "x")]
    assert scores[0] == scores[1] != scores[2]
    assert client.delete("/users/17").json() == {"deleted": 1}
    for wrong in (True, 17.5, 2**63):
        assert client.post("/events", json={"events": [event(wrong, 7)]}).status_code == 422


def test_a_query_parameter_that_is_not_known_is_refused_by_name(client):
    answer = client.get("/recommendations/ann?top_k=5&k=3")
    assert answer.status_code == 422
    known = "'k', 'exclude_seen', 'category', 'diversity', 'query_time'"
    said = f"unknown query parameters ['top_k']: expected some of [{known}]"
    assert answer.json() == {"detail": said}
    answer = client.delete("/users/ann?all=1")
    assert answer.json() == {"detail": "unknown query parameters ['all']: none are expected"}


def test_scores_are_the_models_for_a_stored_and_a_given_history(client, checkpoint):
    history = [{"item_id": "item 7", "timestamp": 5}, {"item_id": "gone", "timestamp": 6}]
    client.post("/events", json={"events": [{"user_id": "bob", **one} for one in history]})
    items = ["item 7", "item 8", "gone", 12]
    answers = [
        client.post("/score", json={"item_ids": items, **asked}).json()["scores"]
        for asked in ({"user_id": "bob"}, {"history": history})
    ]
    served = ServingModel(checkpoint)
    inputs = served.processor([[history[0]]])
    scores = served.model(**inputs).logits[0, served.processor.encode_items(items[:2])]
    assert answers[0] == answers[1]
    assert answers[0][:2] == pytest.approx(scores.tolist(), abs=1e-5)
    assert answers[0][2:] == [None, None]
    assert client.post("/score", json={"item_ids": items}).status_code == 422


def test_an_answer_does_not_depend_on_who_is_asked_about_with_it(checkpoint):
    served = ServingModel(checkpoint)
    wishes = [
        Wish([{"item_id": "item 2", "timestamp": 10}, {"item_id": "item 5", "timestamp": 90_000}]),
        Wish([]),
        Wish([{"item_id": "nothing known", "timestamp": 5}], top_k=3),
        Wish([{"item_id": "item 2", "timestamp": 10}], seen=[8], exclude_seen=True, diversity=0.3),
    ]
    together, alone = served.recommend(wishes), [served.recommend([wish])[0] for wish in wishes]
    for one, other in zip(together, alone):
        assert [item["item_id"] for item in one] == [item["item_id"] for item in other]
        assert [i["score"] for i in one] == pytest.approx([i["score"] for i in other], abs=1e-5)
    assert len(together[2]) == 3


def test_integers_as_ids_are_met_as_numbers_and_as_text(tmp_path):
    served = ServingModel(write_checkpoint(tmp_path / "numbers", names=False))
    history = [{"item_id": item, "timestamp": 1} for item in ("101", 102, "x", "1e3", "9" * 30)]
    (items,) = served.recommend([Wish(history, top_k=ITEMS, exclude_seen=True)])
    shown = [item["item_id"] for item in items]
    assert sorted(shown) == [n for n in range(100, 100 + ITEMS) if n not in (101, 102)]
    scores = served.score(history, ["101", "0101"])
    assert scores[0] is not None and scores[1] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/events", {"events": []}, 422),
        ("POST", "/events", {"events": [{"user_id": "a", "item_id": True}]}, 422),
        ("POST", "/events", {"events": [{"user_id": "a\u0000", "item_id": "b"}]}, 422),
        ("POST", "/events", {"events": [{"user_id": "a", "item_id": 2**63}]}, 422),
        ("POST", "/events", {"events": [{"user_id": "a", "item_id": "b", "count": -1}]}, 422),
        ("POST", "/events", {"events": [{"user_id": "a", "item_id": "b", "colour": 1}]}, 422),
        ("GET", "/recommendations/", None, 422),
        ("GET", "/recommendations/ann?k=0", None, 422),
        ("POST", "/admin/reload", None, 401),
        ("GET", "/nowhere", None, 404),
    ],
    ids=str,
)
def test_wrong_requests_are_refused(method, path, body, status, client):
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_numbers_that_json_lacks_and_huge_ones_are_refused(client):
    for value in ("NaN", "Infinity", "1e400", "-1", '"soon"'):
        body = f'{{"events": [{{"user_id": "a", "item_id": "b", "timestamp": {value}}}]}}'
        answer = client.post("/events", content=body)
        assert answer.status_code == 422, value


def test_keys_bodies_and_rates_are_limited(settings):
    values = vars(settings) | {"api_keys": ["one"], "max_body_bytes": 300, "requests_per_second": 2}
    with TestClient(create_app(ServiceSettings(**values)), raise_server_exceptions=False) as client:
        assert client.get("/recommendations/ann").status_code == 401
        assert (
            client.get("/recommendations/ann", headers={"X-API-Key": "öne".encode()}).status_code
            == 401
        )
        assert client.get("/healthz").status_code == 200
        key = {"X-API-Key": "one"}
        large = {"events": [event("ann", n) for n in range(20)]}
        assert client.post("/events", json=large, headers=key).status_code == 413
        parts = (part for part in [b'{"events": [', b" " * 400, b"]}"])  # no length told
        assert client.post("/events", content=parts, headers=key).status_code == 413
        statuses = [client.get("/recommendations/ann", headers=key) for _ in range(8)]
        assert [answer.status_code for answer in statuses][-1] == 429
        assert int(statuses[-1].headers["Retry-After"]) >= 1
        assert client.post("/admin/reload", headers=key).status_code == 401


def test_an_error_is_counted_and_told_without_its_trace(client, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("secret path /home/me")

    with monkeypatch.context() as patch:
        patch.setattr(client.app.state.service.store, "version", fail)
        answer = client.get("/recommendations/ann")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "internal error"}
    assert client.get("/recommendations/ann").status_code == 200  # the next batch is answered
    text = client.get("/metrics").text
    assert 'route="/recommendations/{user:text}",status="500"} 1.0' in text


def test_a_new_checkpoint_is_swapped_in_without_dropping_a_request(settings, tmp_path):
    folder = write_checkpoint(tmp_path / "model")
    app = create_app(ServiceSettings(**vars(settings) | {"model": str(folder)}))
    with TestClient(app, raise_server_exceptions=False) as client:
        client.post("/events", json={"events": [event("ann", 7)]})
        seen, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = client.get("/recommendations/ann")
                seen.append((answer.status_code, answer.json()["model"]))

        thread = threading.Thread(target=ask)
        thread.start()
        write_checkpoint(folder, seed=1)
        answer = client.post("/admin/reload", headers={"X-API-Key": "root"})
        time.sleep(0.2)
        stop.set()
        thread.join()
        assert answer.status_code == 200
        assert {status for status, _ in seen} == {200}
        models = [model for _, model in seen]
        assert models[0] != models[-1] == answer.json()["model"]
        os.remove(folder / "config.json")
        assert client.post("/admin/reload", headers={"X-API-Key": "root"}).status_code == 409
        assert client.get("/recommendations/ann").json()["model"] == models[-1]


def test_requests_that_wait_are_computed_together_and_too_many_are_refused():
    sizes = []

    def slow(values: list) -> list:
        sizes.append(len(values))
        time.sleep(0.05)
        return [1 / value for value in values]

    async def main() -> list:
        async with MicroBatcher(slow, max_size=4, max_waiting=6) as batcher:
            first = asyncio.create_task(batcher(1))
            await asyncio.sleep(0.02)
            others = [asyncio.create_task(batcher(n)) for n in (2, 4, 5, 8, 0, 10, 20)]
            return await asyncio.gather(first, *others, return_exceptions=True)

    results = asyncio.run(main())
    assert sizes == [1, 4, 2]
    assert results[:5] == [1, 0.5, 0.25, 0.2, 0.125]
    assert isinstance(results[5], ZeroDivisionError) and isinstance(results[7], Overloaded)


def check_store(store) -> None:
    """What every database must do."""
    first = {"user_id": "ann", "item_id": "tea", "timestamp": 30, "count": 2.0, "event_id": "1"}
    others = [
        {"user_id": "ann", "item_id": i, "timestamp": t} for i, t in (("milk", 10), ("é'", 20))
    ]
    assert store.add_together([[first], others, [], [first]]) == [1, 2, 0, 0]
    assert store.add([first, first | {"user_id": "bob"}]) == 1
    assert [event["item_id"] for event in store.history("ann", limit=2)] == ["é'", "tea"]
    assert store.history("ann", limit=9)[-1] == {"item_id": "tea", "timestamp": 30, "count": 2.0}
    assert sorted(store.items("ann")) == ["milk", "tea", "é'"]
    with pytest.raises(Exception, match="(?i)null"):  # all of a commit or nothing
        store.add_together([[first | {"event_id": "2"}], [{"user_id": "ann", "item_id": None}]])
    assert len(store.history("ann", limit=9)) == 3
    assert store.forget("ann") == 3 and store.history("ann", limit=9) == []
    assert len(store.history("bob", limit=9)) == 1
    assert store.version("ann") == (0, 0)
    store.add([first, {"user_id": "ann", "item_id": "rye", "timestamp": 5}])
    count, last = store.version("ann")
    assert count == 2 and last > 0
    store.add([{"user_id": "ann", "item_id": "oats", "timestamp": 40, "platform": "web"}])
    latest = store.version("ann")
    new = {"item_id": "oats", "timestamp": 40, "platform": "web"}
    assert store.since("ann", last, until=latest[1]) == [new]
    assert store.since("ann", last, until=last) == []
    then = store.history("ann", limit=9, until=last)
    assert [event["item_id"] for event in then] == ["rye", "tea"]
    store.forget("ann")
    store.add([first])
    assert store.version("ann")[1] > latest[1]  # no place comes again
    check_everybody(store, first)
    store.check()


def check_everybody(store, first: dict) -> None:
    """Events without their users: of ann's tea, bob's and what comes now."""
    wide = {"since": 0, "until": 100, "limit": 9}
    place, found = store.everybodys(after=0, **wide)
    assert [event["item_id"] for event in found] == ["tea", "tea"]
    assert place == found[-1]["place"] == store.places("ann")[0]
    kinds = [("nut", 50, None), ("oil", 40, "view"), ("fig", 60, "skip"), ("egg", 900, None)]
    store.add(
        [
            first | {"event_id": None, "item_id": i, "timestamp": t, "event_type": e}
            for i, t, e in kinds
        ]
    )
    last, found = store.everybodys(after=place, **wide, without=["skip"])
    assert [(event["item_id"], event["timestamp"]) for event in found] == [("oil", 40), ("nut", 50)]
    assert last == max(store.places("ann")) and store.everybodys(after=last, **wide) == (last, [])
    for part, shown in (({"limit": 2}, "nf"), ({"since": 40}, "nf"), ({"until": 50}, "on")):
        found = store.everybodys(after=place, **wide | part)[1]
        assert [event["item_id"][0] for event in found] == list(shown)
    store.forget("ann")
    assert len(store.everybodys(after=0, **wide)[1]) == 1 and store.places("ann") == []


def test_sqlite_keeps_histories_and_overwrites_what_it_forgets(tmp_path):
    store = HistoryStore(f"sqlite:///{tmp_path}/histories.db")
    with store.engine.connect() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete")
        ]
    assert settings == ["wal", 2, 1]
    check_store(store)
    store.add([{"user_id": "someone private", "item_id": "tea", "timestamp": 1}])
    store.forget("someone private")
    store.close()
    for file in tmp_path.iterdir():
        assert b"someone private" not in file.read_bytes(), file


def test_postgres_keeps_histories(postgres_server):
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    with psycopg.connect(postgres_server, autocommit=True) as server:
        server.execute("CREATE DATABASE served")
    url = postgres_server.removesuffix("postgres") + "served"
    store = HistoryStore(url)
    try:
        check_store(store)
        with psycopg.connect(url, autocommit=True) as server:
            server.execute("DROP INDEX events_by_time")  # as an older version made it
            HistoryStore(url).close()
            found = server.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'events'")
            assert ("events_by_time",) in found.fetchall()
    finally:
        store.close()


def test_redis_keeps_histories_and_serves_them(redis_server, settings):
    redis = pytest.importorskip("redis", reason="redis is not installed")
    store = open_store(redis_server)
    check_store(store)
    store.add([{"user_id": "a:ids", "item_id": "tea", "timestamp": 1, "event_id": "1"}])
    assert store.version("a") == (0, 0)
    store.forget("a:ids")
    redis.Redis.from_url(redis_server).flushall()
    app = create_app(ServiceSettings(**vars(settings) | {"store": redis_server}))
    with TestClient(app, raise_server_exceptions=False) as client:
        test_events_change_the_list_and_are_forgotten(client)
