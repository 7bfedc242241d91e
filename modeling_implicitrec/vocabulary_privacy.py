"""Which items become tokens, with people in mind: had by enough of them, or of a public catalogue."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from .processing_implicitrec import ImplicitRecProcessor
from .shards import read_batches
from .vocabulary_implicitrec import ItemVocabulary, read_ids


def item_users(train: Dataset, processor: ImplicitRecProcessor) -> np.ndarray:
    """How many rows of raw sequences hold each token, int64 `[vocab_size]`, 0 at padding."""
    total = np.zeros(processor.vocab_size, dtype=np.int64)
    for batch in read_batches(train):  # which hold whole rows
        coded = batch["item_ids"].flatten().dictionary_encode()
        tokens = processor.encode_items(coded.dictionary.to_numpy(zero_copy_only=False))
        row = np.repeat(np.arange(batch.num_rows), batch["item_ids"].value_lengths().fill_null(0))
        codes = coded.indices.to_numpy(zero_copy_only=False)
        found = tokens[np.unique(row * max(len(tokens), 1) + codes) % max(len(tokens), 1)]
        total += np.bincount(found[found > 0], minlength=processor.vocab_size)
    return total


def drop_rare_items(
    processor: ImplicitRecProcessor, train: Dataset, *, min_users: int, after: int = 0
) -> int:
    """Take the items that fewer than `min_users` people had out of the vocabulary; says how many went.

    An item of one person is that person's: a model that can name it tells that somebody had it. Tokens
    are numbered anew, so that a processor is to be treated before a model is made for it.

    Args:
        processor: fitted on `train`.
        train: raw sequences, one row a user.
        min_users: the k of k-anonymity (Sweeney, 2002), as far as single items go.
        after: tokens up to this one stay: a model may know them.

    Raises:
        ValueError: for less than one user, or where no item is left.

    >>> train = Dataset.from_dict({"user_id": [1, 2], "item_ids": [["tea", "tea"], ["tea", "urn"]]})
    >>> processor = ImplicitRecProcessor.fit({"item_id": ["tea", "tea", "tea", "urn"]})
    >>> drop_rare_items(processor, train, min_users=2), processor.decode_items([1])
    (1, ['tea'])
    """
    if min_users < 1:
        raise ValueError(f"min_users must be at least 1, got {min_users}")
    if min_users == 1:
        return 0
    users = item_users(train, processor)[1:]
    kept = (users >= min_users) | (np.arange(len(users)) < after)
    if not kept.any():
        raise ValueError(
            f"no item is left: none of {len(users):,} was had by {min_users} users or more"
        )
    old = processor.vocabulary
    ids = old.decode(np.flatnonzero(kept) + 1)
    every = ids if old.of_strings else np.array(ids, dtype=np.int64)
    processor.vocabulary = ItemVocabulary.from_counts(every, old.counts[kept])
    return int((~kept).sum())


def catalogue_processor(
    item_ids: Sequence[Any],
    *,
    event_type_weights: Mapping[str, float] | None = None,
    negative_event_types: Sequence[str] = (),
    use_counts: bool = True,
    half_life: float | None = None,
    max_weight: float = 10.0,
) -> ImplicitRecProcessor:
    """A processor that no log was read for: a public catalogue, and factors that somebody chose.

    Its items have no counts, its weights no mean to be divided by and no quantiles of durations, since
    all of these are sums over people.

    Args:
        item_ids: the tokens in this order, distinct.
        event_type_weights: factor of each event type that is to be told apart.
        negative_event_types: those that are evidence against an item, which are to have a factor too.
        use_counts, half_life, max_weight: as for [`ImplicitRecProcessor.fit`].

    Raises:
        ValueError: for no items, an id that comes twice, or a negative type without a factor.

    >>> processor = catalogue_processor(["milk", "tea"], event_type_weights={"buy": 3, "view": 1})
    >>> processor.encode_items(["tea", "coffee"]).tolist(), processor.item_counts.tolist()
    ([2, -1], [0, 0, 0])
    """
    ids = read_ids(item_ids)
    if not len(ids) or len(set(ids)) < len(ids):
        raise ValueError(
            f"a catalogue is of distinct items, got {len(ids)}, {len(set(ids))} distinct"
        )
    factors = dict(event_type_weights or {})
    absent = sorted(set(negative_event_types) - set(factors))
    if absent:
        raise ValueError(
            f"negative_event_types need a factor in event_type_weights, {absent} have none"
        )
    processor = ImplicitRecProcessor(
        factors,
        max_weight=max_weight,
        half_life=half_life,
        use_counts=use_counts,
        duration_weight=None,
        negative_event_types=list(negative_event_types),
    )
    processor.vocabulary = ItemVocabulary.from_counts(ids, np.zeros(len(ids), dtype=np.int64))
    return processor
