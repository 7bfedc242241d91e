"""The layers of the body: norm, evidence bias, the three sequence mixers, MLP and block."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_implicitrec import ImplicitRecConfig
from .kernels_implicitrec import SCALAR_STEP, log_buckets, seconds_before_last
from .packing_implicitrec import packed_attention

EVERY = slice(None)
Memory = tuple[Tensor, ...]
Bias = Tensor | Callable[..., Tensor]  # added to the scores, or attention of packed events


def check_shape(name: str, values: Tensor, other: str, like: Tensor) -> None:
    """Raise `ValueError` for values of another shape than those of the other name."""
    if values.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {other} {list(like.shape)}, got {list(values.shape)}"
        )


def event_weights(
    config: ImplicitRecConfig,
    input_ids: Tensor,
    input_weights: Tensor | None,
    attention_mask: Tensor | None,
) -> Tensor:
    """Float weights `[batch, length]`, 0 where there is no event; checks the input's shapes."""
    if input_ids.dim() != 2 or not input_ids.shape[1]:
        raise ValueError(
            f"input_ids must be [batch, length], of at least 1, got shape {list(input_ids.shape)}"
        )
    if input_ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"a history of {input_ids.shape[1]} events is longer than max_position_embeddings "
            f"{config.max_position_embeddings}; keep the most recent ones, as a processor does "
            "after processor.adapt_to(model.config)"
        )
    for name, given in (("attention_mask", attention_mask), ("input_weights", input_weights)):
        if given is not None:
            check_shape(name, given, "input_ids", input_ids)
    present: Tensor = torch.ne(input_ids, config.pad_token_id or 0)
    if attention_mask is not None:
        present = present & attention_mask.bool()
    if input_weights is None:
        return present.float()
    weights = input_weights.float()
    if not torch.compiler.is_compiling() and not (torch.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("input_weights must be finite and not negative")
    return weights * present


def last_events(weights: Tensor) -> Tensor:
    """Place of each row's last event, `[batch]`; 0 where there is none."""
    return ((weights > 0) * torch.arange(weights.shape[1], device=weights.device)).argmax(1)


def negative_events(config: ImplicitRecConfig, event_type_ids: Tensor | None) -> Tensor | None:
    """Which events are evidence against their item, `[batch, length]`; `None` where there can be none."""
    if not config.negative_event_type_ids or event_type_ids is None:
        return None
    types = torch.tensor(config.negative_event_type_ids, device=event_type_ids.device)
    return (event_type_ids.unsqueeze(-1) == types).any(-1)


class ImplicitRecRMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019)."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


def interpolate(bins: Tensor, place: Tensor) -> Tensor:
    """Linear interpolation between two rows of `[bins, size]` at real places: `[*place.shape, size]`."""
    low = place.floor().clamp(0, len(bins) - 2)
    share = (place - low).unsqueeze(-1).to(bins.dtype)
    low = low.long()
    return (1 - share) * F.embedding(low, bins) + share * F.embedding(low + 1, bins)


class WeightEmbedding(nn.Module):
    """Adds to an event's embedding that of its log weight, interpolated linearly between two bins.

    With `use_weight_gate` the event's own part is first scaled by a learned factor of its bin, 1 at the
    start: so an accidental event can fade, at the place where the next one is asked for as well.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.bins = nn.Embedding(config.num_weight_bins, config.hidden_size)
        self.gate = nn.Embedding(config.num_weight_bins, 1) if config.use_weight_gate else None

    def forward(self, events: Tensor, weights: Tensor) -> Tensor:
        last = self.bins.num_embeddings - 1
        place = (weights.clamp(1e-3, 1e3).log10() / 6 + 0.5) * last  # [batch, length]
        if self.gate is not None:
            events = events * (SCALAR_STEP * interpolate(self.gate.weight, place)).exp()
        return events + interpolate(self.bins.weight, place)


class GapEmbedding(nn.Module):
    """Embeds, in soft bins of `log2(1 + seconds)`, the gaps before an event.

    They are the time since the user's previous event (a break, a session's pace) and since the user's
    previous event of the same item (the purchase interval). A gap to nothing adds nothing: at the first
    event of a history, also where what came before was cut off, and at an item's first one.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        shape = (config.num_time_buckets, config.hidden_size)
        self.event_bins = nn.Parameter(torch.zeros(shape))
        self.item_bins = nn.Parameter(torch.zeros(shape))

    def forward(
        self, input_ids: Tensor, timestamps: Tensor, present: Tensor, new: slice = EVERY
    ) -> Tensor:
        """`[batch, new, hidden_size]`, from `[batch, length]` each; absent events are passed over."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        earlier = present[:, None, :] & (places[new, None] > places)  # [batch, new, length]
        same = earlier & (input_ids[:, new, None] == input_ids[:, None, :])
        embedded = torch.zeros((), device=input_ids.device)
        for bins, sources in ((self.event_bins, earlier), (self.item_bins, same)):
            previous = torch.where(sources, places, -1).amax(2)  # [batch, new]
            gaps = timestamps[:, new] - timestamps.gather(1, previous.clamp_min(0))
            place = (1 + gaps.clamp_min(0).float()).log2().clamp_max(len(bins) - 1)
            embedded = embedded + interpolate(bins, place) * (previous >= 0).unsqueeze(-1)
        return embedded


class PlatformEmbedding(nn.Module):
    """Embeds the platform of an event; zero at first, where a model is one without platforms."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.num_platforms, config.hidden_size))

    def forward(self, platform_ids: Tensor | None) -> Tensor:
        """`[batch, length, hidden_size]`; for no ids what id 0 has, `[hidden_size]`."""
        return self.table[0] if platform_ids is None else F.embedding(platform_ids, self.table)


class BucketLookup(torch.autograd.Function):
    """`table[bucket]` for few buckets and very many places: `[heads, *places]`.

    The gradient is a weighted count, many times faster on CPU than an embedding's.
    """

    @staticmethod
    def forward(ctx, table: Tensor, buckets: Tensor) -> Tensor:
        ctx.save_for_backward(buckets)
        ctx.size = table.shape[0]
        return table.t().index_select(1, buckets.flatten()).unflatten(1, buckets.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (buckets,) = ctx.saved_tensors
        places = buckets.flatten()
        sums = [torch.bincount(places, head.flatten(), minlength=ctx.size) for head in grad]
        return torch.stack(sums, dim=1).to(grad.dtype), None


class EvidenceBias(nn.Module):
    """Attention bias `position(i - j) + time(log bucket of t_i - t_j) + beta_h * log w_j`.

    At `beta_h = 1` an event of weight w counts as w copies of it, and one of weight 0 is masked:
    the weights generalise the attention mask.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        heads = config.num_attention_heads
        self.position = nn.Embedding(config.max_position_embeddings, heads)
        self.time = nn.Embedding(2 * config.num_time_buckets, heads)
        self.beta = nn.Parameter(torch.zeros(heads))

    def forward(
        self,
        weights: Tensor,
        timestamps: Tensor | None,
        new: slice = EVERY,
        *,
        both_ways: bool = False,
    ) -> Tensor:
        """`[batch, heads, new, length]`; the lowest number where a query may not look.

        With `both_ways` it may look at later events too, which count by their distance.
        """
        present = weights > 0
        order = present.cumsum(1, dtype=torch.int32) - 1  # absent events take no place
        distance = order[:, new, None] - order[:, None, :]
        distance = distance.abs() if both_ways else distance
        distance = distance.clamp(0, self.position.num_embeddings - 1)
        bias = BucketLookup.apply(self.position.weight, distance)  # [heads, batch, new, length]
        if timestamps is not None:
            since = seconds_before_last(timestamps)
            gaps = since[:, new, None] - since[:, None, :]
            gaps = gaps.abs() if both_ways else gaps
            buckets = log_buckets(gaps, self.time.num_embeddings)
            bias = bias + BucketLookup.apply(self.time.weight, buckets)
        log_weight = weights.clamp_min(1e-9).log()[:, None, None, :]
        beta = (1 + SCALAR_STEP * self.beta)[None, :, None, None]
        bias = bias.transpose(0, 1) + beta * log_weight
        places = torch.arange(weights.shape[1], device=weights.device)
        allowed = (places[new, None] >= places) | both_ways
        allowed = allowed & present[:, None, None, :]
        return bias.masked_fill(~allowed, torch.finfo(bias.dtype).min)

    def packed(self, weights: Tensor, timestamps: Tensor | None) -> Callable[..., Tensor]:
        """Attention with the same bias for the present events end to end."""
        power = 1 + SCALAR_STEP * self.beta
        tables = (self.position.weight, self.time.weight, power)
        return packed_attention(weights, timestamps, *tables)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The reference attention that the fused ones must agree with."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.dropout(scores.softmax(-1), dropout, module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def chosen(values: Tensor, at: Tensor | None) -> Tensor:
    """`[batch, length, size]` at one place of each row, `[batch, 1, size]`; or all of it."""
    return values if at is None else values[torch.arange(len(values), device=at.device), at, None]


class AttentionMixer(nn.Module):
    """Causal multi-head attention with an additive evidence bias."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.is_causal = False

    def forward(
        self,
        hidden: Tensor,
        present: Tensor,
        bias: Bias,
        memory: Memory = (),
        at: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        batch, length, size = hidden.shape
        qkv = self.qkv_proj(hidden).view(batch, length, 3, -1, self.head_size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [batch, heads, length, head_size]
        if not isinstance(bias, Tensor):
            mixed = bias(query, key, value).transpose(1, 2)
            return self.o_proj(mixed.reshape(batch, length, size)), ()
        if memory:
            key, value = torch.cat([memory[0], key], dim=2), torch.cat([memory[1], value], dim=2)
        if at is not None:
            query, bias = (chosen(v.transpose(1, 2), at).transpose(1, 2) for v in (query, bias))
        name = self.config._attn_implementation
        name = "sdpa" if name == "flex_attention" else name  # histories that are not packed
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        mixed, _ = attend(
            self, query, key, value, bias, scaling=self.head_size**-0.5, dropout=dropout
        )
        return self.o_proj(mixed.reshape(batch, -1, size)), (key, value)


def pass_over(hidden: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The states of present events moved to the front, and the place of each `[batch, length, size]`."""
    length, size = hidden.shape[1:]
    place = torch.where(present, present.cumsum(1) - 1, length)  # absent ones share one at the end
    place = place.unsqueeze(-1).expand(-1, -1, size)
    front = F.pad(torch.zeros_like(hidden), (0, 0, 0, 1)).scatter(1, place, hidden)
    return front[:, :length], place.clamp_max(length - 1)


class GRUMixer(nn.Module):
    """A gated recurrent unit (Hidasi et al., 2016); absent events are passed over."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.gru = nn.GRU(config.hidden_size, config.hidden_size, batch_first=True)

    def forward(
        self,
        hidden: Tensor,
        present: Tensor,
        bias: Tensor | None,
        memory: Memory = (),
        at: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        front, place = pass_over(hidden, present)
        start = memory[0] if memory else torch.zeros_like(hidden[:, 0])  # [batch, size]
        mixed = self.gru(front, start[None])[0]
        reached = torch.cat([start[:, None], mixed], dim=1)  # after no event, one, ...
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return mixed.gather(1, chosen(place, at)), (reached[rows, present.sum(1)],)


class ConvolutionMixer(nn.Module):
    """A causal gated convolution over events; absent events are passed over."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.reach = config.convolution_kernel_size - 1
        self.conv = nn.Conv1d(config.hidden_size, 2 * config.hidden_size, self.reach + 1)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        present: Tensor,
        bias: Tensor | None,
        memory: Memory = (),
        at: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        front, place = pass_over(hidden, present)
        start = memory[0] if memory else front.new_zeros(front.shape[0], self.reach, front.shape[2])
        inputs = torch.cat([start, front], dim=1)  # [batch, reach + length, size]
        mixed = F.glu(self.conv(inputs.transpose(1, 2)), dim=1).transpose(1, 2)
        last = present.sum(1)[:, None] + torch.arange(self.reach, device=inputs.device)
        last = last.unsqueeze(-1).expand(-1, -1, inputs.shape[2])
        return self.o_proj(mixed.gather(1, chosen(place, at))), (inputs.gather(1, last),)


MIXERS = {"attention": AttentionMixer, "gru": GRUMixer, "convolution": ConvolutionMixer}


class ImplicitRecMLP(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class ImplicitRecBlock(GradientCheckpointingLayer):
    """Pre-norm block: mixer, then MLP."""

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.mixer_norm = ImplicitRecRMSNorm(config)
        self.mixer = MIXERS[config.sequence_mixer](config)
        self.mlp_norm = ImplicitRecRMSNorm(config)
        self.mlp = ImplicitRecMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: Tensor,
        present: Tensor,
        bias: Bias | None,
        memory: Memory = (),
        at: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """States, and what the mixer keeps: its `memory` of the events before, with the new ones.

        With `at`, `[batch]`, only the states at these places, `[batch, 1, hidden_size]`.
        """
        mixed, memory = self.mixer(self.mixer_norm(hidden), present, bias, memory, at)
        hidden = chosen(hidden, at) + self.dropout(mixed)
        return hidden + self.dropout(self.mlp(self.mlp_norm(hidden))), memory
