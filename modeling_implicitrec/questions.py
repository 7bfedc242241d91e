"""Questions about users, and what the log answers: does it happen in the days after a moment?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import logit
from torch.utils import data

from .collation import DataCollatorForNextItem
from .event_columns import SECONDS_PER_DAY as DAY
from .matrices import INPUTS
from .metrics import auc, average_precision, calibration_error, log_loss
from .rows import Row, SequenceRows
from .weights_implicitrec import LATEST

ACTIVITY_DAYS = (7, 28, 91)


@dataclass(frozen=True)
class Question:
    """Does a user do something within so many days?

    Args:
        days: after the moment of asking.
        items: tokens of the items that count; all by default.
        event_type_ids: of the event types that count; all by default.
        absent: the answer is 1 where it does *not* happen: churn.
        active_days: ask only those who did anything in so many days before the moment; 0: all who ever
            did.

    Raises:
        ValueError: where `days` is not positive or `active_days` is negative.
    """

    days: float
    items: Sequence[int] = ()
    event_type_ids: Sequence[int] = ()
    absent: bool = False
    active_days: float = 0.0

    def __post_init__(self) -> None:
        if self.days <= 0 or self.active_days < 0:
            raise ValueError(
                f"days must be positive and active_days not negative, got {self.days}, "
                f"{self.active_days}"
            )

    def happened(self, row: Row) -> np.ndarray:
        """Which events of a row are what is asked for, `[length]`."""
        found = np.ones(len(np.asarray(row["input_ids"])), dtype=bool)
        if len(self.items):
            found &= np.isin(row["input_ids"], self.items)
        if len(self.event_type_ids):
            if "event_type_ids" not in row:
                raise ValueError("event_type_ids need events with types, the rows have none")
            found &= np.isin(row["event_type_ids"], self.event_type_ids)
        return found


def activity_features(times: np.ndarray, moment: float) -> np.ndarray:
    """Recency, frequency and tenure at a moment, float32 `[10]`.

    Logarithms `log(1 + n)` of the events and of the distinct moments of the last 7, 28 and 91 days and
    ever, of the days since the last event, and of those since the first one.

    Args:
        times: rising seconds of the events before the moment, at least one.
        moment: seconds.

    >>> np.expm1(activity_features(np.array([0, 0, 86_400 * 10]), 86_400 * 12)).round().tolist()
    [1.0, 1.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0, 2.0, 12.0]
    """
    sizes = []
    for days in (*ACTIVITY_DAYS, np.inf):
        inside = times[np.searchsorted(times, moment - days * DAY) :]
        sizes += [len(inside), len(np.unique(inside))]
    ages = [(moment - times[-1]) / DAY, (moment - times[0]) / DAY]
    return np.log1p([*sizes, *ages]).astype(np.float32)


@dataclass(frozen=True)
class AskedRows(data.Dataset):
    """Histories up to the moments of asking, with what is known then and what came after.

    Args:
        rows: of users.
        places: `[asked]` the row of each.
        stops: `[asked]` events that its history has.
        labels: `[asked]` answers.
        features: `[asked, features]` at that moment, see [`activity_features`]; of a question to the log,
            the log-odds of the rate too.
        rates: `[asked]` in how many of the user's earlier windows of as many days the answer was 1,
            drawn to one half by one window each way.
    """

    rows: SequenceRows
    places: np.ndarray
    stops: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    rates: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, stop = self.rows[int(self.places[index])], self.stops[index]
        history = {name: np.asarray(row[name])[:stop] for name in INPUTS if name in row}
        own = {"user_features": self.features[index], "labels": self.labels[index]}
        return history | own | {"length": int(stop)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def select(self, chosen: np.ndarray) -> "AskedRows":
        """Some of them, by place or as a mask."""
        names = ("places", "stops", "labels", "features", "rates")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})


def ask(rows: SequenceRows, question: Question, moments: Sequence[float]) -> AskedRows:
    """Ask a question about every user who has a history, at every moment.

    An event at the moment itself belongs to the answer. The days after each moment must lie in the log.

    Args:
        rows: encoded, with `timestamps` in seconds.
        moments: seconds.

    Raises:
        ValueError: where the rows have no times, or nobody is to be asked.

    >>> from datasets import Dataset
    >>> log = {"input_ids": [[3, 5, 5]], "timestamps": [[0, 86_400 * 3, 86_400 * 9]]}
    >>> rows = SequenceRows(Dataset.from_dict(log))
    >>> ask(rows, Question(days=7, items=[3]), [86_400.0]).labels.tolist()
    [0]
    >>> ask(rows, Question(days=7), [86_400.0, 86_400 * 7.0]).labels.tolist()
    [1, 1]
    """
    found = []
    for place, row in enumerate(rows):
        if "timestamps" not in row:
            raise ValueError("questions need rows with timestamps, these have none")
        times = np.asarray(row["timestamps"])
        happened = times[question.happened(row)]
        for moment in moments:
            stop = int(np.searchsorted(times, moment))
            if stop and (
                not question.active_days or times[stop - 1] >= moment - question.active_days * DAY
            ):
                answers = _answers(question, happened, times[0], moment)
                told = activity_features(times[:stop], moment)
                told = np.append(told, np.float32(logit(answers[1])))
                found.append((place, stop, *answers, told))
    if not found:
        raise ValueError(f"nobody has a history at the moments {list(moments)}")
    places, stops, labels, rates, features = zip(*found)
    return AskedRows(
        rows,
        np.array(places),
        np.array(stops),
        np.array(labels, dtype=np.int64),
        np.stack(features),
        np.array(rates),
    )


def _answers(
    question: Question, happened: np.ndarray, first: float, moment: float
) -> tuple[int, float]:
    """The answer at a moment, and the rate of 1 in the windows of the user's time before it."""
    window = question.days * DAY
    number = int((moment - first) // window)
    edges = moment + window * np.arange(-number, 2)
    did = np.diff(np.searchsorted(happened, edges)) > 0
    answers = did != question.absent
    return int(answers[-1]), float((answers[:-1].sum() + 1) / (number + 2))


def question_moments(
    start: float, end: float, days: float, *, number: int
) -> tuple[list[float], float, float]:
    """When to ask, for training, validation and test, so that no window of answers overlaps another.

    The window of the test ends at `end`; that of validation where the test's begins; those of training,
    up to `number`, before it.

    >>> question_moments(0, 100 * DAY, 28, number=5)
    ([1382400.0], 3801600.0, 6220800.0)
    """
    window = days * DAY
    test, validation = float(end - window), float(end - 2 * window)
    training = [validation - window * back for back in range(1, number + 1)]
    training = [moment for moment in training if moment > start]
    if not training:
        raise ValueError(
            f"a log of {(end - start) / DAY:.0f} days is too short for three windows of {days} days"
        )
    return training, validation, test


def ask_table(
    rows: SequenceRows, table: pd.DataFrame, *, seed: int = 0
) -> tuple[dict[str, AskedRows], int]:
    """The labels of a table with the histories of its users, as `train`, `validation` and `test`.

    With a `timestamp` (seconds, or a date) a history ends before it, and the labels are split by time, 70,
    15 and 15 of a hundred. Without, the whole history is read, and users are split at random: then it is
    the table's owner who knows that the labels came after the history.

    Args:
        rows: encoded, with `user_id` and `timestamps` in seconds.
        table: `user_id`, `label` and maybe `timestamp`; several labels a user where there are times.
        seed: of the random split.

    Returns:
        The parts, and how many labels are of users without a history then.

    Raises:
        ValueError: where fewer than three labels have a history, a label is missing, a moment is none, or,
            without moments, a user has two labels.
    """
    places = {str(row["user_id"]): place for place, row in enumerate(rows)}
    timed = "timestamp" in table
    moments = _seconds(table["timestamp"]) if timed else np.full(len(table), np.inf)
    _check_labels(rows, table, timed)
    kept = []
    for number, (user, moment) in enumerate(zip(table["user_id"].astype(str), moments)):
        times = np.asarray(rows[places[user]]["timestamps"]) if user in places else np.empty(0)
        stop = int(np.searchsorted(times, moment))
        if stop:
            asked = moment if timed else float(times[-1])
            kept.append((number, places[user], stop, activity_features(times[:stop], asked)))
    if len(kept) < 3:
        raise ValueError(
            f"expected at least three labels of users with a history, got {len(kept)} of {len(table)}; "
            f"users are such as {next(iter(places), None)!r}, those of the labels such as "
            f"{next(iter(table['user_id'].astype(str)), None)!r}"
        )
    numbers, found, stops, features = (np.stack(column) for column in zip(*kept))
    labels = table["label"].to_numpy()[numbers]
    whole = AskedRows(rows, found, stops, labels, features, np.full(len(kept), np.nan))
    order = np.random.default_rng(seed).permutation(len(kept))
    if timed:
        order = np.argsort(moments[numbers], kind="stable")
    first, second = max(1, int(0.7 * len(kept))), max(2, int(0.85 * len(kept)))
    parts = np.split(order, [first, second])
    return dict(zip(("train", "validation", "test"), map(whole.select, parts))), len(table) - len(
        kept
    )


def _check_labels(rows: SequenceRows, table: pd.DataFrame, timed: bool) -> None:
    if len(rows) and "timestamps" not in rows[0]:
        raise ValueError("questions need rows with timestamps, these have none")
    if missing := int(table["label"].isna().sum()):
        raise ValueError(f"every row needs a label, {missing} of {len(table)} have none")
    twice = table["user_id"][table["user_id"].duplicated()]
    if len(twice) and not timed:  # the same history would be learnt from and asked for
        raise ValueError(
            f"without a timestamp a user has one label, got {len(twice)} more, the first of {twice.iloc[0]}"
        )


def _seconds(times: pd.Series) -> np.ndarray:
    """Seconds since 1970 UTC of numbers or dates."""
    if pd.api.types.is_numeric_dtype(times):
        seconds = times.to_numpy(np.float64, na_value=np.nan)
        wrong = ~(np.isfinite(seconds) & (seconds <= LATEST))
    else:
        dates = pd.to_datetime(times, utc=True, errors="coerce")
        wrong = dates.isna().to_numpy()
        seconds = dates.astype("datetime64[s, UTC]").astype("int64").to_numpy(np.float64)
    if wrong.any():
        raise ValueError(
            "timestamp of a label must be seconds since 1970 or a date such as 2024-05-01, got "
            f"{times[wrong].iloc[0]}"
        )
    return seconds


class DataCollatorForQuestions:
    """Batch histories with `labels` and `user_features`.

    Args:
        max_length: latest events of a history that are read.
        collapse_repeats: see [`DataCollatorForNextItem`].
        with_features: give the `user_features` as well.
    """

    def __init__(
        self, max_length: int, *, collapse_repeats: bool = False, with_features: bool = True
    ) -> None:
        self.collator = DataCollatorForNextItem(max_length, collapse_repeats=collapse_repeats)
        self.with_features = with_features

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collator.histories(rows)
        if self.with_features:
            features = np.stack([row["user_features"] for row in rows])
            batch["user_features"] = torch.as_tensor(features, dtype=torch.float)
        labels = torch.as_tensor(np.stack([row["labels"] for row in rows]))
        batch["labels"] = labels.float() if labels.is_floating_point() else labels
        return batch


def answer_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUC, average precision, log-loss and calibration error of answers of 0 and 1, and their share of 1.

    >>> answer_metrics(np.array([0, 1]), np.array([0.2, 0.8]))["auc"]
    1.0
    """
    labels, found = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    return {
        "auc": auc(found[labels == 1], found[labels == 0]),
        "average_precision": average_precision(labels, found),
        "log_loss": log_loss(labels, found),
        "calibration_error": calibration_error(labels, found),
        "share": float(labels.mean()),
    }
