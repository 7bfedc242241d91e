"""Item content and new items: what they change, what they leave, and what is saved."""

import numpy as np
import pytest
import torch

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    nearest_items,
    save_checkpoint,
)

ITEMS = [f"item {number}" for number in range(1, 31)]
HISTORY = torch.tensor([[3, 8, 1, 20], [30, 2, 2, 9]])


def features(items: int = 31, size: int = 6) -> torch.Tensor:
    return torch.randn(items, size, generator=torch.Generator().manual_seed(3))


def tiny(**changes) -> ImplicitRecForScoring:
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "copy_prior": True}
    model = ImplicitRecForScoring(ImplicitRecConfig(**sizes | changes)).eval()
    if model.config.item_feature_size:
        model.fit_item_features(features())
    with torch.no_grad():  # away from zero, so that every term matters
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_content_changes_nothing_before_it_is_learnt():
    torch.manual_seed(0)
    plain = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=31, hidden_size=16)).eval()
    config = ImplicitRecConfig(vocab_size=31, hidden_size=16, item_feature_size=6)
    described = ImplicitRecForScoring(config).eval()
    described.load_state_dict(plain.state_dict(), strict=False)
    described.fit_item_features(features())
    torch.testing.assert_close(described(HISTORY).logits, plain(HISTORY).logits, rtol=0, atol=0)


def test_items_of_the_same_content_are_one_item_without_ids():
    model, known = tiny(item_feature_size=6, use_item_ids=False, use_item_bias=False), features()
    known[7] = known[3]
    model.fit_item_features(known)
    with torch.no_grad():
        model.head.copy.item_level.weight.zero_()
    scores = model(HISTORY[:, :1]).logits
    swapped = model(torch.tensor([[7], [30]])).logits
    torch.testing.assert_close(swapped[0, 8:], scores[0, 8:])
    torch.testing.assert_close(scores[1, 7], scores[1, 3])
    assert model.model.item_embedding.weight.requires_grad is False


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("loss_type", ["softmax", "sampled_softmax"])
def test_the_projection_learns_on_both_sides(ids, loss_type):
    model = ImplicitRecForScoring(
        ImplicitRecConfig(vocab_size=31, item_feature_size=6, use_item_ids=ids, loss_type=loss_type)
    ).train()
    model.fit_item_features(features())
    model(HISTORY, labels=HISTORY.roll(-1, 1)).loss.backward()
    assert model.model.item_embedding.content.weight.grad.abs().sum() > 0
    assert (model.model.item_embedding.weight.grad is not None) == ids


def test_the_kept_table_follows_every_change():
    model = tiny(item_feature_size=6)
    with torch.no_grad():
        first = model(HISTORY).logits
        assert torch.equal(model(HISTORY).logits, first)
        model.model.item_embedding.content.weight.mul_(2)
        changed = model(HISTORY).logits
    assert not torch.allclose(changed, first)
    torch.testing.assert_close(changed, model(HISTORY).logits.detach())  # with a gradient: anew


def test_content_is_saved_and_loaded(tmp_path):
    model = tiny(item_feature_size=6)
    model.save_pretrained(tmp_path)
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path)
    assert torch.equal(loaded(HISTORY).logits, model(HISTORY).logits)


def test_unfit_features_are_refused():
    with pytest.raises(ValueError, match="item_feature_size is 0"):
        tiny().fit_item_features(features())
    with pytest.raises(ValueError, match=r"finite \[31, 6\], got \[31, 5\]"):
        tiny(item_feature_size=6).fit_item_features(features(size=5))
    with pytest.raises(ValueError, match="must be finite"):
        tiny(item_feature_size=6).fit_item_features(features() / 0)
    with pytest.raises(ValueError, match="needs an item_feature_size"):
        ImplicitRecConfig(use_item_ids=False)
    with pytest.raises(ValueError, match="no content"):
        tiny(item_feature_size=6, loss_type="sampled_softmax").use_sparse_gradients()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("by", ["features", "neighbours"])
def test_new_items_leave_the_scores_of_the_others(tied, by):
    size = 6 if by == "features" else 0
    model = tiny(item_feature_size=size, tie_word_embeddings=tied, num_cooccurrences=2)
    items = torch.randint(1, 31, (31, 2), generator=torch.Generator().manual_seed(5))
    model.fit_cooccurrences(items, torch.ones(31, 2))
    before = model(HISTORY).logits
    new = {"features": features(34)[31:]} if size else {"neighbours": [[4, 9], [0, 7], [30, 0]]}
    assert model.add_items(**new).tolist() == [31, 32, 33]
    after = model(HISTORY).logits
    assert after.shape == (2, 34)
    torch.testing.assert_close(after[:, :31], before)
    assert torch.isfinite(model(torch.tensor([[31, 33]])).logits[:, 1:]).all()


@pytest.mark.parametrize("ids", [True, False])
def test_a_new_item_of_an_old_ones_features_scores_like_it(ids):
    model = tiny(item_feature_size=6, use_item_ids=ids)
    model.add_items(features=features()[[5, 17]])
    scores = model(HISTORY).logits
    torch.testing.assert_close(scores[:, [31, 32]], scores[:, [5, 17]], rtol=1e-4, atol=1e-5)
    old, new = (model(torch.tensor([[3, 8, item]])).logits[0, 18:31] for item in (5, 31))
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


def test_a_new_item_is_halfway_between_its_neighbours():
    model = tiny()
    model.add_items(neighbours=[[4, 9]])
    table = model.item_table()
    torch.testing.assert_close(table[31], (table[4] + table[9]) / 2)
    bias = model.head.item_bias.weight
    torch.testing.assert_close(bias[31], (bias[4] + bias[9]) / 2)


def test_a_new_item_is_recommended_saved_and_trained(tmp_path):
    processor = ImplicitRecProcessor.fit({"item_id": ITEMS})
    model = tiny(item_feature_size=6, vocabulary_fingerprint=processor.fingerprint)
    best = model.recommend(HISTORY, top_k=1, exclude_seen=True).item_tokens[:, 0]
    tokens = processor.add_items(["new"])
    model.add_items(features=features()[best[:1]], vocabulary_fingerprint=processor.fingerprint)
    assert processor.decode_items(tokens) == ["new"]
    top = model.recommend(HISTORY, top_k=2, exclude_seen=True)
    assert set(top.item_tokens[0].tolist()) == {int(best[0]), int(tokens[0])}
    save_checkpoint(tmp_path / "model", model=model, processor=processor)
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path / "model")
    again = loaded.recommend(HISTORY, top_k=2, exclude_seen=True)
    assert torch.equal(again.scores, top.scores)
    again = ImplicitRecProcessor.from_pretrained(tmp_path / "model")
    again.check_model(loaded.config)
    assert again.encode_items(["new", ITEMS[0]]).tolist() == [31, processor.encode_items(ITEMS)[0]]
    loaded.train()(HISTORY, labels=torch.full_like(HISTORY, 31)).loss.backward()
    assert loaded.model.item_embedding.weight.grad[31].abs().sum() > 0


def test_first_events_move_the_bias_from_what_the_neighbours_let_expect():
    model = tiny()
    counts = torch.full((31,), 20)
    counts[0], counts[4] = 0, 80
    model.fit_item_counts(counts)
    before = model(HISTORY).logits
    events = int(counts.sum()) // 10  # a tenth of the time: 8 of item 4, 2 of item 9
    model.add_items(neighbours=[[4], [4], [9], [9]], item_counts=[8, 0, 8, 2], num_events=events)
    torch.testing.assert_close(model(HISTORY).logits[:, :31], before)
    bias = model.head.item_bias.weight[:, 0]
    as_expected, unseen, risen, usual = (bias[31:] - bias[[4, 4, 9, 9]]).tolist()
    assert as_expected == pytest.approx(0, abs=1e-5) and usual == pytest.approx(0, abs=1e-5)
    assert unseen == pytest.approx(np.log(1 / 9), abs=1e-5)
    assert risen == pytest.approx(np.log(9 / 3), abs=1e-5)
    frequency = model.item_frequency
    assert (frequency[31] / frequency[4]).item() == pytest.approx(1, abs=1e-5)
    assert (frequency[33] / frequency[9]).item() == pytest.approx(3, abs=1e-5)
    assert frequency[1:].mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "told", "message"),
    [
        ({}, {"item_counts": [1, 2], "num_events": 9}, r"\[1\] numbers from 0"),
        ({}, {"item_counts": [-1], "num_events": 9}, "numbers from 0"),
        ({}, {"item_counts": [1]}, "num_events of the known items"),
        ({"use_item_bias": False}, {"item_counts": [1], "num_events": 9}, "use_item_bias=False"),
    ],
)
def test_counts_that_do_not_fit_are_refused_before_anything_changes(changes, told, message):
    model = tiny(**changes)
    with pytest.raises(ValueError, match=message):
        model.add_items(neighbours=[[4]], **told)
    assert model.config.vocab_size == len(model.item_table()) == 31


def test_new_items_that_do_not_fit_are_refused():
    processor = ImplicitRecProcessor.fit({"item_id": ITEMS})
    for ids in (["item 3"], ["a", "a"], [4]):
        with pytest.raises(ValueError, match="item"):
            processor.add_items(ids)
    with pytest.raises(ValueError, match="got neither"):
        tiny().add_items()
    for neighbours in ([[31]], [[0, 0]], [[-1]]):
        with pytest.raises(ValueError, match="neighbours must be"):
            tiny().add_items(neighbours=neighbours)
    with pytest.raises(ValueError, match="all zero"):
        tiny(item_feature_size=6).add_items(features=torch.zeros(1, 6))
    with pytest.raises(ValueError, match="item_feature_size"):
        tiny().add_items(features=features(1), neighbours=[[1]])


def test_shares_fall_with_the_distance_and_unknown_content_is_nobodys_neighbour():
    known = torch.zeros(5, 2)
    known[1], known[2], known[3] = (torch.tensor(v) for v in ([1.0, 0], [1.0, 1], [0, 1.0]))
    tokens, shares = nearest_items(known, torch.tensor([[2.0, 0.5]]))
    assert tokens.tolist() == [[1, 2, 3]]
    assert shares[0].tolist() == sorted(shares[0].tolist(), reverse=True)
    assert shares.sum().item() == pytest.approx(1)


def test_a_user_without_events_gets_the_popular_items():
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=31)).eval()
    counts = np.random.default_rng(0).permutation(31)
    counts[0] = 0
    model.fit_item_counts(torch.as_tensor(counts))
    model.state_centre.mean.normal_()  # what training leaves there
    processor = ImplicitRecProcessor.fit({"item_id": ITEMS})
    top = model.recommend(**processor([[], ["no such item"]]), top_k=5).item_tokens
    expected = np.argsort(-np.maximum(counts, 0.5), kind="stable")[:5]
    assert top.tolist() == [expected.tolist()] * 2
