"""A model as a scorer of encoded histories, for ranking and evaluation beside the baselines."""

from collections.abc import Mapping, Sequence

import torch

from .collation import DataCollatorForNextItem
from .configuration_implicitrec import ImplicitRecConfig
from .modeling_implicitrec import ImplicitRecForScoring


def batch_histories(
    config: ImplicitRecConfig, rows: Sequence[Mapping[str, list]]
) -> dict[str, torch.Tensor]:
    """Encoded rows as the inputs of a model, the latest events of each."""
    return DataCollatorForNextItem.for_model(config).histories(rows)


class ModelScorer:
    """Scores of a model over the whole catalogue.

    Args:
        model: set to evaluation mode.
        name: what tables call it.
    """

    def __init__(self, model: ImplicitRecForScoring, name: str = "implicitrec") -> None:
        self.model = model.eval()
        self.name = name

    def score(self, rows: Sequence[Mapping[str, list]]) -> torch.Tensor:
        """`[rows, vocab_size]` float scores."""
        return self.score_batch(batch_histories(self.model.config, rows))

    def score_batch(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`[rows, vocab_size]` float scores after the inputs of the model, the logits of its `forward`."""
        inputs = {name: values.to(self.model.device) for name, values in batch.items()}
        return self.model.last_scores(**inputs).float().cpu()
