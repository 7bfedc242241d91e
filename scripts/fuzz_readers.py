"""Coverage-guided fuzzing of what reads YAML and JSON: `python scripts/fuzz_readers.py arguments`.

Wants `pip install atheris`, and goes on until it is stopped, or for `--seconds`; other options are
libFuzzer's. Each input must give an answer or be refused; anything else ends the run, and libFuzzer writes
the input to a file, `crash-...`. What native code reads (Parquet, safetensors, CSV) gains nothing from it:
coverage of Python does not see into that. `tests/test_fuzz.py` damages such files by chance.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["modeling_implicitrec", "yaml"]):
    from modeling_implicitrec import ImplicitRecProcessor, parse_arguments

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


@dataclass
class Arguments:
    data_dir: str = ""
    model: dict = field(default_factory=dict)
    epochs: float = 1.0
    steps: int | None = None
    flag: bool = False


def read_arguments(data: bytes) -> None:
    """A recipe's YAML."""
    path = FOLDER / "any.yaml"
    path.write_bytes(data)
    (found,) = parse_arguments(Arguments, args=[str(path)])
    assert isinstance(found.model, dict) and isinstance(found.flag, bool)


def read_processor(data: bytes) -> None:
    """A checkpoint's `processor_config.json`; JSON that is no object fails in transformers, before ours."""
    if not isinstance(json.loads(data), dict):
        return
    folder = FOLDER / "processor"
    if not folder.exists():
        ImplicitRecProcessor.fit({"item_id": [*"abcab"]}).save_pretrained(folder)
    path = folder / "processor_config.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(data)
        weights = ImplicitRecProcessor.from_pretrained(folder)([["a", "b"]])["input_weights"]
        assert weights.isfinite().all()
    finally:
        path.write_bytes(whole)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "arguments": read_arguments,
    "processor": read_processor,
}
# A recipe's user sees a ValueError as a message; transformers has others for strange JSON.
REFUSALS = {"arguments": ValueError, "processor": (ValueError, OSError, TypeError)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=0, help="0: until it is stopped")
    args, rest = parser.parse_known_args()
    read = TARGETS[args.target]

    def one(data: bytes) -> None:
        with suppress(REFUSALS[args.target]):
            read(data)

    seeds = FOLDER / "seeds"
    seeds.mkdir()
    (seeds / "yaml").write_text("data_dir: data/x\nmodel: {hidden_size: 8}\nepochs: 1e-3\n")
    (seeds / "json").write_text(json.dumps({"max_weight": 10.0, "event_types": ["view"]}))
    limit = [f"-max_total_time={args.seconds}"] if args.seconds else []
    atheris.Setup([sys.argv[0], *limit, *rest, str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
