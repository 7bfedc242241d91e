"""What every runner of the bulk benchmark shares: its job, the clock, and what it writes.

A runner is started as `python <name>_bulk.py job.json`, by the interpreter of the library that it runs; so
this file imports nothing of this package. The job holds `histories` (Parquet with a list of items of each
user), `library` (its name), `settings` of its model, `k`, `singles` (users asked one by one) and `output`;
for this package also the folders `data` and `model`.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WARM = 256  # users whose lists are made before the clock runs


def read_job() -> tuple[dict, list[np.ndarray]]:
    """The job that this process was started with, and the items of every user in order."""
    job = json.loads(Path(sys.argv[1]).read_text())
    column = pq.read_table(job["histories"])["items"].combine_chunks()
    return job, np.split(column.flatten().to_numpy(), column.offsets.to_numpy()[1:-1])


def timed(action: Callable, *given: Any) -> tuple[Any, dict[str, float]]:
    """What an action gives, and its seconds: of the processor, and on the wall."""
    started, watch = time.process_time(), time.perf_counter()
    result = action(*given)
    used = time.process_time() - started
    return result, {"processor": used, "wall": time.perf_counter() - watch}


def measure(
    job: dict,
    users: int,
    first: Callable[[int], Any],
    one: Callable[[int], Any],
    read: Callable[[Any], np.ndarray],
) -> None:
    """Time the lists of all users at once and of some users one by one; write them and the times.

    Args:
        first: the lists of so many users, from the first on, as the library gives them.
        one: the list of a user by number.
        read: the lists of all users as items `[users, k]`; not timed.
    """
    one(0)  # what happens once is not counted
    first(WARM)
    given, seconds = timed(first, users)
    singles = [timed(one, user)[1] for user in job["singles"]]
    output = Path(job["output"])
    pq.write_table(pa.table({"items": list(read(given))}), output.with_suffix(".parquet"))
    told = {"all": seconds, "one": singles, "version": version(job["library"])}
    output.write_text(json.dumps(told))
