"""The implicitrec model: the body with a head that scores items after a history."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.utils import ModelOutput

from .body_implicitrec import ImplicitRecModel
from .catalogue_implicitrec import CatalogueMixin
from .classification_implicitrec import ImplicitRecForSequenceClassification  # noqa: F401 travels along
from .configuration_implicitrec import ImplicitRecConfig
from .head_implicitrec import ItemHead, StateCentre, gather_history, lowest_at
from .layers_implicitrec import last_events, negative_events
from .loss_implicitrec import (
    chunked_loss,
    negatives_for,
    normalised_label_weights,
    pair_loss,
    pointwise_loss,
    position_losses,
    targets_loss,
)
from .objectives_implicitrec import Objectives
from .pairs_implicitrec import own_events
from .pretrained_implicitrec import ImplicitRecPreTrainedModel
from .state_implicitrec import (
    Columns,
    UserState,
    check_answers,
    check_candidates,
    event_columns,
    refuse_labels,
    update_state,
)


@dataclass
class ImplicitRecScoringOutput(ModelOutput):
    """Output of [`ImplicitRecForScoring`].

    Args:
        loss: scalar, where labels were given.
        logits: `[batch, vocab_size]`, or `[batch, candidates]`: scores of what comes after the last
            event. Absent while training on next-item labels, where it would be thrown away.
        last_hidden_state: `[batch, length, hidden_size]`; absent where there were no new events.
        cache: the users' state, where one was given or asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    cache: UserState | None = None


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
        beside = config.masked_loss or config.event_type_loss or config.gap_loss
        self.objectives = Objectives(config) if beside else None
        if config.tie_word_embeddings:  # Trainer warns of each missing key that is not named here
            self._keys_to_ignore_on_save = {"item_decoder.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.item_decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.item_decoder = value

    def use_sparse_gradients(self) -> None:
        """Have sparse gradients in the tables of items, for [`RowWiseAdamW`]: a sampled loss reads few.

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
        input_ids: Tensor | None = None,
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
        cache: UserState | None = None,
        use_cache: bool = False,
        return_dict: bool | None = None,
    ) -> ImplicitRecScoringOutput:
        """Scores after the last event, and the loss where labels are given.

        Args:
            input_ids: `[batch, length]`, as [`ImplicitRecModel`] takes it; none where a `cache` holds all.
            labels: `[batch, length]` item tokens, -100 ignored (next item); or, with
                `candidate_ids`, `[batch, candidates]` of 0 and 1 (did it happen?).
            label_weights: of the shape of `labels`, not negative.
            candidate_ids: `[batch, candidates]` item tokens to score; all items by default.
            target_ids: `[batch, targets]` all right answers for what follows the last event, in any
                order; not positive ones are ignored. The loss is their mean cross-entropy.
            query_time: `[batch]`, or as `labels`, seconds: when it is asked (`use_query_time`), or 0.
            fold_ids: `[batch]` group of each user, see [`~ImplicitRecForScoring.fit_cooccurrences`].
            negative_labels: `[batch, length]` items that a label is to be put above, -100 for none; read
                where the configuration has a `negative_event_loss`.
            num_items_in_batch: labels of the whole step, over processes and accumulated batches; the
                loss is divided by it in place of the batch's own sum of label weights.
            cache: the state of the same users, whose events these follow in time.
            use_cache: also give the state after these events; labels have no place beside it.
        """
        given = (input_ids, input_weights, event_type_ids, timestamps, attention_mask, platform_ids)
        if cache is not None or use_cache or input_ids is None:
            refuse_labels(labels, target_ids)
            return self._step(given, cache, candidate_ids, query_time)
        hidden = self.model(*given).last_hidden_state
        batch = self._prior_inputs(event_columns(self.config, input_ids, *given[1:]), query_time)
        batch |= {"fold_ids": fold_ids, "negative_labels": negative_labels}
        check_answers(self.config, batch, labels, label_weights, target_ids, candidate_ids)
        loss, logits, pointwise = None, None, candidate_ids is not None
        if labels is not None and not pointwise:
            loss = self._next_item_loss(hidden, batch, labels, label_weights, num_items_in_batch)
            loss = loss + self._beside(given, hidden, labels, num_items_in_batch)
        if pointwise or target_ids is not None or not self.training or labels is None:
            states = hidden[torch.arange(hidden.shape[0]), last_events(batch["weights"])]
            logits = self._last_scores(states, batch, candidate_ids)
            if labels is not None and pointwise:
                loss = pointwise_loss(logits, labels, label_weights)
            elif target_ids is not None:
                loss = targets_loss(logits, target_ids)
        return ImplicitRecScoringOutput(loss=loss, logits=logits, last_hidden_state=hidden)

    def _step(
        self,
        given: tuple[Tensor | None, ...],
        cache: UserState | None,
        candidate_ids: Tensor | None,
        query_time: Tensor | None,
    ) -> ImplicitRecScoringOutput:
        """Scores of a state after the events given, where there are any."""
        hidden, state = self._advanced(*given, cache=cache)
        batch = self._prior_inputs(state.events, query_time)
        logits = self._last_scores(state.last_hidden_state, batch, candidate_ids)
        return ImplicitRecScoringOutput(logits=logits, last_hidden_state=hidden, cache=state)

    def _advanced(
        self, *given: Tensor | None, cache: UserState | None, **named: Tensor
    ) -> tuple[Tensor | None, UserState]:
        """The hidden states of the events given, where there are any, and the state after them."""
        hidden, state = None, cache
        if given[0] is not None:
            body = self.model(*given, cache=state, use_cache=True, **named)
            hidden, state = body.last_hidden_state, body.cache
        if state is None:
            raise ValueError("expected input_ids, a cache, or both; got neither")
        self.model.check_state(state)
        return hidden, state

    def _prior_inputs(self, events: Columns, query_time: Tensor | None) -> dict:
        """What the priors read, see [`gather_history`]."""
        return {
            "input_ids": events["input_ids"],
            "weights": events["input_weights"],
            "timestamps": events.get("timestamps"),
            "query_time": query_time if self.config.use_query_time else None,
            "fold_ids": None,
            "own_ids": None,
            "item_frequency": self.item_frequency,
            "negative": negative_events(self.config, events.get("event_type_ids")),
        }

    @torch.no_grad()
    def last_states(
        self, input_ids: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The centred states `[batch, hidden_size]` after the last events, and what the priors read there.

        They are what the head makes the scores of, and what an index is searched with.

        Args:
            input_ids: `[batch, length]`, with the other inputs of [`ImplicitRecModel`] and `query_time` by
                name; or a `cache` that holds all events.
        """
        return self._at_last(*self._after(input_ids, **inputs))

    @torch.no_grad()
    def last_scores(self, input_ids: Tensor | None = None, **inputs: Any) -> Tensor:
        """`[batch, vocab_size]` scores of what comes next: the logits of `forward` in less time.

        Args:
            input_ids: as [`~ImplicitRecForScoring.last_states`] takes it, with the other inputs.

        >>> from modeling_implicitrec import ImplicitRecConfig
        >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=5)).eval()
        >>> history = torch.tensor([[3, 1, 4]])
        >>> torch.allclose(model.last_scores(history), model(history).logits, atol=1e-5)
        True
        """
        return self._last_scores(*self._after(input_ids, **inputs))

    def _after(
        self,
        input_ids: Tensor | None,
        *,
        cache: UserState | None = None,
        query_time: Tensor | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, dict]:
        """The states after the last events as the body gives them, and the whole histories."""
        if cache is not None or input_ids is None:
            cache = self._advanced(input_ids, cache=cache, **inputs)[1]
            states, events = cache.last_hidden_state, cache.events
        else:
            events = event_columns(self.config, input_ids, **inputs)
            states = self.model.last_hidden(events)
        return states, self._prior_inputs(events, query_time)

    def _at_last(self, states: Tensor, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.arange(states.shape[0], device=states.device)
        history = gather_history(batch, rows, last_events(batch["weights"]))
        return self.state_centre(states), history

    def _last_scores(
        self, states: Tensor, batch: dict, candidate_ids: Tensor | None = None
    ) -> Tensor:
        check_candidates(candidate_ids, states, self.config.vocab_size)
        states, history = self._at_last(states, batch)
        scores = self.head(states, self.item_table(), history, candidate_ids)
        if self.config.exclude_seen and candidate_ids is None:
            scores = lowest_at(scores, batch["input_ids"])
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
        given = torch.ones_like(rows) if label_weights is None else label_weights[rows, columns]
        share = normalised_label_weights(given, len(rows), hidden)
        if num_items is not None:
            share = given / num_items
        targets = labels[rows, columns]
        refused = batch["negative_labels"] if self.config.negative_event_loss else None
        refused = None if refused is None else refused[rows, columns]
        draws = negatives_for(self.config, targets)
        names = [name for name, _ in self.head.named_parameters()]
        batch["own_ids"] = own_events(batch["input_ids"], labels, batch["negative"])

        def one_chunk(at: slice, states: Tensor, table: Tensor, *head: Tensor) -> Tensor:
            history = gather_history(batch, rows[at], columns[at])

            def score(candidates: Tensor | None) -> Tensor:
                inputs = (states, table, history, candidates)
                return functional_call(self.head, dict(zip(names, head)), inputs)

            losses = position_losses(self.config, score, targets[at], draws, self.item_frequency)
            if refused is not None:
                pairs = torch.stack([targets[at], refused[at].clamp_min(0)], dim=1)
                losses = losses + self.config.negative_event_loss * pair_loss(
                    score(pairs), refused[at] > 0
                )
            return (losses * share[at]).sum()

        tensors = [self.item_table(), *self.head.parameters()]
        return chunked_loss(one_chunk, [states], tensors, self.config.loss_chunk_size)

    def _beside(self, given: Any, hidden: Tensor, labels: Tensor, num_items: Any) -> Tensor | float:
        """The loss of the auxiliary objectives: a mean over the batch, as its share of the whole step."""
        if self.objectives is None or not self.training:
            return 0.0
        share = 1.0 if num_items is None else (labels != -100).sum() / num_items
        return share * self.objectives(self, given, hidden)

    @torch.no_grad()
    def update(
        self, state: UserState | None = None, *, stride: int | None = None, **events: Tensor
    ) -> UserState:
        """The state of users after new events; a step, where nothing that is held has to change.

        A user's events are computed anew where the window is full, where a new event is older than one
        that is held, and, with `collapse_repeats`, where an item comes again. So `model(**state.events)`
        always gives the scores of `model(cache=state)`.

        Args:
            state: of the same users; none for their first events.
            stride: events that go at once, the oldest ones, when there are more than
                `max_position_embeddings`: a quarter of these by default, so that most steps stay cheap.
                With 1 a state always holds the latest, and every step of a full one computes them all.
            events: `[batch, length]` inputs of [`ImplicitRecModel`] by name, padded where users have
                fewer new events.

        Raises:
            ValueError: for a stride out of range, or what [`ImplicitRecModel`] refuses.

        >>> from modeling_implicitrec import ImplicitRecConfig
        >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=5)).eval()
        >>> state = model.update(input_ids=torch.tensor([[3, 1], [2, 0]]))
        >>> state = model.update(state, input_ids=torch.tensor([[4], [4]]))
        >>> state.events["input_ids"]
        tensor([[3, 1, 4],
                [2, 4, 0]])
        >>> state.num_events
        tensor([3, 2])
        """
        limit = self.config.max_position_embeddings
        stride = max(1, limit // 4) if stride is None else stride
        if not 1 <= stride <= limit:
            raise ValueError(f"stride must lie in 1..{limit}, got {stride}")
        training = self.training
        if training:  # walking through all modules takes as long as a step
            self.eval()
        made = update_state(self.model, state, events, stride)
        if training:
            self.train()
        return made

    @torch.no_grad()
    def recommend(
        self,
        input_ids: Tensor | None = None,
        *,
        top_k: int = 10,
        exclude_seen: bool = False,
        candidate_ids: Tensor | None = None,
        **inputs: Any,
    ) -> ImplicitRecRecommendation:
        """The `top_k` items of each history.

        Args:
            input_ids: `[batch, length]`, with the other inputs of `forward` by name; or `cache` alone.
            exclude_seen: leave out the items of the history, as a model always does whose own
                `config.exclude_seen` says that nobody takes an item twice.
            candidate_ids: `[batch, candidates]` the only items to rank.

        Raises:
            ValueError: where `top_k` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        training = self.training
        if training:  # walking through all modules takes as long as a step
            self.eval()
        output = self(input_ids, candidate_ids=candidate_ids, **inputs)
        if training:
            self.train()
        scores = output.logits.float()
        history: Any = input_ids if output.cache is None else output.cache.events["input_ids"]
        scores = scores.masked_fill(scores <= torch.finfo(scores.dtype).min / 4, -torch.inf)
        only_new = exclude_seen or self.config.exclude_seen
        if only_new and candidate_ids is None:
            scores = scores.scatter(1, history, -torch.inf)
        elif only_new and candidate_ids is not None:
            seen = (candidate_ids[:, :, None] == history[:, None, :]).any(2)
            scores = scores.masked_fill(seen, -torch.inf)
        best, places = scores.topk(min(top_k, scores.shape[1]), dim=1)
        tokens = places if candidate_ids is None else candidate_ids.gather(1, places)
        tokens = tokens.masked_fill(best == -torch.inf, 0)
        return ImplicitRecRecommendation(item_tokens=tokens, scores=best)
