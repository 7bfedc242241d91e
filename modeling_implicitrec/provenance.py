"""How a checkpoint came to be: commit, machine, time and an estimate of the energy."""

import platform
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
import transformers
from datasets import Dataset

from .shards import read_batches
from .source_files import hide_secrets

WATTS_PER_CORE = 10  # of a busy core with its share of the machine; an assumption, said in the card
JOULES_PER_KWH = 3_600_000
ENERGY = f"energy in kWh, estimated at {WATTS_PER_CORE} W a busy core"
SECRET = re.compile(r"(--\w*token[ =])\S+|\bhf_\w+")


@dataclass
class RunRecord:
    """Starts its clocks when it is made.

    >>> "commit" in RunRecord().to_dict()
    True
    """

    started: float = field(default_factory=time.monotonic)
    cpu_started: float = field(default_factory=time.process_time)

    def to_dict(self, processes: int = 1, resumed_from: str | None = None) -> dict[str, Any]:
        """Facts of the run until now, by the names that a card shows.

        Energy is estimated where only the CPU worked: its seconds times 10 W.

        Args:
            processes: that did as much as this one.
            resumed_from: the checkpoint that the run went on from, before which nobody took the time.
        """
        cpu = (time.process_time() - self.cpu_started) * processes
        on_gpu = torch.cuda.is_available()
        energy = None if on_gpu else round(cpu * WATTS_PER_CORE / JOULES_PER_KWH, 6)
        since = {"seconds and energy since": Path(resumed_from).name} if resumed_from else {}
        return {
            "command": _command(),
            "commit": _commit(),
            **since,
            "seconds": round(time.monotonic() - self.started, 1),
            "CPU seconds": round(cpu, 1),
            "hardware": torch.cuda.get_device_name() if on_gpu else _processor(),
            ENERGY: energy,
            "python": platform.python_version(),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }


def read_period(rows: Dataset) -> tuple[str, str] | None:
    """Days (UTC) of the first and the last event, `None` where the rows have no times.

    >>> read_period(Dataset.from_dict({"timestamps": [[86_400, 90_000], [3 * 86_400]]}))
    ('1970-01-02', '1970-01-04')
    """
    if "timestamps" not in rows.column_names or not len(rows):
        return None
    found = [pc.min_max(batch["timestamps"].flatten()).as_py() for batch in read_batches(rows)]
    ends = [end for pair in found for end in pair.values() if end is not None]
    if not ends:
        return None
    first, last = (datetime.fromtimestamp(end, UTC) for end in (min(ends), max(ends)))
    return f"{first:%Y-%m-%d}", f"{last:%Y-%m-%d}"


def _command() -> str:
    """The command line without secrets, and without folders, which tell of a machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return SECRET.sub(r"\1***", hide_secrets(shlex.join(words)))


def _commit() -> str | None:
    """Of the sources, where they are a git checkout; `+` where files differ from it."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")


def _git(*arguments: str) -> str | None:
    options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "timeout": 30}
    try:
        done = subprocess.run(["git", *arguments], **options)  # type: ignore[call-overload]
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    """Name and number of the CPU's cores."""
    names = [platform.processor() or platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")] or names
    return f"{len(names)} × {names[0]}, {torch.get_num_threads()} threads"
