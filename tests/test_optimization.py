"""Row-wise AdamW: AdamW where every row is read, and nothing but decay for the rows that are not."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from modeling_implicitrec import (
    ImplicitRecConfig,
    ImplicitRecForScoring,
    RowWiseAdamW,
    SettleCallback,
)
from modeling_implicitrec.optimization import _is_sparse

STEPS = 12
SETTINGS = {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.95)}


def train(optimizer, table: nn.Embedding, rows: list[list[int]], rate: float = 1.0) -> None:
    for step, read in enumerate(rows):
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS["lr"] * rate**step
        optimizer.zero_grad()
        (table(torch.tensor(read)) - 1).square().sum().backward()
        optimizer.step()


def twins(size: int) -> tuple[nn.Embedding, nn.Embedding]:
    dense = nn.Embedding(6, size)
    sparse = copy.deepcopy(dense)
    sparse.sparse = True
    return dense, sparse


def test_where_every_row_is_read_it_is_adamw() -> None:
    dense, sparse = twins(1)  # of one number a row, the mean of the squares is its square
    rows = [[0, 1, 2, 3, 4, 5, 3, 3]] * STEPS
    train(torch.optim.AdamW(dense.parameters(), **SETTINGS), dense, rows, rate=0.9)
    train(RowWiseAdamW(sparse.parameters(), **SETTINGS), sparse, rows, rate=0.9)
    torch.testing.assert_close(sparse.weight, dense.weight)


def test_a_row_steps_as_if_it_were_alone() -> None:
    """Whatever other rows do in between, without decay."""
    settings = SETTINGS | {"weight_decay": 0.0}
    alone, among = twins(4)
    alone.sparse = True
    train(RowWiseAdamW(alone.parameters(), **settings), alone, [[2]] * 3)
    train(RowWiseAdamW(among.parameters(), **settings), among, [[2], [0], [2, 1], [5], [2]])
    torch.testing.assert_close(among.weight[2], alone.weight[2])


def test_rows_that_are_not_read_decay_by_all_steps() -> None:
    _, table = twins(4)
    before = table.weight.detach().clone()
    optimizer = RowWiseAdamW(table.parameters(), **SETTINGS)
    train(optimizer, table, [[1]] * 3 + [[3]], rate=0.5)
    assert torch.equal(table.weight[[0, 2, 4, 5]], before[[0, 2, 4, 5]])
    optimizer.settle()
    rates = [SETTINGS["lr"] * 0.5**step for step in range(4)]
    kept = torch.prod(1 - SETTINGS["weight_decay"] * torch.tensor(rates))
    torch.testing.assert_close(table.weight[[0, 2]], before[[0, 2]] * kept)
    settled = table.weight.detach().clone()
    optimizer.settle()
    assert torch.equal(table.weight, settled)


def test_gradients_are_clipped_together() -> None:
    dense, sparse = twins(4)
    beside, too = nn.Linear(4, 1), nn.Linear(4, 1)
    too.load_state_dict(beside.state_dict())
    for table, layer in ((dense, beside), (sparse, too)):
        layer(table(torch.tensor([2, 4, 2]))).sum().backward()
    norms = [
        torch.nn.utils.clip_grad_norm_([*table.parameters(), *layer.parameters()], 0.1)
        for table, layer in ((dense, beside), (sparse, too))
    ]
    torch.testing.assert_close(norms[1], norms[0])
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)
    torch.testing.assert_close(too.weight.grad, beside.weight.grad)


def test_a_saved_state_goes_on_to_the_same_bits() -> None:
    rows = [[0, 1], [2], [1, 1, 4], [0], [5, 2], [1]]
    _, straight = twins(3)
    stopped = copy.deepcopy(straight)
    train(RowWiseAdamW(straight.parameters(), **SETTINGS), straight, rows)
    first = RowWiseAdamW(stopped.parameters(), **SETTINGS)
    train(first, stopped, rows[:3])
    second = RowWiseAdamW(stopped.parameters(), **SETTINGS)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, stopped, rows[3:])
    assert torch.equal(stopped.weight, straight.weight)
    with pytest.raises(ValueError, match="no closure"):
        second.step(lambda: 0.0)


@pytest.mark.parametrize("loss_type", ["sampled_softmax", "gbce"])
def test_sparse_gradients_are_the_dense_ones(loss_type: str) -> None:
    config = ImplicitRecConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=8,
        copy_prior=True,
        loss_type=loss_type,
        num_negatives=6,
        loss_chunk_size=5,
    )
    dense = ImplicitRecForScoring(config).eval()
    sparse = copy.deepcopy(dense)
    sparse.use_sparse_gradients()
    batch = {"input_ids": torch.randint(1, 30, (3, 7)), "labels": torch.randint(1, 30, (3, 7))}
    losses = []
    for model in (dense, sparse):
        torch.manual_seed(1)
        losses.append(model(**batch).loss)
        losses[-1].backward()
    assert losses[0] == losses[1]
    found = dict(sparse.named_parameters())
    tables = {name for name, parameter in found.items() if _is_sparse(parameter)}
    assert {"model.item_embedding.weight", "head.item_bias.weight"} <= tables
    for name, parameter in dense.named_parameters():
        if parameter.grad is not None:
            gradient = found[name].grad.to_dense() if name in tables else found[name].grad
            torch.testing.assert_close(gradient, parameter.grad, msg=name)
    read = found["model.item_embedding.weight"].grad.coalesce().indices().numel()
    assert read < 40


def test_the_full_softmax_has_no_sparse_gradients() -> None:
    with pytest.raises(ValueError, match="sampled loss_type"):
        ImplicitRecForScoring(ImplicitRecConfig(vocab_size=9)).use_sparse_gradients()


def test_a_model_that_fsdp2_divides_is_refused() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = fully_shard(ImplicitRecForScoring(ImplicitRecConfig(vocab_size=9)))
        with pytest.raises(ValueError, match="whole table in every process.* that FSDP2 divides"):
            SettleCallback().on_train_begin(None, None, None, model=model)
    finally:
        torch.distributed.destroy_process_group()
