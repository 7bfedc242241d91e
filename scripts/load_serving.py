"""Replay a real log against a server on this machine, its time compressed, and measure the answers.

`python scripts/load_serving.py --model outputs/complete_journey --data_dir data/complete_journey`

Every event of the log's busiest hours is sent at its own moment, so much faster that the replay takes
`seconds`; after each event its user asks for ten recommendations. Latencies are from the moment
that a request was due, so that one which waits for others counts its wait.
"""

import asyncio
import json
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import numpy as np
from local_server import LocalServer

from modeling_implicitrec import ImplicitRecProcessor, load_sequences, parse_arguments

WARM_UP = 20  # events that are sent, one by one, before the clock starts


@dataclass
class LoadArguments:
    """What is replayed, how fast, and against what."""

    model: str = field(metadata={"help": "checkpoint folder"})
    data_dir: str = field(metadata={"help": "folder that prepare.py wrote"})
    seconds: float = field(default=60.0, metadata={"help": "that the replay takes"})
    events: int = field(default=1500, metadata={"help": "of the log, the latest ones"})
    most_per_second: float = field(default=100.0, metadata={"help": "requests a second, at most"})
    index: str = field(default="exact", metadata={"help": "of the server"})
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
    log = [
        {"user_id": str(users[place]), "item_id": str(item), "timestamp": int(times[place])}
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


async def replay(port: int, sent: list) -> dict:
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
            listed = await client.get(f"/recommendations/{event['user_id']}")
            done = time.perf_counter()
            statuses.update([answer.status_code, listed.status_code])
            parts = (stored - due, done - stored, done - due)
            for name, seconds in zip(took, parts):
                took[name].append(seconds)

        for _, event in sent[:WARM_UP]:
            await one(event, time.perf_counter())
        for values in took.values():
            values.clear()
        statuses.clear()
        began, first = time.perf_counter(), sent[WARM_UP][0]
        tasks = []
        for offset, event in sent[WARM_UP:]:
            due = began + offset - first
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(event, due)))
        await asyncio.gather(*tasks)
        lasted = time.perf_counter() - began
    return summary(took, statuses, lasted)


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
    told = {
        "event": "event stored",
        "recommendations": "ten recommendations after it",
        "both": "both",
    }
    for name, title in told.items():
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


def main() -> None:
    (args,) = parse_arguments(LoadArguments)
    before, sent = read_log(args)
    with tempfile.TemporaryDirectory() as folder:
        options = {"model": args.model, "store": f"sqlite:///{folder}/histories.db"}
        options |= {"index": args.index, "requests_per_second": 100_000.0}
        with LocalServer(options, log=Path(folder, "server.log")) as server:
            for start in range(0, len(before), 1000):
                status, answer = server.request(
                    "POST", "/events", {"events": before[start : start + 1000]}
                )
                if status != 201:
                    raise SystemExit(f"the server does not take events: {status} {answer}")
            found = asyncio.run(replay(server.port, sent))
            address = f"http://127.0.0.1:{server.port}/metrics"
            found["users"] = users_read(httpx2.get(address).text)
    print(json.dumps(found, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(found, indent=2) + "\n")
        Path(args.output).with_suffix(".md").write_text(markdown(found, args))


if __name__ == "__main__":
    main()
