"""Logs of growing size to sequences: `python scripts/benchmark_events.py --rows "[1000000, 10000000]"`.

The job of every system: the Parquet files of a log, cleaned, with an item vocabulary and weights, to
one sequence a user in order of time, on disk. Each system does each log in a process of its own, whose
time and peak memory the operating system counts (`measure_process.py`). Results go to
`docs/results/events.json`, `.md` and `.svg`; a run takes the place of an older one of the same system
and size, and the others stay.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from modeling_implicitrec import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
SYSTEMS = ("implicitrec", "pandas", "recbole")
PACKAGES = {
    "implicitrec": ("implicitrec", "duckdb", "pyarrow", "datasets", "numpy"),
    "pandas": ("pandas", "pyarrow", "numpy"),
    "recbole": ("recbole", "pandas", "numpy", "torch"),
}
SETTINGS = {
    "max_events_per_day": 1000,
    "clip_quantile": 0.999,
    "event_type_weights": {"view": 1.0, "cart": 2.0, "purchase": 4.0},
    "max_weight": 10.0,
}
OUT_OF_MEMORY = (
    "MemoryError",
    "out of memory",
    "OutOfMemory",
    "Out of Memory",
    "bad_alloc",
    "Cannot allocate memory",
    "can't allocate memory",
    "malloc of size",
    "realloc of size",
)
NOTES = (
    "`seconds` is the job, from its first file read to its last file written; `start-up` is what the "
    "process took besides, most of it importing libraries; `CPU` is the processor time of both. `peak "
    "GiB` is the largest resident memory of the process as the operating system counted it, libraries "
    "and mapped pages of files included. `growth` is how often the time of the size before the job "
    "took, beside how often the rows.",
    "RecBole does less: no exact duplicates, bots, merged repeats or weights, and no augmentation; "
    "`scripts/recbole_loader.py` says what. Its input is a text file, whose writing is part of its time.",
)


@dataclass
class BenchmarkArguments:
    """Which sizes and systems to run, and within what limits."""

    rows: list[int] = field(metadata={"help": "events of each log"})
    systems: list[str] = field(
        default_factory=lambda: ["implicitrec", "pandas"], metadata={"help": f"of {SYSTEMS}"}
    )
    work_dir: str = field(
        default="outputs/benchmark_events", metadata={"help": "folder of the logs and what is made"}
    )
    output_dir: str = field(default="docs/results", metadata={"help": "folder of the results"})
    recbole_python: str | None = field(
        default=None, metadata={"help": "the interpreter of RecBole's environment"}
    )
    memory_limit_gb: float | None = field(
        default=None, metadata={"help": "of pandas and RecBole: the data segment of their process"}
    )
    time_limit_minutes: float | None = field(default=None, metadata={"help": "of each run"})
    seed: int = field(default=0, metadata={"help": "of the logs"})
    keep_logs: bool = field(
        default=True, metadata={"help": "whether a log stays for the next time"}
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown:
            raise ValueError(f"systems must be of {SYSTEMS}, got {unknown}")
        if "recbole" in self.systems and not self.recbole_python:
            raise ValueError("the system recbole needs --recbole_python")

    def command(self) -> str:
        """What to type to measure again, without the paths of this machine."""
        words = ["python scripts/benchmark_events.py", f'--rows "{self.rows}"']
        words += [f'--systems "[{", ".join(self.systems)}]"']
        words += ["--recbole_python recbole/bin/python"] if "recbole" in self.systems else []
        for name in ("memory_limit_gb", "time_limit_minutes"):
            value = getattr(self, name)
            words += [f"--{name} {value:g}"] if value is not None else []
        return " ".join(words + ([f"--seed {self.seed}"] if self.seed else []))


def make_log(args: BenchmarkArguments, rows: int) -> Path:
    """The folder of the log with so many rows, made if it is not there."""
    log = Path(args.work_dir) / f"log_{rows}_{args.seed}"
    if not log.exists():
        options = {"rows": rows, "seed": args.seed, "output_dir": log}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        subprocess.run([sys.executable, SCRIPTS / "make_events.py", *words], check=True)
    return log


def run(args: BenchmarkArguments, system: str, rows: int) -> dict:
    """One job in a process of its own: what it reports and what the operating system counted."""
    log, folder = make_log(args, rows), Path(args.work_dir) / f"{system}_{rows}"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "output").mkdir(parents=True)
    python = str(args.recbole_python) if system == "recbole" else sys.executable
    limits = {"seconds": args.time_limit_minutes and args.time_limit_minutes * 60}
    limits["gigabytes"] = args.memory_limit_gb if system != "implicitrec" else None
    given = json.dumps({name: value for name, value in limits.items() if value is not None})
    measure = [sys.executable, SCRIPTS / "measure_process.py", folder / "measured.json", given]
    job = [python, SCRIPTS / f"{system}_loader.py", log, folder / "output", json.dumps(SETTINGS)]
    with open(folder / "stdout", "w") as output, open(folder / "stderr", "w") as errors:
        subprocess.run([*measure, *job], stdout=output, stderr=errors, check=True)
    measured = json.loads((folder / "measured.json").read_text())
    report = {"rows": rows, "system": system, "limits": json.loads(given), **measured}
    report["outcome"] = outcome(measured, (folder / "stderr").read_text())
    report["versions"] = versions(python, system)
    if report["outcome"] == "done":
        report |= json.loads((folder / "stdout").read_text().splitlines()[-1])
        shutil.rmtree(folder)
    shutil.rmtree(folder / "output", ignore_errors=True)
    return report


def outcome(measured: dict, errors: str) -> str:
    if measured["late"]:
        return "over the time limit"
    if measured["exit_code"] == 0:
        return "done"
    # The kernel ends a process with signal 9 when the machine has no memory left.
    if measured["exit_code"] == -9 or any(sign in errors for sign in OUT_OF_MEMORY):
        return "out of memory"
    return "failed"


def versions(python: str, system: str) -> dict[str, str]:
    names = PACKAGES[system]
    if python == sys.executable:
        return {name: version(name) for name in names}
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.split()))


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores, {memory:.0f} GiB RAM, Python {platform.python_version()}"


def growth(run: dict, runs: list[dict]) -> str:
    """How much longer than the size before, beside how many more rows; time in proportion is linear."""
    before = [
        other
        for other in runs
        if other["system"] == run["system"]
        and other["rows"] < run["rows"]
        and other["outcome"] == "done"
    ]
    if not before or run["outcome"] != "done":
        return ""
    last = max(before, key=lambda other: other["rows"])
    times, rows = run["seconds"] / last["seconds"], run["rows"] / last["rows"]
    return f"{times:.1f} × for {rows:.3g} × the rows"


def timing_cells(run: dict, runs: list[dict]) -> list[str]:
    peak, cpu = f"{run['peak_bytes'] / 2**30:.2f}", f"{run['cpu_seconds']:.1f}"
    if run["outcome"] != "done":
        return [run["outcome"], "", cpu, "", f"{peak} when it ended", ""]
    start = run["process_seconds"] - run["seconds"]
    speed = f"{run['rows'] / run['seconds']:,.0f}"
    return [f"{run['seconds']:.1f}", f"{start:.1f}", cpu, speed, peak, growth(run, runs)]


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(titles) + " |", "|---:|---|" + "---:|" * (len(titles) - 2)]
    return [*lines, *("| " + " | ".join(cells) + " |" for cells in rows), ""]


def markdown(report: dict) -> str:
    """The results as a page of the documentation."""
    runs = report["runs"]
    lines = ["# Logs to sequences", "", f"{report['machine']}.", "", "![](events.svg)", ""]
    titles = ["rows", "system", "seconds", "start-up", "CPU", "events/s", "peak GiB", "growth"]
    cells = [[f"{run['rows']:,}", run["system"], *timing_cells(run, runs)] for run in runs]
    lines += table(titles, cells)
    lines += [line for note in NOTES for line in (note, "")]
    lines += ["## What came out", ""]
    names = ["events", "users", "items"]
    done = [run for run in runs if run["outcome"] == "done"]
    lines += table(
        ["rows", "system", *names],
        [[f"{r['rows']:,}", r["system"], *(f"{r[name]:,}" for name in names)] for r in done],
    )
    for run in (run for run in done if "steps" in run):
        steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run["steps"].items())
        lines += [f"{run['system']} at {run['rows']:,} rows: {steps}.", ""]
    lines += ["## Measured with", ""]
    lines += [f"- `{command}`" for command in report["commands"]]
    for system, found in {run["system"]: run["versions"] for run in runs}.items():
        lines.append(f"- {system}: " + ", ".join(f"{name} {v}" for name, v in found.items()))
    limits = {f"{r['system']} {json.dumps(r['limits'])}" for r in runs if r["limits"]}
    lines += [f"- limits: {limit}" for limit in sorted(limits)]
    return "\n".join(lines) + "\n"


def plot(runs: list[dict], path: Path) -> None:
    """Seconds against rows on logarithmic axes, with what would be in proportion."""
    matplotlib.rcParams["svg.hashsalt"] = "events"  # equal results, equal file
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for system in SYSTEMS:
        done = [r for r in runs if r["system"] == system and r["outcome"] == "done"]
        if done:
            rows, seconds = [r["rows"] for r in done], [r["seconds"] for r in done]
            (line,) = axes.plot(rows, seconds, marker="o", label=system)
            linear = [seconds[0] * count / rows[0] for count in rows]
            axes.plot(rows, linear, linestyle=":", linewidth=1, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="events", ylabel="seconds (dotted: in proportion)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def write_report(args: BenchmarkArguments, new: list[dict]) -> dict:
    """Join the new runs to those of the same machine that are there, and write the three files."""
    target = Path(args.output_dir)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "events.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if report.get("machine") != machine():
        report = {"machine": machine(), "commands": [], "settings": SETTINGS, "runs": []}
    known = {(run["rows"], run["system"]): run for run in report["runs"] + new}
    report["runs"] = [
        known[key] for key in sorted(known, key=lambda k: (k[0], SYSTEMS.index(k[1])))
    ]
    report["commands"] = list(dict.fromkeys([*report["commands"], args.command()]))
    path.write_text(json.dumps(report, indent=2) + "\n")
    (target / "events.md").write_text(markdown(report))
    plot(report["runs"], target / "events.svg")
    return report


def main() -> None:
    (args,) = parse_arguments(BenchmarkArguments)
    for rows in args.rows:
        for system in args.systems:
            found = run(args, system, rows)
            print(f"{system}, {rows:,} rows: {found['outcome']}, {found['process_seconds']:.1f} s")
            report = write_report(args, [found])  # now, so that a later failure loses nothing
        if not args.keep_logs:
            shutil.rmtree(make_log(args, rows))
    print(markdown(report))


if __name__ == "__main__":
    main()
