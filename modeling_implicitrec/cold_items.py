"""Items that a model has never seen: held out of all training, then ranked among each other and all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from .baselines import Scorer
from .evaluation import EvaluationResult, evaluate
from .rows import Row
from .shards import read_batches, write_arrow

RECENT = 20  # events of a history that content is compared with


@dataclass(frozen=True)
class ColdItems:
    """A split from which items are held out.

    Attributes:
        splits: without any event of a cold item; the targets of `test` are cold items only, those of
            other parts the other items only. Rows without a target are left out.
        item_ids: the cold items.
        counts: `[cold items]` the events that each had in the training part.
    """

    splits: DatasetDict
    item_ids: list
    counts: np.ndarray


def hold_out_items(
    splits: Mapping[str, Dataset], *, share: float = 0.1, generator: np.random.Generator
) -> ColdItems:
    """Hold a share of the items out of a split, drawn evenly from those of its training part.

    Args:
        splits: what `leave_last_out` or `temporal_split` made.
        share: of the items, more than 0 and less than 1.
        generator: draws the items.

    Raises:
        ValueError: for another share, or no test row that has a cold target.

    >>> parts = {"train": [[1, 2, 3], [2, 3]], "test": [[1], [3]]}
    >>> splits = {name: Dataset.from_dict({"item_ids": rows}) for name, rows in parts.items()}
    >>> splits["test"] = splits["test"].add_column("target_item_ids", [[2], [2]])
    >>> cold = hold_out_items(splits, share=0.4, generator=np.random.default_rng(5))
    >>> cold.item_ids, *cold.splits["train"].to_dict().values(), cold.counts.tolist()
    ([2], [[1, 3], [3]], [2])
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    columns = [batch["item_ids"].flatten() for batch in read_batches(splits["train"])]
    counted = pa.chunked_array(columns).value_counts()
    counted = counted.take(pc.sort_indices(counted.field("values")))
    drawn = generator.permutation(len(counted))[: max(1, int(share * len(counted)))]
    chosen = counted.take(pa.array(np.sort(drawn)))
    cold = chosen.field("values")
    parts = {
        name: _without(rows, cold, cold_targets=name == "test") for name, rows in splits.items()
    }
    if "test" in parts and not len(parts["test"]):
        raise ValueError(f"no test row has one of the {len(cold)} cold items as a target")
    return ColdItems(DatasetDict(parts), cold.to_pylist(), chosen.field("counts").to_numpy())


def _without(rows: Dataset, cold: pa.Array, *, cold_targets: bool) -> Dataset:
    """The rows without the events of cold items, and with only cold or only other targets."""
    schema = rows.features.arrow_schema.remove_metadata()

    def part(batch: pa.RecordBatch) -> pa.RecordBatch:
        kept = {"item_ids": ~_is_in(batch["item_ids"], cold)}
        if "target_item_ids" in batch.schema.names:
            targets = _is_in(batch["target_item_ids"], cold)
            kept["target_item_ids"] = targets if cold_targets else ~targets
        columns = {}
        for name, column in zip(batch.schema.names, batch.columns):
            mask = kept.get("target_item_ids" if name.startswith("target_") else "item_ids")
            is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
            columns[name] = _filtered(column, mask) if is_list and mask is not None else column
        made = pa.RecordBatch.from_pydict(columns)
        needed = columns[list(kept)[-1]]  # an evaluation row needs a target, another one an event
        return made.filter(pc.greater(pc.list_value_length(needed), 0))

    return write_arrow((part(batch) for batch in read_batches(rows)), schema, None)


def _is_in(lists: pa.Array, values: pa.Array) -> np.ndarray:
    return pc.is_in(lists.flatten(), value_set=values).to_numpy(zero_copy_only=False)


def _filtered(lists: pa.Array, mask: np.ndarray) -> pa.Array:
    """The values of each list where the mask of all of them says so."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    kept = np.concatenate([[0], np.cumsum(mask)])[ends]
    offsets = pa.array(kept, lists.offsets.type)
    return type(lists).from_arrays(offsets, lists.flatten().filter(pa.array(mask)))


class RandomScores:
    """An even order of the items, another one for every row; what a rank is worth without knowledge."""

    def __init__(self, vocab_size: int, *, generator: np.random.Generator) -> None:
        self.name = "random"
        self.vocab_size = vocab_size
        self.generator = generator

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`."""
        return self.generator.random((len(rows), self.vocab_size), dtype=np.float32)


class ContentSimilarity:
    """`score_i` = mean cosine of the features of item i with those of the last events.

    Args:
        features: `[vocab_size, features]`.
        recent: how many of the last events count.
    """

    def __init__(self, features: np.ndarray, *, recent: int = RECENT) -> None:
        self.name = "content similarity"
        lengths = np.linalg.norm(features, axis=1, keepdims=True)
        self.features = (features / np.maximum(lengths, 1e-9)).astype(np.float32)
        self.recent = recent

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`; zeros for an empty history."""
        width = self.features.shape[1]
        means = [
            self.features[np.asarray(row["input_ids"][-self.recent :], dtype=np.int64)].mean(0)
            if len(row["input_ids"])
            else np.zeros(width, np.float32)
            for row in rows
        ]
        return np.stack(means) @ self.features.T


class Among:
    """A scorer that may recommend the named items only."""

    def __init__(self, scorer: Scorer, tokens: Sequence[int]) -> None:
        self.name = scorer.name
        self.scorer = scorer
        self.tokens = np.asarray(tokens)

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 `[batch, vocab_size]`, `-inf` for all other items."""
        scores = np.array(self.scorer.score(rows), dtype=np.float32)
        only = np.full_like(scores, -np.inf)
        only[:, self.tokens] = scores[:, self.tokens]
        return only


def evaluate_cold_items(
    scorers: Iterable[Scorer],
    rows: Dataset | Sequence[Row],
    cold_tokens: Sequence[int],
    *,
    num_items: int,
    ks: Sequence[int] = (10,),
) -> dict[str, dict[str, EvaluationResult]]:
    """Rank cold items among each other (`"cold"`), and among the whole catalogue (`"catalogue"`).

    Items of the history are left out of the lists.

    Args:
        scorers: that know the whole catalogue, the cold items included.
        rows: encoded test rows of [`ColdItems`], whose targets are cold items.
        cold_tokens: their tokens, as `processor.add_items` gave them.
        num_items: size of the catalogue, `vocab_size - 1`.
        ks: list lengths.

    Returns:
        Results by protocol and by the scorer's name.
    """
    found: dict[str, dict[str, EvaluationResult]] = {"cold": {}, "catalogue": {}}
    for scorer in scorers:
        for protocol, asked in (("cold", Among(scorer, cold_tokens)), ("catalogue", scorer)):
            found[protocol][scorer.name] = evaluate(
                asked, rows, ks=ks, seen="exclude", num_items=num_items, progress=False
            )
    return found
