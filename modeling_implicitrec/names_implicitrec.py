"""A column of names as places in a short list of them."""

from typing import Any

import numpy as np


class CodedNames:
    """A column of names as places in a short list of them, compared without touching a string.

    Args:
        codes: the place of each name, -1 for a missing one.
        names: the list, `[names]`; ids of items may be numbers.
    """

    def __init__(self, codes: np.ndarray, names: np.ndarray) -> None:
        self.codes = codes
        self.names = names

    def __len__(self) -> int:
        return len(self.codes)

    def __eq__(self, name: Any) -> np.ndarray:  # type: ignore[override]
        place = np.flatnonzero(self.names == name)
        return self.codes == (place[0] if len(place) else -2)

    def __getitem__(self, kept: np.ndarray) -> "CodedNames":
        return CodedNames(self.codes[kept], self.names)

    def occurring(self) -> tuple[np.ndarray, np.ndarray]:
        """The names that occur, and how often."""
        total = np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))
        return self.names[total > 0], total[total > 0]

    def counted(self) -> dict:
        """The same as a mapping."""
        return dict(zip(*(part.tolist() for part in self.occurring())))
