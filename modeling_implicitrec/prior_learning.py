"""When the numbers of the co-occurrence prior learn: before the body knows the histories by heart."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PriorCallback(TrainerCallback):
    """Lets the numbers of the co-occurrence prior learn in the first steps only.

    The prior reads what others did, while the body comes to know the training histories by heart: from
    then on the loss of training trusts the body more, and the prior less, than new histories bear out
    (as in stacking, whose weights want predictions for cases that were not learnt from; Wolpert, 1992).

    Args:
        steps: after which the numbers stay as they are.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

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
