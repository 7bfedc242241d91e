"""What anybody does enters the trend of a service: once, in time, and as in the model itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="the service is tested with the extra `serve`")
pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
from fastapi.testclient import TestClient
from tiny_models import tiny

from modeling_implicitrec import (
    ImplicitRecProcessor,
    LiveBody,
    Retriever,
    ServingModel,
    Wish,
    load_checkpoint,
    save_checkpoint,
)
from modeling_implicitrec.recent_events import RecentEvents
from modeling_implicitrec.service import ServiceSettings, create_app
from modeling_implicitrec.user_cache import UserCache

ITEMS, HELD, END = 30, 12, 10_000  # the checkpoint's trend ends at END
NOW = END + 5000
TREND = {"use_query_time": True, "num_trend_events": HELD, "trend_context": 6, "copy_prior": True}


def write_trending(folder: Path) -> Path:
    """A checkpoint whose trend is what counts most."""
    log = {"item_id": [f"item {n}" for n in range(ITEMS)], "event_type": ["view", "skip"] * 15}
    log["item_id"] += log["item_id"]  # each is viewed, too
    log["event_type"] += log["event_type"][::-1]
    processor = ImplicitRecProcessor.fit(log, negative_event_types=["skip"])
    model = tiny(
        vocab_size=processor.vocab_size,
        num_event_types=processor.num_event_types,
        negative_event_type_ids=processor.negative_event_type_ids,
        max_position_embeddings=20,
        **TREND,
    )
    model.fit_item_counts(processor.item_counts)
    model.fit_trend(processor.encode_items(["item 20"] * 8), END - 10 * np.arange(8))
    with torch.no_grad():
        model.head.trend.level.fill_(1.0)
    processor.adapt_to(model.config)
    return save_checkpoint(folder, model=model, processor=processor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_trending(tmp_path_factory.mktemp("trending") / "model")


@pytest.fixture()
def settings(folder, tmp_path) -> ServiceSettings:
    return ServiceSettings(
        model=str(folder),
        store=f"sqlite:///{tmp_path}/histories.db",
        requests_per_second=10_000,
        clock=lambda: NOW,
    )


def serving(settings: ServiceSettings) -> TestClient:
    return TestClient(create_app(settings))


def event(user: str, item: int, time: int, **more) -> dict:
    return {"user_id": user, "item_id": f"item {item}", "timestamp": END + time} | more


def send(client: TestClient, *events: dict) -> int:
    return client.post("/events", json={"events": list(events)}).json()["stored"]


def listed(client: TestClient, user: str = "nobody", **asked) -> dict[str, float]:
    asked = {"k": ITEMS, "exclude_seen": False} | asked
    items = client.get(f"/recommendations/{user}", params=asked).json()["items"]
    return {item["item_id"]: item["score"] for item in items}


def expected(folder, events: list[dict], moment: int, history: list[dict]) -> dict[str, float]:
    """What the whole model recommends, whose trend has observed these events."""
    model, processor = load_checkpoint(folder)
    tokens = processor.encode_items([one["item_id"] for one in events])
    times = torch.tensor([one["timestamp"] for one in events])
    model.head.trend.observe(torch.from_numpy(tokens), times)
    row = [{n: v for n, v in one.items() if n != "user_id"} for one in history]
    found = model.eval().recommend(
        **processor([row]),
        query_time=torch.tensor([moment]),
        exclude_seen=False,
        top_k=ITEMS,
    )
    return dict(zip(processor.decode_items(found.item_tokens[0]), found.scores[0].tolist()))


def same(one: dict[str, float], other: dict[str, float]) -> bool:
    return list(one) == list(other) and list(one.values()) == pytest.approx(
        list(other.values()), abs=1e-5
    )


ANNS = [event("ann", 3, 1000), event("ann", 4, 2000), event("ann", 5, 3000, event_type="skip")]
BOBS = [event("bob", 7, 4000), event("bob", 8, 4100), event("bob", 7, 1500)]  # one of them late


def test_lists_are_those_of_the_model_whose_trend_observed_the_same(settings, folder):
    with serving(settings) as client:
        before = listed(client)
        send(client, *ANNS)
        send(client, *BOBS)
        after = listed(client, "ann")
        assert same(after, expected(folder, [*ANNS[:2], *BOBS], NOW, ANNS))
        assert same(listed(client, "ann", query_time=END + 1900), expected(
            folder, [*ANNS[:2], *BOBS], END + 1900, ANNS
        ))  # fmt: skip
        scores = client.post("/score", json={"item_ids": ["item 7"], "user_id": "ann"}).json()
        assert scores["scores"] == pytest.approx([after["item 7"]], abs=1e-5)
        assert not same(listed(client), before)
        many = [event("eve", n % ITEMS, 4200 + n % 7) for n in range(3 * HELD)]
        send(client, *many)
        held = listed(client, "ann")
        assert same(held, expected(folder, [*ANNS[:2], *BOBS, *many], NOW, ANNS))
    with serving(settings) as again:  # after a restart
        assert same(listed(again, "ann"), held)


def test_servers_of_one_store_hold_the_same(settings):
    with serving(settings) as one, serving(settings) as other:
        listed(other)
        send(one, *ANNS, *BOBS)
        assert same(listed(other), listed(one))
        send(other, event("bob", 9, 4500))
        assert same(listed(one), listed(other))


@pytest.mark.parametrize(
    "what",
    [
        event("eve", 9, 4000, event_type="skip"),
        event("eve", 99, 4000),
        event("eve", 9, 0),  # the checkpoint may have it already
        event("eve", 9, NOW - END + 2 * 3600),  # a wrong clock
    ],
    ids=["negative", "unknown", "before the checkpoint ended", "tomorrow"],
)
def test_what_does_not_enter(what, settings):
    with serving(settings) as client:
        send(client, event("ann", 3, 1000))
        moments = [{}, {"query_time": NOW + 3 * 3600}]
        before = [listed(client, **asked) for asked in moments]
        assert send(client, what) == 1
        for asked, list_before in zip(moments, before):
            assert same(listed(client, **asked), list_before)


def risen(before: dict[str, float], after: dict[str, float]) -> set[str]:
    return {item for item in after if after[item] > before[item] + 1e-4}


def test_an_event_counts_once_when_its_time_has_come(settings):
    with serving(settings) as client:
        one = event("ann", 9, NOW - END + 60, event_id="a")  # a clock that is a minute ahead
        before, asked = listed(client), {"query_time": NOW + 61}
        assert send(client, one) == 1
        assert same(listed(client), before)
        once = listed(client, **asked)
        assert "item 9" in risen(before, once)
        assert send(client, one) == 0
        assert same(listed(client, **asked), once)


def test_an_event_ahead_of_the_clock_waits_with_every_server(settings):
    now = [NOW]
    settings = replace(settings, clock=lambda: now[0])
    with serving(settings) as one:
        send(one, event("eve", 9, NOW - END + 2 * 3600), event("bob", 8, NOW - END + 2 * 3600))
        with serving(settings) as other:
            before = listed(one)
            assert same(listed(other), before)
            one.delete("/users/bob")
            now[0] += 3 * 3600
            after = listed(one)
            assert "item 9" in risen(before, after) and "item 8" not in risen(before, after)
            assert "item 9" in risen(before, listed(other))
        with serving(settings) as later:
            assert same(listed(later), after)


def test_events_ahead_push_nothing_out(settings):
    with serving(settings) as one:
        send(one, *ANNS, *BOBS)
        before = listed(one)
        send(one, *(event("eve", 9, NOW - END + 7200 + n) for n in range(2 * HELD)))
        assert same(listed(one), before)
    with serving(settings) as later:
        assert same(listed(later), before)


def test_who_is_deleted_during_a_reload_is_not_in_the_new_trend(settings, monkeypatch):
    with serving(settings) as client:
        before = listed(client)
        send(client, *ANNS)
        held = []

        def slow(*given, **options) -> UserCache:
            users = UserCache(*given, **options)  # has read what is stored
            held.append(users.model.recent.latest)
            assert client.delete("/users/ann").json() == {"deleted": len(ANNS)}
            return users

        monkeypatch.setattr("modeling_implicitrec.service.UserCache", slow)
        client.app.state.service.reload()
        assert held == [END + 2000]
        assert same(listed(client), before)
        send(client, *ANNS)
        assert not same(listed(client), before)


def test_a_deleted_users_events_leave_the_trend(settings):
    with serving(settings) as client:
        send(client, *ANNS)
        before = listed(client)
        send(client, *BOBS, event("bob", 3, 1000))  # ann's own at that second stays
        assert not same(listed(client), before)
        client.delete("/users/bob")
        assert same(listed(client), before)


def test_the_moment_is_now_where_there_is_one(folder):
    times = iter([])
    served = ServingModel(folder, clock=lambda: next(times))
    (user,) = served.read([[{"item_id": "item 3", "timestamp": END + 100}]])
    day = 86_400
    for now, moment in (
        (END + 5000, END + 5000),
        (END + 100, END + 101),  # what was done this second counts
        (END + 6 * day, END + 6 * day),
        (END + 8 * day, END + 101),  # the log has ended
        (END + 50, END + 51),  # of the user's clock nothing is believed
    ):
        times = iter([now])
        assert served.moment(user) == moment
    wish = Wish([{"item_id": "item 3", "timestamp": 5}], query_time=END - 100)
    assert served.recommend([wish])  # the clock, which has nothing left, is not asked


def test_events_in_arrays_are_those_that_the_model_holds():
    random = np.random.default_rng(0)
    model = tiny(use_query_time=True, num_trend_events=8, trend_context=5)
    trend = model.head.trend
    recent = RecentEvents(trend.tokens.numpy().copy(), trend.times.numpy().copy())
    for place in range(1, 200):
        token, time = int(random.integers(1, 30)), place + int(random.integers(-12, 2))
        trend.observe(torch.tensor([token]), torch.tensor([max(time, 1)]))
        recent.add(token, max(time, 1), place)
        assert recent.tokens.tolist() == trend.tokens.tolist()
        assert recent.times.tolist() == trend.times.tolist()


def test_a_retriever_follows_where_its_own_events_are_told():
    model = tiny(use_query_time=True, num_trend_events=8, trend_context=5)
    model.fit_trend([5, 6], [100, 200])
    retriever, body = Retriever(model), LiveBody(model)
    retriever.head.trend.recent.add(9, 300, place=1)
    model.head.trend.observe(torch.tensor([9]), torch.tensor([300]))
    inputs = {"input_ids": torch.tensor([[1, 2]]), "timestamps": torch.tensor([[10, 20]])}
    asked = torch.tensor([301])
    found = retriever.recommend(**inputs, query_time=asked, top_k=20)
    whole = model.recommend(**inputs, query_time=asked, top_k=20)
    assert found.item_tokens.tolist() == whole.item_tokens.tolist()
    (user,) = body.start(**inputs)
    ranked = retriever.rank(torch.from_numpy(user.state)[None], [body.past(user, 301)], top_k=20)
    assert ranked.item_tokens.tolist() == whole.item_tokens.tolist()
    torch.testing.assert_close(ranked.scores, whole.scores, atol=1e-5, rtol=0)
