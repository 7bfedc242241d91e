"""Why an item is recommended: what each event of a history adds to the item's score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .modeling_implicitrec import ImplicitRecForScoring
from .state_implicitrec import event_columns


@dataclass(frozen=True)
class Explanation:
    """Scores of items after a history, and what its events add to them; float64.

    Attributes:
        item_tokens: `[items]`.
        scores: `[items]` after the whole history.
        base: `[items]` after no event: what is left when all are gone.
        alone: `[items, events]`, the score minus the score of the history without that one event.
        in_turn: `[items, events]`, what each event takes with it when they go one after the other, the
            oldest first. `base + in_turn.sum(1)` is `scores`.
        event_tokens: `[events]` items of the events in time order; events of weight 0 are not among them.
        event_weights: `[events]`.
    """

    item_tokens: Tensor
    scores: Tensor
    base: Tensor
    alone: Tensor
    in_turn: Tensor
    event_tokens: Tensor
    event_weights: Tensor

    @property
    def together(self) -> Tensor:
        """`[items]`: what is neither the base nor any event's alone, so that the three sum to `scores`.

        It is what events do to each other: negative where one would be missed less, having another.
        """
        return self.scores - self.base - self.alone.sum(1)


@torch.no_grad()
def explain(
    model: ImplicitRecForScoring,
    inputs: Mapping[str, Tensor],
    item_tokens: Sequence[int] | Tensor,
    *,
    batch_size: int = 64,
) -> Explanation:
    """Exact contributions of the events of one history: the model scores the history without them.

    Nothing is approximated: `2 * events` histories are scored. `alone` answers "how much would be missing
    if this event had not happened?" and is what to show beside an event. Two events that say the same
    each miss little alone, so these numbers do not sum to the score; those of `in_turn` do, and depend
    on the order in which events go. A history without its last event is asked about at the time of the one
    before, unless a `query_time` is given.

    Args:
        model: set to evaluation mode.
        inputs: one history as the processor makes it, `[1, length]` each; `query_time` `[1]` may be added.
        item_tokens: `[items]` to explain.
        batch_size: histories scored at one time.

    Raises:
        ValueError: for more than one history, or a token that is no item.

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=9, copy_prior=True))
    >>> found = explain(model, {"input_ids": torch.tensor([[3, 5, 3]])}, [3, 4])
    >>> found.alone.shape
    torch.Size([2, 3])
    >>> torch.allclose(found.base + found.in_turn.sum(1), found.scores)
    True
    """
    tokens = torch.as_tensor(item_tokens, dtype=torch.long, device=model.device)
    if tokens.dim() != 1 or not ((tokens > 0) & (tokens < model.config.vocab_size)).all():
        raise ValueError(
            f"item_tokens must be a list of 1..{model.config.vocab_size - 1}, got {tokens.tolist()}"
        )
    if len(inputs["input_ids"]) != 1:
        raise ValueError(f"expected one history, got {len(inputs['input_ids'])}")
    named = {name: values for name, values in inputs.items() if name != "query_time"}
    events = event_columns(model.config, **named)
    events = {n: values[0][events["input_weights"][0] > 0] for n, values in events.items()}
    size = len(events["input_ids"])
    kept = torch.ones(2 * size + 1, size, dtype=torch.bool, device=tokens.device)
    kept[:size].fill_diagonal_(False)  # without one, then without the first, the first two, ...
    kept[size:] = torch.ones(size + 1, size, device=tokens.device).triu()
    scores = torch.cat(
        [
            _score(model.eval(), events, part, tokens, inputs.get("query_time"))
            for part in kept.split(batch_size)
        ]
    ).double()
    removed = scores[size:]
    return Explanation(
        item_tokens=tokens,
        scores=removed[0],
        base=removed[-1],
        alone=(removed[0] - scores[:size]).t(),
        in_turn=(removed[:-1] - removed[1:]).t(),
        event_tokens=events["input_ids"],
        event_weights=events["input_weights"],
    )


def _score(
    model: ImplicitRecForScoring,
    events: Mapping[str, Tensor],
    kept: Tensor,
    tokens: Tensor,
    query_time: Tensor | None,
) -> Tensor:
    """Scores `[histories, items]` of the events kept in each, the others being taken out."""
    width = max(1, int(kept.sum(1).max()) if kept.numel() else 0)
    order = kept.logical_not().byte().argsort(dim=1, stable=True)[:, :width]
    absent = torch.arange(order.shape[1], device=kept.device) >= kept.sum(1, keepdim=True)
    batch = {name: values[order].masked_fill(absent, 0) for name, values in events.items()}
    if not order.shape[1]:  # of no event at all
        batch = {"input_ids": torch.zeros(len(kept), 1, dtype=torch.long, device=kept.device)}
    if query_time is not None:
        batch["query_time"] = query_time.expand(len(kept))
    return model(**batch, candidate_ids=tokens.expand(len(kept), -1)).logits
