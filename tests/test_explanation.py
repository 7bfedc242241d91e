"""Contributions are differences of scores: they add up, and are those of histories without the event."""

import pytest
import torch

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring, explain

MIXERS = ["attention", "gru", "convolution"]


def tiny(**changes) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "use_gaps": True}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | {"copy_prior": True} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def history() -> dict[str, torch.Tensor]:
    events = {"input_ids": torch.randint(1, 31, (1, 6)), "input_weights": torch.rand(1, 6) + 0.5}
    return events | {"timestamps": torch.randint(1, 10**6, (1, 6)).cumsum(1)}


def without(events: dict[str, torch.Tensor], *places: int) -> dict[str, torch.Tensor]:
    left = [place for place in range(6) if place not in places]
    return {name: values[:, left] for name, values in events.items()}


@pytest.mark.parametrize("mixer", MIXERS)
def test_contributions_are_those_of_histories_without_the_event(mixer):
    model, events, items = tiny(sequence_mixer=mixer), history(), [3, 7, 30]
    found = explain(model, events, items, batch_size=5)

    def scores(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).logits[0, items].double()

    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(found.scores, scores(events), **close)
    for place in range(6):
        missing = scores(events) - scores(without(events, place))
        torch.testing.assert_close(found.alone[:, place], missing, **close)
    third = scores(without(events, 0, 1)) - scores(without(events, 0, 1, 2))
    torch.testing.assert_close(found.in_turn[:, 2], third, **close)
    empty = scores({"input_ids": torch.zeros(1, 1, dtype=torch.long)})
    torch.testing.assert_close(found.base, empty, **close)


def test_in_turn_they_sum_to_the_score_and_alone_with_what_they_do_together():
    found = explain(tiny(), history(), torch.arange(1, 31))
    exact = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(found.base + found.in_turn.sum(1), found.scores, **exact)
    total = found.base + found.alone.sum(1) + found.together
    torch.testing.assert_close(total, found.scores, **exact)
    assert found.together.abs().max() > 1e-3


def test_an_item_that_only_one_event_speaks_for_is_explained_by_it():
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=31, copy_prior=True)).eval()
    with torch.no_grad():
        model.item_decoder.weight.zero_()  # nothing but the copy prior
    found = explain(model, {"input_ids": torch.tensor([[4, 9, 5]])}, [9])
    assert found.alone[0, 1] > 0.1
    assert found.alone[0, [0, 2]].abs().max() < 1e-6
    assert found.event_tokens.tolist() == [4, 9, 5]


def test_absent_events_are_not_explained_and_an_empty_history_has_only_its_base():
    events = history()
    events["input_weights"][0, 2] = 0
    found = explain(tiny(), events, [3])
    assert found.alone.shape == (1, 5)
    assert found.event_weights.tolist() == events["input_weights"][0, [0, 1, 3, 4, 5]].tolist()
    nothing = explain(tiny(), {"input_ids": torch.zeros(1, 1, dtype=torch.long)}, [3, 4])
    assert torch.equal(nothing.scores, nothing.base)
    assert nothing.alone.shape == (2, 0)


def test_the_time_of_asking_can_be_held():
    model = tiny(use_query_time=True)
    asked = history() | {"query_time": torch.tensor([10**8])}
    own = asked["input_ids"][0, :1]  # the copy prior reads the age of its event
    scores = model(**asked).logits[0, own].double()
    torch.testing.assert_close(explain(model, asked, own).scores, scores, atol=1e-5, rtol=0)
    del asked["query_time"]
    assert not torch.allclose(explain(model, asked, own).scores, scores, atol=1e-3)


def test_tokens_that_are_no_items_and_batches_are_refused():
    with pytest.raises(ValueError, match=r"item_tokens must be a list of 1..30, got \[0\]"):
        explain(tiny(), history(), [0])
    with pytest.raises(ValueError, match="expected one history, got 2"):
        explain(tiny(), {"input_ids": torch.ones(2, 3, dtype=torch.long)}, [1])
