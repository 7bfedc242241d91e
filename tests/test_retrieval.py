"""Retrieval finds what the whole catalogue's scores would, indexes belong to a model, lists obey rules."""

import json

import numpy as np
import pytest
import torch

from modeling_implicitrec import (
    ExactIndex,
    ImplicitRecConfig,
    ImplicitRecForScoring,
    RankingRules,
    Retriever,
    at_most,
    diverse,
    item_vectors,
    pinned,
)
from modeling_implicitrec.head_implicitrec import counts_of
from modeling_implicitrec.ranking import best_of_many

ITEMS = 3000


def make_model(seed: int = 0, **options) -> ImplicitRecForScoring:
    """Random weights, priors with something in them, and a bias as of a popularity."""
    torch.manual_seed(seed)
    options = {"copy_prior": True, "num_cooccurrences": 6, "cooccurrence_context": 3} | options
    config = ImplicitRecConfig(vocab_size=ITEMS + 1, hidden_size=16, **options)
    model = ImplicitRecForScoring(config).eval()
    torch.nn.init.normal_(model.item_decoder.weight, std=0.5)
    counts = 1000 / torch.arange(1, ITEMS + 2)
    model.fit_item_counts(counts)
    items = torch.randint(1, ITEMS + 1, (ITEMS + 1, config.num_cooccurrences))
    if config.num_cooccurrences:
        model.fit_cooccurrences(items, 500 * torch.rand(items.shape))
    return model


@pytest.fixture(scope="module")
def model() -> ImplicitRecForScoring:
    return make_model()


@pytest.fixture(scope="module")
def batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, ITEMS + 1, (12, 9), generator=generator)
    ids[:4, 6:] = 0
    weights = torch.rand(ids.shape, generator=generator) * 3 * (ids > 0)
    times = torch.arange(9).expand(12, 9) * 3600
    return {"input_ids": ids, "input_weights": weights, "timestamps": times}


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("options", [{}, {"exclude_seen": True}, {"use_item_bias": False}], ids=str)
def test_what_is_retrieved_is_what_the_whole_catalogue_gives(options, exclude_seen, batch):
    model = make_model(**options)
    index = ExactIndex(*item_vectors(model), chunk_size=5 * ITEMS)
    asked = {"top_k": 20, "exclude_seen": exclude_seen}
    expected = model.recommend(**batch, **asked)
    found = Retriever(model, index).recommend(**batch, **asked)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    assert (found.item_tokens == expected.item_tokens).all()


def test_without_the_priors_candidates_the_answer_would_be_another(model, batch):
    states, history = model.last_states(**batch)
    untouched, _ = ExactIndex(*item_vectors(model)).search(states, 10)
    expected = model.recommend(**batch, exclude_seen=False).item_tokens
    assert (untouched != expected).any(1).sum() >= 10


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.97), ("int8", 0.97)])
def test_a_smaller_table_finds_nearly_the_same(model, batch, dtype, least):
    states, _ = model.last_states(**batch)
    exact, _ = ExactIndex(*item_vectors(model)).search(states, 50)
    small = ExactIndex(*item_vectors(model), dtype=dtype)
    found, _ = small.search(states, 50)
    assert small.table.element_size() == {"bfloat16": 2, "int8": 1}[dtype]
    assert np.mean([np.isin(f, e).mean() for f, e in zip(found, exact)]) >= least
    with pytest.raises(ValueError, match="dtype must be"):
        ExactIndex(*item_vectors(model), dtype="float16")


def test_filters_and_boosts_are_those_of_the_whole_catalogue(model, batch):
    generator = torch.Generator().manual_seed(2)
    allowed = torch.rand(ITEMS + 1, generator=generator) < 0.02
    boosts = torch.randn(ITEMS + 1, generator=generator) * 3
    rules = RankingRules(allowed=allowed, boosts=boosts)
    scores = model(**batch).logits + boosts
    scores = scores.masked_fill(~allowed, -torch.inf).scatter(1, batch["input_ids"], -torch.inf)
    best, expected = scores.topk(10, dim=1)
    found = Retriever(model).recommend(**batch, top_k=10, exclude_seen=True, rules=rules)
    torch.testing.assert_close(found.scores, best, rtol=0, atol=1e-5)
    assert (found.item_tokens == expected).all()


def test_rules_are_tensors_or_arrays_with_a_place_for_each_token(model, batch):
    retriever, allowed = Retriever(model), np.arange(ITEMS + 1) % 3 == 0
    found = retriever.recommend(**batch, rules=RankingRules(allowed=allowed)).item_tokens
    same = RankingRules(allowed=torch.from_numpy(allowed), boosts=np.zeros(ITEMS + 1))
    assert (retriever.recommend(**batch, rules=same).item_tokens == found).all()
    assert allowed[found].all()
    for wrong in (np.array([3, 4]), ["item 3"]):
        with pytest.raises(ValueError, match="must be bools .vocab_size."):
            retriever.recommend(**batch, rules=RankingRules(allowed=wrong))
    with pytest.raises(ValueError, match=f"for each of {ITEMS + 1} tokens, got .{ITEMS}."):
        retriever.recommend(**batch, rules=RankingRules(allowed=allowed[1:]))


def test_an_approximate_index_whose_items_are_forbidden_falls_back_on_a_scan(model, batch):
    class Stubborn:
        def search(self, states, k):
            return torch.arange(1, k + 1).expand(len(states), -1), torch.full((len(states), k), 9.0)

    allowed = torch.arange(ITEMS + 1) > ITEMS - 30
    rules = RankingRules(allowed=allowed)
    expected = Retriever(model).recommend(**batch, rules=rules)
    found = Retriever(model, Stubborn()).recommend(**batch, rules=rules)
    assert (found.item_tokens == expected.item_tokens).all()
    few = RankingRules(allowed=torch.arange(ITEMS + 1) > ITEMS - 3)
    found = Retriever(model).recommend(**batch, rules=few)
    assert ((found.item_tokens > 0).sum(1) <= 3).all()
    assert (found.scores[:, 3:] == -torch.inf).all()


def test_items_seen_before_the_window_are_left_out(model, batch):
    first = Retriever(model).recommend(**batch, top_k=3).item_tokens
    seen = [tokens.tolist() for tokens in first[:, :2]]
    again = Retriever(model).recommend(**batch, top_k=1, seen=seen).item_tokens
    assert (again[:, 0] == first[:, 2]).all()


def test_list_rules_arrange_what_is_shown(model, batch):
    groups = np.arange(ITEMS + 1) % 2
    plain = Retriever(model).recommend(**batch, top_k=60).item_tokens
    rules = RankingRules(arrange=[at_most(3, groups), pinned([int(plain[0, 1])])], pool=60)
    shown = Retriever(model).recommend(**batch, top_k=60, rules=rules).item_tokens
    assert (shown > 0).sum(1).tolist() == [6] * len(shown)
    assert shown[0, 0] == plain[0, 1]
    vectors = item_vectors(model)[0].numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    likeness = []
    for share in (0.0, 0.8):
        rules = RankingRules(arrange=[diverse(vectors, share=share)], pool=60)
        tokens = Retriever(model).recommend(**batch, top_k=10, rules=rules).item_tokens
        cosines = [unit[row] @ unit[row].T for row in tokens.numpy()]
        likeness.append(np.mean([c[np.triu_indices(10, 1)].mean() for c in cosines]))
        if not share:
            assert (tokens == plain[:, :10]).all()
    assert likeness[1] < likeness[0] - 0.05
    with pytest.raises(ValueError, match="share must be"):
        diverse(vectors, share=2)


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.9), ("ivfpq", 0.4)])
def test_an_ann_index_is_saved_and_belongs_to_its_model(kind, least, model, batch, tmp_path):
    ann = pytest.importorskip("modeling_implicitrec.ann_index", reason="faiss is not installed")
    index = ann.AnnIndex.build(model, kind)
    states, _ = model.last_states(**batch)
    exact, _ = ExactIndex(*item_vectors(model)).search(states, 10)
    found, scores = index.search(states, 10)
    assert np.mean([np.isin(f, e).mean() for f, e in zip(found, exact)]) >= least
    path = index.save(tmp_path)
    loaded = ann.AnnIndex.load(tmp_path, model, kind)
    assert (loaded.search(states, 10)[0] == found).all()
    with pytest.raises(ValueError, match="other item embeddings"):
        ann.AnnIndex.load(tmp_path, make_model(seed=1), kind)
    told = json.loads(path.with_suffix(".json").read_text())
    earlier = {name: value for name, value in told.items() if name != "asked"}
    path.with_suffix(".json").write_text(json.dumps(earlier))
    with pytest.raises(ValueError, match="earlier version"):
        ann.AnnIndex.load(tmp_path, model, kind)
    path.with_suffix(".json").write_text(json.dumps(told))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="is not the file"):
        ann.AnnIndex.load(tmp_path, model, kind)
    with pytest.raises(ValueError, match="kind must be"):
        ann.AnnIndex.build(model, "tree")


@pytest.mark.parametrize(("kind", "least"), [("hnsw", 0.95), ("ivfpq", 0.8)])
def test_an_index_finds_the_nearest_though_popularity_is_longer_than_embeddings(kind, least):
    ann = pytest.importorskip("modeling_implicitrec.ann_index", reason="faiss is not installed")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, 16, generator=generator)
    model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=12_001, hidden_size=16)).eval()
    noise = torch.randn(12_001, 16, generator=generator)
    with torch.no_grad():
        model.item_decoder.weight.copy_((centres.repeat(241, 1)[:12_001] + 0.5 * noise) / 4)
    model.fit_item_counts(1e6 / torch.arange(1, 12_002))
    states = 2 * (centres + torch.randn(centres.shape, generator=generator))
    exact, _ = ExactIndex(*item_vectors(model)).search(states, 10)
    found, _ = ann.AnnIndex.build(model, kind).search(states, 50)
    assert np.mean([np.isin(e, f).mean() for e, f in zip(exact, found)]) > least


def test_scores_are_the_same_with_and_without_a_gradient(model, batch):
    with torch.no_grad():
        found = model(**batch).logits
    torch.testing.assert_close(found, model(**batch).logits, atol=1e-5, rtol=0)


def test_sources_are_counted_by_search_as_by_comparison():
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randint(0, 9, (5, 7), generator=generator)  # with repeats
    source = torch.randint(0, 9, (5, 11), generator=generator)
    values = torch.rand(5, 11, generator=generator)
    same = source[:, None, :] == candidates[:, :, None]
    torch.testing.assert_close(
        counts_of(candidates, source, values), (same * values[:, None, :]).sum(2)
    )


@pytest.mark.parametrize("size", [10, 256, 20 * 256, 20 * 256 + 7])
def test_the_best_of_blocks_are_the_best_of_all(size):
    scores = torch.randn(7, size, generator=torch.Generator().manual_seed(0))
    scores[3, : size // 2] = -torch.inf
    for k in (1, 5, 10):
        found, expected = best_of_many(scores, k), scores.topk(k, dim=1)
        assert (found[0] == expected.values).all() and (found[1] == expected.indices).all()
