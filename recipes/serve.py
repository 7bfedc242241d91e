"""Serve a checkpoint over HTTP: `python recipes/serve.py recipes/<log>/serve.yaml`.

Keys come from the environment, separated by commas: IMPLICITREC_API_KEYS for callers and
IMPLICITREC_ADMIN_KEYS for those who may reload. SIGHUP, or POST /admin/reload, reads the checkpoint again.
"""

import logging
import os
from dataclasses import dataclass, field
from functools import partial

import torch

from modeling_implicitrec import check_numbers, hide_secrets, parse_arguments, run_recipe

try:
    import uvicorn

    from modeling_implicitrec.service import ServiceSettings, create_app
except ImportError as error:
    raise SystemExit(f"{error}: serving needs pip install 'implicitrec[serve]'") from error

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class ServeArguments:
    """What is served, where and from which store."""

    model: str = field(metadata={"help": "checkpoint folder or Hub name"})
    store: str = field(
        default="sqlite:///histories.db", metadata={"help": "database of the users' histories"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=8000, metadata={"help": "port to listen on"})
    catalogue: str | None = field(
        default=None, metadata={"help": "Parquet of item_id, name, category, in_stock, boost"}
    )
    index: str = field(default="exact", metadata={"help": "exact, or hnsw or ivfpq (built before)"})
    history_events: int = field(default=1000, metadata={"help": "latest events of a user read"})
    cached_users: int = field(default=2000, metadata={"help": "users kept in memory"})
    max_body_bytes: int = field(default=1_000_000, metadata={"help": "of a request"})
    requests_per_second: float = field(default=200.0, metadata={"help": "of each key"})
    max_batch: int = field(default=32, metadata={"help": "requests of one model call"})
    threads: int = field(default=1, metadata={"help": "of the model; one is best for small models"})

    def __post_init__(self) -> None:
        check_numbers(self, "history_events cached_users max_body_bytes max_batch threads >= 1")
        check_numbers(self, "requests_per_second > 0", "port >= 0", "port < 65536")


def main() -> None:
    (args,) = parse_arguments(ServeArguments)
    keys = read_keys("IMPLICITREC_API_KEYS")
    if not keys and args.host not in LOOPBACK:
        raise SystemExit(f"IMPLICITREC_API_KEYS is empty: only {LOOPBACK[0]} is served without")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    torch.set_num_threads(args.threads)
    settings = ServiceSettings(
        model=args.model,
        store=args.store,
        api_keys=keys,
        admin_keys=read_keys("IMPLICITREC_ADMIN_KEYS"),
        catalogue=args.catalogue,
        find_index=find_index(args.index),
        history_events=args.history_events,
        cached_users=args.cached_users,
        max_body_bytes=args.max_body_bytes,
        requests_per_second=args.requests_per_second,
        max_batch=args.max_batch,
    )
    app = create_app(settings)
    print(
        f"{args.model} on http://{args.host}:{args.port}, histories in {hide_secrets(args.store)}"
    )
    uvicorn.run(app, host=args.host, port=args.port, access_log=False, log_level="warning")


def read_keys(variable: str) -> list[str]:
    return [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]


def find_index(kind: str):
    """What loads the index of a checkpoint; None for the exact one."""
    if kind == "exact":
        return None
    from modeling_implicitrec.ann_index import AnnIndex  # faiss is an extra of its own

    return partial(AnnIndex.load, kind=kind)


if __name__ == "__main__":
    run_recipe(main)
