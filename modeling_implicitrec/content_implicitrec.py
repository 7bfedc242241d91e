"""Item content: feature vectors of items beside their embeddings, or instead of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_implicitrec import ImplicitRecConfig


class ItemContent(nn.Module):
    """Feature vectors of items, projected to the width of the model; the projection starts at zero."""

    features: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        shape = (config.vocab_size, config.item_feature_size)
        self.register_buffer("features", torch.zeros(shape))
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, config.item_feature_size))

    def forward(self, features: Tensor) -> Tensor:
        """`[..., hidden_size]` of `[..., item_feature_size]`."""
        return F.linear(features, self.weight)


class ItemEmbedding(nn.Embedding):
    """The vector of an item: its own row of a table, plus what its content says.

    Without `use_item_ids` the rows are not read: an item is its content alone.
    """

    def __init__(self, config: ImplicitRecConfig):
        super().__init__(config.vocab_size, config.hidden_size, padding_idx=0)
        self.use_rows = config.use_item_ids
        self.content = ItemContent(config) if config.item_feature_size else None
        self.weight.requires_grad_(config.use_item_ids)
        self._kept: tuple[list, Tensor | None] = ([], None)

    def forward(self, input: Tensor) -> Tensor:
        """`[*input.shape, hidden_size]`."""
        if self.content is None:
            return super().forward(input)
        described = self.content(F.embedding(input, self.content.features))
        return super().forward(input) + described if self.use_rows else described

    def table(self, rows: Tensor) -> Tensor:
        """The vectors of all items, `[vocab_size, hidden_size]`, with `rows` in place of its own.

        Computed once between two changes, where no gradient is asked for.
        """
        if self.content is None:
            return rows
        keep = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        read = (rows, self.content.features, self.content.weight)
        versions = [(part.data_ptr(), part._version, part.dtype) for part in read] if keep else []
        if keep and self._kept[1] is not None and self._kept[0] == versions:
            return self._kept[1]
        table = self.content(self.content.features)
        table = rows + table if self.use_rows else table
        self._kept = (versions, table) if keep else ([], None)
        return table
