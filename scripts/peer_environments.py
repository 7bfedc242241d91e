"""Make a virtual environment for every peer of the benchmarks: `python scripts/peer_environments.py`.

Each peer needs versions that the others and this package do not, so each has a folder of its own under
`outputs/peers`. One that is finished is left alone. torch is installed first and pinned: an open range
can pull gigabytes of libraries for a GPU.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from modeling_implicitrec import parse_arguments

TORCH = "torch==2.13.0"
# What each peer needs, and what must import once it is there.
PEERS = {
    "rectools": (["rectools[torch]==0.19.0", "numpy==1.26.4", "pyarrow==19.0.1"], "rectools"),
    "recbole": (
        ["recbole==1.2.1", "setuptools==80.10.2", "numpy==1.26.4", "pandas==2.3.3"]
        + ["pyarrow==19.0.1"],
        "recbole",
    ),
    "replay": (["replay-rec[torch]==0.22.0", "setuptools==80.10.2"], "replay"),
}
DONE = "finished.txt"  # the versions, written last


@dataclass
class EnvironmentArguments:
    """Which peers, and where."""

    peers: list[str] = field(
        default_factory=lambda: list(PEERS), metadata={"help": f"of {list(PEERS)}"}
    )
    output_dir: Path = field(default=Path("outputs/peers"), metadata={"help": "their folder"})


def peer_python(folder: Path, peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / peer / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make_environment(folder: Path, peer: str) -> None:
    """Install one peer, unless it is there."""
    python = peer_python(folder, peer).absolute()
    done = folder / peer / DONE
    if done.exists():
        print(f"{peer}: there")
        return
    requirements, module = PEERS[peer]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", folder / peer],
        [*install, TORCH],
        [*install, TORCH, *requirements],
        [python, "-c", f"import {module}"],
    ):
        subprocess.run([str(word) for word in command], check=True)
    frozen = subprocess.run(
        [str(python), "-m", "pip", "freeze"], check=True, stdout=subprocess.PIPE, text=True
    )
    done.write_text(frozen.stdout)
    print(f"{peer}: installed")


def main() -> None:
    (args,) = parse_arguments(EnvironmentArguments)
    unknown = sorted(set(args.peers) - set(PEERS))
    if unknown:
        raise SystemExit(f"unknown peers {unknown}; the known ones are {list(PEERS)}")
    for peer in args.peers:
        make_environment(args.output_dir, peer)


if __name__ == "__main__":
    main()
