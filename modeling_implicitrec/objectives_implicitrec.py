"""What a model may learn beside the next item: hidden items, the next event's type, and when it comes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_implicitrec import ImplicitRecConfig
from .kernels_implicitrec import log_buckets
from .state_implicitrec import event_columns

MASKED_SHARE = 0.2  # of the events, drawn anew for every batch


class Objectives(nn.Module):
    """Auxiliary losses of pretraining, each a mean over its places times its weight in the configuration.

    * `masked_loss`: a fifth of the items is hidden and told from the events on both sides (BERT4Rec, Sun et
      al., 2019). The priors do not see the hidden events.
    * `event_type_loss`: the type of the next event of the history.
    * `gap_loss`: the logarithmic bucket of the time until then.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.config = config
        size, buckets = config.hidden_size, 2 * config.num_time_buckets
        types = config.num_event_types
        self.event_type = nn.Linear(size, types) if config.event_type_loss else None
        self.gap = nn.Linear(size, buckets) if config.gap_loss else None

    def forward(self, model: Any, given: tuple[Tensor | None, ...], hidden: Tensor) -> Tensor:
        """Their weighted sum, a scalar.

        Args:
            model: that scores items.
            given: its inputs, in the order of the body.
            hidden: `[batch, length, hidden_size]` states of the body.
        """
        input_ids, _, types, times, *_ = given
        assert input_ids is not None
        follows = (input_ids[:, 1:] > 0) & (input_ids[:, :-1] > 0)  # [batch, length - 1]
        states, total = hidden[:, :-1][follows], hidden.sum() * 0
        if self.event_type is not None and types is not None and follows.any():
            wanted = types[:, 1:][follows]
            loss = F.cross_entropy(self.event_type(states), wanted)
            total = total + self.config.event_type_loss * loss
        if self.gap is not None and times is not None and follows.any():
            gaps = log_buckets((times[:, 1:] - times[:, :-1])[follows], self.gap.out_features)
            total = total + self.config.gap_loss * F.cross_entropy(self.gap(states), gaps.long())
        if self.config.masked_loss:
            total = total + self.config.masked_loss * masked_loss(model, given)
        return total


def masked_loss(model: Any, given: tuple[Any, ...]) -> Tensor:
    """Mean loss of telling some events' items from all others, see [`Objectives`]."""
    events = event_columns(model.config, *given)
    ids, weights = events["input_ids"], events["input_weights"]
    masked = (torch.rand_like(weights) < MASKED_SHARE) & (weights > 0)
    hidden = model.model(*given, masked_items=masked).last_hidden_state
    seen = model._prior_inputs({**events, "input_weights": weights * ~masked}, None)
    labels = ids.masked_fill(~masked, -100)
    loss: Tensor = model._next_item_loss(
        hidden, seen | {"negative_labels": None}, labels, None, None
    )
    return loss
