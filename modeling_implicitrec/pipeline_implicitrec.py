"""`pipeline("recommendation")`: histories in outside ids in, ranked items with scores out."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .weights_implicitrec import LATEST

TASK = "recommendation"


class RecommendationPipeline(Pipeline):
    """Recommends items for histories.

    Args:
        batch_size: histories scored at one time, 64 by default.
        top_k: items of each list, 10 by default.
        exclude_seen: leave out the items of the history; a checkpoint whose `config.exclude_seen` says
            that nobody takes an item twice always does.
        query_time: of a call, when it is asked, in seconds since 1970: of all its histories, or a list of
            one for each. For a model that reads it (`use_query_time`) and histories with times.
        candidate_item_ids: of a call, the only items to rank: of all its histories, or a list of such
            lists. Those that the model does not know are left out.

    A history is a list of item ids, oldest first; a list of events, dicts with `item_id` and any of
    `timestamp`, `event_type`, `duration`, `item_duration`, `count`, `platform`; or a dict of such columns
    (`{"item_id": [...], "timestamp": [...]}`). A list of histories is a batch.

    Returns for each history a list of `{"item_id": ..., "score": ...}`, best first; shorter than `top_k`
    where fewer items may be recommended. Scores are comparable within a list only.

    Raises:
        ValueError: for a history of another form, and where model and processor do not belong together.

    >>> from transformers import pipeline
    >>> from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring, ImplicitRecProcessor
    >>> processor = ImplicitRecProcessor.fit({"item_id": ["tea", "tea", "milk"]})
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=3))
    >>> recommend = pipeline("recommendation", model=model, processor=processor, device="cpu")
    >>> for item in recommend(["tea"], exclude_seen=True):
    ...     print(item["item_id"])
    milk
    """

    model: Any
    processor: Any
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False

    def __init__(self, *args: Any, batch_size: int = 64, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.histories_at_once = batch_size
        self.processor.check_model(self.model.config)

    def __call__(  # type: ignore[override]
        self,
        histories: Any,
        *,
        batch_size: int | None = None,
        query_time: Any = None,
        candidate_item_ids: Any = None,
        **options: Any,
    ) -> list:
        """Ranked items of one history, or of each history of a batch; options as for the class."""
        single = _is_history(histories)
        rows = [_columns(history) for history in ([histories] if single else histories)]
        asked = _of_each("query_time", query_time, _is_moment, len(rows))
        among = _of_each("candidate_item_ids", candidate_item_ids, _is_items, len(rows))
        size = self.histories_at_once if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be at least 1, got {size}")
        # A batch has times for all its histories or for none: those with and without go apart.
        parts: tuple[list, list] = ([], [])
        for place, row in enumerate(rows):
            parts[_is_timed(row)].append(place)
        places = [part[at : at + size] for part in parts for at in range(0, len(part), size)]
        chunks = [[(rows[at], asked[at], among[at]) for at in part] for part in places]
        ranked = chain.from_iterable(super().__call__(chunks, **options))
        found = dict(zip(chain.from_iterable(places), ranked))
        return found[0] if single else [found[place] for place in range(len(rows))]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write the checkpoint: the model's files and the processor's."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k: int | None = None, exclude_seen: bool | None = None
    ) -> tuple[dict, dict, dict]:
        given = {"top_k": top_k, "exclude_seen": exclude_seen}
        return {}, {name: value for name, value in given.items() if value is not None}, {}

    def preprocess(self, input_: list) -> Any:  # type: ignore[override]
        most = self.model.config.max_position_embeddings
        histories, asked, among = map(list, zip(*input_))
        inputs = self.processor(histories, max_length=min(self.processor.max_length or most, most))
        if asked[0] is not None:
            inputs["query_time"] = torch.tensor([int(moment) for moment in asked])
        if among[0] is not None:
            inputs["candidate_ids"] = self._candidates(among)
        return inputs

    def _candidates(self, among: Sequence[Sequence]) -> torch.Tensor:
        """The tokens of each history's candidates, `[histories, most]`, padded with 0."""
        tokens = [np.unique(self.processor.encode_items(items)) for items in among]
        rows = [torch.from_numpy(row[row > 0]) for row in tokens]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded if padded.shape[1] else padded.new_zeros(len(rows), 1)

    def _forward(self, input_tensors: Any, **options: Any) -> Any:  # type: ignore[override]
        return self.model.recommend(**input_tensors, **options)

    def postprocess(self, model_outputs: Any) -> list[list[dict]]:  # type: ignore[override]
        ranked = []
        for tokens, scores in zip(
            model_outputs.item_tokens.tolist(), model_outputs.scores.tolist()
        ):
            items = self.processor.decode_items(token for token in tokens if token)
            ranked.append([{"item_id": i, "score": s} for i, s in zip(items, scores)])
        return ranked


def _is_history(value: Any) -> bool:
    """Whether this is one history, not a batch."""
    if isinstance(value, Mapping):
        return True
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or not len(value):
        raise ValueError(f"expected a history or a list of histories, got {value!r}")
    first = value[0]
    if isinstance(first, float | np.floating):
        raise ValueError(f"item ids must be strings or integers, got {first!r}")
    return isinstance(first, str | int | np.integer) or _is_event(first)


def _of_each(name: str, value: Any, is_one: Callable[[Any], bool], histories: int) -> list:
    """What was given for each history, or for all of them; `None` for nothing."""
    if value is None or is_one(value):
        return [value] * histories
    many = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    if not many or len(value) != histories or not all(map(is_one, value)):
        one = "seconds since 1970" if is_one is _is_moment else "a list of item ids"
        raise ValueError(f"{name} must be {one}, or one for each of {histories}, got {value!r}")
    return list(value)


def _is_moment(value: Any) -> bool:
    """Whether this is a time in seconds; of our days in milliseconds it would be later than any."""
    return isinstance(value, Real) and 0 < float(value) <= LATEST


def _is_items(value: Any) -> bool:
    """Whether this is a list of item ids."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        return False
    return all(isinstance(item, str | int | np.integer) for item in value)


def _is_event(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        isinstance(value.get("item_id"), str) or np.ndim(value.get("item_id", [])) == 0
    )


def _columns(history: Any) -> Any:
    """A history as the processor takes it, whose columns have names in the plural."""
    if isinstance(history, Mapping):
        return {name if name.endswith("s") else f"{name}s": v for name, v in history.items()}
    return history


def _is_timed(history: Any) -> bool:
    if isinstance(history, Mapping):
        return history.get("timestamps") is not None
    return any(isinstance(event, Mapping) and "timestamp" in event for event in history)
