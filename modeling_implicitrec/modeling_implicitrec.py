"""The implicitrec models: a body over weighted events, and the same with a scoring head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .catalogue_implicitrec import CatalogueMixin
from .configuration_implicitrec import ImplicitRecConfig
from .content_implicitrec import ItemEmbedding
from .head_implicitrec import ZERO_AT_FIRST, ItemHead, StateCentre, gather_history
from .layers_implicitrec import (
    EvidenceBias,
    GapEmbedding,
    ImplicitRecBlock,
    ImplicitRecRMSNorm,
    PlatformEmbedding,
    WeightEmbedding,
    event_weights,
    negative_events,
)
from .loss_implicitrec import (
    chunked_loss,
    draw_negatives,
    expected_draws,
    gbce_beta,
    gbce_loss,
    normalised_label_weights,
    pair_loss,
    pointwise_loss,
    sampled_softmax_loss,
    softmax_loss,
    targets_loss,
)


class ImplicitRecPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the Hugging Face contract shared by the models."""

    config: ImplicitRecConfig
    config_class = ImplicitRecConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # the loss is normalised by Trainer's num_items_in_batch
    _supports_sdpa = True
    _no_split_modules = ["ImplicitRecBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv1d):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            if module.embedding_dim == self.config.hidden_size:
                init.normal_(module.weight, mean=0.0, std=std)
            else:
                init.zeros_(module.weight)
        elif isinstance(module, ImplicitRecRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, EvidenceBias):
            init.zeros_(module.beta)
        elif isinstance(module, (*ZERO_AT_FIRST, GapEmbedding, PlatformEmbedding)):
            for parameter in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                init.zeros_(parameter)
        if isinstance(module, WeightEmbedding):
            init.zeros_(module.bins.weight)


class ImplicitRecModel(ImplicitRecPreTrainedModel):
    """The body: events in, one hidden state per event out."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__(config)
        self.item_embedding = ItemEmbedding(config)
        self.event_type_embedding = nn.Embedding(config.num_event_types, config.hidden_size)
        self.weight_embedding = WeightEmbedding(config)
        self.gap_embedding = GapEmbedding(config) if config.use_gaps else None
        self.platform_embedding = PlatformEmbedding(config) if config.num_platforms > 1 else None
        attends = config.sequence_mixer == "attention"
        self.evidence_bias = EvidenceBias(config) if attends else None
        self.blocks = nn.ModuleList(
            ImplicitRecBlock(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = ImplicitRecRMSNorm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.item_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.item_embedding = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        input_weights: Tensor | None = None,
        event_type_ids: Tensor | None = None,
        timestamps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        platform_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """Hidden states `[batch, length, hidden_size]`; zero where there is no event.

        Args:
            input_ids: `[batch, length]` item tokens, 0 is padding.
            input_weights: `[batch, length]`, not negative; 0 masks the event. All ones by default.
            event_type_ids: `[batch, length]`.
            timestamps: `[batch, length]` seconds.
            attention_mask: `[batch, length]`, 1 for an event. By default, all but padding.
            platform_ids: `[batch, length]`, read where `num_platforms` is above 1. All 0 by default.
        """
        weights = event_weights(self.config, input_ids, input_weights, attention_mask)
        present = weights > 0
        hidden = self.item_embedding(input_ids)  # [batch, length, hidden_size]
        if self.training and self.config.item_dropout_prob:
            kept = torch.rand_like(weights) >= self.config.item_dropout_prob
            hidden = hidden * kept.unsqueeze(-1)
        hidden = self.weight_embedding(hidden, weights)
        if self.gap_embedding is not None and timestamps is not None:
            hidden = hidden + self.gap_embedding(input_ids, timestamps, present)
        if self.platform_embedding is not None:
            hidden = hidden + self.platform_embedding(platform_ids)
        types = torch.zeros_like(input_ids) if event_type_ids is None else event_type_ids
        hidden = self.dropout(hidden + self.event_type_embedding(types))
        bias = None
        if self.evidence_bias is not None:
            bias = self.evidence_bias(weights, timestamps).to(hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, present, bias)
        return BaseModelOutput(last_hidden_state=self.norm(hidden) * present.unsqueeze(-1))


@dataclass
class ImplicitRecScoringOutput(ModelOutput):
    """Output of [`ImplicitRecForScoring`].

    Args:
        loss: scalar, where labels were given.
        logits: `[batch, vocab_size]`, or `[batch, candidates]`: scores of what comes after the last
            event. Absent while training on next-item labels, where it would be thrown away.
        last_hidden_state: `[batch, length, hidden_size]`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


@dataclass
class ImplicitRecRecommendation(ModelOutput):
    """Ranked items: `item_tokens` and `scores`, both `[batch, top_k]`, best first.

    Where fewer than `top_k` items may be recommended, the rest has token 0 and score `-inf`.
    """

    item_tokens: Tensor | None = None
    scores: Tensor | None = None


class ImplicitRecForScoring(CatalogueMixin, ImplicitRecPreTrainedModel):
    """Scores items after a history, learns from weighted labels, and recommends."""

    _tied_weights_keys = {"item_decoder.weight": "model.item_embedding.weight"}

    item_frequency: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__(config)
        self.model = ImplicitRecModel(config)
        self.item_decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.state_centre = StateCentre(config)
        self.head = ItemHead(config)
        self.register_buffer("item_frequency", torch.ones(config.vocab_size))
        if config.tie_word_embeddings:  # Trainer warns of each missing key that is not named here
            self._keys_to_ignore_on_save = {"item_decoder.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.item_decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.item_decoder = value

    def use_sparse_gradients(self) -> None:
        """Have sparse gradients in the tables of items, for [`RowWiseAdamW`]; a sampled loss reads few rows.

        Raises:
            ValueError: for the full softmax, which reads all, and item content, which moves all.
        """
        if self.config.loss_type == "softmax" or self.config.item_feature_size:
            got = f"{self.config.loss_type!r}, item_feature_size {self.config.item_feature_size}"
            raise ValueError(f"sparse gradients need a sampled loss_type and no content, got {got}")
        self.head.sparse = self.model.item_embedding.sparse = True
        for table in self.head.item_tables():
            table.sparse = True

    def forward(
        self,
        input_ids: Tensor,
        input_weights: Tensor | None = None,
        event_type_ids: Tensor | None = None,
        timestamps: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        label_weights: Tensor | None = None,
        candidate_ids: Tensor | None = None,
        target_ids: Tensor | None = None,
        query_time: Tensor | None = None,
        fold_ids: Tensor | None = None,
        negative_labels: Tensor | None = None,
        platform_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> ImplicitRecScoringOutput:
        """Scores after the last event, and the loss where labels are given.

        Args:
            labels: `[batch, length]` item tokens, -100 ignored (next item); or, with
                `candidate_ids`, `[batch, candidates]` of 0 and 1 (did it happen?).
            label_weights: of the shape of `labels`, not negative.
            candidate_ids: `[batch, candidates]` item tokens to score; all items by default.
            target_ids: `[batch, targets]` all right answers for what follows the last event, in any
                order; not positive ones are ignored. The loss is their mean cross-entropy.
            query_time: `[batch]` seconds, the moment of asking; needs `use_query_time`.
            fold_ids: `[batch]` group of each user, read while training with cross-fitted
                co-occurrences (see [`~ImplicitRecForScoring.fit_cooccurrences`]).
            negative_labels: `[batch, length]` items that a label is to be put above, -100 for none; read
                where the configuration has a `negative_event_loss`.
            num_items_in_batch: labels of the whole step, over processes and accumulated batches; the
                loss is divided by it in place of the batch's own sum of label weights.
        """
        given = (input_ids, input_weights, event_type_ids, timestamps, attention_mask, platform_ids)
        hidden = self.model(*given).last_hidden_state
        batch = {
            "input_ids": input_ids,
            "weights": event_weights(self.config, input_ids, input_weights, attention_mask),
            "timestamps": timestamps,
            "query_time": query_time if self.config.use_query_time else None,
            "fold_ids": fold_ids,
            "negative": negative_events(self.config, event_type_ids),
            "negative_labels": negative_labels if self.config.negative_event_loss else None,
        }
        loss, logits = None, None
        pointwise = labels is not None and candidate_ids is not None
        if labels is not None and not pointwise:
            loss = self._next_item_loss(hidden, batch, labels, label_weights, num_items_in_batch)
        if pointwise or target_ids is not None or not (self.training and labels is not None):
            logits = self._last_scores(hidden, batch, candidate_ids)
        if labels is not None and logits is not None and pointwise:
            loss = pointwise_loss(logits, labels, label_weights)
        elif target_ids is not None and logits is not None:
            loss = targets_loss(logits, target_ids)
        return ImplicitRecScoringOutput(loss=loss, logits=logits, last_hidden_state=hidden)

    def _last_scores(self, hidden: Tensor, batch: dict, candidate_ids: Tensor | None) -> Tensor:
        length = hidden.shape[1]
        places = torch.arange(length, device=hidden.device)
        last = ((batch["weights"] > 0) * places).argmax(1)  # [batch]
        rows = torch.arange(len(hidden), device=hidden.device)
        history = gather_history(batch, rows, last)
        states = self.state_centre(hidden[rows, last])
        scores = self.head(states, self.item_table(), history, candidate_ids)
        if self.config.exclude_seen and candidate_ids is None:
            scores = scores.scatter(1, batch["input_ids"], torch.finfo(scores.dtype).min)
        return scores

    def _next_item_loss(
        self,
        hidden: Tensor,
        batch: dict,
        labels: Tensor,
        label_weights: Tensor | None,
        num_items: Tensor | int | None,
    ) -> Tensor:
        rows, columns = torch.nonzero(labels != -100, as_tuple=True)
        states = self.state_centre(hidden[rows, columns])
        if not len(rows):
            return hidden.sum() * 0
        given = None if label_weights is None else label_weights[rows, columns]
        if num_items is None:
            share = normalised_label_weights(given, len(rows), hidden)
        else:
            share = (torch.ones_like(rows) if given is None else given) / num_items
        targets = labels[rows, columns]
        refused = batch["negative_labels"]
        refused = None if refused is None else refused[rows, columns]
        draws = None
        if self.config.loss_type != "softmax":
            draws = draw_negatives(targets, len(self.item_frequency), *self._draws())
        names = [name for name, _ in self.head.named_parameters()]

        def one_chunk(at: slice, states: Tensor, table: Tensor, *head: Tensor) -> Tensor:
            history = gather_history(batch, rows[at], columns[at]) | {"labels": targets[at]}

            def score(candidates: Tensor | None) -> Tensor:
                inputs = (states, table, history, candidates)
                return functional_call(self.head, dict(zip(names, head)), inputs)

            losses = self._position_losses(score, targets[at], draws)
            if refused is not None:
                pairs = torch.stack([targets[at], refused[at].clamp_min(0)], dim=1)
                losses = losses + self.config.negative_event_loss * pair_loss(
                    score(pairs), refused[at] > 0
                )
            return (losses * share[at]).sum()

        tensors = [self.item_table(), *self.head.parameters()]
        return chunked_loss(one_chunk, [states], tensors, self.config.loss_chunk_size)

    def _draws(self) -> tuple[int, int]:
        """Negatives drawn from the catalogue, and from the batch's labels."""
        in_batch = int(self.config.num_negatives * self.config.in_batch_share)
        return self.config.num_negatives - in_batch, in_batch

    def _position_losses(self, score, targets: Tensor, negatives: Tensor | None) -> Tensor:
        config = self.config
        if negatives is None:
            return softmax_loss(score(None), targets, config.label_smoothing)
        positive = score(targets[:, None])[:, 0]
        lowest = torch.finfo(positive.dtype).min
        others = score(negatives).masked_fill(negatives[None] == targets[:, None], lowest)
        if config.loss_type == "sampled_softmax":
            drawn = expected_draws(self.item_frequency, negatives, *self._draws())
            return sampled_softmax_loss(positive, others, drawn.log())
        beta = 1.0
        if config.loss_type == "gbce":
            items = config.vocab_size - 1
            beta = gbce_beta(config.num_negatives, items, config.gbce_calibration)
        return gbce_loss(positive, others, beta)

    @torch.no_grad()
    def recommend(
        self,
        input_ids: Tensor,
        *,
        top_k: int = 10,
        exclude_seen: bool = True,
        candidate_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> ImplicitRecRecommendation:
        """The `top_k` items of each history.

        Args:
            input_ids: `[batch, length]`, with the other inputs of `forward` by name.
            exclude_seen: leave out the items of the history; keep them where people repeat.
            candidate_ids: `[batch, candidates]` the only items to rank.

        Raises:
            ValueError: where `top_k` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        training = self.training
        self.eval()
        scores = self(input_ids, candidate_ids=candidate_ids, **inputs).logits.float()
        self.train(training)
        scores = scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 4, -torch.inf)
        if exclude_seen and candidate_ids is None:
            scores = scores.scatter(1, input_ids, -torch.inf)
        elif exclude_seen and candidate_ids is not None:
            seen = (candidate_ids[:, :, None] == input_ids[:, None, :]).any(2)
            scores = scores.masked_fill(seen, -torch.inf)
        best, places = scores.topk(min(top_k, scores.shape[1]), dim=1)
        tokens = places if candidate_ids is None else candidate_ids.gather(1, places)
        tokens = tokens.masked_fill(best == -torch.inf, 0)
        return ImplicitRecRecommendation(item_tokens=tokens, scores=best)
