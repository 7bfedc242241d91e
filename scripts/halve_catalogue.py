"""One log as two without common items: `python scripts/halve_catalogue.py --output_dir data/halves`.

Films and users of MovieLens are each halved at random; a half log has the events of its users with its
films. Both are prepared and described alike, by genres and year, so that content is all that they have in
common: source and target of `scripts/measure_transfer.py --features`.
"""

import argparse
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
HALVES = ("other_films", "films")


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
    parser.add_argument("--folder", type=Path, default="data/raw/ml-latest-small")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    args = parser.parse_args()
    log, films = (pd.read_csv(args.folder / f"{name}.csv") for name in ("ratings", "movies"))
    films["year"] = films["title"].str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    films.to_csv(args.output_dir / "films.csv", index=False)
    generator = np.random.default_rng(args.seed)
    side = {
        column: pd.Series(generator.integers(0, 2, log[column].nunique()), log[column].unique())
        for column in ("userId", "movieId")
    }
    for half, name in enumerate(HALVES):
        kept = np.logical_and(*(log[column].map(side[column]) == half for column in side))
        source, folder = args.output_dir / f"{name}.csv", args.output_dir / name
        log[kept].to_csv(source, index=False)
        prepared = {"source": source, "output_dir": folder, "report_page": "false"}
        prepared["columns"] = "{user_id: userId, item_id: movieId, timestamp: timestamp}"
        run("prepare", prepared | {"cleaning": "{min_item_events: 3, min_user_events: 5}"})
        described = {"data_dir": folder, "table": args.output_dir / "films.csv"}
        described |= {"id_column": "movieId", "categories": "[genres]", "numbers": "[year]"}
        run("describe", described)


if __name__ == "__main__":
    main()
