"""A server killed in the middle of a replay keeps every event that it acknowledged."""

import sqlite3
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the service is tested with the extra `serve`")
pytest.importorskip("sqlalchemy", reason="the service is tested with the extra `serve`")
from test_trend_feed import ITEMS, write_trending

SCRIPTS = str(Path(__file__).resolve().parents[1] / "scripts")


def test_what_is_acknowledged_outlives_a_kill_and_the_check_sees_what_does_not(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(SCRIPTS)
    chaos = __import__("chaos_serving")
    model = write_trending(tmp_path / "model")
    histories = {
        f"user {user}".replace(" ", "-"): [f"item {(user + n) % ITEMS}" for n in range(6)]
        for user in range(10)
    }
    found = chaos.run_chaos(
        str(model), histories, tmp_path, kills=1, seconds=1.0, clients=2, servers=2
    )
    assert found["problems"] == 0, found
    assert found["acknowledged events"] > 10
    assert found["requests cut off"] > 0
    assert set(found["answers"]) == {"200", "201"}
    assert found["lists that differ"] == 0
    # The check itself: an event that is gone and one that is there twice are found.
    database = tmp_path / "histories.db"
    with sqlite3.connect(database) as store:
        rows = store.execute("SELECT user_id, event_id, item_id FROM events").fetchall()
        store.execute("DROP INDEX events_once")
        store.execute("DELETE FROM events WHERE user_id = ? AND event_id = ?", rows[0][:2])
        copied = "user_id, event_id, item_id, timestamp"
        store.execute(f"INSERT INTO events ({copied}) SELECT {copied} FROM events LIMIT 1")
    replay = chaos.Replay([], histories, set())
    for user, number, item in rows:
        replay.acknowledged[user][number] = item
    found = chaos.findings(replay, database)
    assert (found["lost"], found["stored twice"]) == (1, 1)
    one, moved, other = [("tea", 2.0), ("rye", 1.0)], [("tea", 2.1)], [("rye", 2.0), ("tea", 1.0)]
    assert chaos.alike(one, [("tea", 2.00001), ("rye", 1.0)])
    assert not any(chaos.alike(one, shown) for shown in (moved, other, one[:1]))
    sys.modules.pop("chaos_serving")
