"""Histories as people write them -> one mapping of list columns per history."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .weights_implicitrec import COLUMNS

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
        names = {key for event in history for key in event} & set(COLUMNS)
        columns = {COLUMNS[name]: [event.get(name) for event in history] for name in names}
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
