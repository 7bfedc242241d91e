"""Users' events in Redis, with the calls of the `HistoryStore` (extra `redis`)."""

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from redis import Redis

from .history_store import EVENTS

FIELDS = [column.name for column in EVENTS.columns if column.name != "place"]
NEEDED = ("user_id", "item_id", "timestamp")

HELD = 2**20  # everybody's last events that are found without their users
EVERYBODY = "implicitrec.everybody"

# One script, so all of it is stored or nothing. Each user has a hash of events by place, a sorted set of
# places by time and a set of event ids; a stream has everybody's events without users.
ADD = """
local added = {}
for number, user in ipairs(KEYS) do
  local text = ARGV[number]
  local event = cjson.decode(text)
  local own = 'implicitrec:' .. user
  if not event.event_id or redis.call('SADD', own .. ':ids', event.event_id) == 1 then
    local place = string.format('%016d', redis.call('INCR', 'implicitrec.places'))
    redis.call('HSET', own .. ':events', place, text)
    redis.call('ZADD', own .. ':times', event.timestamp, place)
    redis.call('SET', own .. ':last', place)
    redis.call('XADD', 'implicitrec.everybody', 'MAXLEN', '~', HELD, tonumber(place) .. '-0',
      'item_id', event.item_id, 'timestamp', event.timestamp, 'event_type', event.event_type or '')
    added[number] = 1
  else
    added[number] = 0
  end
end
return added
""".replace("HELD", str(HELD))


class RedisStore:
    """The events of each user in a Redis server, as [`HistoryStore`] keeps them in a database.

    What `add` returned from is on disk where the server has `appendonly yes` and `appendfsync always`.

    Args:
        url: `redis://user:password@host:port/0`.
    """

    def __init__(self, url: str) -> None:
        self.server: Any = Redis.from_url(url, decode_responses=True)
        self.adding = self.server.register_script(ADD)

    def add(self, events: Sequence[Mapping[str, Any]]) -> int:
        """See [`~HistoryStore.add`]."""
        return self.add_together([events])[0]

    def add_together(self, groups: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
        """See [`~HistoryStore.add_together`].

        Raises:
            ValueError: where an event lacks its user, item or time; nothing is stored then.
        """
        events = [event for group in groups for event in group]
        for event in events:
            if any(event.get(name) is None for name in NEEDED):
                raise ValueError(f"expected {NEEDED} in every event, got one with null: {event}")
        told = [{n: e[n] for n in FIELDS if e.get(n) is not None} for e in events]
        texts = [json.dumps(event) for event in told]
        added = iter(self.adding([event["user_id"] for event in told], texts) if told else [])
        return [sum(next(added) for _ in group) for group in groups]

    def history(
        self, user_id: str, *, limit: int, until: int | None = None
    ) -> list[dict[str, Any]]:
        """See [`~HistoryStore.history`]."""
        if until is None:
            until = self.version(user_id)[1]
        latest: list[str] = []
        start = 0
        while len(latest) < limit:  # those that were stored since are passed over
            places = self.server.zrevrange(_key(user_id, "times"), start, start + limit - 1)
            if not places:
                break
            latest += [place for place in places if int(place) <= until]
            start += limit
        return self._read(user_id, latest[:limit][::-1])

    def since(self, user_id: str, place: int, *, until: int) -> list[dict[str, Any]]:
        """See [`~HistoryStore.since`]."""
        places = self.server.hkeys(_key(user_id, "events"))
        return self._read(user_id, sorted(p for p in places if place < int(p) <= until))

    def version(self, user_id: str) -> tuple[int, int]:
        """See [`~HistoryStore.version`]."""
        asked = self.server.pipeline()  # a transaction
        asked.hlen(_key(user_id, "events")).get(_key(user_id, "last"))
        events, last = asked.execute()
        return events, int(last or 0)

    def items(self, user_id: str) -> list[str]:
        """See [`~HistoryStore.items`]."""
        events = self.server.hvals(_key(user_id, "events"))
        return list(dict.fromkeys(json.loads(event)["item_id"] for event in events))

    def forget(self, user_id: str) -> int:
        """See [`~HistoryStore.forget`]; in the append-only file it stays until that is rewritten."""
        asked = self.server.pipeline()
        asked.hlen(_key(user_id, "events"))
        if places := self.places(user_id):
            asked.xdel(EVERYBODY, *(f"{place}-0" for place in places))
        asked.delete(*(_key(user_id, part) for part in ("events", "times", "ids", "last")))
        return asked.execute()[0]

    def everybodys(
        self, *, after: int, since: int, until: int, limit: int, without: Sequence[str] = ()
    ) -> tuple[int, list[dict[str, Any]]]:
        """See [`~HistoryStore.everybodys`]; only the last million events are found."""
        last = int(self.server.get("implicitrec.places") or 0)
        if last <= after:
            return after, []
        found = self.server.xrange(EVERYBODY, f"{after + 1}-0", f"{last}-0")
        events = [
            {"place": int(name[:-2]), "item_id": row["item_id"], "timestamp": int(row["timestamp"])}
            for name, row in found
            if since < int(row["timestamp"]) <= until and row["event_type"] not in without
        ]
        return last, sorted(events, key=itemgetter("timestamp", "place"))[-limit:]

    def places(self, user_id: str) -> list[int]:
        """See [`~HistoryStore.places`]."""
        return [int(place) for place in self.server.hkeys(_key(user_id, "events"))]

    def check(self) -> None:
        """Raise where the server does not answer."""
        self.server.ping()

    def close(self) -> None:
        self.server.close()

    def _read(self, user_id: str, places: Sequence[str]) -> list[dict[str, Any]]:
        if not places:
            return []
        texts = self.server.hmget(_key(user_id, "events"), places)
        events = [json.loads(text) for text in texts if text is not None]
        kept = [name for name in FIELDS if name not in ("user_id", "event_id")]
        return [{name: event[name] for name in kept if name in event} for event in events]


def _key(user_id: str, part: str) -> str:
    return f"implicitrec:{user_id}:{part}"
