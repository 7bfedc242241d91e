"""The body: weighted, typed and timed events in, one hidden state per event out."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .configuration_implicitrec import ImplicitRecConfig
from .content_implicitrec import ItemEmbedding
from .layers_implicitrec import (
    EVERY,
    EvidenceBias,
    GapEmbedding,
    ImplicitRecBlock,
    ImplicitRecRMSNorm,
    Memory,
    PlatformEmbedding,
    WeightEmbedding,
    chosen,
    last_events,
)
from .pretrained_implicitrec import ImplicitRecPreTrainedModel
from .state_implicitrec import (
    Columns,
    UserState,
    check_length,
    event_columns,
    extend_columns,
    fingerprint,
    pack_state,
)


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
        self._fingerprint: tuple[list, str] = ([], "")
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
        cache: UserState | None = None,
        use_cache: bool = False,
        masked_items: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states `[batch, length, hidden_size]`; zero where there is no event.

        Args:
            input_ids: `[batch, length]` item tokens, 0 is padding.
            input_weights: `[batch, length]`, not negative; 0 masks the event. All ones by default.
            event_type_ids: `[batch, length]`.
            timestamps: `[batch, length]` seconds.
            attention_mask: `[batch, length]`, 1 for an event. By default, all but padding.
            platform_ids: `[batch, length]`, read where `num_platforms` is above 1. All 0 by default.
            cache: of the same users, whose events these follow in time; see [`UserState`].
            use_cache: also give the state after these events, as `cache`; always done with a `cache`.
            masked_items: bool `[batch, length]`, events whose item the body does not see. Then every
                event looks at those after it as well; not beside a cache.

        Raises:
            ValueError: for impossible weights, more than `max_position_embeddings` events, or a cache
                of other users or another model.
        """
        given = (input_ids, input_weights, event_type_ids, timestamps, attention_mask, platform_ids)
        events = event_columns(self.config, *given)
        if cache is not None:
            self.check_state(cache)
            events = extend_columns(cache.events, events)
            check_length(self.config, events)
        if masked_items is not None:
            if cache is not None or use_cache or self.evidence_bias is None:
                raise ValueError("masked_items need the attention mixer and no cache")
            events = {**events, "masked_items": masked_items}
        elif cache is None and not use_cache and self._packs():
            return BaseModelOutputWithPast(last_hidden_state=self._packed(events))
        hidden, memories = self.advance(events, input_ids.shape[1], cache)
        if cache is None and not use_cache:
            return BaseModelOutputWithPast(last_hidden_state=hidden)
        state: Any = self.remember(events, memories, hidden, cache)
        return BaseModelOutputWithPast(last_hidden_state=hidden, cache=state)

    def last_hidden(self, events: Columns) -> Tensor:
        """The hidden state after each user's last event, `[batch, hidden_size]`.

        What [`~ImplicitRecModel.forward`] has there, for less: the last block computes no other.
        """
        at = last_events(events["input_weights"])
        return self.advance(events, events["input_ids"].shape[1], None, at)[0][:, 0]

    def advance(
        self, events: Columns, width: int, cache: UserState | None, at: Tensor | None = None
    ) -> tuple[Tensor, list[Memory]]:
        """Hidden states `[batch, width, hidden_size]` of the last columns, and what the blocks then keep.

        Args:
            events: all columns, those of the cache first.
            at: `[batch]` one place of each user whose state is asked for, `[batch, 1, hidden_size]`.
        """
        new = slice(events["input_ids"].shape[1] - width, None)
        present = events["input_weights"][:, new] > 0
        hidden = self.dropout(self._embed(events, new))  # [batch, new, hidden_size]
        bias = None
        if self.evidence_bias is not None:
            both_ways = "masked_items" in events
            known = (events["input_weights"], events.get("timestamps"), new)
            bias = self.evidence_bias(*known, both_ways=both_ways)
            bias = bias.to(hidden.dtype)
        memories: list[Memory] = [()] * len(self.blocks) if cache is None else list(cache.memories)
        for place, block in enumerate(self.blocks):
            asked = at if block is self.blocks[-1] else None
            hidden, memories[place] = block(hidden, present, bias, memories[place], asked)
        return self.norm(hidden) * chosen(present.unsqueeze(-1), at), memories

    def _packs(self) -> bool:
        """Whether events stand end to end, so that no position of padding is computed."""
        return (
            self.config._attn_implementation == "flex_attention" and self.evidence_bias is not None
        )

    def _packed(self, events: Columns) -> Tensor:
        """The hidden states of [`~ImplicitRecModel.advance`], from events that stand end to end."""
        if self.training and (dropout := self.config.attention_probs_dropout_prob):
            raise ValueError(
                f"flex_attention expects attention_probs_dropout_prob 0 in training, got {dropout}"
            )
        present, bias = events["input_weights"] > 0, cast(EvidenceBias, self.evidence_bias)
        embedded = self.dropout(self._embed(events, EVERY))  # [batch, length, hidden_size]
        hidden = embedded[present].unsqueeze(0)  # [1, events, hidden_size]
        if not hidden.shape[1]:
            return embedded * 0
        attend = bias.packed(events["input_weights"], events.get("timestamps"))
        for block in self.blocks:
            hidden, _ = block(hidden, present, attend)
        hidden = self.norm(hidden)[0].to(embedded.dtype)
        return torch.zeros_like(embedded).index_put((present,), hidden)

    def remember(
        self, events: Columns, memories: list[Memory], hidden: Tensor, cache: UserState | None
    ) -> UserState:
        """The state after the events that [`~ImplicitRecModel.advance`] went on by."""
        present = events["input_weights"][:, -hidden.shape[1] :] > 0
        before = torch.zeros_like(hidden[:, 0]) if cache is None else cache.last_hidden_state
        after = torch.cat([before[:, None], hidden], dim=1)  # at no new event, the first, ...
        last = (present * torch.arange(1, after.shape[1], device=hidden.device)).amax(1)
        after = after[torch.arange(len(after), device=hidden.device), last]
        made_by = self.fingerprint() if cache is None else cache.made_by
        return pack_state(events, memories, after, made_by)

    def _embed(self, events: Columns, new: slice) -> Tensor:
        """All that is known of the new events, `[batch, new, hidden_size]`."""
        weights, input_ids = events["input_weights"], events["input_ids"][:, new]
        hidden = self.item_embedding(input_ids)
        if "masked_items" in events:
            hidden = hidden * ~events["masked_items"].unsqueeze(-1)
        if self.training and self.config.item_dropout_prob:
            kept = torch.rand_like(weights[:, new]) >= self.config.item_dropout_prob
            hidden = hidden * kept.unsqueeze(-1)
        hidden = self.weight_embedding(hidden, weights[:, new])
        if self.gap_embedding is not None and "timestamps" in events:
            known = (events["input_ids"], events["timestamps"], weights > 0)
            hidden = hidden + self.gap_embedding(*known, new)
        if self.platform_embedding is not None:
            platforms = events.get("platform_ids")
            hidden = hidden + self.platform_embedding(
                platforms if platforms is None else platforms[:, new]
            )
        types = events.get("event_type_ids", torch.zeros_like(events["input_ids"]))
        return hidden + self.event_type_embedding(types[:, new])

    def check_state(self, state: UserState) -> None:
        """Raise `ValueError` where another model made a state."""
        if state.made_by != self.fingerprint():
            raise ValueError(
                f"the state was made by another model ({state.made_by}, this one is "
                f"{self.fingerprint()}): make it anew from the users' events"
            )

    def fingerprint(self) -> str:
        """Of the weights and the vocabulary: what the states of this body can be told by."""
        # Every step asks: parameters() and buffers() would each walk the modules by name.
        own = [(m._parameters.values(), m._buffers.values()) for m in self.modules()]
        tensors = [values for kinds in own for kind in kinds for values in kind]
        versions = [(v.data_ptr(), v._version) for v in tensors if v is not None]
        if self._fingerprint[0] != versions:
            found = fingerprint(self, self.config.vocabulary_fingerprint)
            self._fingerprint = (versions, found)
        return self._fingerprint[1]
