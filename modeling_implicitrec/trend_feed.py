"""The trend of a server, as far as the store: what anybody did since enters it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .serving import ServingModel

AHEAD = 3600  # seconds that the clock of who sends an event may be ahead


class TrendFeed:
    """Brings the trend of a model up to date with what is stored, for one thread.

    What is held is everybody's last events: those of the checkpoint, and those of the store that are
    later than the checkpoint's last one, for what came before it was read in training. So it depends on
    checkpoint and store only: servers that share a store hold the same, and one that starts again what it
    held before. Left out are events of negative types, of items that the model does not know, and those
    dated more than an hour after the model's clock.

    Args:
        model: takes the events in, where it has a trend.
        store: a [`HistoryStore`] or [`RedisStore`].
    """

    def __init__(self, model: ServingModel, store: Any) -> None:
        self.model, self.store = model, store
        self.place = 0
        self.since = 0 if model.recent is None else model.recent.latest

    def read(self) -> None:
        """Let in what was stored since the last call."""
        recent = self.model.recent
        if recent is None:
            return
        self.place, events = self.store.everybodys(
            after=self.place,
            since=self.since,
            until=int(self.model.clock()) + AHEAD,
            limit=recent.size,
            without=self.model.processor.negative_event_types,
        )
        self.model.observe(events)

    def forget(self, places: Sequence[int]) -> None:
        """Take out the events that were stored at these places."""
        if self.model.recent is not None and places:
            self.model.recent.remove(np.array(places))
