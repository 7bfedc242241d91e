"""Other questions than the next item, asked of the same body: will they come back, how much, how risky?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from .body_implicitrec import ImplicitRecModel
from .configuration_implicitrec import ImplicitRecConfig
from .layers_implicitrec import event_weights, last_events
from .pretrained_implicitrec import ImplicitRecPreTrainedModel

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass
class ImplicitRecSequenceClassifierOutput(ModelOutput):
    """Output of [`ImplicitRecForSequenceClassification`].

    Args:
        loss: scalar, where labels were given.
        logits: `[batch, num_labels]`; of a regression, the values themselves.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class HistoryClassifier(nn.Module):
    """From the state after the last event, and what else is known of the user, to labels.

    What else is known also counts by itself, linearly (wide and deep, Cheng et al., 2016).
    """

    feature_mean: Tensor
    feature_deviation: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        width = config.hidden_size + config.user_feature_size
        self.dense = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        labels = int(config.num_labels or 0)
        self.out = nn.Linear(config.hidden_size, labels)
        size = config.user_feature_size
        self.wide = nn.Linear(size, labels, bias=False) if size else None
        self.register_buffer("feature_mean", torch.zeros(config.user_feature_size))
        self.register_buffer("feature_deviation", torch.ones(config.user_feature_size))

    def forward(self, states: Tensor, features: Tensor) -> Tensor:
        """`[batch, num_labels]` of `[batch, hidden_size]` and `[batch, user_feature_size]`."""
        features = (features.to(states) - self.feature_mean) / self.feature_deviation
        hidden = F.silu(self.dense(torch.cat([states, features], dim=1)))
        logits: Tensor = self.out(self.dropout(hidden))
        return logits if self.wide is None else logits + self.wide(features)


class ImplicitRecForSequenceClassification(ImplicitRecPreTrainedModel):
    """Answers a question about a user from their history: classes, several labels, or a number.

    `from_pretrained` also takes a checkpoint of [`ImplicitRecForScoring`]: the body is kept, the head
    starts anew. `num_labels` and `problem_type` are those of transformers; a problem type that is not given
    follows from the first labels: floats of `[batch, num_labels]` are several labels or, where
    `num_labels` is 1, numbers; integers `[batch]` are classes.

    >>> config = ImplicitRecConfig(vocab_size=11, hidden_size=16, num_labels=3)
    >>> model = ImplicitRecForSequenceClassification(config).eval()
    >>> model(torch.tensor([[3, 5, 7]])).logits.shape
    torch.Size([1, 3])
    """

    accepts_loss_kwargs = False  # a loss is the mean over its batch
    new_head = "classifier."
    _keys_to_ignore_on_load_unexpected = [
        r"^head\.",
        r"^state_centre\.",
        r"^item_decoder\.",
        r"^item_frequency$",
    ]

    def __init__(self, config: ImplicitRecConfig):
        super().__init__(config)
        if config.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(
                f"problem_type must be one of {PROBLEM_TYPES}, got {config.problem_type!r}"
            )
        self.num_labels = config.num_labels
        self.model = ImplicitRecModel(config)
        self.classifier = HistoryClassifier(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HistoryClassifier):
            init.zeros_(module.feature_mean)
            init.ones_(module.feature_deviation)

    @torch.no_grad()
    def fit_user_features(self, features: Tensor, labels: Tensor | None = None) -> None:
        """Standardise `user_features` by the mean and deviation of these, before training.

        With labels, the model also starts at what the features say of them by themselves: the linear part
        at their regression (logistic, or least squares; L2 penalty 1), the history without a say. A few
        epochs would not bring it there, and what the history adds is then learnt beside it.

        Args:
            features: `[users, user_feature_size]`.
            labels: of these users, as `forward` takes them.
        """
        given = torch.as_tensor(features).float()
        self._check_features(given, len(given))
        head, deviation = self.classifier, given.std(0, correction=0)
        head.feature_mean.copy_(given.mean(0))
        head.feature_deviation.copy_(deviation.where(deviation > 0, torch.tensor(1.0)))
        if labels is not None and head.wide is not None:
            scaled = (given - head.feature_mean) / head.feature_deviation
            weights = self._regression(scaled, torch.as_tensor(labels))
            head.wide.weight.copy_(weights[:, :-1])
            head.out.bias.copy_(weights[:, -1])
            head.out.weight.zero_()

    @torch.enable_grad()
    def _regression(self, features: Tensor, labels: Tensor) -> Tensor:
        """Weights `[num_labels, user_feature_size + 1]`, the last being those of the constant."""
        shape = (self.classifier.out.out_features, features.shape[1] + 1)
        weights = features.new_zeros(shape, requires_grad=True)
        search = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            kept = weights[:, :-1].square().sum() / (2 * len(features))
            value = self._loss(F.linear(features, weights[:, :-1], weights[:, -1]), labels) + kept
            value.backward()
            return value

        search.step(loss)
        return weights.detach()

    def forward(
        self,
        input_ids: Tensor,
        input_weights: Tensor | None = None,
        event_type_ids: Tensor | None = None,
        timestamps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        platform_ids: Tensor | None = None,
        user_features: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ImplicitRecSequenceClassifierOutput:
        """Logits of each history, and the loss where labels are given.

        Args:
            input_ids: `[batch, length]`, with the other inputs of [`ImplicitRecModel`]; a history may be
                empty.
            user_features: `[batch, user_feature_size]` numbers that are known of the users at the moment
                of asking; needed where the configuration has a `user_feature_size`.
            labels: `[batch]` classes, `[batch, num_labels]` of 0 and 1, or of a regression
                `[batch]` or `[batch, num_labels]` numbers.

        Raises:
            ValueError: for `user_features` of another shape, or labels that do not fit.
        """
        given: Any = (input_ids, input_weights, event_type_ids, timestamps, attention_mask)
        hidden = self.model(*given, platform_ids).last_hidden_state
        weights = event_weights(self.config, input_ids, input_weights, attention_mask)
        states = hidden[torch.arange(len(hidden), device=hidden.device), last_events(weights)]
        if user_features is None:
            user_features = states.new_zeros(len(states), 0)
        self._check_features(user_features, len(states))
        logits = self.classifier(states, user_features)
        loss = None if labels is None else self._loss(logits, labels)
        return ImplicitRecSequenceClassifierOutput(loss=loss, logits=logits)

    def _check_features(self, features: Tensor, rows: int) -> None:
        expected = [rows, self.config.user_feature_size]
        if list(features.shape) != expected:
            raise ValueError(f"user_features must be {expected}, got {list(features.shape)}")

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error, cross-entropy of one class, or of each label by itself."""
        kind = self.config.problem_type
        if kind is None:
            kind = self.config.problem_type = self._problem_type(labels)
        if kind == "single_label_classification":
            self._check_classes(labels, len(logits))
            return F.cross_entropy(logits, labels)
        if labels.numel() != logits.numel():
            raise ValueError(
                f"{kind} needs labels of shape {list(logits.shape)}, got {list(labels.shape)}"
            )
        wanted = labels.view_as(logits).to(logits)
        if kind == "regression":
            return F.mse_loss(logits, wanted)
        return F.binary_cross_entropy_with_logits(logits, wanted)

    def _check_classes(self, labels: Tensor, rows: int) -> None:
        if list(labels.shape) != [rows] or labels.is_floating_point():
            got = f"{list(labels.shape)} of {labels.dtype}"
            raise ValueError(f"labels must be [{rows}] classes, of torch.long, got {got}")
        known, classes = labels[labels != -100], self.classifier.out.out_features
        if known.numel() and not 0 <= known.min() <= known.max() < classes:
            got = f"{int(known.min())} to {int(known.max())}"
            raise ValueError(f"labels must lie in 0..{classes - 1}, got {got}")

    def _problem_type(self, labels: Tensor) -> Any:
        if self.num_labels == 1:
            return "regression"
        floats = labels.is_floating_point() or labels.dim() > 1
        return "multi_label_classification" if floats else "single_label_classification"
