"""The item vocabulary: outside ids to tokens and back, by binary search over memory-mapped arrays."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FILE_NAME = "item_vocabulary.safetensors"


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class ItemVocabulary:
    """Item ids in token order: token t, from 1 on, is the id at place t - 1.

    No Python dictionary of the items exists: integers are found in a sorted copy, strings by a sorted
    64-bit hash and a comparison of the bytes.

    Args:
        arrays: `counts` and `order`, with `ids` and `sorted` for integers, or `bytes`, `offsets`
            and `sorted` (hashes) for strings.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.counts = arrays["counts"]
        self.of_strings = "bytes" in arrays

    @classmethod
    def from_counts(cls, ids: Sequence, counts: np.ndarray) -> "ItemVocabulary":
        """A vocabulary of distinct `ids`, all integers or all strings, in token order."""
        keys: np.ndarray
        arrays: dict[str, np.ndarray] = {"counts": np.asarray(counts, dtype=np.int64)}
        if len(ids) and isinstance(ids[0], str):
            encoded = [text.encode() for text in ids]
            keys = np.fromiter((_hash(text) for text in encoded), np.uint64, len(encoded))
            lengths = np.fromiter((len(text) for text in encoded), np.int64, len(encoded))
            arrays["bytes"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
            arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        else:
            keys = arrays["ids"] = np.asarray(ids, dtype=np.int64)
        arrays["order"] = np.argsort(keys, kind="stable").astype(np.int64)
        arrays["sorted"] = keys[arrays["order"]]
        return cls(arrays)

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids in token order."""
        names = ("bytes", "offsets") if self.of_strings else ("ids",)
        digest = hashlib.sha256()
        for name in names:
            digest.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()

    def encode(self, ids: Iterable) -> np.ndarray:
        """Tokens `int64`, -1 for an unknown id.

        Raises:
            ValueError: for strings where the vocabulary holds integers, or the other way round.
        """
        values = list(ids.tolist() if isinstance(ids, np.ndarray) else ids)
        kind = str if self.of_strings else (int, np.integer)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, kind):
                expected = "strings" if self.of_strings else "integers"
                raise ValueError(f"item ids of this processor are {expected}, got {value!r}")
        if self.of_strings:
            return np.fromiter(
                (self._find(text.encode()) for text in values), np.int64, len(values)
            )
        wanted = np.asarray(values, dtype=np.int64)
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        keys = self.arrays["sorted"]
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[place] == wanted, self.arrays["order"][place] + 1, -1)

    def _find(self, text: bytes) -> int:
        keys, key = self.arrays["sorted"], np.uint64(_hash(text))
        place = int(np.searchsorted(keys, key))
        while place < len(keys) and keys[place] == key:
            index = int(self.arrays["order"][place])
            if self._text(index) == text:
                return index + 1
            place += 1
        return -1

    def _text(self, index: int) -> bytes:
        start, end = self.arrays["offsets"][index : index + 2]
        return self.arrays["bytes"][start:end].tobytes()

    def decode(self, tokens: Iterable[int]) -> list:
        """Outside ids of tokens.

        Raises:
            ValueError: for token 0 or one past the last item.
        """
        values = [int(token) for token in tokens]
        for token in values:
            if not 1 <= token <= len(self):
                raise ValueError(f"item tokens are 1 to {len(self)}, got {token}")
        if self.of_strings:
            return [self._text(token - 1).decode() for token in values]
        return [int(self.arrays["ids"][token - 1]) for token in values]

    def save(self, folder: str | os.PathLike) -> str:
        """Write the file under a temporary name, then rename it. Returns its path."""
        path = Path(folder) / FILE_NAME
        partial = path.with_suffix(".partial")
        save_file({k: np.ascontiguousarray(v) for k, v in self.arrays.items()}, partial)
        os.replace(partial, path)
        return str(path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ItemVocabulary":
        """Read a saved vocabulary.

        Raises:
            ValueError: where the file is truncated or its parts do not fit together.
        """
        try:
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete item vocabulary: {error}") from error
        _check(arrays, path)
        return cls(arrays)


def _check(arrays: dict[str, np.ndarray], path: str | os.PathLike) -> None:
    known = (
        {"counts", "order", "sorted", "ids"},
        {"counts", "order", "sorted", "bytes", "offsets"},
    )
    if set(arrays) not in known:
        raise ValueError(
            f"{path} holds {sorted(arrays)}, expected {sorted(known[0])} or {sorted(known[1])}"
        )
    size = len(arrays["counts"])
    right = all(len(arrays[name]) == size for name in set(arrays) & {"order", "sorted", "ids"})
    if right and size:
        right = arrays["order"].min() >= 0 and arrays["order"].max() < size
    if right and "offsets" in arrays:
        offsets = arrays["offsets"]
        right = len(offsets) == size + 1 and offsets[0] == 0 and offsets[-1] == len(arrays["bytes"])
        right = right and bool((np.diff(offsets) >= 0).all())
    if not right:
        raise ValueError(f"the parts of the item vocabulary in {path} do not fit together")


def count_items(batches: Iterable, min_count: int) -> ItemVocabulary:
    """The vocabulary of flat id columns: by falling count, ties by id."""
    total: Counter = Counter()
    for ids in batches:
        total.update(ids.tolist() if isinstance(ids, np.ndarray) else list(ids))
    kinds = {str if isinstance(item, str) else int for item in total}
    if len(kinds) > 1:
        raise ValueError("item ids must be all integers or all strings, got both")
    kept = [(item, count) for item, count in total.items() if count >= min_count]
    if not kept:
        raise ValueError("no item to learn: the training events are empty or below min_item_count")
    kept.sort(key=lambda pair: (-pair[1], pair[0]))
    return ItemVocabulary.from_counts(
        [item for item, _ in kept], np.array([count for _, count in kept])
    )
