"""Training settings that follow from a log's statistics, written as a recipe with its reasons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict

from .ease_trial import EaseSettings, choose_ease
from .matrices import first_events, flatten_column, flatten_tokens, positive_events
from .season import season_evidence

LABELS_A_STEP = 750  # events that a step learns from
STEPS = 4200  # that a model of a small log needs
BATCHES = 4  # of a step: of the shortest histories, ..., of the longest
PRIOR_STEPS = 200  # that the numbers of the co-occurrence prior need
FULL_SOFTMAX_ITEMS = 50_000  # from here on, scores of all items cost more than they teach
EASE_ITEMS = 20_000  # from here on, EASE's matrix does not fit a laptop
TREND_EVENTS = 256  # of everybody's, in which what is taken now can be seen
MAX_TREND_EVENTS = 2**20  # that a checkpoint holds: 12 MiB
TREND_GAIN = 0.2  # share of events that they name and popularity does not, to be worth reading
SEASON = 0.02  # nats an event that the season tells, to be worth raising
TREND_SAMPLE = 2_000_000  # of a log's latest events, that tell its trend
SPARSE = 15  # events an item, below which they are few
LONG = 100  # events from which histories are long
BASKETS = 0.02  # share of people whose last two events are of one moment, from which it counts
REPEATS = 0.02  # share of events from which what comes again is a question of its own
EVALUATION = (
    "eval_strategy: epoch",
    "save_strategy: epoch",
    "save_total_limit: 2",
    "load_best_model_at_end: true",
    "metric_for_best_model: ndcg@10",
    "early_stopping_patience: 5",
)


@dataclass(frozen=True)
class LogStatistics:
    """What the settings are chosen by; of the training part alone.

    Args:
        users: people with at least two events.
        events: of all people.
        items: tokens.
        long_length: events that 95 % of the people do not exceed.
        repeat_share: events whose item the same person had before.
        window_days: length of a temporal test; `None` for leave-last-out.
        ordered: whether times, or an order, say what came after what.
        timed: whether events have times, so that recent ones can be told.
        trend_share: share of the events new to their user whose item somebody had within the last
            `TREND_EVENTS` of everybody.
        season: see [`season_evidence`], for the days of a temporal test.
        ease: see [`choose_ease`].
        basket_share: people whose last two events are of one moment; 0 where nothing has a time.
        popular_share: share of them that go to the most popular items, as many as are among so many events.
    """

    users: int
    events: int
    items: int
    long_length: int
    repeat_share: float
    window_days: float | None = None
    ordered: bool = True
    timed: bool = True
    trend_share: float = 0.0
    popular_share: float = 0.0
    season: float = 0.0
    basket_share: float = 0.0
    ease: EaseSettings | None = EaseSettings()

    @property
    def events_an_item(self) -> float:
        return self.events / max(self.items, 1)

    @property
    def by_ease(self) -> bool:
        """Whether EASE counts for the prior: the test asks for any of many, and order tells little."""
        many = self.window_days is not None or not self.ordered
        return many and self.items <= EASE_ITEMS and self.ease is not None

    @property
    def labels_a_user(self) -> float:
        return min(self.events / max(self.users, 1), self.long_length)


class Choice(NamedTuple):
    """A setting and why it is so; settings of the model are named `model.<key>`."""

    key: str
    value: Any
    reason: str


def log_statistics(
    splits: DatasetDict,
    vocab_size: int,
    *,
    window_days: float | None = None,
    ordered: bool = True,
    negative_event_type_ids: Sequence[int] = (),
) -> LogStatistics:
    """The statistics of encoded sequences; of negative types, such as returns, no season is told.

    Raises:
        ValueError: if no person of the training part has two events.

    >>> from datasets import Dataset
    >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 1], [3], [2, 3]]})
    >>> log = log_statistics(DatasetDict(train=rows), 4)
    >>> log.users, log.events, log.items, log.long_length, round(log.repeat_share, 3)
    (2, 6, 3, 3, 0.167)
    """
    tokens, owners = flatten_tokens(splits["train"], vocab_size)
    lengths = np.bincount(owners, minlength=1)
    lengths = lengths[lengths > 1]
    if not len(lengths):
        raise ValueError("expected people with two events or more in the training part, got none")
    new = first_events(tokens, owners)
    log = LogStatistics(
        users=len(lengths),
        events=len(tokens),
        items=vocab_size - 1,
        long_length=int(np.ceil(np.quantile(lengths, 0.95))),
        repeat_share=float(1 - new.mean()),
        window_days=window_days,
        ordered=ordered,
        basket_share=basket_share(splits["train"]),
        **trend_shares(splits["train"], tokens, new),
    )
    window = window_days if log.timed else None
    if window is None and not log.by_ease:
        return log
    taken = positive_events(splits["train"], negative_event_type_ids)
    if window is not None:
        log = replace(log, season=season_evidence(taken, vocab_size, days=window))
    if log.by_ease:
        log = replace(log, ease=choose_ease(taken, vocab_size, window_days=window))
    return log


def basket_share(train: Dataset) -> float:
    """Share of the people with two events or more whose last two are of one moment."""
    if "timestamps" not in train.column_names:
        return 0.0
    times, lengths = flatten_column(train, "timestamps")
    last = np.cumsum(lengths)[lengths > 1] - 1
    return float((times[last] == times[last - 1]).mean())


def trend_shares(train: Dataset, tokens: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    """`timed`, `trend_share` and `popular_share` of [`LogStatistics`], by the latest events of a long log.

    Args:
        tokens: `[events]` of the rows.
        new: `[events]` which are new to their user.
    """
    if "timestamps" not in train.column_names:
        return {"timed": False}
    times = flatten_column(train, "timestamps")[0]
    if len(times) > TREND_SAMPLE:
        latest = times >= np.partition(times, -TREND_SAMPLE)[-TREND_SAMPLE]
        tokens, times, new = tokens[latest], times[latest], new[latest]
    order = np.argsort(times, kind="stable")
    tokens, times, new = tokens[order], times[order], new[order]
    places = np.lexsort((np.arange(len(tokens)), tokens))  # of one item after the other, in time
    again = tokens[places[1:]] == tokens[places[:-1]]
    later, earlier = places[1:][again], places[:-1][again]
    trending = np.zeros(len(tokens), dtype=bool)
    trending[later] = (later - earlier <= TREND_EVENTS) & (times[later] > times[earlier])
    parts = [tokens[i : i + TREND_EVENTS] for i in range(0, len(tokens), TREND_EVENTS)]
    distinct = int(np.mean([len(np.unique(part)) for part in parts[:-1] or parts]))
    popular = np.isin(tokens, np.argsort(-np.bincount(tokens), kind="stable")[:distinct])
    return {
        "timed": True,
        "trend_share": float(trending[new].mean()),
        "popular_share": float(popular[new].mean()),
    }


def choose_settings(log: LogStatistics) -> list[Choice]:
    """Settings for `finetune.py`, each with its reason.

    >>> log = LogStatistics(22_363, 131_413, 12_068, long_length=15, repeat_share=0.0)
    >>> {c.key: c.value for c in choose_settings(log)}["model.hidden_dropout_prob"]
    0.5
    """
    ease = log.by_ease
    return [*_sizes(log, ease), *_priors(log, ease), *_loss(log), *_schedule(log, ease)]


def _sizes(log: LogStatistics, ease: bool) -> list[Choice]:
    width = 128 if log.events > 5_000_000 else 32 if ease else 64
    density = log.events_an_item
    dropout = 0.5 if density < (50 if ease else SPARSE) else 0.3 if density < 200 else 0.2
    longest = 256 if ease else int(np.clip(-(-log.long_length // 10) * 10, 20, 100))
    return [
        Choice("model.hidden_size", width, f"{log.events:,} events"),
        Choice("model.intermediate_size", 2 * width, "twice the width"),
        Choice("model.hidden_dropout_prob", dropout, f"{density:.3g} events an item"),
        Choice(
            "model.max_position_embeddings",
            longest,
            f"95 % have at most {log.long_length:,} events",
        ),
    ]


def _priors(log: LogStatistics, ease: bool) -> list[Choice]:
    share = f"{log.repeat_share:.1%} of the events repeat an item"
    long, lengths = log.long_length >= LONG, f"95 % have at most {log.long_length:,} events"
    chosen = [
        Choice("model.copy_prior", log.repeat_share >= REPEATS, share),
        Choice("model.exclude_seen", log.repeat_share < 0.001, share),
        Choice("model.num_cooccurrences", min(128 if ease or long else 64, log.items), lengths),
    ]
    if not ease and log.trend_share > log.popular_share + TREND_GAIN:
        now = f"{log.trend_share:.0%} of what is new to people others had just before"
        chosen.append(Choice("model.use_query_time", True, now))
        chosen.append(Choice("model.num_trend_events", min(log.events, MAX_TREND_EVENTS), now))
        chosen.append(Choice("model.trend_context", TREND_EVENTS, now))
    if long and not ease:
        chosen.append(Choice("model.cooccurrence_context", 10, lengths))
    if ease and log.ease:
        best = "ranks best what people took last"
        far = "however long ago" if log.ordered else "no column says what came first"
        chosen += [
            Choice("model.cooccurrence_context", 256, "the whole history is read"),
            Choice("model.cooccurrence_gap_power", 0.0, far),
            Choice("cooccurrence_source", "ease", f"{log.items:,} items"),
            Choice("ease_regularization", log.ease.regularization, best),
            Choice("cooccurrence_folds", 3, "everybody reads what others taught"),
        ]
        if log.ease.recent_days:
            chosen.append(Choice("recent_days", log.ease.recent_days, best))
    if log.window_days is None and log.basket_share > BASKETS:
        told = f"{log.basket_share:.0%} of the last events share their moment with the one before"
        chosen.append(Choice("within_moments", True, told))
    if ease and log.window_days is not None:
        window = f"the test asks for all items of {log.window_days:g} days"
        chosen.append(Choice("model.collapse_repeats", True, window))
        chosen.append(Choice("target_window_days", log.window_days, window))
        if log.season > SEASON:
            told = f"the season tells {log.season:.2g} nats an event"
            chosen.append(Choice("season_days", log.window_days, told))
    return chosen


def _loss(log: LogStatistics) -> list[Choice]:
    items = f"{log.items:,} items"
    if log.items <= FULL_SOFTMAX_ITEMS:
        return [Choice("model.loss_type", "softmax", items)]
    return [
        Choice("model.loss_type", "sampled_softmax", items),
        Choice("model.num_negatives", 1024, "shared by a step"),
        Choice("row_wise_optimizer", True, "a step's cost does not grow with the catalogue"),
    ]


def _schedule(log: LogStatistics, ease: bool) -> list[Choice]:
    rows = LABELS_A_STEP / max(log.labels_a_user, 1)
    batch = 32 if ease else int(np.clip(2 ** int(np.log2(max(rows, 1))), 32, 256))
    parts, labels = 1 if ease else BATCHES, f"about {log.labels_a_user:.3g} labels each"
    steps = -(-log.users // batch)
    epochs = 8 if ease else int(np.clip(round(STEPS / steps), 3, 12))
    warmup = max(1, min(200, steps * epochs // 10))
    sparse = log.events_an_item < SPARSE
    decay = (0.5 if ease else 1.0) if sparse else 0.01
    density = f"{log.events_an_item:.3g} events an item"
    prior = []
    if not ease:  # whose folds do the same, and which ranks worse with it
        first = max(PRIOR_STEPS, steps)
        prior.append(Choice("prior_steps", first, "before histories are known by heart"))
        if sparse:
            prior.append(Choice("prior_dropout", 0.5, density))
    return [
        *prior,
        Choice("calibrate", True, "where held-out answers are ranked better with it"),
        Choice("num_train_epochs", epochs, f"{steps:,} steps an epoch"),
        Choice("per_device_train_batch_size", batch // parts, labels),
        Choice("gradient_accumulation_steps", parts, "short to long histories in a step"),
        Choice("learning_rate", 0.002 if ease else 0.001, "Adam's usual one, for this width"),
        Choice("warmup_steps", warmup, "a tenth of all, at most 200"),
        Choice("weight_decay", decay, density),
    ]


def write_default_recipe(
    folder: str | Path, log: LogStatistics, *, data_dir: str | Path, output_dir: str | Path
) -> list[Choice]:
    """Write `finetune.yaml` and `evaluate.yaml` for a log into a folder, and give what was chosen.

    Args:
        folder: where the two files go.
        log: see [`log_statistics`].
        data_dir: the prepared data, as the files are to name it.
        output_dir: where training is to write the checkpoint.
    """
    chosen = choose_settings(log)
    lines = [
        "# Chosen from what the training part of the log is like; change what you like.",
        f"data_dir: {data_dir}",
        f"output_dir: {output_dir}",
        "model:",
    ]
    own = [choice for choice in chosen if choice.key.startswith("model.")]
    lines += [f"  {_line(choice.key.removeprefix('model.'), choice)}" for choice in own]
    lines += [_line(choice.key, choice) for choice in chosen if choice not in own]
    lines += ["per_device_eval_batch_size: 256", "lr_scheduler_type: cosine"]
    lines += ["train_sampling_strategy: group_by_length", *EVALUATION]
    lines += ["logging_steps: 50", "report_to: none", "seed: 0"]
    Path(folder, "finetune.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    keys = {choice.key for choice in chosen}
    repeats, ease = log.repeat_share >= REPEATS, log.by_ease
    baselines = ["popularity", "recent_popularity"] if log.timed else ["popularity"]
    baselines += ["popularity_now"] if "model.use_query_time" in keys else []
    baselines += ["own_frequency"] if repeats else []
    baselines += ["recent_frequency"] if repeats and log.timed else []
    baselines += ["cooccurrence"]
    if ease and log.ease:
        told = [f"{key}: {value:g}" for key, value in log.ease._asdict().items() if value]
        baselines += [f"{{ease: {{{', '.join(told)}}}}}"]
    asked = [f"model: {output_dir}", f"data_dir: {data_dir}"]
    asked += [f"protocols: [{'all, new' if repeats else 'new'}]"]
    asked += [f"baselines: [{', '.join(baselines)}]"]
    Path(folder, "evaluate.yaml").write_text("\n".join(asked) + "\n", encoding="utf-8")
    return chosen


def _line(key: str, choice: Choice) -> str:
    value = str(choice.value).lower() if isinstance(choice.value, bool) else choice.value
    return f"{key}: {value}  # {choice.reason}"
