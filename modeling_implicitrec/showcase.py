"""What a page shows of a checkpoint: a history's ranking, why, its neighbours and a map of the items."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .explanation import explain
from .serving import Catalogue, ServingModel, Wish

Event = dict[str, Any]


class Showcase:
    """A checkpoint with names for its items and a few histories to start from.

    Args:
        folder: checkpoint folder or Hub name.
        catalogue: Parquet file with `item_id` and `name`, see [`Catalogue`].
        histories: of example users, events as the processor takes them.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        catalogue: str | Path | None = None,
        histories: Mapping[str, Sequence[Event]] | None = None,
    ) -> None:
        self.serving = ServingModel(folder, catalogue=catalogue)
        self.processor = self.serving.processor
        self.catalogue: Catalogue = self.serving.catalogue
        self.histories = {user: list(events) for user, events in (histories or {}).items()}
        table = self.serving.retriever.table[1:]
        self.unit = torch.nn.functional.normalize(table, dim=1)
        centred = table - table.mean(0)
        axes = torch.linalg.svd(centred.T @ centred).U[:, :2]  # the plane of the largest variance
        self.plane = (centred @ axes).numpy()
        counts = self.processor.item_counts[1:]
        self.popularity = np.argsort(-counts, kind="stable") + 1  # tokens
        self.popularity_place = np.empty(len(counts) + 1, dtype=np.int64)
        self.popularity_place[self.popularity] = np.arange(1, len(counts) + 1)

    def name(self, token: int) -> str:
        """The name of an item, else its id."""
        return self.catalogue.names.get(token) or str(self.processor.decode_items([token])[0])

    def tokens(self, events: Sequence[Event]) -> np.ndarray:
        """The token of each event, -1 for an unknown item."""
        return self.processor.encode_items([event["item_id"] for event in events])

    def weights(self, events: Sequence[Event]) -> list[float]:
        """The weight of each event, as the model reads it."""
        names = ("event_type", "count", "duration", "item_duration")
        columns: dict[str, Any] = {f"{n}s": [event.get(n) for event in events] for n in names}
        times = np.array([event["timestamp"] for event in events])
        ages = times.max(initial=0) - times
        return self.processor.weights(**columns, ages=ages).tolist() if events else []

    def rank(self, events: Sequence[Event], *, top_k: int, exclude_seen: bool) -> list[tuple]:
        """Tokens and scores, best first."""
        wish = Wish(events, top_k=top_k, exclude_seen=exclude_seen)
        found = self.serving.recommend([wish])[0]
        tokens = self.processor.encode_items([item["item_id"] for item in found])
        return [(int(token), item["score"]) for token, item in zip(tokens, found)]

    def explain(self, events: Sequence[Event], token: int) -> list[float]:
        """How much lower the item's score is without each event, [`explain`]'s `alone`.

        Events that the model takes as one, repeats of an item, share theirs; one that it does not read
        (an unknown item, one before its window) has 0.
        """
        inputs = self.serving.inputs([events])
        found = explain(self.serving.model, inputs, [token])
        names = ["input_ids", "event_type_ids"]
        names += [] if self.processor.collapse_repeats else ["timestamps"]

        def keys(batch: dict[str, Tensor]) -> list[tuple]:
            columns = [batch[name].flatten().tolist() for name in names if name in batch]
            return list(zip(*columns))

        there = inputs["input_weights"] > 0
        read = keys({name: values[there] for name, values in inputs.items()})
        parts = dict(zip(read, found.alone[0].tolist()))
        own = keys(self.serving.inputs([[event] for event in events])) if events else []
        return [parts.get(key, 0.0) for key in own]

    def neighbours(self, token: int, k: int) -> list[tuple[int, float]]:
        """The nearest items by the cosine of their embeddings."""
        cosine = self.unit @ self.unit[token - 1]
        cosine[token - 1] = -2
        values, places = cosine.topk(min(k, len(cosine) - 1))
        return [(int(place) + 1, float(value)) for place, value in zip(places, values)]
