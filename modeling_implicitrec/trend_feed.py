"""The trend of a server, as far as the store: what anybody did since enters it."""

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from .serving import ServingModel

AHEAD = 3600  # seconds that the clock of who sends an event may be ahead
EVER = 2**62


class TrendFeed:
    """Brings the trend of a model up to date with what is stored, for one thread.

    What is held is everybody's last events: those of the checkpoint, and those of the store that are
    later than the checkpoint's last one, for what came before it was read in training. So it depends on
    checkpoint and store only: servers that share a store hold the same, and one that starts again what it
    held before. Left out are events of negative types and of items that the model does not know. One that
    is dated more than an hour after the model's clock waits until it is not.

    Args:
        model: takes the events in, where it has a trend.
        store: a [`HistoryStore`] or [`RedisStore`].
    """

    def __init__(self, model: ServingModel, store: Any) -> None:
        self.model, self.store = model, store
        self.place = 0
        self.ahead: list[dict[str, Any]] = []
        self.since = 0 if model.recent is None else model.recent.latest

    def read(self) -> None:
        """Let in what was stored since the last call, and what has waited until now."""
        recent = self.model.recent
        if recent is None:
            return
        until = int(self.model.clock()) + AHEAD
        if self.place:
            self.place, new = self._stored(self.since, EVER, recent.size)
        else:  # what is ahead must not push out the latest of now
            last, new = self._stored(self.since, until, recent.size)
            ahead = self._stored(max(self.since, until), EVER, recent.size)[1]
            new += [event for event in ahead if event["place"] <= last]
            self.place = last
        waiting = sorted([*self.ahead, *new], key=itemgetter("timestamp", "place"))
        due = bisect_right(waiting, until, key=itemgetter("timestamp"))
        self.model.observe(waiting[:due])
        self.ahead = waiting[due : due + recent.size]

    def forget(self, places: Sequence[int]) -> None:
        """Take out the events that were stored at these places."""
        if self.model.recent is not None and places:
            self.model.recent.remove(np.array(places))
            gone = set(places)
            self.ahead = [event for event in self.ahead if event["place"] not in gone]

    def _stored(self, since: int, until: int, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """What was stored since the last call and is of this time; see [`~HistoryStore.everybodys`]."""
        return self.store.everybodys(
            after=self.place,
            since=since,
            until=until,
            limit=limit,
            without=self.model.processor.negative_event_types,
        )
