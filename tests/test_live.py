"""A user followed in numpy is never told apart from the model: every term, mixer and rare case."""

import numpy as np
import pytest
import torch
from test_state import LIMIT, MIXERS, at, log, tiny

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    LiveBody,
    Retriever,
    read_pasts,
)


def numbers(events: dict[str, torch.Tensor], place: int) -> dict:
    """The event of the first user at a place."""
    return {name: values[0, place].item() for name, values in events.items()}


def ranked(model, body, user, **asked):
    state = torch.from_numpy(user.state)[None]
    return Retriever(model).rank(state, [body.past(user, **asked)], exclude_seen=False, top_k=30)


@pytest.mark.parametrize("collapse", [False, True], ids=["events", "items"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_step_gives_the_scores_of_the_model(mixer, collapse):
    model, events = tiny(sequence_mixer=mixer, collapse_repeats=collapse), log(users=1)
    body = LiveBody(model)
    (user,), state, steps = body.start(**at(events, slice(0, 3))), None, 0
    state = model.update(**at(events, slice(0, 3)))
    for place in range(3, events["input_ids"].shape[1]):
        new = at(events, slice(place, place + 1))
        state = model.update(state, **new)
        before, user = user, body.update(user, **numbers(events, place))
        steps += user is before
        assert (user.held("input_ids") == state.events["input_ids"][0].numpy()).all()
        centred = model.state_centre(state.last_hidden_state)[0]
        np.testing.assert_allclose(user.state, centred, atol=1e-5, rtol=0)
        asked = int(new["timestamps"]) + 1000
        expected = model(cache=state, query_time=torch.tensor([asked])).logits[0]
        found = ranked(model, body, user, query_time=asked)
        scores = expected[found.item_tokens[0]]
        torch.testing.assert_close(found.scores[0], scores, atol=1e-5, rtol=0)
    assert steps >= 6  # the window of 8 is full every other event


@pytest.mark.parametrize("timed", [True, False])
def test_a_model_without_the_terms_and_events_without_times(timed):
    torch.manual_seed(0)
    config = ImplicitRecConfig(vocab_size=31, hidden_size=16, max_position_embeddings=LIMIT)
    model, events = ImplicitRecForScoring(config).eval(), log(users=1)
    names = ["input_ids", "timestamps"] if timed else ["input_ids"]
    events = {name: events[name] for name in names}
    body = LiveBody(model)
    (user,) = body.start(input_ids=torch.zeros(1, 1, dtype=torch.long))
    assert user.size == 0 and not user.state.any()
    for place in range(LIMIT):
        assert body.step(user, **numbers(events, place))
    expected = model(**at(events, slice(0, LIMIT))).logits[0]
    found = ranked(model, body, user)
    scores = expected[found.item_tokens[0]]
    torch.testing.assert_close(found.scores[0], scores, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="for all events of a history or for none"):
        body.step(user, input_ids=3, **({} if timed else {"timestamps": 5}))


def test_a_step_that_is_not_enough_changes_nothing():
    model, events = tiny(), log(users=1)
    events["input_weights"] += 1
    body = LiveBody(model)
    (user,) = body.start(**at(events, slice(0, LIMIT - 1)))
    before = user.state.copy()
    late = numbers(events, LIMIT - 1) | {"timestamps": 5}
    assert not body.step(user, **late)
    assert body.step(user, **numbers(events, LIMIT - 1) | {"input_weights": 0.0})  # no event
    assert user.size == LIMIT - 1 and (user.state == before).all()
    assert body.step(user, **numbers(events, LIMIT - 1))
    assert not body.step(user, **numbers(events, LIMIT)) and user.size == LIMIT


def test_pasts_are_those_of_the_rows_of_a_batch():
    model, events = tiny(), at(log(), slice(0, 6))
    states, history = model.last_states(**events)
    body = LiveBody(model)
    for row, past in enumerate(read_pasts(events["input_ids"], history)):
        (user,) = body.start(**{name: values[row : row + 1] for name, values in events.items()})
        np.testing.assert_allclose(user.state, states[row], atol=1e-5, rtol=0)
        own = body.past(user)
        there = past.weights > 0
        assert (own.items == past.items[there]).all() and (own.ages == past.ages[there]).all()
