"""The layout keeps its rules: floors, travelling files, short files and functions, no pickle."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "modeling_implicitrec"
MODULES = sorted(path for path in (ROOT / PACKAGE).glob("*.py") if path.stem != "__init__")
OUTSIDE = sorted([*(ROOT / "recipes").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])
TESTS = sorted((ROOT / "tests").glob("*.py"))

# A module imports only from floors below its own.
FLOORS = (
    {
        "engine",
        "event_columns",
        "cleaning_report",
        "shards",
        "names_implicitrec",
        "source_files",
        "compatibility_implicitrec",
        "integrity_implicitrec",
        "next_items",
        "pairs_implicitrec",
        "rows",
        "activity_regression",
        "recent_events",
    },
    {"source_schema", "database_tables", "cleaning", "weights_implicitrec"},
    {"event_source", "pipeline_implicitrec"},
    {
        "configuration_implicitrec",
        "vocabulary_implicitrec",
        "intensity",
        "matrices",
        "metrics",
        "events",
        "arguments",
    },
    {"content_implicitrec", "kernels_implicitrec", "loss_implicitrec"},
    {"trend_implicitrec"},
    {"head_implicitrec", "histories_implicitrec", "event_store", "bpr", "popularity"},
    {"packing_implicitrec"},
    {"layers_implicitrec", "catalogue_implicitrec"},
    {"state_implicitrec", "pretrained_implicitrec"},
    {"body_implicitrec", "objectives_implicitrec"},
    {"classification_implicitrec"},
    {
        "modeling_implicitrec",
        "processing_implicitrec",
        "sequences",
        "collation",
        "optimization",
        "prior_learning",
    },
    {
        "ranking",
        "checkpoints",
        "baselines",
        "scoring",
        "explanation",
        "reranking",
        "history_store",
        "micro_batching",
        "live_head",
    },
    {
        "encoding",
        "privacy",
        "item_features",
        "transfer",
        "adapters",
        "joined_logs",
        "event_profile",
        "export",
        "live_body",
        "retrieval",
        "redis_store",
        "service_limits",
        "service_schema",
    },
    {
        "priors",
        "season",
        "questions",
        "serving",
        "ann_index",
        "batch_scoring",
        "vocabulary_privacy",
        "federation",
    },
    {"showcase", "trend_feed"},
    {"user_cache"},
    {"service"},
    {"demo_page"},
    {"report_plots", "training_plots"},
    {"provenance", "sharing"},
    {"data_sharing", "evaluation", "hub", "report_page", "weight_learning"},
    {"calibration", "cold_items", "history_lengths", "ease_trial"},
    {"default_recipe"},
)
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}

# The strict config decorator comes from huggingface_hub, which transformers itself requires.
TRAVELLING = {
    "numpy",
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    *sys.stdlib_module_names,
}
# Modules that need an extra: the package root does without them, recipes and scripts name them.
BEHIND_EXTRAS = {"ann_index", "demo_page", "history_store", "redis_store", "service"}
BEHIND_EXTRAS |= {"service_limits", "service_schema"}
EMPTY_NAMES = {"utils", "util", "common", "base", "helpers", "helper", "misc", "core", "tools"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40


def imports(source: str) -> list[str]:
    """Every imported module; one of this package starts with a dot, its root is the dot alone."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
            if node.module == PACKAGE and not node.level:
                # `from modeling_implicitrec import events` may name a module or a public name.
                names = [f"{PACKAGE}.{a.name}" if a.name in FLOOR else PACKAGE for a in node.names]
            elif names == ["."]:
                names = [f".{alias.name}" if alias.name in FLOOR else "." for alias in node.names]
        else:
            continue
        for name in names:
            absolute = name == PACKAGE or name.startswith(f"{PACKAGE}.")
            found.append(f".{name[len(PACKAGE) + 1 :]}" if absolute else name)
    return found


def floor_violations(module: str, source: str) -> list[str]:
    if module not in FLOOR:
        return [f"{module} is on no floor"]
    problems = []
    for name in imports(source):
        if not name.startswith("."):
            continue
        target = name[1:]
        if target not in FLOOR:
            problems.append(
                f"{module} imports {target or 'the package root'}, which is on no floor"
            )
        elif FLOOR[target] >= FLOOR[module]:
            problems.append(
                f"{module} (floor {FLOOR[module]}) imports {target} (floor {FLOOR[target]})"
            )
    return problems


def travelling_violations(source: str) -> list[str]:
    problems = [
        f"imports {name}"
        for name in imports(source)
        if not (name.startswith(".") and name.endswith("_implicitrec"))
        and name.split(".")[0] not in TRAVELLING
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level and node.module is None:
            problems.append(f"line {node.lineno}: `from . import` is not found by remote code")
        absolute = (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").split(".")[0] == PACKAGE
        )
        if (
            absolute
            or isinstance(node, ast.Import)
            and any(a.name.split(".")[0] == PACKAGE for a in node.names)
        ):
            problems.append(f"line {node.lineno}: a sibling is imported by its absolute name")
    return problems


def pickle_violations(source: str) -> list[str]:
    problems = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            allowed = ast.unparse(node.value) != "False"
            problems += [f"line {node.value.lineno}: allow_pickle"] if allowed else []
        readers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
        bad = {"torch.load", "pandas.read_pickle", "pd.read_pickle"}
        for name in names:
            if name.split(".")[0] in readers and not isinstance(node, ast.Attribute) or name in bad:
                problems.append(f"line {node.lineno}: {name}")
    return problems


def long_functions(source: str) -> list[str]:
    """Functions whose code, docstring left out, passes the limit."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if lines > MAX_FUNCTION_LINES:
                problems.append(f"{node.name} has {lines} lines")
    return problems


def modules(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


@modules(MODULES)
def test_a_module_imports_only_from_floors_below(path):
    assert floor_violations(path.stem, path.read_text()) == []


def test_the_package_has_modules_and_no_subpackages():
    assert MODULES
    nested = [path for path in (ROOT / PACKAGE).rglob("*.py") if path.parent != ROOT / PACKAGE]
    assert nested == []


@modules([path for path in MODULES if path.stem.endswith("_implicitrec")])
def test_a_travelling_file_needs_nothing_that_stays_behind(path):
    assert travelling_violations(path.read_text()) == []


@modules(OUTSIDE)
def test_recipes_and_scripts_use_public_names_of_the_package_root(path):
    allowed = {".", *(f".{name}" for name in BEHIND_EXTRAS)}
    assert [
        name for name in imports(path.read_text()) if name.startswith(".") and name not in allowed
    ] == []


def test_the_package_root_needs_no_extra():
    level, reached = {f".{path.stem}": path for path in MODULES}, set()
    waiting = imports((ROOT / PACKAGE / "__init__.py").read_text())
    while waiting:
        name = waiting.pop()
        if name in level and name not in reached:
            reached.add(name)
            waiting += imports(level[name].read_text())
    assert not reached & {f".{name}" for name in BEHIND_EXTRAS}


@modules([*MODULES, *OUTSIDE])
def test_nothing_reads_pickle(path):
    assert pickle_violations(path.read_text()) == []


@modules([ROOT / PACKAGE / "__init__.py", *MODULES, *OUTSIDE, *TESTS])
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert long_functions(source) == []


@modules([*MODULES, *OUTSIDE])
def test_a_file_is_named_after_what_it_holds(path):
    assert path.stem.removesuffix("_implicitrec") not in EMPTY_NAMES


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("events", "from .sequences import build_sequences"),
        ("events", "from .metrics import recall_at_k"),
        ("sequences", "from modeling_implicitrec.evaluation import evaluate"),
        ("sequences", "import modeling_implicitrec.ranking"),
        ("sequences", "from modeling_implicitrec import ranking"),
        ("ranking", "from . import evaluation"),
        ("ranking", "def late():\n    from .evaluation import evaluate"),
        ("ranking", "from modeling_implicitrec import parse_arguments"),
        ("ranking", "from . import parse_arguments"),
        ("ranking", "from .helpers import anything"),
        ("helpers", "import numpy"),
    ],
)
def test_the_floor_checker_sees_a_violation(module, source):
    assert floor_violations(module, source)


def test_the_floor_checker_accepts_what_is_right():
    source = (
        "import numpy\nfrom .events import Events\nfrom modeling_implicitrec.metrics import mrr"
    )
    assert floor_violations("sequences", source) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pandas",
        "def f():\n    from datasets import Dataset",
        "from .events import Events",
        "from . import loss_implicitrec",
        "from modeling_implicitrec.loss_implicitrec import softmax_loss",
    ],
)
def test_the_travelling_checker_sees_a_violation(source):
    assert travelling_violations(source)
    assert (
        travelling_violations(
            "import json\nimport torch\nfrom .loss_implicitrec import softmax_loss"
        )
        == []
    )


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "import dill as d",
    ],
)
def test_the_pickle_checker_sees_a_violation(source):
    assert pickle_violations(source)
    assert pickle_violations("np.load(path, allow_pickle=False)\njson.load(file)") == []


def test_the_length_checker_sees_a_violation():
    body = "    x = 1\n"
    assert long_functions("def f():\n" + body * MAX_FUNCTION_LINES)
    assert long_functions("def f():\n" + body * (MAX_FUNCTION_LINES - 1)) == []
