"""Build, check and try out a release: `python scripts/check_release.py`, or `make dist`.

Builds the wheel and the sdist, looks into both, runs `twine check`, and for each Python that is found
installs the wheel, and then the sdist, into a clean environment and runs a smoke test there: the first
code of the README, a log read and encoded, a tiny checkpoint saved with its card and loaded by `AutoModel`,
one recommendation. In the first environment it checks the licences of all that was installed and writes the
list of it (SBOM, CycloneDX JSON) beside the files; with the same Python it tries the wheel with the oldest
versions that `pyproject.toml` allows. That is the dry run; `--upload` then sends them to PyPI.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "modeling_implicitrec"
VERSIONS = ("3.11", "3.12", "3.13")
SMOKE = """
import sys
from pathlib import Path
import modeling_implicitrec
import pandas
from modeling_implicitrec import *
from transformers import AutoModel, AutoProcessor, pipeline

assert "site-packages" in modeling_implicitrec.__file__, modeling_implicitrec.__file__
log = {"user_id": [1, 1, 1, 2], "item_id": ["tea", "milk", "tea", "rye"]}
log |= {"timestamp": [1.0e9, 1.1e9, 1.2e9, 1.3e9]}
parts = leave_last_out(build_sequences(load_events(pandas.DataFrame(log))))
parts = encode_splits(parts, ImplicitRecProcessor.fit(log))
assert parts["test"][0]["target_ids"] == [1], parts["test"][0]

names = {}
exec(Path("first.py").read_text(), names)
model, processor = names["model"], names["processor"]
save_checkpoint("tiny", model=model, processor=processor)
write_model_card("tiny", model=model, processor=processor, results={})
assert len(AutoProcessor.from_pretrained("tiny")([["tea", "milk"]])["input_ids"][0]) == 2
assert AutoModel.from_pretrained("tiny").config.vocab_size == processor.vocab_size
print(pipeline("recommendation", model="tiny")(["tea", "milk"], top_k=1))
"""


def wanted_files() -> set[str]:
    """What an installation needs: all files of the package."""
    return {
        f"{PACKAGE}/{path.name}"
        for path in (ROOT / PACKAGE).iterdir()
        if path.is_file() and path.suffix != ".pyc"
    }


def wheel_problems(names: list[str]) -> list[str]:
    """What a wheel lacks, and what it must not hold.

    >>> wheel_problems([*wanted_files(), "x.dist-info/licenses/LICENSE", "tests/test_x.py"])
    ['tests/test_x.py does not belong into a wheel']
    """
    missing = [f"{name} is missing" for name in sorted(wanted_files() - set(names))]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        missing.append("LICENSE is missing")
    extra = [n for n in names if n.split("/")[0] != PACKAGE and ".dist-info/" not in n]
    return missing + [f"{name} does not belong into a wheel" for name in extra]


def sdist_problems(names: list[str]) -> list[str]:
    """Likewise of an sdist, whose names begin with its folder."""
    inside = {name.partition("/")[2] for name in names}
    wanted = wanted_files() | {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"}
    missing = [f"{name} is missing" for name in sorted(wanted - inside)]
    unwanted = re.compile(r"(tests|data|outputs|docs|site)/|.*\.parquet$|.*\.safetensors$")
    extra = [name for name in sorted(inside) if unwanted.match(name)]
    return missing + [f"{name} does not belong into an sdist" for name in extra]


def run(*command: object, cwd: Path = ROOT) -> None:
    print("+", *(str(word) for word in command), flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, check=True)


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel, made of the sdist, and the sdist; both complete."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as packed:
        wrong = wheel_problems(archive.namelist()) + sdist_problems(packed.getnames())
    if wrong:
        raise SystemExit("\n".join(wrong))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def smoke(python: Path) -> None:
    """Run the smoke test away from the sources."""
    first = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "first.py").write_text(first)
        run(python, "-W", "ignore", "-c", SMOKE, cwd=Path(folder))


def new_environment(interpreter: str, work: Path) -> Path:
    run(interpreter, "-m", "venv", "--clear", work)
    return work / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def pip_install(python: Path) -> tuple:
    return (python, "-m", "pip", "-qq", "--disable-pip-version-check", "install")


def interpreters() -> list[str]:
    """Those on the PATH that run: a launcher of pyenv is there for versions that are not switched on."""
    found = [path for v in VERSIONS if (path := shutil.which(f"python{v}"))]
    return [p for p in found if not subprocess.run([p, "-c", ""], capture_output=True).returncode]


def try_out(interpreter: str, files: tuple[Path, Path], work: Path) -> Path:
    """Install the wheel and then the sdist into a clean environment; its Python."""
    python = new_environment(interpreter, work)
    run(*pip_install(python), torch_pin())
    for file in files:
        run(*pip_install(python), "--force-reinstall", "--no-deps", file)
        run(*pip_install(python), file)  # its requirements, the newest that there are
        run(python, "-m", "pip", "check")
        smoke(python)
    return python


def lower_bounds() -> list[str]:
    """The oldest versions that are allowed, but of torch, whose old builds are for GPUs on some machines.

    >>> [pin for pin in lower_bounds() if pin.startswith(("numpy", "torch"))]
    ['numpy==2']
    """
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = [re.sub(r"\[.*\]", "", one).replace(">=", "==") for one in required]
    return [pin for pin in pins if not pin.startswith("torch==")]


def try_oldest(interpreter: str, wheel: Path, work: Path) -> None:
    """Install the wheel with the oldest versions of what it names, into a clean environment."""
    bounds = work.with_name("oldest.txt")
    bounds.write_text("\n".join(lower_bounds()))
    python = new_environment(interpreter, work)
    run(*pip_install(python), torch_pin())
    run(*pip_install(python), "--constraint", bounds, wheel)
    run(python, "-m", "pip", "check")
    smoke(python)


def write_bill(python: Path, bill: Path) -> None:
    """Check the licences of an installation and write the list of its parts (SBOM)."""
    options = ("--pyproject", ROOT / "pyproject.toml", "--mc-type", "library")
    options += ("--output-format", "JSON", "--output-file", bill)
    run(sys.executable, "-m", "cyclonedx_py", "environment", python, *options)
    run(python, ROOT / "scripts" / "check_licences.py", "--bill", bill.resolve(), cwd=bill.parent)


def torch_pin() -> str:
    """The tested torch, a CPU build where there is one: an open range may take gigabytes."""
    return re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M).group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--pythons", nargs="+", help="interpreters; by default those on the PATH")
    parser.add_argument("--upload", action="store_true", help="to PyPI, after all checks")
    args = parser.parse_args()
    found = args.pythons or interpreters()
    if not found:
        raise SystemExit(f"none of Python {', '.join(VERSIONS)} found; name one with --pythons")
    files = build(args.dist)
    with tempfile.TemporaryDirectory() as work:
        for place, interpreter in enumerate(found):
            environment = Path(work, "environment")
            python = try_out(interpreter, files, environment)
            if not place:
                write_bill(python, args.dist / f"{files[0].name.split('-py3')[0]}.cdx.json")
        try_oldest(found[0], files[0], environment)
    print(f"{', '.join(f.name for f in files)}: passed on {', '.join(found)}")
    if args.upload:
        run(sys.executable, "-m", "twine", "upload", *files)


if __name__ == "__main__":
    main()
