"""Histories as people write them -> one mapping of list columns per history, and back to one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .weights_implicitrec import COLUMNS

logger = logging.get_logger(__name__)
LISTS = (Sequence, np.ndarray)


def read_histories(histories: Any) -> list[dict[str, Any]]:
    """The histories of a batch, each as list columns; see `ImplicitRecProcessor.__call__`."""
    return [_columns(history, place) for place, history in enumerate(_histories(histories))]


def _histories(histories: Any) -> list:
    """The single histories of a batch."""
    if isinstance(histories, Mapping):
        if "item_ids" not in histories:
            raise ValueError(f"expected a column item_ids, got {sorted(histories)}")
        names = [name for name in COLUMNS.values() if name in histories]
        sizes = {name: len(histories[name]) for name in names}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"expected columns with one list per history, got lengths {sizes}")
        return _histories(
            [dict(zip(names, values)) for values in zip(*(histories[n] for n in names))]
        )
    if isinstance(histories, str) or not isinstance(histories, Sequence) or not len(histories):
        raise ValueError(f"expected a list of one or more histories, got {histories!r}")
    return list(histories)


def _columns(history: Any, place: int) -> dict[str, Any]:
    """One history as list columns."""
    if isinstance(history, Mapping):
        columns = {name: history[name] for name in COLUMNS.values() if name in history}
    elif isinstance(history, str) or not isinstance(history, LISTS):
        raise ValueError(f"history {place}: expected a list of items or events, got {history!r}")
    elif len(history) and isinstance(history[0], Mapping):
        keys = {key for event in history for key in event}
        if unread := sorted(map(str, keys - set(COLUMNS))):
            logger.warning_once(f"of an event only {', '.join(COLUMNS)} are read, not {unread}")
        columns = {
            COLUMNS[name]: [event.get(name) for event in history] for name in keys & set(COLUMNS)
        }
    else:
        columns = {"item_ids": history}
    if "item_ids" not in columns:
        raise ValueError(f"history {place}: expected item_id in every event, got {history!r}")
    columns = {name: values for name, values in columns.items() if values is not None}
    size = len(columns["item_ids"]) if isinstance(columns["item_ids"], LISTS) else 0
    for name, values in columns.items():
        if isinstance(values, str) or not isinstance(values, LISTS) or len(values) != size:
            raise ValueError(
                f"history {place}: expected {name} to be a list as long as item_ids, got {values!r}"
            )
    if all(time is None for time in columns.get("timestamps", [])):
        columns.pop("timestamps", None)
    return columns


def pad_histories(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Columns `[rows, longest]` of at least one place, filled up with 0 on the right."""
    width = max(1, max(len(row["input_ids"]) for row in rows))
    return {
        name: np.stack([np.pad(row[name], (0, width - len(row[name]))) for row in rows])
        for name in rows[0]
    }


def check_offsets(offsets: np.ndarray, size: int) -> None:
    """Raise `ValueError` where row offsets do not cut `size` events."""
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to the number of events, {size}")


def ages_in_rows(times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Seconds from each event to the last one of its row."""
    sizes = np.diff(offsets)
    last = np.maximum.reduceat(times, offsets[:-1][sizes > 0])
    return np.repeat(last, sizes[sizes > 0]) - times
