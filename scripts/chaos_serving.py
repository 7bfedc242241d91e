"""Kill servers again and again while a log is replayed, and look for what was lost.

`python scripts/chaos_serving.py --model outputs/complete_journey --data_dir data/complete_journey`

Clients send events, every third of them late, until each is acknowledged, and ask for recommendations in
between; of several servers that share the store (`--servers 2`) another one. Afterwards every
acknowledged event must be in the store, once; no list may have held an item that its user had an
acknowledged event of, or one that is out of stock; no answer may have been a 5xx; and everybody's list must
be the same from every server, and from one that was started again.
"""

import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from local_server import LocalServer

from modeling_implicitrec import ImplicitRecProcessor, load_sequences, parse_arguments

PATIENCE = 180  # seconds in which a killed server must answer again
LATE = 600  # seconds that every third event lies in the past
Listed = list[tuple[str, float]]  # items with their scores


@dataclass
class ChaosArguments:
    """What is replayed, and how often the server is killed."""

    model: str = field(metadata={"help": "checkpoint folder"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    kills: int = field(default=20, metadata={"help": "how often the server is killed"})
    seconds: float = field(default=3.0, metadata={"help": "between two kills"})
    clients: int = field(default=4, metadata={"help": "that send at one time"})
    users: int = field(default=200, metadata={"help": "whose histories are replayed"})
    servers: int = field(default=1, metadata={"help": "of one store, killed in turn"})
    output: str | None = field(default=None, metadata={"help": "JSON file; a page goes beside it"})


class Replay:
    """Clients of servers that come and go.

    Args:
        servers: of one store.
        histories: item ids of each user, in order.
        out_of_stock: item ids that no list may hold.
    """

    def __init__(self, servers: list[LocalServer], histories: dict, out_of_stock: set) -> None:
        self.servers, self.out_of_stock = servers, out_of_stock
        self.histories = histories
        self.acknowledged: dict[str, dict[str, str]] = defaultdict(dict)  # user, event id, item
        self.statuses: Counter = Counter()
        self.unanswered = 0
        self.wrong: list[str] = []
        self.stop = threading.Event()

    def run(self, users: list) -> None:
        """One client: event by event, each until it is acknowledged, for as long as the replay lasts."""
        while not self.stop.is_set():
            for user in users:
                place = len(self.acknowledged[user])
                item = self.histories[user][place % len(self.histories[user])]
                event: dict = {"user_id": user, "item_id": item, "event_id": str(place)}
                event["timestamp"] = int(time.time()) - (0 if place % 3 else LATE)
                told, asked = (self.servers[(place + n) % len(self.servers)] for n in (0, 1))
                if self.ask(told, "POST", "/events", {"events": [event]}, 201) is None:
                    return
                self.acknowledged[user][str(place)] = item
                self.check_list(asked, user)
                if self.stop.is_set():
                    return

    def check_list(self, server: LocalServer, user: str) -> None:
        """Ask for a list; note an item that must not be in it."""
        path = f"/recommendations/{user}?k=10&exclude_seen=true"
        answer = self.ask(server, "GET", path, None, 200)
        if answer is None:
            return
        shown = [str(item["item_id"]) for item in answer["items"]]
        barred = set(self.acknowledged[user].values()) | self.out_of_stock
        self.wrong += [f"{user}: {item}" for item in shown if item in barred]

    def lists(self, server: LocalServer, moment: int) -> list[Listed]:
        """Everybody's list, asked at one moment."""
        answers = [
            self.ask(server, "GET", f"/recommendations/{user}?query_time={moment}", None, 200)
            for user in self.histories
        ]
        return [[(i["item_id"], i["score"]) for i in one["items"]] for one in answers if one]

    def ask(
        self, server: LocalServer, method: str, path: str, body: dict | None, expected: int
    ) -> dict | None:
        """The answer, asked for until there is one; None when the replay is over before."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                status, answer = server.request(method, path, body)
            except OSError:
                self.unanswered += 1
                if self.stop.is_set():
                    return None
                time.sleep(0.05)
                continue
            self.statuses[status] += 1
            if status == expected:
                return answer
            if status not in (429, 503):
                self.wrong.append(f"{method} {path}: {status} {answer}")
            time.sleep(0.05)
        raise RuntimeError(f"no answer within {PATIENCE} seconds")


def run_chaos(
    model: str,
    histories: dict,
    folder: Path,
    *,
    kills: int,
    seconds: float,
    clients: int,
    servers: int = 1,
) -> dict:
    """Replay, kill and look; returns what was found, `"problems"` among it."""
    out_of_stock = {items[-1] for items in list(histories.values())[::5]}
    catalogue = folder / "catalogue.parquet"
    column = {"item_id": sorted(out_of_stock), "in_stock": [False] * len(out_of_stock)}
    pq.write_table(pa.table(column), catalogue)
    options = {"model": model, "store": f"sqlite:///{folder}/histories.db"}
    options |= {"catalogue": catalogue, "requests_per_second": 100_000.0}
    with ExitStack() as stack:
        running = [
            stack.enter_context(LocalServer(options, log=folder / f"server_{number}.log"))
            for number in range(servers)
        ]
        replay = Replay(running, histories, out_of_stock)
        users = list(histories)
        parts = [users[start::clients] for start in range(clients)]
        threads = [threading.Thread(target=replay.run, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for number in range(kills):
            time.sleep(seconds)
            killed = running[number % servers]
            killed.kill()
            killed.start()
        time.sleep(seconds)
        replay.stop.set()
        for thread in threads:
            thread.join()
        differing = compare_lists(replay)
    found = findings(replay, folder / "histories.db") | {"lists that differ": differing}
    found["problems"] = found.pop("problems") + differing
    return {"servers": servers} | found | {"kills": kills}


def compare_lists(replay: Replay) -> int:
    """How many lists are not those of the first server: from the others, and from itself, started again."""
    first, moment = replay.servers[0], int(time.time()) + 1
    expected = replay.lists(first, moment)
    others = [replay.lists(server, moment) for server in replay.servers[1:]]
    first.kill()
    first.start()
    others.append(replay.lists(first, moment))
    return sum(not alike(*pair) for other in others for pair in zip(expected, other, strict=True))


def alike(one: Listed, other: Listed) -> bool:
    """Whether two lists hold the same items in order, with the same scores but for rounding."""
    return [item for item, _ in one] == [item for item, _ in other] and all(
        abs(score - again) < 1e-3 for (_, score), (_, again) in zip(one, other)
    )


def findings(replay: Replay, database: Path) -> dict:
    """What is in the store, against what was acknowledged."""
    with sqlite3.connect(database) as store:
        rows = store.execute("SELECT user_id, event_id, item_id FROM events").fetchall()
    there = Counter(rows)
    sent = [
        (user, event, item)
        for user, events in replay.acknowledged.items()
        for event, item in events.items()
    ]
    lost = [event for event in sent if there[event] == 0]
    doubled = [event for event, times in there.items() if times > 1]
    failed = sum(times for status, times in replay.statuses.items() if status >= 500)
    return {
        "acknowledged events": len(sent),
        "lost": len(lost),
        "stored twice": len(doubled),
        "requests cut off": replay.unanswered,
        "answers": {str(status): times for status, times in sorted(replay.statuses.items())},
        "5xx": failed,
        "excluded items shown and other wrong answers": len(replay.wrong),
        "examples": replay.wrong[:5],
        "problems": len(lost) + len(doubled) + failed + len(replay.wrong),
    }


def markdown(found: dict) -> str:
    """What was found as a page of the documentation."""
    lines = ["# A server that is killed", "", f"`{found['command']}`", ""]
    lines += [
        f"`kill -9` {found['kills']} times while clients replayed a log; afterwards the store was"
    ]
    lines += ["compared with what had been acknowledged.", "", "| | |", "|---|---:|"]
    names = [name for name in found if name not in ("command", "kills", "examples", "answers")]
    lines += [f"| {name} | {found[name]:,} |" for name in names]
    lines += [f"| answers with status {s} | {times:,} |" for s, times in found["answers"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = parse_arguments(ChaosArguments)
    processor = ImplicitRecProcessor.from_pretrained(args.model)
    rows = load_sequences(Path(args.data_dir) / "sequences")["test"].select(range(args.users))
    histories = {
        str(row["user_id"]): [str(item) for item in processor.decode_items(row["input_ids"][:200])]
        for row in rows
    }
    with tempfile.TemporaryDirectory() as folder:
        found = run_chaos(
            args.model,
            histories,
            Path(folder),
            kills=args.kills,
            seconds=args.seconds,
            clients=args.clients,
            servers=args.servers,
        )
    found |= {"command": " ".join(["python scripts/chaos_serving.py", *sys.argv[1:]])}
    print(json.dumps(found, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=2) + "\n")
        Path(args.output).with_suffix(".md").write_text(markdown(found))
    if found["problems"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
