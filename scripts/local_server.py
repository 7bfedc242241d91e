"""A server of recipes/serve.py on this machine, to be measured, killed and started again."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "serve.py"
START_SECONDS = 120


class Usage(NamedTuple):
    """What a process has used of the processor so far, in seconds, and its memory now, in bytes."""

    seconds: float
    bytes: int


class LocalServer:
    """Starts `recipes/serve.py` with these options on a free port of the loopback.

    Args:
        options: of the recipe, besides the port.
        log: file for what it prints.
    """

    def __init__(self, options: dict, *, log: Path) -> None:
        self.options, self.log = options, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> "LocalServer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = [f"--{name}={value}" for name, value in self.options.items()]
        command = [sys.executable, str(RECIPE), f"--port={self.port}", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-2000:]}")
            try:
                if self.request("GET", "/healthz")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the server did not answer within {START_SECONDS} seconds")

    def kill(self) -> None:
        """`kill -9`: nothing is tidied up."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def usage(self) -> Usage:
        """Processor and memory of the server."""
        process = psutil.Process(self.process.pid)
        times = process.cpu_times()
        return Usage(times.user + times.system, process.memory_info().rss)

    def request(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        """Status and answer of one request on a connection of its own.

        Raises:
            OSError: where there is no answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (http.client.HTTPException, ValueError) as error:
            raise OSError("the answer was cut off") from error
        finally:
            connection.close()
