"""A user in memory is the user in the store, whatever was stored or deleted, and by whom."""

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service is tested with the extra `serve`")
pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
from test_service import ITEMS, write_checkpoint

from modeling_implicitrec import ImplicitRecProcessor, ServingModel
from modeling_implicitrec.history_store import HistoryStore
from modeling_implicitrec.user_cache import UserCache

LIMIT = 20  # of the checkpoint's window


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("cached") / "model")


@pytest.fixture(scope="module")
def served(folder) -> ServingModel:
    return ServingModel(folder)


class Counted:
    """A cache, and how it found its users."""

    def __init__(self, served: ServingModel, store: HistoryStore, **sizes) -> None:
        self.found: list[str] = []
        sizes = {"size": 3, "history_events": 30} | sizes
        self.cache = UserCache(served, store, on_read=self.found.append, **sizes)
        self.read = self.cache.read


def event(user: str, item: int, time: int, **more) -> dict:
    return {"user_id": user, "item_id": f"item {item}", "timestamp": time} | more


def check(kept: Counted, served: ServingModel, store: HistoryStore, user: str) -> None:
    """What is in memory is what a server that has just started would make."""
    (known,) = kept.read([user])
    (fresh,) = Counted(served, store).read([user])
    assert known.version == fresh.version and set(known.seen) == set(fresh.seen)
    for name in ("input_ids", "event_type_ids", "timestamps"):
        assert known.live.held(name).tolist() == fresh.live.held(name).tolist(), name
    np.testing.assert_allclose(known.live.state, fresh.live.state, atol=1e-5)


def test_events_are_steps_and_windows_move_the_same_for_all(served):
    store, random = HistoryStore("sqlite://"), np.random.default_rng(0)
    kept = Counted(served, store)
    for time in range(60):
        item = int(random.integers(ITEMS + 5))  # some of them unknown
        store.add([event("ann", item, 100 * time, event_type="buy")])
        check(kept, served, store, "ann")
    assert kept.found.count("stepped") >= 40
    assert kept.found.count("made") >= 60 / LIMIT
    kept.read(["ann"])
    assert kept.found[-1] == "kept"


def test_late_events_deletions_and_strangers_are_made_anew(served):
    store = HistoryStore("sqlite://")
    kept = Counted(served, store)
    assert kept.read(["nobody"])[0].live.size == 0
    store.add([event("ann", n, 100 * n) for n in range(5)])
    check(kept, served, store, "ann")
    store.add([event("ann", 9, 150)])  # late
    check(kept, served, store, "ann")
    store.forget("ann")  # by another server
    store.add([event("ann", n, 100 * n) for n in range(7, 13)])  # as many as before
    check(kept, served, store, "ann")
    assert kept.found == ["made"] * 4
    store.forget("ann")
    check(kept, served, store, "ann")
    assert kept.found[-1] == "made"
    store.add([event("ann", 1, 9000), event("ann", 2, 9000)])
    check(kept, served, store, "ann")
    assert kept.found[-1] == "stepped"


def test_the_cache_is_bounded_and_forgets(served):
    store = HistoryStore("sqlite://")
    kept = Counted(served, store, size=2)
    store.add([event(user, 3, 5) for user in ("ann", "bob", "eve")])
    first = kept.read(["ann", "bob", "ann"])
    assert first[0] is first[2]
    kept.read(["eve"])
    assert list(kept.cache.users) == ["bob", "eve"]
    kept.cache.forget("bob")
    kept.cache.forget("nobody")
    assert list(kept.cache.users) == ["eve"]


def test_a_half_life_has_every_event_made_anew(folder):
    served, store = ServingModel(folder), HistoryStore("sqlite://")
    served.processor.half_life = 500.0
    kept = Counted(served, store)
    for time in range(3):
        store.add([event("ann", time, 400 * time)])
        check(kept, served, store, "ann")
    assert kept.found == ["made"] * 3
    history = store.history("ann", limit=9)
    weights = ImplicitRecProcessor.from_pretrained(folder)
    weights.half_life = 500.0
    expected = weights([history])["input_weights"][0].numpy()
    np.testing.assert_allclose(kept.read(["ann"])[0].live.held("input_weights"), expected)
