"""The item vocabulary: outside ids to tokens and back, by search in memory-mapped arrays."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .names_implicitrec import CodedNames

FILE_NAME = "item_vocabulary.safetensors"
BLOCK = 1_000_000  # strings looked up at a time, to bound memory


def _hashes(texts: Sequence[bytes]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8")


def _flat(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes end to end, and the offsets of each text."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.frombuffer(b"".join(texts), dtype=np.uint8), offsets


def read_ids(ids: Any) -> np.ndarray | list[str]:
    """Item ids as an int64 array, or as a list of strings.

    Raises:
        ValueError: for another type of id, both types at once, or something that is no flat list.
    """
    values = list(ids) if isinstance(ids, list | tuple | Iterator) else np.asarray(ids)
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"expected a flat list of item ids, got {ids!r}")
        if values.dtype.kind == "i":
            return values.astype(np.int64, copy=False)
        values = values.tolist()
    kinds = set(map(type, values))
    if all(issubclass(kind, str) for kind in kinds):
        return values
    if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError as error:
            raise ValueError("integer item ids must fit in 64 bits") from error
    allowed = str if isinstance(values[0], str) else (int, np.integer)
    odd = next(v for v in values if isinstance(v, bool) or not isinstance(v, allowed))
    raise ValueError(f"item ids must be all integers or all strings, got {odd!r} among them")


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
        self._fingerprint: str | None = None

    def __deepcopy__(self, memo: dict) -> "ItemVocabulary":
        return self  # never changed after it is made, and large

    @classmethod
    def from_counts(cls, ids: np.ndarray | list[str], counts: np.ndarray) -> "ItemVocabulary":
        """A vocabulary of distinct `ids`, all integers or all strings, in token order."""
        keys: np.ndarray
        arrays: dict[str, np.ndarray] = {"counts": np.asarray(counts, dtype=np.int64)}
        if isinstance(ids, list):
            encoded = [text.encode() for text in ids]
            keys = _hashes(encoded)
            arrays["bytes"], arrays["offsets"] = _flat(encoded)
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
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name in ("bytes", "offsets") if self.of_strings else ("ids",):
                digest.update(np.ascontiguousarray(self.arrays[name]).data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def encode(self, ids: Iterable) -> np.ndarray:
        """Tokens `int64`, -1 for an unknown id.

        Raises:
            ValueError: for strings where the vocabulary holds integers, or the other way round.
        """
        values = read_ids(ids)
        if not len(values):
            return np.empty(0, dtype=np.int64)
        if isinstance(values, list) != self.of_strings:
            expected = "strings" if self.of_strings else "integers"
            got = values[0] if isinstance(values, list) else int(values[0])
            raise ValueError(f"item ids of this processor are {expected}, got {got!r}")
        if isinstance(values, list):
            blocks = (values[i : i + BLOCK] for i in range(0, len(values), BLOCK))
            return np.concatenate([self._find([v.encode() for v in block]) for block in blocks])
        keys = self.arrays["sorted"]
        place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
        return np.where(keys[place] == values, self.arrays["order"][place] + 1, -1)

    def _find(self, texts: list[bytes]) -> np.ndarray:
        """Tokens of strings: every place of a run of equal hashes is tried."""
        keys, wanted = self.arrays["sorted"], _hashes(texts)
        data, offsets = _flat(texts)
        place = np.searchsorted(keys, wanted)
        tokens = np.full(len(texts), -1, dtype=np.int64)
        open_ = np.arange(len(texts))
        while len(open_):
            at = place[open_].clip(max=len(keys) - 1)
            open_ = open_[(place[open_] < len(keys)) & (keys[at] == wanted[open_])]
            index = self.arrays["order"][place[open_]]
            same = self._same_text(index, data, offsets[open_], offsets[open_ + 1])
            tokens[open_[same]] = index[same] + 1
            open_ = open_[~same]
            place[open_] += 1
        return tokens

    def _same_text(
        self, index: np.ndarray, data: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """Whether item `index[i]` has the bytes `data[starts[i]:ends[i]]`."""
        own, lengths = self.arrays["offsets"][index], ends - starts
        same = self.arrays["offsets"][index + 1] - own == lengths
        size = lengths[same]
        step = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        left = self.arrays["bytes"][np.repeat(own[same], size) + step]
        differs = left != data[np.repeat(starts[same], size) + step]
        wrong = np.repeat(np.flatnonzero(same), size)[differs]
        same[wrong] = False
        return same

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

    def extended(self, new: "ItemVocabulary", min_count: int) -> "ItemVocabulary":
        """The counts of `new`, whose unknown items come after all those here; tokens here stay."""
        ids = new.decode(range(1, len(new) + 1))
        tokens = self.encode(ids)
        counts = np.zeros_like(self.counts)
        counts[tokens[tokens > 0] - 1] = new.counts[tokens > 0]
        added = np.flatnonzero((tokens < 0) & (new.counts >= min_count))
        own = self.decode(range(1, len(self) + 1))
        every = [*own, *(ids[place] for place in added)]
        total = np.concatenate([counts, new.counts[added]])
        return self.from_counts(every if self.of_strings else np.array(every, np.int64), total)

    def with_items(self, ids: Iterable) -> "ItemVocabulary":
        """The same with new items after the last, which no event has had.

        Raises:
            ValueError: for an id that is known or given twice, or of another type.
        """
        added = list(read_ids(ids))
        known = self.encode(added) > 0
        if known.any() or len(set(added)) < len(added):
            twice = [one for one, is_known in zip(added, known) if is_known or added.count(one) > 1]
            raise ValueError(f"new items must be unknown and distinct, got {twice[:3]}")
        every = [*self.decode(range(1, len(self) + 1)), *added]
        counts = np.concatenate([self.counts, np.zeros(len(added), np.int64)])
        return self.from_counts(every if self.of_strings else np.array(every, np.int64), counts)

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
            # As torch tensors they stay mapped; as numpy arrays the reader would copy them.
            with safe_open(path, framework="pt") as file:
                arrays = {n: file.get_tensor(n).numpy() for n in file.keys()}  # noqa: SIM118
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
    right = all(
        part.ndim == 1 and part.dtype == _dtype(name, "bytes" in arrays)
        for name, part in arrays.items()
    )
    right = right and _sizes_fit(arrays) and _order_fits(arrays)
    if not right:
        raise ValueError(f"the parts of the item vocabulary in {path} do not fit together")


def _dtype(name: str, of_strings: bool) -> type:
    hashes = name == "sorted" and of_strings
    return np.uint8 if name == "bytes" else np.uint64 if hashes else np.int64


def _sizes_fit(arrays: dict[str, np.ndarray]) -> bool:
    size = len(arrays["counts"])
    fits = all(len(arrays[name]) == size for name in set(arrays) & {"order", "sorted", "ids"})
    if fits and "offsets" in arrays:
        offsets = arrays["offsets"]
        fits = len(offsets) == size + 1 and offsets[0] == 0 and offsets[-1] == len(arrays["bytes"])
        fits = fits and bool((offsets[:-1] <= offsets[1:]).all())
    return size > 0 and fits and bool(arrays["counts"].min() >= 0)


def _order_fits(arrays: dict[str, np.ndarray]) -> bool:
    """Whether `order` names every place once and leads to `sorted`."""
    order, keys = arrays["order"], arrays["sorted"]
    if order.min() < 0 or order.max() >= len(order) or not (keys[:-1] <= keys[1:]).all():
        return False
    seen = np.zeros(len(order), dtype=bool)
    seen[order] = True
    return bool(seen.all()) and ("ids" not in arrays or bool((arrays["ids"][order] == keys).all()))


def _add_counts(parts: list) -> tuple[np.ndarray, np.ndarray]:
    """Distinct numbers and their counts, of several such pairs."""
    numbers, place = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    sizes = np.concatenate([part[1] for part in parts])
    total = np.zeros(len(numbers), dtype=np.int64)
    np.add.at(total, place, sizes)
    return numbers, total


def count_items(batches: Iterable, min_count: int) -> ItemVocabulary:
    """The vocabulary of flat id columns: by falling count, ties by id."""
    texts: Counter = Counter()
    parts: list = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))]
    for batch in batches:
        counts = None
        if isinstance(batch, CodedNames):
            batch, counts = batch.occurring()
        ids = read_ids(batch)
        if isinstance(ids, list):
            texts.update(ids if counts is None else dict(zip(ids, counts.tolist())))
        else:
            parts.append(np.unique(ids, return_counts=True) if counts is None else (ids, counts))
        if sum(len(part[0]) for part in parts[1:]) > max(BLOCK, len(parts[0][0])):
            parts = [_add_counts(parts)]
    numbers, sizes = _add_counts(parts)
    if texts and len(numbers):
        raise ValueError("item ids must be all integers or all strings, got both")
    names = sorted(texts)
    if names:
        sizes = np.fromiter((texts[name] for name in names), np.int64, len(names))
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] >= min_count]
    if not len(order):
        raise ValueError("no item to learn: the training events are empty or below min_item_count")
    kept = [names[place] for place in order] if names else numbers[order]
    return ItemVocabulary.from_counts(kept, sizes[order])
