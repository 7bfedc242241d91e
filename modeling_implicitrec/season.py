"""What is in season: items of which the last days had more than their share, raised in a trained model."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from .event_columns import SECONDS_PER_DAY
from .head_implicitrec import ItemHead
from .kernels_implicitrec import SCALAR_STEP
from .matrices import flatten_column, positive_events
from .modeling_implicitrec import ImplicitRecForScoring

POWER = 0.75
SMOOTHING = 30.0  # events, from which on it shows that an item is in season
UNSEEN = 0.5  # events of an item that nobody had before the last days


def check_season(model: ImplicitRecForScoring, train: Dataset, *, days: float) -> None:
    """Refuse what [`fit_season`] cannot do, before hours of training.

    Raises:
        ValueError: for rows without times, a model without an item bias or with a trend prior, and days
            that are not positive.
    """
    if model.head.item_bias is None or model.head.trend is not None:
        raise ValueError("a season expects a model with use_item_bias and without num_trend_events")
    if "timestamps" not in train.column_names:
        raise ValueError(f"a season needs a log with times, the rows have {train.column_names}")
    if not days > 0:
        raise ValueError(f"a season expects a positive number of days, got {days:g}")


def fit_season(
    model: ImplicitRecForScoring,
    train: Dataset,
    *,
    days: float,
    power: float = POWER,
    smoothing: float = SMOOTHING,
) -> None:
    """Raise what is in season, once, in a trained model that is to be asked at the end of the log.

    With n_v the events of item v in the last `days`, and m_v as many as its share of all events is of
    them, every intensity of the item is multiplied by `((n_v + smoothing) / (m_v + smoothing)) ^ power`:
    its score rises by the logarithm, whether it comes from popularity, the body, the co-occurrences or the
    person's own history. Numbers that the checkpoint has anyway take it in, so nothing else changes.

    Args:
        model: trained.
        train: encoded rows with times; the days end with their last event.
        days: length of the season.
        power: 0 changes nothing.
        smoothing: events that are added to both counts, so that few do not say much.

    Raises:
        ValueError: see [`check_season`] and [`season_gain`].

    >>> from modeling_implicitrec import ImplicitRecConfig
    >>> model = ImplicitRecForScoring(ImplicitRecConfig(vocab_size=3, hidden_size=16))
    >>> rows = Dataset.from_dict({"input_ids": [[1, 1, 2]], "timestamps": [[0, 9, 86400 * 9]]})
    >>> fit_season(model, rows, days=2, power=1, smoothing=1)
    >>> gains = model.head.item_bias.weight[1:, 0].exp() # 1 / (1 + 2 / 3) and 2 / (1 + 1 / 3)
    >>> torch.allclose(gains, torch.tensor([0.6, 1.5]))
    True
    """
    check_season(model, train, days=days)
    train = positive_events(train, model.config.negative_event_type_ids or ())
    gain = season_gain(train, model.config.vocab_size, days=days, power=power, smoothing=smoothing)
    _raise_items(model.head, torch.as_tensor(gain, device=model.device))


def season_gain(
    train: Dataset,
    vocab_size: int,
    *,
    days: float,
    power: float = POWER,
    smoothing: float = SMOOTHING,
) -> np.ndarray:
    """What [`fit_season`] adds to the scores, float32 `[vocab_size]`; the rows hold no negative events.

    Raises:
        ValueError: for a smoothing that is not positive.
    """
    tokens, times = (flatten_column(train, column)[0] for column in ("input_ids", "timestamps"))
    return _gain(tokens, times, vocab_size, days=days, power=power, smoothing=smoothing)


def _gain(
    tokens: np.ndarray,
    times: np.ndarray,
    vocab_size: int,
    *,
    days: float,
    power: float = POWER,
    smoothing: float = SMOOTHING,
) -> np.ndarray:
    """[`season_gain`] of events, `[events]` both."""
    if not smoothing > 0:
        raise ValueError(f"smoothing must be positive, got {smoothing:g}")
    latest = np.bincount(tokens[times > times.max() - SECONDS_PER_DAY * days], minlength=vocab_size)
    share = np.bincount(tokens, minlength=vocab_size) / len(tokens)
    gain = power * np.log((latest + smoothing) / (share * latest.sum() + smoothing))
    return gain.astype(np.float32)


def season_evidence(
    train: Dataset,
    vocab_size: int,
    *,
    days: float,
    periods: int = 6,
    negative_event_type_ids: Sequence[int] = (),
) -> float:
    """How much better what follows is told by the season than without it: nats an event.

    Of each of the last `periods` of so many days, the items are told by their share of the events before,
    with and without the [`season_gain`] of the days before. The mean over the periods; 0 where nothing is
    before the last. Events of negative types are not counted, as [`fit_season`] does not.
    """
    train = positive_events(train, negative_event_type_ids)
    tokens, times = (flatten_column(train, column)[0] for column in ("input_ids", "timestamps"))
    if not len(times):
        return 0.0
    ends = times.max() - SECONDS_PER_DAY * days * np.arange(periods)
    ends = ends[times.min() <= ends - SECONDS_PER_DAY * days]
    told = [_told(tokens, times, vocab_size, end=end, days=days) for end in ends]
    return float(np.mean(told)) if told else 0.0


def _told(
    tokens: np.ndarray, times: np.ndarray, vocab_size: int, *, end: float, days: float
) -> float:
    """The nats an event of one period, which ends at `end`."""
    before = times <= end - SECONDS_PER_DAY * days
    asked = tokens[~before & (times <= end)]
    if not len(asked):
        return 0.0
    gain = _gain(tokens[before], times[before], vocab_size, days=days)
    counts = np.bincount(tokens[before], minlength=vocab_size) + UNSEEN
    mean_gain = np.log(np.average(np.exp(gain[1:]), weights=counts[1:]))
    return float(gain[asked].mean() - mean_gain)


@torch.no_grad()
def _raise_items(head: ItemHead, gain: Tensor) -> None:
    """Add `[vocab_size]` to all scores, by the numbers of each part."""
    if head.item_bias is not None:
        head.item_bias.weight[:, 0] += gain / (1 + SCALAR_STEP * head.bias_power)
    if head.copy is not None:
        head.copy.item_level.weight[:, 0] += gain
    if (prior := head.cooccurrence) is not None:
        prior.counts *= (gain / (1 + SCALAR_STEP * prior.power))[prior.items.long()].exp()
