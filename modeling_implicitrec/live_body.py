"""A user followed in numpy: of one event, a tensor library's calls take longer than the sums."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kernels_implicitrec import SCALAR_STEP
from .layers_implicitrec import AttentionMixer, ConvolutionMixer, GRUMixer, ImplicitRecBlock
from .live_head import Past, as_array, log_buckets
from .matrices import INPUTS
from .modeling_implicitrec import ImplicitRecForScoring
from .state_implicitrec import UserState, extend_columns, latest_events

MORE = 16  # events that there is room for at least when there is none left


class LiveUser:
    """A user's events and what the blocks keep of them, changed in place by [`LiveBody.step`].

    Attributes:
        size: events that are held.
        timed: whether they have timestamps.
        columns: of the events by the name of the model's input, `[room]` each; `size` are filled.
        memories: of each block, as in [`UserState`] without the dimension of users, with room.
        state: `[hidden_size]`, the centred state after the last event; 0 where there is none.
    """

    def __init__(self, state: UserState, centred: Tensor) -> None:
        self.size = int(state.num_events)
        self.timed = "timestamps" in state.events
        room = state.events["input_ids"].shape[1]
        none = torch.zeros(1, room, dtype=torch.long)
        self.columns = {name: state.events.get(name, none)[0].numpy().copy() for name in INPUTS}
        self.columns["log_weights"] = np.log(self.columns["input_weights"].clip(1e-9))
        self.memories = [[part[0].numpy().copy() for part in memory] for memory in state.memories]
        self.state = centred.numpy().copy()

    def held(self, name: str) -> np.ndarray:
        """A column of the events that are held."""
        return self.columns[name][: self.size]

    @property
    def latest(self) -> int:
        """The time of the last event, 0 where there is none."""
        return int(self.held("timestamps")[-1]) if self.timed and self.size else 0

    def append(self, event: dict[str, Any]) -> None:
        """Take an event in, and make room for it where there is none."""
        if self.size == len(self.columns["input_ids"]):
            more = max(MORE, self.size // 2)
            self.columns = {n: np.pad(v, (0, more)) for n, v in self.columns.items()}
            grown = ((0, 0), (0, more), (0, 0))
            self.memories = [
                [np.pad(part, grown) if part.ndim == 3 else part for part in memory]
                for memory in self.memories
            ]
        for name, value in event.items():
            self.columns[name][self.size] = value
        self.columns["log_weights"][self.size] = np.log(max(event["input_weights"], 1e-9))
        self.size += 1


class LiveBody:
    """The body of a model for one event of one user: [`~ImplicitRecForScoring.update`] without its calls.

    The states are the model's to 1e-5.

    Args:
        model: on the CPU; set to evaluation mode. It must not change afterwards.

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=9, hidden_size=8))
    >>> body = LiveBody(model)
    >>> (user,) = body.start(input_ids=torch.tensor([[3, 5]]))
    >>> body.step(user, input_ids=4)
    True
    >>> states, _ = model.last_states(torch.tensor([[3, 5, 4]]))
    >>> bool(np.allclose(user.state, states[0].detach(), atol=1e-5))
    True
    """

    def __init__(self, model: ImplicitRecForScoring) -> None:
        self.model, self.config, body = model.eval(), model.config, model.model
        self.mean = as_array(model.state_centre.mean)
        table = body.item_embedding
        with torch.no_grad():
            self.items = as_array(table.table(table.weight))
        self.types = as_array(body.event_type_embedding.weight)
        self.bins = as_array(body.weight_embedding.bins.weight)
        gate = body.weight_embedding.gate
        self.gate = None if gate is None else SCALAR_STEP * as_array(gate.weight)
        gaps, platforms = body.gap_embedding, body.platform_embedding
        self.gaps = None if gaps is None else (as_array(gaps.event_bins), as_array(gaps.item_bins))
        self.platforms = None if platforms is None else as_array(platforms.table)
        self.bias = None if body.evidence_bias is None else _EvidenceBias(body.evidence_bias)
        self.blocks = [_Block(block) for block in body.blocks]
        self.norm = _Norm(body.norm)

    def start(self, **events: Tensor) -> list[LiveUser]:
        """A user for each row of these events, `[batch, length]` each, as `update` takes them."""
        state = self.model.update(**events)
        centred = self.model.state_centre(state.last_hidden_state)
        return [LiveUser(state[user], centred[user]) for user in range(len(state))]

    def step(self, user: LiveUser, **event: Any) -> bool:
        """Take one event in; False, and nothing is changed, where a step is not enough.

        That is where the window is full, the event is older than the last one, or, where histories hold
        an item (and type) once, it comes again: start the user anew there. An event of weight 0 is none.

        Args:
            event: numbers named as the inputs of the model.

        Raises:
            ValueError: where some events have timestamps and others have none.
        """
        if user.size and ("timestamps" in event) != user.timed:
            raise ValueError("expected timestamps for all events of a history or for none")
        event = {"input_weights": 1.0} | event
        if event["input_ids"] <= 0 or event["input_weights"] <= 0:
            return True
        if not self._follows(user, event):
            return False
        user.timed = "timestamps" in event
        user.append(event)
        hidden = self._embed(user)
        bias = None if self.bias is None else self.bias(user)
        for block, memory in zip(self.blocks, user.memories):
            hidden = block(hidden, memory, user.size, bias)
        user.state = self.norm(hidden) - self.mean
        return True

    def update(self, user: LiveUser, *, stride: int | None = None, **event: Any) -> LiveUser:
        """The user after an event: the same one, or where a step is not enough a new one, made of the
        events that [`~ImplicitRecForScoring.update`] would hold.

        Args:
            stride: as there, a quarter of the window by default.
        """
        if self.step(user, **event):
            return user
        held = {name: torch.from_numpy(user.held(name).copy())[None] for name in INPUTS}
        if not user.timed:
            del held["timestamps"]
        new = {"input_weights": torch.ones(1, 1)}
        new |= {name: torch.tensor([[value]]) for name, value in event.items()}
        events = extend_columns(held, new)
        stride = max(1, self.config.max_position_embeddings // 4) if stride is None else stride
        return self.start(**latest_events(self.config, events, stride))[0]

    def past(self, user: LiveUser, query_time: int | None = None) -> Past:
        """What the priors read of a user, who asks at `query_time`, by default that of the last event."""
        asked = query_time if self.config.use_query_time else None
        kept: Any = slice(None)
        if self.config.negative_event_type_ids:
            kept = ~np.isin(user.held("event_type_ids"), self.config.negative_event_type_ids)
        times = user.held("timestamps") if user.timed else None
        moment = user.latest if asked is None else asked
        return Past(
            seen=user.held("input_ids"),
            items=user.held("input_ids")[kept],
            weights=user.held("input_weights")[kept],
            ages=None if times is None else moment - times[kept],
            asked_at=asked,
        )

    def _follows(self, user: LiveUser, event: dict[str, Any]) -> bool:
        """Whether an event changes nothing of what is held."""
        if user.size == self.config.max_position_embeddings:
            return False
        if user.timed and user.size and event["timestamps"] < user.held("timestamps")[-1]:
            return False
        if not self.config.collapse_repeats:
            return True
        same = user.held("input_ids") == event["input_ids"]
        return not (same & (user.held("event_type_ids") == event.get("event_type_ids", 0))).any()

    def _embed(self, user: LiveUser) -> np.ndarray:
        """All that is known of the last event, `[hidden_size]`."""
        last = {name: values[user.size - 1] for name, values in user.columns.items()}
        hidden = self.items[last["input_ids"]]
        place = (np.log10(last["input_weights"].clip(1e-3, 1e3)) / 6 + 0.5) * (len(self.bins) - 1)
        if self.gate is not None:
            hidden = hidden * np.exp(_between(self.gate, place))
        hidden = hidden + _between(self.bins, place) + self.types[last["event_type_ids"]]
        if self.platforms is not None:
            hidden = hidden + self.platforms[last["platform_ids"]]
        if self.gaps is None or not user.timed:
            return hidden
        before = user.held("timestamps")[:-1]
        same = before[user.held("input_ids")[:-1] == last["input_ids"]]
        for bins, earlier in zip(self.gaps, (before, same)):
            if len(earlier):
                gap = np.float32(1 + max(last["timestamps"] - earlier[-1], 0))
                hidden = hidden + _between(bins, min(np.log2(gap), np.float32(len(bins) - 1)))
        return hidden


def _between(bins: np.ndarray, place: np.floating) -> np.ndarray:
    """Linear interpolation between two rows of `[bins, size]` at a real place."""
    low = min(int(place), len(bins) - 2)
    share = np.float32(place - low)
    return (1 - share) * bins[low] + share * bins[low + 1]


class _EvidenceBias:
    """`[heads, size]`, the attention bias of the last event to all."""

    def __init__(self, bias: Any) -> None:
        # [heads, longest], far to near
        self.position = as_array(bias.position.weight)[::-1].T.copy()
        self.time = as_array(bias.time.weight).T.copy()  # [heads, buckets]
        self.beta = 1 + SCALAR_STEP * as_array(bias.beta)[:, None]

    def __call__(self, user: LiveUser) -> np.ndarray:
        bias = self.beta * user.held("log_weights")
        bias += self.position[:, self.position.shape[1] - user.size :]
        if user.timed:
            times = user.held("timestamps")
            gaps = np.minimum(times[-1] - times, 2**31 - 1)
            bias += self.time.take(log_buckets(gaps, self.time.shape[1]), axis=1)
        return bias


class _Norm:
    def __init__(self, norm: Any) -> None:
        self.weight, self.eps = as_array(norm.weight), norm.eps

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        return hidden / np.sqrt(hidden @ hidden / len(hidden) + self.eps) * self.weight


class _Attention:
    def __init__(self, mixer: AttentionMixer) -> None:
        self.qkv, self.output = transposed(mixer.qkv_proj), transposed(mixer.o_proj)
        self.head_size, self.scale = mixer.head_size, mixer.head_size**-0.5

    def __call__(self, hidden: np.ndarray, memory: list, size: int, bias: Any) -> np.ndarray:
        keys, values = memory  # [heads, room, head_size]
        query, keys[:, size - 1], values[:, size - 1] = (hidden @ self.qkv).reshape(
            3, -1, self.head_size
        )
        scores = (keys[:, :size] @ query[:, :, None])[:, :, 0] * self.scale + bias  # [heads, size]
        shares = np.exp(scores - scores.max(1, keepdims=True))
        mixed = (shares[:, None] @ values[:, :size])[:, 0] / shares.sum(1, keepdims=True)
        return mixed.ravel() @ self.output


class _GRU:
    def __init__(self, mixer: GRUMixer) -> None:
        gru: Any = mixer.gru
        self.inputs, self.states = (
            as_array(w).T.copy() for w in (gru.weight_ih_l0, gru.weight_hh_l0)
        )
        self.input_bias, self.state_bias = as_array(gru.bias_ih_l0), as_array(gru.bias_hh_l0)

    def __call__(self, hidden: np.ndarray, memory: list, size: int, bias: Any) -> np.ndarray:
        (before,) = memory
        given = (hidden @ self.inputs + self.input_bias).reshape(3, -1)
        kept = (before @ self.states + self.state_bias).reshape(3, -1)
        reset, update = _sigmoid(given[0] + kept[0]), _sigmoid(given[1] + kept[1])
        new = np.tanh(given[2] + reset * kept[2])
        memory[0] = (1 - update) * new + update * before
        return memory[0]


class _Convolution:
    def __init__(self, mixer: ConvolutionMixer) -> None:
        kernel = as_array(mixer.conv.weight)  # [2 * hidden_size, hidden_size, reach + 1]
        self.kernel = kernel.transpose(2, 1, 0).reshape(-1, len(kernel))
        bias: Any = mixer.conv.bias
        self.bias, self.output = as_array(bias), transposed(mixer.o_proj)

    def __call__(self, hidden: np.ndarray, memory: list, size: int, bias: Any) -> np.ndarray:
        inputs = np.concatenate([memory[0], hidden[None]])  # [reach + 1, hidden_size]
        memory[0] = inputs[1:]
        value, gate = (inputs.ravel() @ self.kernel + self.bias).reshape(2, -1)
        return (value * _sigmoid(gate)) @ self.output


MIXERS: dict[type, Any] = {
    AttentionMixer: _Attention,
    GRUMixer: _GRU,
    ConvolutionMixer: _Convolution,
}


class _Block:
    """[`ImplicitRecBlock`] for one event."""

    def __init__(self, block: ImplicitRecBlock) -> None:
        self.mixer = MIXERS[type(block.mixer)](block.mixer)
        self.mixer_norm, self.mlp_norm = _Norm(block.mixer_norm), _Norm(block.mlp_norm)
        self.gate_up, self.down = (
            transposed(block.mlp.gate_up_proj),
            transposed(block.mlp.down_proj),
        )

    def __call__(self, hidden: np.ndarray, memory: list, size: int, bias: Any) -> np.ndarray:
        hidden = hidden + self.mixer(self.mixer_norm(hidden), memory, size, bias)
        gate, up = (self.mlp_norm(hidden) @ self.gate_up).reshape(2, -1)
        return hidden + (gate * _sigmoid(gate) * up) @ self.down


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * values) + 0.5


def transposed(layer: torch.nn.Linear) -> np.ndarray:
    return as_array(layer.weight).T.copy()
