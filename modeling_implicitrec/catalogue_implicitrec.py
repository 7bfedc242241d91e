"""What a scoring model is told of its items: counts, co-occurrences, content, and items that are new."""

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .content_implicitrec import ItemEmbedding
from .head_implicitrec import ItemHead
from .pairs_implicitrec import relative_frequency

Array: TypeAlias = Tensor | np.ndarray
BLOCK = 1024  # new items compared with all others at one time
NEAREST = 10


def nearest_items(
    features: Tensor, new_features: Tensor, *, num_neighbours: int = NEAREST
) -> tuple[Tensor, Tensor]:
    """The items whose features point most alike, and what share each has of a new item.

    The shares are inverse squared cosine distances (Shepard, 1968): an item of the very same features
    has all of it.

    Args:
        features: `[vocab_size, features]`, row 0 being padding; rows of zeros are nobody's neighbour.
        new_features: `[new, features]`, none all zero.
        num_neighbours: items that share a new one.

    Returns:
        Tokens int64 and shares, both `[new, neighbours]`; the shares of a row add up to 1.

    Raises:
        ValueError: for features of another width, a row of zeros among the new ones, or no old item
            that has any.

    >>> known = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> tokens, shares = nearest_items(known, torch.tensor([[0.0, 2.0]]), num_neighbours=2)
    >>> tokens.tolist(), shares.round(decimals=3).tolist()
    ([[2, 1]], [[1.0, 0.0]])
    """
    new = torch.as_tensor(new_features).to(features)
    if new.dim() != 2 or new.shape[1] != features.shape[1]:
        raise ValueError(
            f"new items need features [new, {features.shape[1]}], got {list(new.shape)}"
        )
    if not new.any(1).all():
        raise ValueError("features of a new item are all zero: name its neighbours instead")
    described = features.any(1)
    described[0] = False
    width = min(num_neighbours, int(described.sum()))
    if width < 1:
        raise ValueError(f"num_neighbours and items with features: at least 1, got {width}")
    known, parts = F.normalize(features.float(), dim=1), []
    for block in F.normalize(new.float(), dim=1).split(BLOCK):
        alike = (block @ known.t()).masked_fill(~described, -2.0)
        parts.append(alike.topk(width, dim=1))
    tokens = torch.cat([part.indices for part in parts])
    distances = (1 - torch.cat([part.values for part in parts])).clamp_min(0)
    return tokens, F.normalize(1 / (distances.square() + 1e-9), p=1, dim=1)


def mixed_rows(table: Tensor, tokens: Tensor, shares: Tensor) -> Tensor:
    """Rows `[new, ...]` that are `shares` of the rows of `tokens`, both `[new, neighbours]`."""
    parts = [(table[t].float() * s[..., None]).sum(1) for t, s in _blocks(tokens, shares)]
    return torch.cat(parts).to(table.dtype)


def _blocks(*columns: Tensor) -> Any:
    return zip(*(column.split(BLOCK) for column in columns))


class CatalogueMixin:
    """The part of [`ImplicitRecForScoring`] that knows how many items there are."""

    config: Any
    model: Any
    head: ItemHead
    item_decoder: nn.Linear
    item_frequency: Tensor

    @torch.no_grad()
    def fit_item_counts(self, item_counts: Array) -> None:
        """Start the item bias at the log of popularity, and correct sampled losses by it.

        Args:
            item_counts: `[vocab_size]` training events of each item, 0 at padding.
        """
        self.item_frequency.copy_(relative_frequency(torch.as_tensor(item_counts)))
        if self.head.item_bias is not None:
            self.head.item_bias.weight.copy_(self.item_frequency.log()[:, None])

    @torch.no_grad()
    def fit_cooccurrences(
        self, items: Array, counts: Array, folds: tuple[Array, Array] | None = None
    ) -> None:
        """Store the table of the co-occurrence prior.

        Args:
            items: `[vocab_size, num_cooccurrences]` tokens that go with each item, 0 for none.
            counts: of the same shape, how often; both as [`cooccurrence_table`] makes them, from the
                item counts that the model was told.
            folds: the same two as `[folds, vocab_size, num_cooccurrences]`: fold f is made without the
                users whose `fold_ids` are f. They are read while training and not saved.
        """
        prior = self.head.cooccurrence
        if prior is None:
            raise ValueError("the configuration has no co-occurrence prior: num_cooccurrences is 0")
        prior.items.copy_(torch.as_tensor(items))
        prior.counts.copy_(torch.as_tensor(counts))
        if folds is not None:
            prior.fold_items = torch.as_tensor(folds[0]).to(prior.items)
            prior.fold_counts = torch.as_tensor(folds[1]).to(prior.counts)

    @torch.no_grad()
    def fit_trend(self, tokens: Array, times: Array) -> None:
        """Tell the trend prior everybody's events, of which it holds the latest `num_trend_events`.

        Args:
            tokens: `[events]`, of anybody, in any order.
            times: `[events]` seconds.
        """
        if self.head.trend is None:
            raise ValueError("the configuration has no trend prior: num_trend_events is 0")
        self.head.trend.tokens.zero_()
        self.head.trend.times.zero_()
        self.head.trend.observe(torch.as_tensor(tokens), torch.as_tensor(times))

    @torch.no_grad()
    def fit_item_features(self, features: Tensor) -> None:
        """Store what is known of the items' content; do so before training.

        Args:
            features: `[vocab_size, item_feature_size]` floats in the order of the tokens, such as
                [`ItemFeatures.catalogue`] makes; the row of padding is not read. Rows near unit length
                suit the learning rates of the other parameters.

        Raises:
            ValueError: for another shape, numbers that are not finite, or a configuration without
                `item_feature_size`.
        """
        embedding: ItemEmbedding = self.model.item_embedding
        if embedding.content is None:
            raise ValueError("the configuration has no item content: item_feature_size is 0")
        given = torch.as_tensor(features).to(embedding.content.features)
        if given.shape != embedding.content.features.shape or not torch.isfinite(given).all():
            raise ValueError(
                f"features must be finite {list(embedding.content.features.shape)}, "
                f"got {list(given.shape)}"
            )
        embedding.content.features.copy_(given)
        embedding.content.features[0] = 0
        if not (embedding.use_rows or embedding.content.weight.any()):  # all items would be alike
            embedding.content.weight.normal_(std=self.config.initializer_range)

    def item_table(self) -> Tensor:
        """The vectors that states are matched with, `[vocab_size, hidden_size]`, content included."""
        return self.model.item_embedding.table(self.item_decoder.weight)

    @torch.no_grad()
    def add_items(
        self,
        *,
        features: Tensor | None = None,
        neighbours: Tensor | None = None,
        num_neighbours: int = NEAREST,
        item_counts: Array | None = None,
        num_events: int = 0,
        vocabulary_fingerprint: str | None = None,
    ) -> Tensor:
        """Extend the catalogue by items that may be recommended at once; scores of the others stay.

        A new item's row, bias and level are a mix of those of its neighbours: in equal parts where they
        are named, else by their features (see [`nearest_items`]). The co-occurrence prior reads for it
        what follows its first neighbour. Train on with a new Trainer.

        An item that is not quite new has had some events since the training. Told of them, its bias is
        raised by `log((1 + events) / (1 + expected))`, where so many events are expected of it as its
        neighbours had: the mean of a Gamma-Poisson posterior.

        Args:
            features: `[new, item_feature_size]`; by default a mix of the neighbours' too.
            neighbours: `[new, n]` tokens of known items that appear with it, 0 for none; by default
                the nearest by features.
            num_neighbours: how many are nearest.
            item_counts: `[new]` events that each has had, of a model that was told how often the others
                happen (`fit_item_counts`).
            num_events: all events of the known items in the same time.
            vocabulary_fingerprint: the processor's, after its own `add_items` of the same items.

        Returns:
            The new tokens, `[new]`.

        Raises:
            ValueError: where a new item has neither neighbours nor features, shapes do not fit, or the
                model has no item bias for counts.

        >>> from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring
        >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=5)).eval()
        >>> model.add_items(neighbours=torch.tensor([[2, 0], [1, 3]]))
        tensor([5, 6])
        >>> scores = model(torch.tensor([[4]])).logits[0]
        >>> bool(torch.isclose(scores[5], scores[2]))
        True
        """
        before = self.config.vocab_size
        content = self.model.item_embedding.content
        given = None if features is None else torch.as_tensor(features)
        if given is not None and content is None:
            raise ValueError("features expect a model with item_feature_size, got one with 0")
        tokens, shares = self._neighbours(given, neighbours, num_neighbours)
        frequency = self._frequency(tokens, shares, item_counts, num_events)
        for table in self._tables():
            rows = mixed_rows(table.weight, tokens, shares.to(table.weight.device))
            table.weight = nn.Parameter(torch.cat([table.weight, rows]), table.weight.requires_grad)
            table.num_embeddings = len(table.weight)
        if content is not None:
            own = mixed_rows(content.features, tokens, shares) if given is None else given
            content.features = torch.cat([content.features, own.to(content.features)])
        self._add_to_decoder(tokens, shares)
        self._add_to_buffers(tokens[:, 0], frequency)
        self.head.vocab_size = self.config.vocab_size = before + len(tokens)
        self.config.vocabulary_fingerprint = vocabulary_fingerprint
        return torch.arange(before, before + len(tokens))

    def _tables(self) -> list[nn.Embedding]:
        """The tables that have a row an item."""
        return [self.model.item_embedding, *self.head.item_tables()]

    def _neighbours(
        self, features: Tensor | None, neighbours: Tensor | None, num_neighbours: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and shares, both `[new, neighbours]`, the strongest first."""
        table = self.model.item_embedding
        if neighbours is None:
            if features is None:
                raise ValueError("new items need features or neighbours, got neither")
            return nearest_items(table.content.features, features, num_neighbours=num_neighbours)
        tokens = torch.as_tensor(neighbours).to(table.weight.device).long()
        known = tokens > 0
        fits = tokens.dim() == 2 and tokens.min() >= 0 and tokens.max() < self.config.vocab_size
        if not fits or not known.any(1).all():
            raise ValueError(
                f"neighbours must be [new, n] tokens below {self.config.vocab_size}, at least one "
                f"of each new item, got {tokens.tolist()}"
            )
        if features is not None and (
            features.dim() != 2 or features.shape != (len(tokens), self.config.item_feature_size)
        ):
            raise ValueError(
                f"features must be {[len(tokens), self.config.item_feature_size]}, "
                f"got {list(features.shape)}"
            )
        first = tokens.gather(1, known.int().argsort(dim=1, descending=True, stable=True))
        return first, F.normalize((first > 0).float(), p=1, dim=1)

    def _frequency(
        self, tokens: Tensor, shares: Tensor, item_counts: Array | None, num_events: int
    ) -> tuple[Tensor, Tensor] | None:
        """What counts say of new items: relative frequency and rise of the bias, both `[new]`."""
        if item_counts is None:
            return None
        counts = torch.as_tensor(item_counts).to(shares)
        if self.head.item_bias is None or counts.shape != shares.shape[:1] or (counts < 0).any():
            raise ValueError(
                f"item_counts must be {[len(shares)]} numbers from 0, of a model with use_item_bias; "
                f"got {counts.tolist()}, use_item_bias={self.head.item_bias is not None}"
            )
        if num_events < 1:
            raise ValueError(
                f"item_counts need num_events of the known items, at least 1, got {num_events}"
            )
        usual = mixed_rows(self.item_frequency.log()[:, None], tokens, shares)[:, 0].exp()
        expected = usual * num_events / (self.config.vocab_size - 1)
        rise = torch.log((1 + counts) / (1 + expected))
        return usual * rise.exp(), rise

    def _add_to_decoder(self, tokens: Tensor, shares: Tensor) -> None:
        if self.config.tie_word_embeddings:
            self.item_decoder.weight = self.model.item_embedding.weight
        else:
            rows = torch.cat(
                [self.item_decoder.weight, mixed_rows(self.item_decoder.weight, tokens, shares)]
            )
            self.item_decoder.weight = nn.Parameter(rows)
        self.item_decoder.out_features = len(self.item_decoder.weight)

    def _add_to_buffers(self, first: Tensor, frequency: tuple[Tensor, Tensor] | None) -> None:
        """New items were never a label, or are told of; they co-occur as their first neighbour does."""
        added = self.item_frequency[1:].min().expand(len(first))
        if frequency is not None and self.head.item_bias is not None:
            added, rise = frequency
            self.head.item_bias.weight[-len(first) :] += rise[:, None]
        grown = torch.cat([self.item_frequency, added])
        self.item_frequency = grown / grown[1:].mean()
        prior = self.head.cooccurrence
        if prior is not None:
            prior.items = torch.cat([prior.items, prior.items[first]])
            prior.counts = torch.cat([prior.counts, prior.counts[first]])
            prior.fold_items = torch.cat([prior.fold_items, prior.fold_items[:, first]], dim=1)
            prior.fold_counts = torch.cat([prior.fold_counts, prior.fold_counts[:, first]], dim=1)
