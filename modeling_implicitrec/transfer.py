"""A checkpoint's weights onto another catalogue: what is kept, and what starts anew."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .catalogue_implicitrec import mixed_rows, nearest_items
from .modeling_implicitrec import ImplicitRecForScoring
from .processing_implicitrec import ImplicitRecProcessor

OWN_ROWS = "model.item_embedding.weight"
ITEM_ROWS = (
    OWN_ROWS,
    "item_decoder.weight",
    "head.copy.item_level.weight",
    "head.item_bias.weight",
)
TYPE_ROWS = "model.event_type_embedding.weight"
PLATFORM_ROWS = "model.platform_embedding.table"
# Of the new catalogue and its log alone.
OWN = (
    "model.item_embedding.content.features",
    "item_frequency",
    "head.cooccurrence.items",
    "head.cooccurrence.counts",
    "head.trend.tokens",
    "head.trend.times",
)


@dataclass(frozen=True)
class TransferReport:
    """What became of each tensor of the new model.

    Attributes:
        kept: rows (of tables of items, types and platforms) or whole tensors (1) taken as they were.
        by_content: rows of items mixed from those of the nearest content.
        anew: rows or tensors that start as in a new model.
    """

    kept: dict[str, int]
    by_content: dict[str, int]
    anew: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{'':40} {'kept':>8} {'by content':>10} {'anew':>8}"]
        groups: dict[str, list[int]] = {}
        for name in self.kept:
            group = "model.blocks" if name.startswith("model.blocks") else name
            sums = groups.setdefault(group, [0, 0, 0])
            for place, part in enumerate((self.kept, self.by_content, self.anew)):
                sums[place] += part[name]
        lines += [f"{name:40} {k:8,} {c:10,} {a:8,}" for name, (k, c, a) in groups.items()]
        return "\n".join(lines)


def match_items(
    source: ImplicitRecProcessor, target: ImplicitRecProcessor, *, namespace: str | None = None
) -> np.ndarray:
    """The token that each item of `target` has in `source`, int64 `[vocab_size]`, 0 for none.

    Args:
        namespace: of the target's log in a source that was trained on several (see [`join_logs`]).

    >>> old = ImplicitRecProcessor.fit({"item_id": ["tea", "milk", "tea"]})
    >>> new = ImplicitRecProcessor.fit({"item_id": ["rice", "milk", "milk"]})
    >>> match_items(old, new).tolist()
    [0, 2, 0]
    """
    ids = target.decode_items(range(1, target.vocab_size))
    if namespace is not None:
        ids = [f"{namespace}:{one}" for one in ids]
    if isinstance(ids[0], str) != source.vocabulary.of_strings:
        return np.zeros(target.vocab_size, np.int64)
    return np.concatenate([[0], np.maximum(source.encode_items(ids), 0)])


def _match_names(source: list, target: list) -> Tensor:
    """Ids in the source of the target's names, the first being "none or unknown"; -1 for a new name."""
    return torch.tensor([0, *(source.index(n) + 1 if n in source else -1 for n in target)])


@torch.no_grad()
def transfer_weights(
    target: ImplicitRecForScoring,
    source: ImplicitRecForScoring,
    processors: tuple[ImplicitRecProcessor, ImplicitRecProcessor],
    *,
    namespace: str | None = None,
) -> TransferReport:
    """Start `target`, whose counts, co-occurrences and features are fitted, from a trained `source`.

    Items, event types and platforms are matched by name. The rows of other items are mixed from those of
    the nearest content where both models have features of one size, else they stay as they are; from a
    source without `use_item_ids`, whose items are their content alone, all start at zero. The item
    bias is kept only where every item is matched: else it is the popularity in the new log. All other
    tensors are kept where their shapes agree.

    Args:
        processors: of the source and of the target.
        namespace: of the target's log in the source.

    Raises:
        ValueError: where nothing of the body fits.
    """
    old, new = processors
    places = torch.as_tensor(match_items(old, new, namespace=namespace))
    nearest = _nearest(source, target, places)
    names = {TYPE_ROWS: (old.event_types, new.event_types)}
    names[PLATFORM_ROWS] = (old.platforms, new.platforms)
    theirs, report = source.state_dict(), TransferReport({}, {}, {})
    for name, value in _tensors(target):
        given = theirs.get(name)
        fits = given is not None and given.shape[1:] == value.shape[1:]
        rows = mixed = 0
        total = len(value) - 1 if name in ITEM_ROWS else len(value) if name in names else 1
        if name == OWN_ROWS and _content_alone(source, target):
            value.zero_()
            mixed = total
        elif given is not None and fits and name in ITEM_ROWS:
            if name != "head.item_bias.weight" or (places[1:] > 0).all():
                rows, mixed = _copy_items(value, given, places, nearest)
        elif given is not None and fits and name in names:
            found = _match_names(*names[name])
            value[found >= 0] = given[found[found >= 0]]
            rows = int((found >= 0).sum())
        elif given is not None and given.shape == value.shape and name not in OWN:
            value.copy_(given)
            rows = 1
        report.kept[name], report.by_content[name] = rows, mixed
        report.anew[name] = total - rows - mixed
    if not any(n for name, n in report.kept.items() if name.startswith("model.blocks")):
        raise ValueError("no block of the checkpoint has the shape of the new model's")
    return report


def _tensors(model: ImplicitRecForScoring) -> Iterable[tuple[str, Tensor]]:
    tied = {"item_decoder.weight"} if model.config.tie_word_embeddings else set()
    items: Mapping[str, Tensor] = model.state_dict()
    return ((name, value) for name, value in items.items() if name not in tied)


def _same_content(source: ImplicitRecForScoring, target: ImplicitRecForScoring) -> bool:
    """Whether both models know items by features of one size."""
    theirs, own = source.model.item_embedding.content, target.model.item_embedding.content
    if theirs is None or own is None:
        return False
    return theirs.features.shape[1] == own.features.shape[1]


def _content_alone(source: ImplicitRecForScoring, target: ImplicitRecForScoring) -> bool:
    """Whether the items of the target start as the source knew its own: by nothing but their content."""
    return not source.config.use_item_ids and _same_content(source, target)


def _nearest(
    source: ImplicitRecForScoring, target: ImplicitRecForScoring, places: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Items that are not matched, and the tokens and shares of what is nearest by content."""
    if not _same_content(source, target):
        return None
    theirs, own = source.model.item_embedding.content, target.model.item_embedding.content
    left = ((places == 0) & own.features.any(1)).nonzero()[:, 0]
    if not len(left) or not theirs.features.any():
        return None
    return left, *nearest_items(theirs.features, own.features[left])


def _copy_items(
    value: Tensor, given: Tensor, places: Tensor, nearest: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[int, int]:
    known = places > 0
    value[known] = given[places[known]]
    if nearest is None:
        return int(known.sum()), 0
    left, tokens, shares = nearest
    value[left] = mixed_rows(given, tokens, shares)
    return int(known.sum()), len(left)
