"""What a server reads of a growing store: `python scripts/benchmark_store.py --events "[10000, 1000000]"`.

A store of SQLite is filled with events, some of them late, and asked as a server with a trend asks it: once
at its start for everybody's last events, and before every batch of requests for those that are new. Both,
and the storing of an event, are measured with the index of times and without, as a store of an older
version is, which gets the index when it is opened. Results go to `docs/results/serving_store.json` and
`.md`.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median

from result_pages import table, what_is_measured, write_page
from sqlalchemy import text

from modeling_implicitrec import parse_arguments
from modeling_implicitrec.history_store import EVENTS, HistoryStore

FILL = """
INSERT INTO events (user_id, item_id, timestamp, event_id, event_type)
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :events)
SELECT 'user ' || (n * 7919 % :users), 'item ' || (n * 104729 % 10000), 1700000000 + n - n % 50, n, 'view'
FROM numbers
"""
WIDE = {"since": 0, "until": 2**40, "without": ["skip"]}
STEPS = ("at the start", "before a batch", "an event stored")


@dataclass
class StoreArguments:
    """How much is stored and asked."""

    events: list[int] = field(metadata={"help": "that are stored, one store each"})
    held: int = field(default=65_536, metadata={"help": "num_trend_events of the model"})
    repeats: int = field(
        default=100, metadata={"help": "of a short step; of the start a twentieth"}
    )
    output: str = field(
        default="docs/results/serving_store", metadata={"help": "JSON and page, without their ends"}
    )


def milliseconds(action: Callable, repeats: int) -> float:
    """The median of the processor's time, after one call that is not counted."""
    action()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        taken.append(1000 * (time.process_time() - start))
    return median(taken)


def measure(store: HistoryStore, args: StoreArguments) -> dict[str, float]:
    """Milliseconds of each step."""
    numbers = count()

    def add() -> None:
        one = {"user_id": "ann", "item_id": "tea", "timestamp": 1_800_000_000 + next(numbers)}
        store.add([one])

    def new() -> None:
        assert len(store.everybodys(after=last - 1, limit=args.held, **WIDE)[1]) == 1

    def start() -> None:
        store.everybodys(after=0, limit=args.held, **WIDE)

    stored = milliseconds(add, args.repeats)
    last, _ = store.everybodys(after=0, limit=1, **WIDE)
    steps = (
        milliseconds(start, max(1, args.repeats // 20)),
        milliseconds(new, args.repeats),
        stored,
    )
    store.forget("ann")
    return dict(zip(STEPS, steps))


def run(events: int, args: StoreArguments, folder: Path) -> dict:
    """One store, without the index of times and then with it."""
    url = f"sqlite:///{folder}/{events}.db"
    store = HistoryStore(url)
    with store.engine.begin() as connection:
        for index in EVENTS.indexes:
            index.drop(connection)
        connection.execute(text(FILL), {"events": events, "users": max(1, events // 50)})
        for index in EVENTS.indexes:
            if index.name != "events_by_time":
                index.create(connection)
    found: dict = {"events": events, "without": measure(store, args)}
    store.close()
    size = Path(folder, f"{events}.db").stat().st_size
    began = time.process_time()
    store = HistoryStore(url)
    found["upgrade seconds"] = time.process_time() - began
    found["with"] = measure(store, args)
    store.close()
    found["bytes an event"] = (Path(folder, f"{events}.db").stat().st_size - size) / events
    return found


def page(report: dict) -> list[str]:
    header = ["stored events", *(f"{step}, {how}" for step in STEPS for how in ("without", "with"))]
    rows = [
        [f"{run['events']:,}"]
        + [f"{run[how][step]:.2f}" for step in STEPS for how in ("without", "with")]
        + [f"{run['upgrade seconds']:.2f}", f"{run['bytes an event']:.0f}"]
        for run in report["runs"]
    ]
    return [
        "# A growing store",
        "",
        what_is_measured(__doc__, before=" Results go to"),
        "",
        f"`{report['command']}`; milliseconds of the processor, median; the start reads "
        f"{report['held']:,} events at most. The index is made in so many seconds when the store is "
        "opened, and takes so many bytes an event.",
        "",
        *table([*header, "index made", "its bytes"], rows),
    ]


def main() -> None:
    (args,) = parse_arguments(StoreArguments)
    command = f'python scripts/benchmark_store.py --events "{args.events}"'
    report = {"command": command, "held": args.held, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        for events in args.events:
            report["runs"].append(run(events, args, Path(folder)))
    write_page(Path(args.output), report, page(report))


if __name__ == "__main__":
    main()
