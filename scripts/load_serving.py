"""Replay a real log against a server on this machine, its time compressed, and measure the answers:
`python scripts/load_serving.py --model outputs/complete_journey --data_dir data/complete_journey`

Every event of the log's busiest hours is sent at its own moment, so much faster that the replay takes
`seconds`; after each event its user asks for ten recommendations. Latencies are from the moment
that a request was due, so that one which waits for others counts its wait. The log's times are moved to end
now: a model with a trend takes in only what is later than its training. With `--trend_rounds 4` another
server has the same checkpoint without its trend, and the parts of the log go to one and the other by turns,
half of them in time and half as fast as they are answered.
"""

import asyncio
import copy
import json
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from local_server import LocalServer, Usage
from result_pages import table, what_is_measured

from modeling_implicitrec import (
    ImplicitRecForScoring,
    ImplicitRecProcessor,
    load_checkpoint,
    load_sequences,
    parse_arguments,
    save_checkpoint,
)

WARM_UP = 20  # events that are sent, one by one, before the clock starts
TITLES = {
    "event": "event stored",
    "recommendations": "ten recommendations after it",
    "both": "both",
}
# Seconds by name, statuses, seconds in all.
Replayed = tuple[dict[str, list[float]], Counter, float]


@dataclass
class LoadArguments:
    """What is replayed, how fast, and against what."""

    model: str = field(metadata={"help": "checkpoint folder"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    seconds: float = field(default=60.0, metadata={"help": "that the replay takes"})
    events: int = field(default=1500, metadata={"help": "of the log, the latest ones"})
    most_per_second: float = field(default=100.0, metadata={"help": "requests a second, at most"})
    index: str = field(default="exact", metadata={"help": "of the server"})
    trend_rounds: int = field(
        default=0,
        metadata={"help": "turns in which the checkpoint without its trend is measured too"},
    )
    output: str | None = field(default=None, metadata={"help": "JSON file; a page goes beside it"})


def read_log(args: LoadArguments) -> tuple[list[dict], list[tuple[float, dict]]]:
    """Events that the users have at the start, and those to send, each with its second."""
    processor = ImplicitRecProcessor.from_pretrained(args.model)
    rows = load_sequences(Path(args.data_dir) / "sequences")["test"]
    users = np.repeat(np.asarray(rows["user_id"]).astype(str), [len(r) for r in rows["input_ids"]])
    tokens = np.concatenate([np.asarray(row) for row in rows["input_ids"]])
    times = np.concatenate([np.asarray(row) for row in rows["timestamps"]])
    order = np.argsort(times, kind="stable")
    items = processor.decode_items(tokens[order[-10 * args.events :]])
    shift = int(time.time() - times.max())
    log = [
        {"user_id": str(users[place]), "item_id": str(item), "timestamp": int(times[place]) + shift}
        for place, item in zip(order[-10 * args.events :], items)
    ]
    before, sent = log[: -args.events], log[-args.events :]
    start, end = sent[0]["timestamp"], sent[-1]["timestamp"]
    pace = max(args.seconds, 2 * args.events / args.most_per_second) / max(1, end - start)
    due = [(event["timestamp"] - start) * pace for event in sent]
    gap = 2 / args.most_per_second  # a basket's events share a moment: spread them by the bound
    for place in range(1, len(due)):
        due[place] = max(due[place], due[place - 1] + gap)
    return before, list(zip(due, sent))


async def replay(port: int, sent: list, warm_up: int = WARM_UP) -> Replayed:
    """Send each event when it is due, and ask for a list after it."""
    took: dict[str, list[float]] = {"event": [], "recommendations": [], "both": []}
    statuses: Counter = Counter()
    limits = httpx2.Limits(max_connections=32)
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30
    ) as client:

        async def one(event: dict, due: float) -> None:
            answer = await client.post("/events", json={"events": [event]})
            stored = time.perf_counter()
            listed = await client.get(f"/recommendations/{event['user_id']}?exclude_seen=true")
            done = time.perf_counter()
            statuses.update([answer.status_code, listed.status_code])
            parts = (stored - due, done - stored, done - due)
            for name, seconds in zip(took, parts):
                took[name].append(seconds)

        for _, event in sent[:warm_up]:
            await one(event, time.perf_counter())
        for values in took.values():
            values.clear()
        statuses.clear()
        began, first = time.perf_counter(), sent[warm_up][0]
        tasks = []
        for offset, event in sent[warm_up:]:
            due = began + offset - first
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(event, due)))
        await asyncio.gather(*tasks)
        return took, statuses, time.perf_counter() - began


def summary(took: dict[str, list[float]], statuses: Counter, lasted: float) -> dict:
    """Figures in milliseconds."""
    figures: dict = {
        name: {f"p{p}": round(1000 * float(np.percentile(values, p)), 2) for p in (50, 99)}
        for name, values in took.items()
    }
    return {
        "requests": sum(statuses.values()),
        "seconds": round(lasted, 1),
        "requests a second": round(sum(statuses.values()) / lasted, 1),
        "milliseconds": figures,
        "answers": {str(status): times for status, times in sorted(statuses.items())},
        "5xx": sum(times for status, times in statuses.items() if status >= 500),
    }


def markdown(found: dict, args: LoadArguments) -> str:
    """The figures as a page of the documentation."""
    lines = ["# The service under load", ""]
    lines += [
        f"The latest {args.events:,} events of a log, its time compressed, against one server with"
    ]
    lines += [
        "one model thread on a machine that also runs the clients. Milliseconds from the moment that a"
    ]
    lines += ["request was due, so that one which waits for others counts its wait.", ""]
    lines += ["| | p50 | p99 |", "|---|---:|---:|"]
    for name, title in TITLES.items():
        figures = found["milliseconds"][name]
        lines.append(f"| {title} | {figures['p50']} | {figures['p99']} |")
    lines += [
        "",
        f"{found['requests']:,} requests, {found['requests a second']} a second; answers by",
    ]
    lines[-1] += f" status: {found['answers']}; 5xx: {found['5xx']}."
    users = ", ".join(f"{how} {times:,}" for how, times in found["users"].items())
    lines += ["", f"Users, as the server found them for a list: {users}."]
    return "\n".join(lines) + "\n"


def users_read(metrics: str) -> dict[str, int]:
    """How the server found its users: `kept` in memory, `stepped`, or `made` of their history."""
    found = re.findall(r'^implicitrec_users_total\{how="(\w+)"\} ([\d.]+)', metrics, re.M)
    return {how: int(float(times)) for how, times in found}


def server_of(args: LoadArguments, model: str, folder: Path) -> LocalServer:
    """A server of a checkpoint, with a store of its own in the folder; not started."""
    folder.mkdir()
    options = {"model": model, "store": f"sqlite:///{folder}/histories.db"}
    options |= {"index": args.index, "requests_per_second": 100_000.0}
    return LocalServer(options, log=folder / "server.log")


def fill(server: LocalServer, events: list[dict]) -> None:
    """Give a server the events that its users have at the start."""
    for start in range(0, len(events), 1000):
        body = {"events": events[start : start + 1000]}
        status, answer = server.request("POST", "/events", body)
        if status != 201:
            raise SystemExit(f"the server does not take events: {status} {answer}")


def measure(args: LoadArguments, folder: Path) -> dict:
    """One server under the load."""
    before, sent = read_log(args)
    with server_of(args, args.model, folder / "served") as server:
        fill(server, before)
        found = summary(*asyncio.run(replay(server.port, sent)))
        address = f"http://127.0.0.1:{server.port}/metrics"
        return found | {"users": users_read(httpx2.get(address).text)}


def without_trend(model: str, folder: Path) -> str:
    """A copy of a checkpoint that differs in its trend only, which it does not have."""
    whole, processor = load_checkpoint(model)
    config = copy.deepcopy(whole.config)
    config.num_trend_events = 0
    bare = ImplicitRecForScoring(config)
    kept = {n: v for n, v in whole.state_dict().items() if not n.startswith("head.trend.")}
    bare.load_state_dict(kept)
    return str(save_checkpoint(folder, model=bare, processor=processor))


def compare(args: LoadArguments, folder: Path) -> dict:
    """The checkpoint with its trend and without, by turns: the same parts of the log, the same load."""
    before, sent = read_log(args)
    models = {"with": args.model, "without": without_trend(args.model, folder / "bare")}
    parts = np.array_split(np.arange(WARM_UP, len(sent)), 2 * args.trend_rounds)
    runs: dict[str, dict[str, list[Replayed]]] = {n: {"paced": [], "full": []} for n in models}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(server_of(args, model, folder / name))
            for name, model in models.items()
        }
        for server in servers.values():
            fill(server, before)
            asyncio.run(replay(server.port, sent[: WARM_UP + 1]))
        begun = {name: server.usage() for name, server in servers.items()}
        for number, places in enumerate(parts):
            kind = ("paced", "full")[number % 2]
            part = [
                (sent[place][0] if kind == "paced" else 0.0, sent[place][1]) for place in places
            ]
            for name in sorted(servers, reverse=number % 4 > 1):  # each is first as often
                told = asyncio.run(replay(servers[name].port, part, warm_up=0))
                runs[name][kind].append(told)
        return {name: joined(runs[name], servers[name].usage(), begun[name]) for name in servers}


def joined(runs: dict[str, list[Replayed]], ended: Usage, begun: Usage) -> dict:
    """The figures of a server's turns together."""
    found = {}
    for kind, turns in runs.items():
        times = {name: [second for took, *_ in turns for second in took[name]] for name in TITLES}
        statuses = sum((statuses for _, statuses, _ in turns), Counter())
        found[kind] = summary(times, statuses, sum(lasted for *_, lasted in turns))
    requests = sum(one["requests"] for one in found.values())
    spent = 1000 * (ended.seconds - begun.seconds) / requests
    return found | {"processor ms a request": round(spent, 2), "MB": round(ended.bytes / 1e6)}


def comparison(found: dict) -> str:
    """The figures of both checkpoints as a page of the documentation."""
    both = [found[name] for name in ("with", "without")]
    rows = [
        [f"{title}, ms p{p}"] + [f"{one['paced']['milliseconds'][name][f'p{p}']}" for one in both]
        for name, title in TITLES.items()
        for p in (50, 99)
    ]
    rows += [
        ["requests a second, sent in time", *(f"{o['paced']['requests a second']}" for o in both)],
        ["requests a second, at full speed", *(f"{o['full']['requests a second']}" for o in both)],
        ["requests", *(f"{sum(o[k]['requests'] for k in ('paced', 'full')):,}" for o in both)],
        ["5xx", *(f"{sum(o[k]['5xx'] for k in ('paced', 'full'))}" for o in both)],
    ]
    rows += [[name, *(f"{o[name]}" for o in both)] for name in ("processor ms a request", "MB")]
    how = (
        f"`{found['command']}`; each server has one model thread, on a machine that also runs the clients; "
        "the milliseconds of the processor and the memory are the server's own."
    )
    head = ["# The service with a trend under load", "", what_is_measured(__doc__), "", how, ""]
    return "\n".join([*head, *table(["", "with the trend", "without"], rows)]) + "\n"


def main() -> None:
    (args,) = parse_arguments(LoadArguments)
    with tempfile.TemporaryDirectory() as folder:
        if args.trend_rounds:
            found = compare(args, Path(folder))
            found["command"] = " ".join(["python scripts/load_serving.py", *sys.argv[1:]])
            page = comparison(found)
        else:
            found = measure(args, Path(folder))
            page = markdown(found, args)
    print(json.dumps(found, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=2) + "\n")
        Path(args.output).with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
