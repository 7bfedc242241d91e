"""Approximate item indexes by faiss (extra `retrieval`), saved beside the checkpoint they belong to."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from .integrity_implicitrec import file_sha256
from .modeling_implicitrec import ImplicitRecForScoring
from .retrieval import item_vectors, table_fingerprint

KINDS = ("hnsw", "ivfpq")
SUBVECTOR = 4  # dimensions of one product-quantised part
SAMPLES_PER_LIST = 50  # items that each inverted list is trained on


class AnnIndex:
    """A faiss index over `state · embedding + bias`, the bias as an extra dimension of the items.

    What is there is divided by the length of a state, by which queries then multiply it: the scores stay,
    but neighbours are told by their embeddings too. Without, the bias is longer than all of an embedding,
    and the index groups items by popularity alone.

    Build one with [`AnnIndex.build`], or load what was saved with [`AnnIndex.load`].
    """

    def __init__(self, index: Any, made: dict[str, Any]) -> None:
        self.index = index
        self.made = made

    @classmethod
    def build(
        cls, model: ImplicitRecForScoring, kind: str = "hnsw", *, seed: int = 0
    ) -> "AnnIndex":
        """Index the items of a model.

        Args:
            kind: `"hnsw"` (Malkov and Yashunin, 2016), a graph: fast, about 200 bytes an item more than
                the table; or `"ivfpq"` (Jégou et al., 2011), lists of quantised items: a tenth
                of the table's size.
            seed: of the items that the quantiser learns from.

        Raises:
            ValueError: for another kind.

        >>> from modeling_implicitrec import ImplicitRecConfig
        >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=50, hidden_size=8))
        >>> tokens, scores = AnnIndex.build(model).search(torch.ones(1, 8), 3)
        >>> tuple(tokens.shape)
        (1, 3)
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        table, bias = item_vectors(model)
        asked = max(float(model.model.norm.weight.detach().norm()), 1.0)
        vectors = with_bias(table, bias / asked)
        index = _hnsw(vectors) if kind == "hnsw" else _ivfpq(vectors, seed)
        index.add(vectors)
        made = {"kind": kind, "items": len(vectors), "faiss": faiss.__version__, "asked": asked}
        return cls(index, made | {"table_sha256": table_fingerprint(model)})

    def search(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Tokens and scores `[queries, k]`, best first; token 0 where fewer were found.

        Args:
            states: `[queries, hidden_size]`.
        """
        size = states.shape[1]
        queries = np.zeros((len(states), self.index.d), dtype=np.float32)
        queries[:, :size] = states.cpu().float().numpy()
        queries[:, size] = self.made["asked"]
        if self.made["kind"] == "hnsw":
            options = faiss.SearchParametersHNSW(efSearch=max(128, 2 * k))
        else:
            options = faiss.SearchParametersIVF(nprobe=max(8, self.index.nlist // 32))
        scores, places = self.index.search(queries, k, params=options)
        found = torch.from_numpy(places + 1)
        values = torch.from_numpy(scores).masked_fill(found == 0, -torch.inf)
        return found.to(states.device), values.to(states.device)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `item_index_<kind>.faiss` and a JSON file of the same name; returns the index's path.

        The JSON file, which names the digest of the other, is replaced last.
        """
        path = Path(folder) / f"item_index_{self.made['kind']}.faiss"
        with tempfile.TemporaryDirectory(dir=folder, prefix=".item_index.") as staging:
            fresh = Path(staging) / path.name
            faiss.write_index(self.index, str(fresh))
            described = fresh.with_suffix(".json")
            described.write_text(
                json.dumps(self.made | {"file_sha256": file_sha256(fresh)}, indent=2)
            )
            os.replace(fresh, path)
            os.replace(described, path.with_suffix(".json"))
        return path

    @classmethod
    def load(
        cls, folder: str | os.PathLike, model: ImplicitRecForScoring, kind: str = "hnsw"
    ) -> "AnnIndex":
        """Read what [`~AnnIndex.save`] wrote.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: where the file was changed or the index belongs to another model's items.
        """
        path = Path(folder) / f"item_index_{kind}.faiss"
        made = json.loads(path.with_suffix(".json").read_text())
        if made.pop("file_sha256") != file_sha256(path):
            raise ValueError(f"{path.name} is not the file that {path.stem}.json describes")
        if made["table_sha256"] != table_fingerprint(model) or "asked" not in made:
            raise ValueError(
                f"{path.name} was built from other item embeddings than the model has, or by an earlier "
                "version; build it anew"
            )
        return cls(faiss.read_index(str(path)), made)


def with_bias(table: Tensor, bias: Tensor) -> np.ndarray:
    """Items as `[items, d]` float32: embedding, bias, and zeros up to a multiple of the sub-vector."""
    size = table.shape[1]
    padded = (size + SUBVECTOR) // SUBVECTOR * SUBVECTOR
    vectors = np.zeros((len(table) - 1, padded), dtype=np.float32)
    vectors[:, :size] = table[1:].cpu().numpy()
    vectors[:, size] = bias[1:].cpu().numpy()
    return vectors


def _hnsw(vectors: np.ndarray) -> Any:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 128
    return index


def _ivfpq(vectors: np.ndarray, seed: int) -> Any:
    items, size = vectors.shape
    lists = max(1, int(min(4 * items**0.5, items / SAMPLES_PER_LIST)))
    bits = 8 if items >= 10_000 else 4
    inner = faiss.METRIC_INNER_PRODUCT
    coarse = faiss.IndexFlatIP(size)
    index = faiss.IndexIVFPQ(coarse, size, lists, size // SUBVECTOR, bits, inner)
    index.own_fields = True
    coarse.this.disown()
    index.cp.seed = index.pq.cp.seed = seed + 1
    index.cp.min_points_per_centroid = 1
    chosen = np.random.default_rng(seed).permutation(items)[: max(lists * SAMPLES_PER_LIST, 50_000)]
    index.train(vectors[chosen])
    return index
