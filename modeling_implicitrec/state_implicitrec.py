"""The state of users between two events: what a model keeps so that a new event costs one step."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_implicitrec import ImplicitRecConfig
from .histories_implicitrec import pad_histories
from .layers_implicitrec import Memory, check_shape, event_weights
from .weights_implicitrec import collapse

FORMAT = "1"
IDS = ("input_ids", "event_type_ids", "platform_ids")
Columns = dict[str, Tensor]


@dataclass
class UserState:
    """Histories of a batch of users, and what the blocks keep of them.

    Made by `use_cache=True` or [`~ImplicitRecForScoring.update`], and never changed: an update makes a
    new one. Events of weight 0 are not in it. `model(**state.events)` computes the same scores again.

    Args:
        events: `[batch, length]` columns in time order, padded on the right: `input_ids`,
            `input_weights` and, as far as given, `timestamps`, `event_type_ids`, `platform_ids`.
        memories: what the mixer of each block keeps: keys and values `[batch, heads, length, head_size]`;
            the hidden state `[batch, hidden_size]` of a GRU; the last inputs `[batch, kernel size - 1,
            hidden_size]` of a convolution.
        last_hidden_state: `[batch, hidden_size]` at each user's last event, 0 where there is none.
        made_by: fingerprint of the body that made it; no other one takes it.
    """

    events: Columns
    memories: list[Memory]
    last_hidden_state: Tensor
    made_by: str

    def __len__(self) -> int:
        """Users."""
        return len(self.last_hidden_state)

    @property
    def num_events(self) -> Tensor:
        """Events of each user, `[batch]`."""
        return (self.events["input_weights"] > 0).sum(1)

    def __getitem__(self, user: int) -> "UserState":
        """The state of one user, without the padding that others needed."""
        return self.select([user])

    def select(self, users: Sequence[int] | Tensor) -> "UserState":
        """The states of some users, in this order."""
        rows = torch.as_tensor(users, device=self.last_hidden_state.device)
        length = max(1, int(self.num_events[rows].max()))

        def chosen(part: Tensor) -> Tensor:
            return part[rows, :, :length] if part.dim() == 4 else part[rows]

        return UserState(
            {name: values[rows, :length] for name, values in self.events.items()},
            [tuple(chosen(part) for part in memory) for memory in self.memories],
            self.last_hidden_state[rows],
            self.made_by,
        )

    @classmethod
    def join(cls, states: Sequence["UserState"]) -> "UserState":
        """One state of all users, to take a step for them together.

        Raises:
            ValueError: for states of several models, or of users with times and users without.
        """
        makers = {state.made_by for state in states}
        if len(makers) != 1:
            raise ValueError(f"expected states made by one model, got {len(makers)}")
        length = max(state.events["input_ids"].shape[1] for state in states)
        names = {name for state in states for name in state.events}
        events = [fill_columns(state.events, names) for state in states]

        def joined(parts: Iterable[Tensor], dim: int) -> Tensor:
            """Parts padded along a dimension, counted from the last, below each other."""
            grown = [F.pad(p, (0, 0) * (dim - 1) + (0, length - p.shape[-dim])) for p in parts]
            return torch.cat(grown)

        return cls(
            {name: joined((columns[name] for columns in events), 1) for name in events[0]},
            [
                tuple(joined(p, 2) if p[0].dim() == 4 else torch.cat(p) for p in zip(*memories))
                for memories in zip(*(state.memories for state in states))
            ],
            torch.cat([state.last_hidden_state for state in states]),
            makers.pop(),
        )

    def to_bytes(self, dtype: torch.dtype | None = None) -> bytes:
        """The state in the safetensors format.

        Args:
            dtype: of what the blocks keep and of the last hidden states; `torch.float16` halves the
                bytes and costs precision. Events are always kept as they are.
        """
        parts = {f"memory.{i}.{j}": p for i, m in enumerate(self.memories) for j, p in enumerate(m)}
        parts["last_hidden_state"] = self.last_hidden_state
        parts = {name: part.to(dtype or part.dtype) for name, part in parts.items()}
        for name, values in self.events.items():
            parts[f"events.{name}"] = values.int() if name in IDS else values
        metadata = {"format": FORMAT, "made_by": self.made_by}
        return save({name: part.contiguous() for name, part in parts.items()}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, dtype: torch.dtype = torch.float32) -> "UserState":
        """What [`~UserState.to_bytes`] made, on the CPU.

        Args:
            dtype: of the model that goes on with it.

        Raises:
            ValueError: for other bytes, or those of another version of the format.
        """
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            metadata = header["__metadata__"]
            found, made_by = metadata["format"], metadata["made_by"]
            tensors = load(data) if found == FORMAT else {}
        except Exception as error:
            raise ValueError(f"expected the bytes of a user state: {error}") from error
        if found != FORMAT:
            raise ValueError(f"expected a user state of format {FORMAT}, got {found!r}")
        events: Columns = {}
        memories: dict[str, dict[str, Tensor]] = {}
        for name, values in sorted(tensors.items()):
            kind, *place = name.split(".")
            if kind == "events":
                events[place[0]] = values.long() if place[0] in IDS else values
            elif kind == "memory":
                memories.setdefault(place[0], {})[place[1]] = values.to(dtype)
        kept = [tuple(memories[block].values()) for block in sorted(memories, key=int)]
        return cls(events, kept, tensors["last_hidden_state"].to(dtype), made_by)


def fingerprint(body: nn.Module, vocabulary: str | None) -> str:
    """Of the weights of a body and its vocabulary: states of one are of no use to another."""
    digest = hashlib.blake2b(str(vocabulary).encode(), digest_size=16)
    for name, values in body.state_dict().items():
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def event_columns(
    config: ImplicitRecConfig,
    input_ids: Tensor,
    input_weights: Tensor | None = None,
    event_type_ids: Tensor | None = None,
    timestamps: Tensor | None = None,
    attention_mask: Tensor | None = None,
    platform_ids: Tensor | None = None,
) -> Columns:
    """The columns of a batch that were given, with a weight for every event; checks them."""
    others = {"event_type_ids": event_type_ids, "timestamps": timestamps}
    others["platform_ids"] = platform_ids
    check_tensors(input_ids=input_ids, input_weights=input_weights, **others)
    check_tensors(attention_mask=attention_mask)
    weights = event_weights(config, input_ids, input_weights, attention_mask)
    given = {name: values for name, values in others.items() if values is not None}
    columns = {"input_ids": input_ids, "input_weights": weights, **given}
    for name, values in given.items():
        check_shape(name, values, "input_ids", input_ids)
    check_ids("input_ids", input_ids, vocab_size=config.vocab_size)
    check_ids("event_type_ids", event_type_ids, num_event_types=config.num_event_types)
    if config.num_platforms > 1:  # else they are not read
        check_ids("platform_ids", platform_ids, num_platforms=config.num_platforms)
    return columns


def check_tensors(**named: Any) -> None:
    """Raise `ValueError` for what is given and no tensor."""
    for name, values in named.items():
        if values is not None and not isinstance(values, Tensor):
            raise ValueError(
                f"{name} must be a tensor, got {type(values).__name__}: torch.tensor makes one of "
                "numbers, and a processor makes the inputs of histories of item ids"
            )


def check_ids(name: str, ids: Tensor | None, **size: int) -> None:
    """Raise `ValueError` for ids that are no rows of a table of this size, given by its name.

    A training on an accelerator is not looked at: the host would wait for the device at every step.
    """
    if ids is None or not ids.numel() or torch.compiler.is_compiling():
        return
    if ids.dtype not in (torch.long, torch.int):
        raise ValueError(f"{name} must be of torch.long or torch.int, got {ids.dtype}")
    if ids.device.type != "cpu" and torch.is_grad_enabled():
        return
    ((key, rows),) = size.items()
    least, largest = torch.aminmax(ids)
    if least < 0 or largest >= rows:
        raise ValueError(
            f"{name} must lie in 0..{rows - 1}, with a {key} of {rows}; got {int(least)} to {int(largest)}"
        )


def check_lists(name: str, ids: Tensor | None, like: Tensor) -> None:
    """Raise `ValueError` for ids that are not `[batch, any number]`, for the batch of another tensor."""
    if ids is not None and (ids.dim() != 2 or len(ids) != len(like)):
        raise ValueError(f"{name} must be [{len(like)}, any number], got {list(ids.shape)}")


def check_candidates(ids: Tensor | None, states: Tensor, vocab_size: int) -> None:
    """Raise `ValueError` for `candidate_ids` that are not `[batch, candidates]` of tokens."""
    check_tensors(candidate_ids=ids)
    if not torch.compiler.is_compiling():
        check_lists("candidate_ids", ids, states)
    check_ids("candidate_ids", ids, vocab_size=vocab_size)


def check_answers(
    config: ImplicitRecConfig,
    batch: Mapping[str, Tensor | None],
    labels: Tensor | None,
    label_weights: Tensor | None,
    target_ids: Tensor | None,
    candidate_ids: Tensor | None,
) -> None:
    """Raise `ValueError` for labels, and what goes with them, of other shapes than asked for, or no items.

    Args:
        batch: `input_ids`, and where they were given `negative_labels`, `fold_ids` and `query_time`.
    """
    inputs = batch["input_ids"]
    if inputs is None or torch.compiler.is_compiling():
        return
    negative = batch["negative_labels"]
    named = {"labels": labels, "label_weights": label_weights, "negative_labels": negative}
    check_tensors(target_ids=target_ids, candidate_ids=candidate_ids, **named)
    check_tensors(query_time=batch["query_time"], fold_ids=batch["fold_ids"])
    check_lists("target_ids", target_ids, inputs)
    other, like = "input_ids", inputs
    if candidate_ids is not None:
        other, like = "candidate_ids", candidate_ids
    for name, values in named.items():
        if values is not None:
            check_shape(name, values, other, like)
    users, asked, folds = inputs.shape[:1], batch["query_time"], batch["fold_ids"]
    if folds is not None and folds.shape != users:
        raise ValueError(f"fold_ids must be {list(users)}, got {list(folds.shape)}")
    if asked is not None and asked.shape not in (users, inputs.shape):
        known = f"{list(users)} or {list(inputs.shape)}"
        raise ValueError(f"query_time must be {known}, got {list(asked.shape)}")
    if labels is not None and candidate_ids is None:
        check_items("labels", labels, labels == -100, config.vocab_size)
    for name, values in (("negative_labels", negative), ("target_ids", target_ids)):
        if values is not None:
            check_items(name, values, values < 1, config.vocab_size)


def check_items(name: str, ids: Tensor, ignored: Tensor, vocab_size: int) -> None:
    """Raise `ValueError` for ids, not ignored, that are no items; looks as [`check_ids`] does."""
    if ids.is_floating_point():
        raise ValueError(f"{name} must be item tokens, of torch.long, got {ids.dtype}")
    if not ids.numel() or (ids.device.type != "cpu" and torch.is_grad_enabled()):
        return
    least, largest = torch.aminmax(ids.masked_fill(ignored, 1))
    if least < 1 or largest >= vocab_size:
        raise ValueError(
            f"{name} must lie in 1..{vocab_size - 1}, or be -100; got {int(least)} to {int(largest)}"
        )


def fill_columns(events: Columns, names: Iterable[str]) -> Columns:
    """Columns with those of `names` that were not given: ids 0, and times only where no event needs one."""
    missing = sorted(set(names) - set(events))
    if "timestamps" in missing and (events["input_weights"] > 0).any():
        raise ValueError("expected timestamps for all events of a history or for none, got some")
    return events | {name: torch.zeros_like(events["input_ids"]) for name in missing}


def extend_columns(events: Columns, new: Columns) -> Columns:
    """The events of each user followed by the new ones."""
    if len(events["input_ids"]) != len(new["input_ids"]):
        raise ValueError(
            f"expected new events of {len(events['input_ids'])} users, got {len(new['input_ids'])}"
        )
    events, new = fill_columns(events, new), fill_columns(new, events)
    return {name: torch.cat([events[name], new[name]], dim=1) for name in events}


def refuse_labels(*labels: Tensor | None) -> None:
    """Raise `ValueError` where there are labels beside a cache."""
    if any(one is not None for one in labels):
        raise ValueError("expected no labels or target_ids beside a cache")


def check_length(config: ImplicitRecConfig, events: Columns) -> None:
    """Raise `ValueError` where a user has more events than a model takes."""
    most, limit = int((events["input_weights"] > 0).sum(1).max()), config.max_position_embeddings
    if most > limit:
        raise ValueError(
            f"the cache and the new events are {most} events, more than max_position_embeddings "
            f"{limit}; ImplicitRecForScoring.update leaves out the oldest ones"
        )


def pack_state(events: Columns, memories: list[Memory], last: Tensor, made_by: str) -> UserState:
    """The state of users whose events may be absent: the others are moved to the front."""
    present = events["input_weights"] > 0
    if present.all():
        return UserState(events, memories, last, made_by)
    counts = present.sum(1, keepdim=True)
    length = max(1, int(counts.max()))
    kept = present.logical_not().byte().argsort(dim=1, stable=True)[:, :length]

    def moved(part: Tensor) -> Tensor:
        if part.dim() != 4:  # not of single events
            return part
        return part.gather(2, kept[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))

    fronts = {name: values.gather(1, kept) for name, values in events.items()}
    absent = torch.arange(length, device=present.device) >= counts
    fronts = {name: values.masked_fill(absent, 0) for name, values in fronts.items()}
    return UserState(fronts, [tuple(map(moved, memory)) for memory in memories], last, made_by)


def stale_rows(config: ImplicitRecConfig, columns: Columns) -> Tensor:
    """Users whose events, the new ones at the end, take more than a step: bool `[batch]`.

    The window is full, an event is older than one before it, or, where histories hold an item (and type)
    once, it comes again.
    """
    present = columns["input_weights"] > 0
    stale = present.sum(1) > config.max_position_embeddings
    if "timestamps" in columns:
        times = columns["timestamps"].masked_fill(~present, torch.iinfo(torch.long).min)
        stale = stale | (present & (times < times.cummax(1).values)).any(1)
    if config.collapse_repeats:
        items = columns["input_ids"].masked_fill(~present, 0)
        if "event_type_ids" in columns:
            items = items * config.num_event_types + columns["event_type_ids"] * (items > 0)
        ordered = items.sort(1).values
        stale = stale | ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any(1)
    return stale


def latest_events(config: ImplicitRecConfig, events: Columns, stride: int) -> Columns:
    """Each user's events in time order and as the model takes them, the oldest left out where too many."""
    limit, rows = config.max_position_embeddings, []
    for user, present in enumerate((events["input_weights"] > 0).cpu().numpy()):
        row = {name: values[user].cpu().numpy()[present] for name, values in events.items()}
        if "timestamps" in row:
            order = np.argsort(row["timestamps"], kind="stable")
            row = {name: values[order] for name, values in row.items()}
        row = collapse(row) if config.collapse_repeats else row
        size = len(row["input_ids"])
        first = size - (limit - stride + 1) if size > limit else 0
        rows.append({name: values[first:] for name, values in row.items()})
    device = events["input_ids"].device
    return {n: torch.from_numpy(v).to(device) for n, v in pad_histories(rows).items()}


def update_state(
    body: Any, state: UserState | None, inputs: Mapping[str, Tensor], stride: int
) -> UserState:
    """The state after new events: one step for most users, for the stale ones all events anew.

    Args:
        body: an [`ImplicitRecModel`].
        stride: events that go at once where there are too many.
    """
    new = event_columns(body.config, **inputs)
    if state is None:
        return body(**latest_events(body.config, new, stride), use_cache=True).cache
    body.check_state(state)
    events = extend_columns(state.events, new)
    stale = stale_rows(body.config, events)
    if not stale.any():
        hidden, memories = body.advance(events, new["input_ids"].shape[1], state)
        return body.remember(events, memories, hidden, state)
    again, step = torch.nonzero(stale)[:, 0], torch.nonzero(~stale)[:, 0]
    events = {name: values[again] for name, values in events.items()}
    made = [body(**latest_events(body.config, events, stride), use_cache=True).cache]
    if len(step):
        ready = {name: values[step] for name, values in new.items()}
        made.append(body(**ready, cache=state.select(step)).cache)
    return UserState.join(made).select(torch.cat([again, step]).argsort())
