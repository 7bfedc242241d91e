"""Results by the length of the history: what is recommended after no event, one, two and so on."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset

from .baselines import Scorer
from .evaluation import EvaluationResult, TargetFilter, evaluate
from .matrices import INPUTS
from .ranking import Seen
from .rows import Row


class LastEvents:
    """A scorer that reads the last events of a history only.

    Args:
        scorer: of encoded rows.
        length: events that are read; 0 for none, as of a user who has just come.
    """

    def __init__(self, scorer: Scorer, length: int) -> None:
        if length < 0:
            raise ValueError(f"length must not be negative, got {length}")
        self.name = scorer.name
        self.scorer = scorer
        self.length = length

    def score(self, rows: Sequence[Row]) -> Any:
        """float `[batch, vocab_size]`."""
        return self.scorer.score([dict(self._cut(row)) for row in rows])

    def _cut(self, row: Row) -> Iterator[tuple[str, Any]]:
        for name, values in row.items():
            yield name, values[max(0, len(values) - self.length) :] if name in INPUTS else values


def evaluate_by_history_length(
    scorer: Scorer,
    rows: Dataset | Sequence[Row],
    lengths: Sequence[int],
    *,
    seen: Seen,
    num_items: int,
    target_filter: TargetFilter = "all",
    ks: Sequence[int] = (10,),
) -> dict[int, EvaluationResult]:
    """The same users and targets, with histories cut to their last 0, 1, 2, ... events.

    So results differ by what is known of a user, not by who has a long history. Which targets are new, and
    which items are not shown again, is decided by the whole history.

    Args:
        lengths: how many of the last events are read.
        scorer, rows, seen, num_items, target_filter, ks: as of [`evaluate`].

    >>> from modeling_implicitrec import OwnFrequency
    >>> rows = [{"input_ids": [1, 2], "target_ids": [1]}]
    >>> found = evaluate_by_history_length(
    ...     OwnFrequency([{"input_ids": [2, 3, 3]}], 4), rows, [0, 2], seen="keep", num_items=3, ks=[1])
    >>> {length: result.metrics["recall@1"] for length, result in found.items()}
    {0: 0.0, 2: 0.0}
    """
    options: dict[str, Any] = {"seen": seen, "num_items": num_items, "ks": ks}
    options |= {"target_filter": target_filter, "progress": False}
    return {length: evaluate(LastEvents(scorer, length), rows, **options) for length in lengths}
