"""A checkpoint as a server uses it: many requests in outside ids at once, over stored histories."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from .checkpoints import load_checkpoint
from .live_body import LiveBody, LiveUser
from .live_head import Past
from .modeling_implicitrec import ImplicitRecForScoring
from .processing_implicitrec import ImplicitRecProcessor
from .reranking import RankingRules, diverse
from .retrieval import Index, Retriever, table_fingerprint

QUIET = 7 * 86_400  # seconds without an event after which a log is taken for one that has ended


@dataclass(frozen=True)
class Wish:
    """What one recommendation request asks for.

    Args:
        history: events, oldest first, as the processor takes them; or the user that was made of them.
        seen: tokens to leave out where only new items are shown, besides the history's.
        top_k: length of the list.
        exclude_seen: only items that are new to the user; always so with `config.exclude_seen`.
        category: only items of this category of the catalogue.
        diversity: 0 to 1, the share of maximal marginal relevance.
        query_time: the moment of asking in seconds, for a model that reads it; see
            [`~ServingModel.moment`] for what it is by default.
    """

    history: Sequence[Mapping[str, Any]] | LiveUser
    seen: Sequence[int] = ()
    top_k: int = 10
    exclude_seen: bool = False
    category: str | None = None
    diversity: float = 0.0
    query_time: int | None = None

    @property
    def rules(self) -> tuple:
        """What requests of one batch have in common."""
        return self.top_k, self.exclude_seen, self.category, self.diversity


class Catalogue:
    """What is known of the items besides the model: a Parquet file of `item_id` and any of `name`,
    `category`, `in_stock` (bool) and `boost` (added to the score).

    Args:
        processor: whose tokens the items get; items that it does not know are left out.
        path: of the file, or None for a catalogue in which all is in stock.

    Raises:
        ValueError: where the file has no `item_id`.
    """

    def __init__(self, processor: ImplicitRecProcessor, path: str | Path | None = None) -> None:
        size = processor.vocab_size
        self.names: dict[int, str] = {}
        self.in_stock = torch.ones(size, dtype=torch.bool)
        self.boosts: torch.Tensor | None = None
        self.categories = np.full(size, None, dtype=object)
        if path is None:
            return
        table = pq.read_table(path).to_pydict()
        if "item_id" not in table:
            raise ValueError(f"{path}: expected a column item_id, got {sorted(table)}")
        tokens = encode_written_ids(processor, map(str, table["item_id"]))
        known = np.flatnonzero(tokens > 0)
        own = tokens[known]
        if "name" in table:
            self.names = {int(token): str(table["name"][i]) for token, i in zip(own, known)}
        if "category" in table:
            self.categories[own] = [table["category"][i] for i in known]
        if "in_stock" in table:
            self.in_stock[own] = torch.tensor([bool(table["in_stock"][i]) for i in known])
        if "boost" in table:
            self.boosts = torch.zeros(size)
            self.boosts[own] = torch.tensor([float(table["boost"][i] or 0) for i in known])

    def rules(self, vectors: np.ndarray, category: str | None, diversity: float) -> RankingRules:
        """The ranking rules of a request."""
        allowed = self.in_stock
        if category is not None:
            allowed = allowed & torch.from_numpy(self.categories == category)
        arrange = [diverse(vectors, share=diversity)] if diversity else []
        return RankingRules(allowed=allowed, boosts=self.boosts, arrange=arrange)


class ServingModel:
    """Model, processor, index and catalogue of one checkpoint; only its trend takes in new events.

    Args:
        folder: checkpoint folder or Hub name.
        catalogue: Parquet file, see [`Catalogue`].
        find_index: makes the index of a model; by default the whole table is searched.
        clock: tells the time in seconds since 1970.

    Raises:
        OSError: where there is no checkpoint.
        ValueError: where model, processor and index do not belong together.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        catalogue: str | Path | None = None,
        find_index: Any = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        model, self.processor = load_checkpoint(folder)
        self.processor.adapt_to(model.eval().config)
        index: Index | None = None if find_index is None else find_index(folder, model)
        self.retriever, self.body = Retriever(model, index), LiveBody(model)
        self.vectors = self.retriever.table.numpy()
        self.catalogue = Catalogue(self.processor, catalogue)
        self.fingerprint = table_fingerprint(model)[:12]
        self.clock, trend = clock, self.retriever.head.trend
        self.recent = None if trend is None else trend.recent

    @property
    def model(self) -> ImplicitRecForScoring:
        return self.retriever.model

    def recommend(self, wishes: Sequence[Wish]) -> list[list[dict[str, Any]]]:
        """Items with scores for each wish, best first; wishes of the same rules are ranked together."""
        users = self._users([wish.history for wish in wishes])
        answers: list[list[dict[str, Any]]] = [[] for _ in wishes]
        groups: dict[tuple, list[int]] = {}
        for place, wish in enumerate(wishes):
            groups.setdefault(wish.rules, []).append(place)
        for (top_k, exclude_seen, category, diversity), places in groups.items():
            only_new = exclude_seen or self.model.config.exclude_seen
            found: Any = self.retriever.rank(
                torch.from_numpy(np.stack([users[place].state for place in places])),
                [self._past(users[place], wishes[place].query_time) for place in places],
                top_k=top_k,
                exclude_seen=only_new,
                seen=[wishes[place].seen for place in places] if only_new else None,
                rules=self.catalogue.rules(self.vectors, category, diversity),
            )
            for place, tokens, scores in zip(places, found.item_tokens, found.scores):
                shown = [(int(t), float(s)) for t, s in zip(tokens, scores) if t > 0]
                answers[place] = [self._item(*pair) for pair in shown]
        return answers

    def score(
        self,
        history: Sequence[Mapping[str, Any]] | LiveUser,
        items: Sequence[str],
        query_time: int | None = None,
    ) -> list[float | None]:
        """The score of each item after a history, None for an unknown one; `query_time` as in [`Wish`]."""
        (user,), head = self._users([history]), self.retriever.head
        tokens = encode_written_ids(self.processor, items)
        candidates, places = np.unique(np.maximum(tokens, 0), return_inverse=True)
        scores = head.scores(user.state, head.counts(self._past(user, query_time)), candidates)[
            places
        ]
        return [float(s) if token > 0 else None for s, token in zip(scores, tokens)]

    def moment(self, user: LiveUser) -> int:
        """When a user asks who does not say so, in seconds.

        Now, where the user or anybody of the trend did something in the last week. Else just after the
        last event that is known: a log that is replayed, or has ended, is asked at its own time.
        """
        now, trend = int(self.clock()), 0 if self.recent is None else self.recent.latest
        last = min(max(trend, user.latest), now)
        return max(now, last + 1) if now <= last + QUIET else last + 1

    def observe(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Let everybody's new events into the trend, where the model has one and knows their items.

        Args:
            events: of `item_id`, `timestamp` and `place`, a number of its own; none of a negative type.
        """
        if self.recent is None or not events:
            return
        tokens = encode_written_ids(self.processor, [str(event["item_id"]) for event in events])
        for token, event in zip(tokens.tolist(), events):
            if token > 0:
                self.recent.add(token, event["timestamp"], event["place"])

    def _past(self, user: LiveUser, query_time: int | None) -> Past:
        return self.body.past(user, query_time or self.moment(user))

    def read(self, histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[LiveUser]:
        """Users of these events, oldest first; of more than the model takes, see [`latest_window`]."""
        batch = self.inputs(histories, max_length=max(1, *map(len, histories)))
        sizes = batch.pop("attention_mask").sum(1)
        limit = self.model.config.max_position_embeddings
        kept = torch.tensor([latest_window(int(size), limit) for size in sizes])[:, None]
        places = sizes[:, None] - kept + torch.arange(max(1, int(kept.max())))
        there = places < sizes[:, None]
        places = places.clamp_max(batch["input_ids"].shape[1] - 1)
        return self.body.start(**{n: v.gather(1, places) * there for n, v in batch.items()})

    def step(self, user: LiveUser, event: Mapping[str, Any]) -> int | None:
        """Take an event in; its token, 0 for an unknown item, None where a step is not enough."""
        if not encode_written_ids(self.processor, [str(event["item_id"])])[0] > 0:
            return 0
        numbers = {n: v[0, 0].item() for n, v in self.inputs([[event]]).items()}
        del numbers["attention_mask"]
        return int(numbers["input_ids"]) if self.body.step(user, **numbers) else None

    def _users(self, histories: Sequence[Sequence[Mapping[str, Any]] | LiveUser]) -> list[LiveUser]:
        """The users of histories, those that are not there yet made together."""
        told = [history for history in histories if not isinstance(history, LiveUser)]
        made = iter(self.read(told) if told else [])
        return [h if isinstance(h, LiveUser) else next(made) for h in histories]

    def inputs(
        self, histories: Sequence[Sequence[Mapping[str, Any]]], *, max_length: int | None = None
    ) -> dict[str, torch.Tensor]:
        """What the model reads of each history, padded; the items may be written as text.

        Args:
            max_length: events of each, the latest; by default what the model takes.
        """
        texts = [[str(event["item_id"]) for event in history] for history in histories]
        known = [encode_written_ids(self.processor, items) > 0 for items in texts]
        kept = [
            [
                {**event, "item_id": self._id(item)}
                for event, item, there in zip(history, items, here)
                if there
            ]
            for history, items, here in zip(histories, texts, known)
        ]
        filled = [place for place, history in enumerate(kept) if history]
        rows: list[Any] = [kept[place] for place in filled]
        batch = self.processor(rows or [{"item_ids": []}], max_length=max_length)
        places = torch.tensor(filled, dtype=torch.long)
        return {  # a history of nothing known is a row of padding
            name: values.new_zeros(len(kept), values.shape[1]).index_copy(
                0, places, values[: len(filled)]
            )
            for name, values in batch.items()
        }

    def known_tokens(self, items: Sequence[str]) -> list[int]:
        """The tokens of those items that the model knows, written as text."""
        tokens = encode_written_ids(self.processor, items)
        return tokens[tokens > 0].tolist()

    def _id(self, text: str) -> str | int:
        return text if self.processor.vocabulary.of_strings else int(text)

    def _item(self, token: int, score: float) -> dict[str, Any]:
        item = {"item_id": self.processor.decode_items([token])[0], "score": score}
        if token in self.catalogue.names:
            item["name"] = self.catalogue.names[token]
        return item


def latest_window(events: int, limit: int) -> int:
    """How many of a user's events are held, at most `limit`: so many that the first one is a multiple
    of a quarter of the limit.

    So what is held depends on the number of events only, whether they were taken in one by one or all at
    once, and the window moves a quarter at a time.

    >>> [latest_window(events, 8) for events in (3, 8, 9, 10, 11)]
    [3, 8, 7, 8, 7]
    """
    stride = max(1, limit // 4)
    return events - -(-max(0, events - limit) // stride) * stride


def encode_written_ids(processor: ImplicitRecProcessor, items: Any) -> np.ndarray:
    """Tokens of item ids that are written as text, whatever their type in the vocabulary."""
    texts = list(items)
    if processor.vocabulary.of_strings:
        return processor.encode_items(texts)
    tokens = np.full(len(texts), -1, dtype=np.int64)
    numbers = [_as_number(text) for text in texts]
    places = [place for place, number in enumerate(numbers) if number is not None]
    tokens[places] = processor.encode_items([numbers[place] for place in places])
    return tokens


def _as_number(text: str) -> int | None:
    """A 64-bit integer that is written in its one usual way, else None."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return None
    number = int(text)
    return number if str(number) == text and -(2**63) <= number < 2**63 else None
