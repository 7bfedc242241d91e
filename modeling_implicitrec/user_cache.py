"""What a server has in memory of its store, users and trend: an event costs a step, not a history."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .live_body import LiveUser
from .serving import ServingModel, latest_window
from .trend_feed import TrendFeed

Version = tuple[int, int]  # events of a user in the store, and the place of the last one


@dataclass
class KnownUser:
    """A user as of a version of what is stored.

    Attributes:
        version: number of events, and the place of the last.
        live: what the model keeps of them.
        seen: ids of all items, as far as the model knows them, as tokens.
    """

    version: Version
    live: LiveUser
    seen: list[int] = field(default_factory=list)


class UserCache:
    """The users that were asked for last, for one thread.

    Each call asks the store how many events a user has: so several servers may share one, and what another
    one stored or deleted is seen. New events are taken in one by one. The user is made anew from the stored
    events where they do not say the same (a deletion), where a step is not enough (see
    [`LiveBody.step`]), where the window of events that are read moves, and always where the processor has a
    half-life, which makes all weights smaller. Either way gives the same lists.

    Args:
        model: a new one needs a new cache.
        store: a [`HistoryStore`] or [`RedisStore`].
        size: users that are kept; the one who was not asked for the longest goes.
        history_events: latest events of a user that are read.
        on_read: told how each user was found: `"kept"`, `"stepped"` or `"made"`.
    """

    def __init__(
        self,
        model: ServingModel,
        store: Any,
        *,
        size: int,
        history_events: int,
        on_read: Callable[[str], Any] = lambda how: None,
    ) -> None:
        self.model, self.store, self.size = model, store, size
        self.history_events, self.on_read = history_events, on_read
        self.users: OrderedDict[str, KnownUser] = OrderedDict()
        self.trend = TrendFeed(model, store)
        self.trend.read()

    def read(self, user_ids: Sequence[str]) -> list[KnownUser]:
        """The users, and the trend, as they are stored now; users made anew are computed together."""
        self.trend.read()
        found: dict[str, KnownUser] = {}
        missing: dict[str, Version] = {}
        for user_id in dict.fromkeys(user_ids):
            version = self.store.version(user_id)
            known = self._kept(user_id, version)
            if known is None:
                missing[user_id] = version
            else:
                found[user_id] = known
        found |= self._made(missing)
        for user_id, known in found.items():
            self.users[user_id] = known
            self.users.move_to_end(user_id)
        while len(self.users) > self.size:
            self.users.popitem(last=False)
        return [found[user_id] for user_id in user_ids]

    def forget(self, user_id: str, places: Sequence[int] = ()) -> None:
        """Keep nothing of a user, whose events were stored at these places."""
        self.users.pop(user_id, None)
        self.trend.forget(places)

    def _kept(self, user_id: str, version: Version) -> KnownUser | None:
        """The user in memory, after the events that are new; None where that is not enough."""
        known = self.users.pop(user_id, None)
        if known is None:
            return None
        if known.version == version:
            self.on_read("kept")
            return known
        events, last = known.version
        if self.model.processor.half_life or self._start(events) != self._start(version[0]):
            return None
        new = self.store.since(user_id, last, until=version[1])
        if events + len(new) != version[0]:
            return None
        for event in new:
            token = self.model.step(known.live, event)
            if token is None:
                return None
            known.seen += [token] if token else []
        known.version = version
        self.on_read("stepped")
        return known

    def _made(self, missing: dict[str, Version]) -> dict[str, KnownUser]:
        """Users from what is stored of them."""
        histories = []
        for user_id, (events, last) in missing.items():
            limit = events - self._start(events)
            histories.append(self.store.history(user_id, limit=limit, until=last) if limit else [])
            self.on_read("made")
        lives = self.model.read(histories) if histories else []
        return {
            user_id: KnownUser(version, live, self.model.known_tokens(self.store.items(user_id)))
            for (user_id, version), live in zip(missing.items(), lives)
        }

    def _start(self, events: int) -> int:
        """The first stored event that is read."""
        return events - latest_window(events, self.history_events)
