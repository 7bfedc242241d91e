"""What the terms of a history do: buckets of gaps, refused items, what was seen, negative draws."""

import pytest
import torch
from tiny_models import MIXERS, histories, tiny

from modeling_implicitrec import ImplicitRecConfig, ImplicitRecForScoring
from modeling_implicitrec.kernels_implicitrec import (
    log_buckets,
    portable_buckets,
    powers_of_two,
)
from modeling_implicitrec.layers_implicitrec import BucketLookup, GapEmbedding
from modeling_implicitrec.loss_implicitrec import draw_negatives, draws_of, expected_draws


def test_buckets_halve_every_doubling_and_keep_the_ends():
    gaps = torch.tensor([-5, 0, 1, 2, 3, 7, 10**9])
    assert log_buckets(gaps, 16).tolist() == [0, 0, 2, 3, 4, 6, 15]


def test_buckets_for_exported_models_are_the_same():
    edges = torch.cat([2 ** torch.arange(40), 3 * 2 ** torch.arange(39)])
    gaps = torch.cat([edges - 2, edges - 1, edges, torch.randint(0, 10**9, (1000,))]).clamp_min(0)
    powers = powers_of_two(gaps.device)
    assert torch.equal(portable_buckets(1 + gaps.float(), powers), log_buckets(gaps, 99).long())


def test_the_lookup_of_buckets_has_the_gradient_of_indexing():
    table = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    buckets = torch.randint(0, 5, (2, 3, 3), dtype=torch.int32)
    assert torch.equal(
        BucketLookup.apply(table, buckets), table[buckets.long()].permute(3, 0, 1, 2)
    )
    assert torch.autograd.gradcheck(lambda t: BucketLookup.apply(t, buckets), [table])


def test_expected_draws_of_negatives_add_up_and_match_what_is_drawn():
    model = tiny(num_negatives=20_000, in_batch_share=0.5)
    counts = torch.arange(31).float()
    model.fit_item_counts(counts)
    targets = torch.multinomial(counts, 5_000, replacement=True)
    expected = expected_draws(model.item_frequency, torch.arange(1, 31), *draws_of(model.config))
    assert expected.sum().item() == pytest.approx(20_000, rel=1e-4)
    drawn = torch.bincount(draw_negatives(targets, 31, *draws_of(model.config)), minlength=31)[1:]
    torch.testing.assert_close(drawn.float(), expected, rtol=0.2, atol=30)


def test_a_model_of_a_log_without_repeats_never_scores_what_was_seen():
    batch = histories()
    scores = tiny(exclude_seen=True)(**batch).logits
    usual = tiny()(**batch).logits
    seen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, batch["input_ids"], True)
    assert (scores[seen] == torch.finfo(scores.dtype).min).all()
    assert torch.equal(scores[~seen], usual[~seen])


def test_gaps_add_nothing_at_first_and_nothing_without_times():
    config = {"vocab_size": 31, "hidden_size": 16, "hidden_dropout_prob": 0.0}
    batch = histories() | {"labels": histories()["input_ids"].roll(-1, 1)}
    torch.manual_seed(0)
    model = ImplicitRecForScoring(ImplicitRecConfig(**config, use_gaps=True)).eval()
    gaps, model.model.gap_embedding = model.model.gap_embedding, None
    without = model(**batch)
    model.model.gap_embedding = gaps
    torch.testing.assert_close(model(**batch).loss, without.loss, rtol=0, atol=0)
    model(**batch).loss.backward()
    assert gaps.event_bins.grad.abs().sum() > 0  # but they learn
    model = tiny(use_gaps=True)
    untimed = {"input_ids": histories()["input_ids"]}
    before = model(**untimed).last_hidden_state
    with torch.no_grad():
        for weight in model.model.gap_embedding.parameters():
            weight.add_(1)
    torch.testing.assert_close(model(**untimed).last_hidden_state, before, rtol=0, atol=0)


def gap_places(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`[events, 2]`: log2(1 + gap) to the previous event and to the item's previous one; 0 for none."""
    layer = GapEmbedding(ImplicitRecConfig(vocab_size=31, hidden_size=2, num_attention_heads=1))
    with torch.no_grad():
        for column, bins in enumerate((layer.event_bins, layer.item_bins)):
            bins.zero_()
            bins[:, column] = torch.arange(32.0)
        present = batch.get("weights", torch.ones(batch["input_ids"].shape)) > 0
        return layer(batch["input_ids"], batch["timestamps"], present)[0]


def test_a_gap_is_the_time_since_the_previous_event_and_since_the_items_own():
    batch = {
        "input_ids": torch.tensor([[4, 5, 4, 4]]),
        "timestamps": 1_700_000_000 + torch.tensor([[0, 3, 10, 25]]),
    }
    expected = torch.tensor([[0.0, 0], [3, 0], [7, 10], [15, 15]])
    expected[expected > 0] = (1 + expected[expected > 0]).log2()
    torch.testing.assert_close(gap_places(batch), expected)
    hidden = batch | {"weights": torch.tensor([[1.0, 1, 0, 1]])}  # a masked event is passed over
    torch.testing.assert_close(gap_places(hidden)[3], torch.tensor([22.0, 25]).add(1).log2())
    cut = {name: values[:, 2:] for name, values in batch.items()}  # the rest of the history is gone
    expected[2] = 0
    torch.testing.assert_close(gap_places(cut), expected[2:])


@pytest.mark.parametrize("mixer", MIXERS)
def test_gaps_are_causal_and_a_batch_gives_what_each_history_gives_alone(mixer):
    model, batch = tiny(use_gaps=True, sequence_mixer=mixer), histories()
    before = model(**batch).last_hidden_state
    alone = [model(**{n: x[i : i + 1] for n, x in batch.items()}) for i in range(3)]
    torch.testing.assert_close(torch.cat([a.last_hidden_state for a in alone]), before)
    padded = {name: torch.cat([x, torch.zeros(3, 4).to(x)], dim=1) for name, x in batch.items()}
    torch.testing.assert_close(model(**padded).last_hidden_state[:, :8], before)
    batch["timestamps"][:, 5:] += 10**7
    batch["input_ids"][:, 5:] = 7
    after = model(**batch).last_hidden_state
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def test_priors_read_the_history_without_its_negative_events():
    options = {"copy_prior": True, "num_cooccurrences": 2, "num_event_types": 3}
    model = tiny(**options, negative_event_type_ids=[2])
    generator = torch.Generator().manual_seed(2)
    model.fit_cooccurrences(
        torch.randint(1, 31, (31, 2), generator=generator), torch.rand(31, 2, generator=generator)
    )
    with torch.no_grad():  # the body says nothing: what is left is bias and priors
        model.item_decoder.weight.zero_()
    batch = histories()
    types = torch.ones_like(batch["input_ids"])
    types[:, [1, 4, 6]] = 2
    kept = types[0] == 1
    positive = {name: values[:, kept] for name, values in batch.items()}
    with_negative = model(**batch, event_type_ids=types).logits
    torch.testing.assert_close(
        with_negative, model(**positive, event_type_ids=types[:, kept]).logits
    )
    assert not torch.allclose(with_negative, model(**batch).logits)
    other = batch | {"input_ids": torch.where(types == 2, 9, batch["input_ids"])}
    torch.testing.assert_close(model(**other, event_type_ids=types).logits, with_negative)
    nothing = model(**batch, event_type_ids=torch.full_like(types, 2)).logits
    torch.testing.assert_close(nothing[:1].expand(3, -1), nothing)


def test_the_body_tells_a_negative_event_from_a_positive_one():
    model, batch = tiny(num_event_types=3, negative_event_type_ids=[2]), histories()
    types = torch.ones_like(batch["input_ids"])
    before = model(**batch, event_type_ids=types).logits
    types[:, -1] = 2
    assert not torch.allclose(model(**batch, event_type_ids=types).logits, before)
    with pytest.raises(ValueError, match="negative_event_type_ids must lie in 1..2"):
        ImplicitRecConfig(num_event_types=3, negative_event_type_ids=[3])


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "gbce"])
def test_a_refused_item_is_put_below_the_label(loss):
    options = {"num_event_types": 3, "negative_event_type_ids": [2], "loss_type": loss}
    model = tiny(**options, negative_event_loss=2.0, copy_prior=True)
    batch = histories() | {"labels": torch.full((3, 8), -100)}
    batch["labels"][:, -1] = 4
    refused = torch.full((3, 8), -100)
    torch.manual_seed(1)
    before = model(**batch, negative_labels=refused).loss
    refused[1:, -1] = 9
    torch.manual_seed(1)
    after = model(**batch, negative_labels=refused).loss
    logits = model(**batch).logits[1:]
    pairs = torch.nn.functional.softplus(logits[:, 9] - logits[:, 4])
    torch.testing.assert_close(after - before, 2.0 * pairs.sum() / 3)
    torch.manual_seed(1)
    torch.testing.assert_close(model(**batch).loss, before)


def test_gaps_and_negative_types_are_saved_with_the_model(tmp_path):
    model = tiny(use_gaps=True, num_event_types=3, negative_event_type_ids=[2], copy_prior=True)
    model.save_pretrained(tmp_path)
    loaded = ImplicitRecForScoring.from_pretrained(tmp_path).eval()
    batch = histories() | {"event_type_ids": torch.tensor([1, 2] * 4).expand(3, -1)}
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    assert loaded.config.negative_event_type_ids == [2]
