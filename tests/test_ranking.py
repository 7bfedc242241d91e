"""Top-k: never padding, never what was seen, the same in any batch size."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_implicitrec.ranking import pad_tokens, rank_histories, row_batches, top_k

SCORES = torch.tensor([[9.0, 1.0, 3.0, 2.0], [9.0, 5.0, 4.0, 6.0]])


def test_top_k_orders_items_and_leaves_out_padding() -> None:
    tokens, scores = top_k(SCORES, 3)
    assert tokens.tolist() == [[2, 3, 1], [3, 1, 2]]
    assert scores.tolist() == [[3, 2, 1], [6, 5, 4]]


def test_mask_and_token_exclusion_agree_and_come_last() -> None:
    mask = torch.tensor([[False, False, True, False], [False, True, False, True]])
    for exclude in (mask, torch.tensor([[2, 0], [1, 3]])):
        tokens, scores = top_k(SCORES, 3, exclude=exclude)
        assert tokens[0].tolist() == [3, 1, 2] and tokens[1, 0] == 2
        assert torch.isinf(scores).tolist() == [[False, False, True], [False, True, True]]
    assert not torch.isinf(SCORES).any()


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_refuses_a_k_outside_the_catalogue(k: int) -> None:
    with pytest.raises(ValueError, match="k must lie"):
        top_k(SCORES, k)


def test_top_k_refuses_bad_scores_and_exclusions() -> None:
    with pytest.raises(ValueError, match="float"):
        top_k(SCORES.long(), 1)
    with pytest.raises(ValueError, match="NaN"):
        top_k(torch.full((1, 3), torch.nan), 1)
    with pytest.raises(ValueError, match="differ"):
        top_k(SCORES, 1, exclude=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="excluded tokens"):
        top_k(SCORES, 1, exclude=torch.tensor([[4], [0]]))
    with pytest.raises(ValueError, match="exclude must"):
        top_k(SCORES, 1, exclude=torch.tensor([[1]]))


def test_pad_tokens_and_empty_histories() -> None:
    assert pad_tokens([[], [1, 2]]).tolist() == [[0, 0], [1, 2]]
    assert pad_tokens([[], []]).shape == (2, 0)
    assert pad_tokens([[4], [1, 2]], padding=-1).tolist() == [[4, -1], [1, 2]]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
@pytest.mark.parametrize("as_dataset", [True, False])
def test_ranking_does_not_depend_on_batches(batch_size: int, as_dataset: bool) -> None:
    generator = np.random.default_rng(0)
    rows = [
        {"number": u, "input_ids": generator.integers(1, 12, u % 5).tolist()} for u in range(11)
    ]
    table = generator.random((11, 12)).astype(np.float32)
    data = Dataset.from_list(rows) if as_dataset else rows
    ranked = rank_histories(
        lambda batch: table[[row["number"] for row in batch]],
        data,
        k=4,
        seen="exclude",
        batch_size=batch_size,
        progress=False,
    )
    for row, tokens in zip(rows, ranked, strict=True):
        order = [t for t in np.argsort(-table[row["number"]]) if t and t not in row["input_ids"]]
        assert tokens.tolist() == order[:4]


def test_seen_items_are_kept_or_excluded_and_gaps_are_zero() -> None:
    rows = [{"input_ids": [1, 3]}]
    scores = torch.tensor([[9.0, 4.0, 1.0, 2.0]])

    def score(batch: list[dict]) -> torch.Tensor:
        return scores

    kept = rank_histories(score, rows, k=3, seen="keep", progress=False)
    excluded = rank_histories(score, rows, k=3, seen="exclude", progress=False)
    assert kept.tolist() == [[1, 3, 2]] and excluded.tolist() == [[2, 0, 0]]


def test_rank_histories_refuses_bad_input() -> None:
    rows = [{"input_ids": [1]}] * 2
    with pytest.raises(ValueError, match="seen must"):
        rank_histories(lambda batch: SCORES, rows, k=1, seen="only", progress=False)
    with pytest.raises(ValueError, match="expected scores"):
        rank_histories(lambda batch: SCORES[:1], rows, k=1, seen="keep", progress=False)
    with pytest.raises(ValueError, match="batch_size"):
        list(row_batches(rows, 0))


@pytest.mark.parametrize("items", [30, 1000, 6433])
def test_the_best_are_found_by_blocks_as_among_all(items: int) -> None:
    scores = torch.randn(9, items + 1, generator=torch.Generator().manual_seed(0))
    scores[2, 5:] = -torch.inf
    wanted = scores[:, 1:].topk(8, dim=1)
    tokens, values = top_k(scores, 8)
    assert (values == wanted.values).all()
    assert (tokens == wanted.indices + 1)[values > -torch.inf].all()
    scores[4, items] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        top_k(scores, 8)
