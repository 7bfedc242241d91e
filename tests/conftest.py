"""No network but a hub on loopback, a cache of the tests' own, and seeds; before Hugging Face comes."""

import atexit
import glob
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

_CACHE = tempfile.mkdtemp(prefix="implicitrec-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = _CACHE  # no token of who runs the tests
TOKENS = {
    "hf_alice": ("alice", "write"),
    "hf_reader": ("alice", "read"),
    "hf_bob": ("bob", "write"),
    "hf_me": ("me", "write"),
}
_HUB = LoopbackHub(TOKENS)  # answers in tests that take the fixture `hub`
os.environ |= {"HF_ENDPOINT": _HUB.url, "HF_HUB_DISABLE_XET": "1"}
os.environ["HF_DATASETS_CACHE"] = os.path.join(_CACHE, "datasets")
os.environ["HF_MODULES_CACHE"] = os.path.join(_CACHE, "modules")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

PASSWORD = "p@ss/w:rd?1"  # of the tests' PostgreSQL server, and as a URL writes it
IN_URL = "p%40ss%2Fw%3Ard%3F1"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test starts from the same seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def _serving() -> Iterator[None]:
    with _HUB:
        yield


@pytest.fixture
def hub(_serving: None, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """An empty hub that the Hugging Face libraries talk to as alice, here and in child processes."""
    import datasets.config
    from huggingface_hub import constants

    for kept in (_HUB.repos, _HUB.blobs, _HUB.used, _HUB.leaked, _HUB.faults):
        kept.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return _HUB


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An Ibis connection to a local Spark of two threads; skips where there is none."""
    sql = pytest.importorskip("pyspark.sql", reason="Spark is tested with the extra `spark`")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    import ibis

    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        sql.SparkSession.builder.master("local[2]")
        .config("spark.sql.shuffle.partitions", 2)
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield ibis.pyspark.connect(session)
    session.stop()


def postgres_programs() -> str:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    program = shutil.which("initdb") or (found[-1] if found else None)
    return os.path.dirname(program) if program else ""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server of the tests' own, without table; its user has a password."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = postgres_programs()
    if not programs:
        pytest.skip("no PostgreSQL server on this machine (initdb not found)")
    # It refuses to run as root.
    user = None
    if os.getuid() == 0:
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = tempfile.mkdtemp(prefix="postgres-")
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    secret = Path(folder, "password")
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o644)

    def run(*command: str) -> None:
        done = subprocess.run(
            [os.path.join(programs, command[0]), *command[1:]],
            user=user, cwd=folder, capture_output=True, text=True, timeout=120,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    cluster = os.path.join(folder, "cluster")
    run("initdb", "-D", cluster, "-U", "me", "-A", "scram-sha-256", f"--pwfile={secret}", "-N")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", cluster, "-o", options, "-l", os.path.join(folder, "log"), "-w", "start")
    try:
        url = f"postgresql://me:{IN_URL}@127.0.0.1:{port}/postgres"
        yield url
    finally:
        run("pg_ctl", "-D", cluster, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[str]:
    """The URL of a Redis server of the tests' own, which writes every command to disk."""
    redis = pytest.importorskip("redis", reason="redis is not installed")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no Redis server on this machine (redis-server not found)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes"]
    command += ["--appendfsync", "always", "--dir", str(tmp_path_factory.mktemp("redis"))]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100)
        redis.Redis.from_url(url, retry=retry).ping()
        yield url
    finally:
        server.kill()
        server.wait()
