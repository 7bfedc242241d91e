"""Run a command and report its time and peak memory as the operating system counted them.

`python scripts/measure_process.py report.json '{"seconds": 600, "gigabytes": 8}' command ...`

A process starts with the peak memory of the one that started it as its own. This one is a few
megabytes, so it stands between a benchmark that has imported much and what the benchmark measures.
"""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that one of ru_maxrss is


def measure(command: list[str], limits: dict[str, float]) -> dict[str, float | int | bool]:
    """Seconds, peak bytes and how the command ended; standard output and error are passed on."""
    if "gigabytes" in limits:
        size = int(limits["gigabytes"] * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    late = threading.Event()
    start = time.perf_counter()
    process = subprocess.Popen(command)

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limits.get("seconds", threading.TIMEOUT_MAX), stop)
    timer.daemon = True
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "process_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * PEAK_UNIT,
        "exit_code": process.returncode,
        "late": late.is_set(),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(sys.argv[3:], json.loads(sys.argv[2]))))
