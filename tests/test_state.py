"""A state is never told apart from computing all its events again, whatever happened to it."""

import pytest
import torch

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring, UserState

MIXERS = ["attention", "gru", "convolution"]
LIMIT, EVENTS = 8, 20
EVERYTHING = {
    "num_event_types": 3,
    "negative_event_type_ids": [2],
    "num_platforms": 3,
    "use_gaps": True,
    "use_weight_gate": True,
    "use_query_time": True,
    "copy_prior": True,
    "learn_copy_power": True,
    "num_cooccurrences": 4,
    "num_trend_events": 12,
    "trend_context": 5,
}


def tiny(seed: int = 0, **changes) -> ImplicitRecForScoring:
    """A model with every term on, and none of them zero."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": LIMIT}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | EVERYTHING | changes)).eval()
    model.fit_cooccurrences(torch.randint(1, 31, (31, 4)), torch.rand(31, 4))
    if model.head.trend is not None:
        model.fit_trend(torch.randint(1, 31, (12,)), 1_600_000_000 + torch.arange(12) * 4_000_000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def log(users: int = 3) -> dict[str, torch.Tensor]:
    """Events of two years, some of them of weight 0."""
    shape = (users, EVENTS)
    events = {
        "input_ids": torch.randint(1, 31, shape),
        "input_weights": torch.rand(shape) * 3,
        "timestamps": 1_600_000_000 + torch.randint(1, 6_000_000, shape).cumsum(1),
        "event_type_ids": torch.randint(0, 3, shape),
        "platform_ids": torch.randint(0, 3, shape),
    }
    events["input_weights"][torch.rand(shape) < 0.15] = 0
    return events


def at(events: dict[str, torch.Tensor], columns) -> dict[str, torch.Tensor]:
    return {name: values[:, columns] for name, values in events.items()}


def assert_same(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("collapse", [False, True], ids=["events", "items"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_state_scores_as_its_events_do(mixer, collapse):
    model, events, state = tiny(sequence_mixer=mixer, collapse_repeats=collapse), log(), None
    for place in range(EVENTS):
        new = at(events, slice(place, place + 1))
        state = model.update(state, **new)
        asked = {"query_time": new["timestamps"][:, 0] + 1000}
        assert_same(model(cache=state, **asked).logits, model(**state.events, **asked).logits)
        assert (state.num_events <= LIMIT).all()
    if collapse:  # one event of an item and type
        kinds = state.events["input_ids"] * 3 + state.events["event_type_ids"]
        for user, size in enumerate(state.num_events):
            assert len(kinds[user, :size].unique()) == size


@pytest.mark.parametrize("mixer", MIXERS)
def test_with_a_stride_of_one_a_state_holds_the_latest_events(mixer):
    model, events, state = tiny(sequence_mixer=mixer), log(), None
    for place in range(EVENTS):
        state = model.update(state, stride=1, **at(events, slice(place, place + 1)))
        for user in range(3):
            present = torch.nonzero(events["input_weights"][user, : place + 1] > 0)[:, 0]
            if len(present):
                latest = {n: v[user : user + 1, present[-LIMIT:]] for n, v in events.items()}
                assert_same(model(cache=state[user]).logits, model(**latest).logits)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_step_computes_the_new_event_only(mixer):
    model, events = tiny(sequence_mixer=mixer), log()
    state = model.update(**at(events, slice(0, 5)))
    seen = []
    model.model.blocks[0].mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    state = model.update(state, **at(events, slice(5, 6)))
    assert [hidden.shape[1] for hidden in seen] == [1]
    seen.clear()
    for place in range(6, EVENTS):
        state = model.update(state, **at(events, slice(place, place + 1)))
    # A full window is computed again once in `stride` events of a user, by default LIMIT / 4.
    assert sum(hidden.shape[1] > 1 for hidden in seen) <= 3 * EVENTS / (LIMIT // 4)


def test_the_oldest_events_go_a_stride_at_a_time():
    model = tiny()
    state = model.update(input_ids=torch.arange(1, LIMIT + 1)[None])
    state = model.update(state, stride=3, input_ids=torch.tensor([[20]]))
    assert state.events["input_ids"].tolist() == [[4, 5, 6, 7, 8, 20]]
    with pytest.raises(ValueError, match="stride must lie in 1..8, got 9"):
        model.update(state, stride=9, input_ids=torch.tensor([[20]]))


def test_forward_takes_and_gives_a_cache_as_transformers_do():
    model, events = tiny(), log()
    events["input_weights"] += 1  # forward keeps places, so no event is absent
    first, rest = at(events, slice(0, 4)), at(events, slice(4, 7))
    whole = model(**at(events, slice(0, 7)))
    output = model(**rest, cache=model(**first, use_cache=True).cache)
    assert_same(output.logits, whole.logits)
    assert_same(output.last_hidden_state, whole.last_hidden_state[:, 4:])
    assert output.cache.num_events.tolist() == [7, 7, 7]
    assert whole.cache is None
    with pytest.raises(ValueError, match="9 events, more than max_position_embeddings 8"):
        model(**at(events, slice(7, 9)), cache=output.cache)
    with pytest.raises(ValueError, match="no labels or target_ids beside a cache"):
        model(**rest, cache=output.cache, labels=rest["input_ids"])
    with pytest.raises(ValueError, match="got neither"):
        model()


def test_a_late_event_takes_its_place_in_time():
    model, events = tiny(), log(users=1)
    events["input_weights"] += 1
    late = [0, 1, 3, 4, 2, 5]
    state = None
    for place in late:
        state = model.update(state, **at(events, slice(place, place + 1)))
    in_order = model.update(**at(events, slice(0, 6)))
    assert torch.equal(state.events["timestamps"], in_order.events["timestamps"])
    assert_same(model(cache=state).logits, model(cache=in_order).logits)


def test_an_item_that_comes_again_adds_its_weight_where_histories_hold_it_once():
    model = tiny(collapse_repeats=True)
    state = model.update(input_ids=torch.tensor([[4, 5, 6]]))
    state = model.update(state, input_ids=torch.tensor([[4]]), input_weights=torch.tensor([[2.0]]))
    assert state.events["input_ids"].tolist() == [[5, 6, 4]]
    assert state.events["input_weights"].tolist() == [[1, 1, 3]]


@pytest.mark.parametrize("mixer", MIXERS)
def test_users_step_together_as_they_do_alone(mixer):
    model, events = tiny(sequence_mixer=mixer), log()
    lengths = [7, 0, 2]  # the first window gets full, the second user is new
    alone = []
    for user, length in enumerate(lengths):
        own = {name: values[user : user + 1, : max(length, 1)] for name, values in events.items()}
        if not length:
            own = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        alone.append(model.update(**own))
    together = UserState.join(alone)
    assert together.num_events.tolist() == [
        int((events["input_weights"][u, :n] > 0).sum()) for u, n in enumerate(lengths)
    ]
    new = at(events, slice(7, 12))
    new["input_weights"] = new["input_weights"] * torch.tensor([[1.0], [1.0], [0.0]])  # no event
    scores = model(cache=model.update(together, **new)).logits
    for user, state in enumerate(alone):
        own = model.update(state, **{n: v[user : user + 1] for n, v in new.items()})
        assert_same(scores[user : user + 1], model(cache=own).logits)
    untouched = model.update(together, **new)[2]
    assert_same(untouched.last_hidden_state, alone[2].last_hidden_state)


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_stored_state_goes_on_as_if_nothing_had_happened(mixer):
    model, events = tiny(sequence_mixer=mixer), log()
    state = model.update(**at(events, slice(0, 6)))
    loaded = UserState.from_bytes(state.to_bytes())
    after, expected = (model.update(s, **at(events, slice(6, 8))) for s in (loaded, state))
    assert torch.equal(model(cache=after).logits, model(cache=expected).logits)
    assert after.events["input_ids"].dtype == torch.long


def test_half_precision_halves_what_the_blocks_keep_and_costs_little():
    model, events = tiny(hidden_size=64), log()
    state = model.update(**at(events, slice(0, 6)))
    half = state.to_bytes(torch.float16)
    assert len(half) < 0.6 * len(state.to_bytes())
    loaded = UserState.from_bytes(half)
    new = at(events, slice(6, 7))
    after, expected = (model(cache=model.update(s, **new)).logits for s in (loaded, state))
    error = (after - expected)[:, 1:].abs().max()
    assert 0 < error < 5e-3


def test_the_state_of_another_model_is_refused():
    model, events = tiny(), at(log(), slice(0, 3))
    data = model.update(**events).to_bytes()
    same = tiny()
    same.load_state_dict(model.state_dict())
    same.update(UserState.from_bytes(data), **events)
    with pytest.raises(ValueError, match="made by another model"):
        tiny(seed=1).update(UserState.from_bytes(data), **events)
    with torch.no_grad():
        model.model.norm.weight.add_(1)  # trained on since then
    with pytest.raises(ValueError, match="made by another model"):
        model(cache=UserState.from_bytes(data))


def test_other_bytes_and_other_formats_are_refused():
    data = tiny().update(**at(log(), slice(0, 3))).to_bytes()
    for broken in (b"", b"a user state", data[:100], data[:-1]):
        with pytest.raises(ValueError, match="expected the bytes of a user state"):
            UserState.from_bytes(broken)
    other = data.replace(b'"format":"1"', b'"format":"9"')
    assert other != data
    with pytest.raises(ValueError, match="expected a user state of format 1, got '9'"):
        UserState.from_bytes(other)


def test_times_are_given_for_all_events_or_for_none():
    model, events = tiny(), at(log(), slice(0, 3))
    state = model.update(**events)
    untimed = {"input_ids": events["input_ids"]}
    with pytest.raises(ValueError, match="timestamps for all events of a history or for none"):
        model.update(state, **untimed)
    with pytest.raises(ValueError, match="new events of 3 users, got 2"):
        model.update(state, **{name: values[:2] for name, values in events.items()})


def test_recommendations_from_a_state_leave_out_what_it_holds():
    model, events = tiny(), at(log(), slice(0, 6))
    state = model.update(**events)
    asked = {"query_time": events["timestamps"][:, -1], "exclude_seen": True}
    top = model.recommend(cache=state, top_k=5, **asked)
    expected = model.recommend(**state.events, top_k=5, **asked)
    assert torch.equal(top.item_tokens, expected.item_tokens)
    assert not (top.item_tokens[:, :, None] == state.events["input_ids"][:, None, :]).any()


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_last_state_alone_is_that_among_all(mixer):
    model = tiny(sequence_mixer=mixer, num_hidden_layers=2)
    events = at(log(users=5), slice(LIMIT))
    events["input_ids"][1, 3:] = 0  # padding, and a user without an event
    events["input_ids"][2] = 0
    whole = model(**events)
    places = (events["input_ids"] > 0) & (events["input_weights"] > 0)
    last = (places * torch.arange(LIMIT)).argmax(1)
    states, history = model.last_states(**events)
    assert_same(states, model.state_centre(whole.last_hidden_state[torch.arange(5), last]))
    assert_same(model.head(states, model.item_table(), history), whole.logits)


@pytest.mark.parametrize("options", [{}, {"exclude_seen": True}], ids=str)
def test_the_last_scores_are_the_logits_from_events_and_from_a_state(options):
    model, events = tiny(**options), at(log(users=4), slice(LIMIT))
    query_time = events["timestamps"][:, -1] + 5
    logits = model(**events, query_time=query_time).logits
    seen = logits.gather(1, events["input_ids"])
    assert bool((seen == torch.finfo(seen.dtype).min).all()) == bool(options)
    assert_same(model.last_scores(**events, query_time=query_time), logits)
    state = model.update(**events)
    held = model(**state.events, query_time=query_time).logits
    assert_same(model.last_scores(cache=state, query_time=query_time), held)
