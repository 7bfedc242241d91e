"""When the numbers of the co-occurrence prior learn: before the body knows the histories by heart."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PriorCallback(TrainerCallback):
    """Lets the numbers of the co-occurrence prior learn in the first steps only.

    The prior reads what others did, while the body comes to know the training histories by heart: from
    then on the loss of training trusts the body more, and the prior less, than new histories bear out
    (as in stacking, whose weights want predictions for cases that were not learnt from; Wolpert, 1992).
    And where the prior explains an event, the body has nothing left to learn from it; hiding the prior at
    a share of the positions has the body learn from every event, as it would alone.

    Args:
        steps: after which the numbers stay as they are.
        dropout: from then on, the share of the positions at which the prior is not seen while training.

    Raises:
        ValueError: for a share outside [0, 1), or steps below 1; when training begins, for a model without
            such a prior.
    """

    def __init__(self, steps: int, dropout: float = 0.0) -> None:
        if steps < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"prior_steps must be at least 1, and prior_dropout, which begins after them, in [0, 1); "
                f"got {steps}, {dropout}"
            )
        self.steps = steps
        self.dropout = dropout

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        head, config = kwargs["model"].head, kwargs["model"].config
        if not head.prior_numbers() or (self.dropout and head.cooccurrence is None):
            raise ValueError(
                "prior_steps need a prior of others' events (num_cooccurrences or num_trend_events "
                "above 0), and prior_dropout num_cooccurrences; "
                f"got {config.num_cooccurrences} and {config.num_trend_events}"
            )

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        prior = kwargs["model"].head.cooccurrence
        if prior is not None:
            prior.dropout = self.dropout if state.global_step >= self.steps else 0.0

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.global_step >= self.steps:
            for parameter in kwargs["model"].head.prior_numbers():
                parameter.grad = None  # an optimiser passes it over
