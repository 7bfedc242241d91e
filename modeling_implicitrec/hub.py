"""Checkpoint folders: saved whole or not at all, with a card filled from measured results."""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .events import CleaningReport
from .modeling_implicitrec import ImplicitRecForScoring
from .pretrained_implicitrec import ImplicitRecPreTrainedModel
from .processing_implicitrec import ImplicitRecProcessor

TEMPLATE = Path(__file__).with_name("model_card_template.md")
NOT_MEASURED = "not measured"
PROTOCOLS = {
    "all": "repeats allowed",
    "new": "new items only",
    "repeated": "repeated items only",
}
LIST_METRICS = ("coverage", "novelty", "gini")  # of all lists together; the others are user means
EXAMPLE_ITEMS = 3
PLOT = "plots/training.png"
# Files of an earlier save that would be read beside, or instead of, those of a new one.
STALE = re.compile(r"model.*\.safetensors(\.index\.json)?|\w+_implicitrec\.py")
LAST_IN = ("processor_config.json", "config.json")  # nothing loads before these are there


def save_checkpoint(
    folder: str | os.PathLike, *, model: ImplicitRecPreTrainedModel, processor: ImplicitRecProcessor
) -> Path:
    """Save a model and its processor; nobody ever loads half of one checkpoint and half of another.

    The files are written beside the folder and then moved in, `config.json` last, so that a load
    in between fails instead of mixing. An error puts the earlier files back. Other files of the
    folder, such as results and Trainer's `checkpoint-*`, are kept.

    Args:
        folder: made where it is missing.
        model: with the vocabulary of `processor`.
        processor: saved into the same folder.

    Raises:
        ValueError: if model and processor do not belong together, or `folder` is a file.
    """
    processor.check_model(model.config)
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"folder must be a folder or not exist, got the file {target.name!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    fresh = staging / "new"
    try:
        fresh.mkdir()
        model.save_pretrained(fresh)
        processor.save_pretrained(fresh)
    except BaseException:
        shutil.rmtree(staging)
        raise
    if target.exists():
        _replace_files(fresh, target, aside=staging / "old")
    else:
        os.rename(fresh, target)
    shutil.rmtree(staging)
    return target


def _replace_files(fresh: Path, target: Path, *, aside: Path) -> None:
    """Move the files of `fresh` into `target` and the ones they replace to `aside`, or nothing."""
    names = sorted((path.name for path in fresh.iterdir()), key=_place)
    old = (path.name for path in target.iterdir())
    leaving = [name for name in old if name in names or STALE.fullmatch(name)]
    leaving.sort(key=_place, reverse=True)  # what loading starts from goes first and comes last
    moves = [(target / name, aside / name) for name in leaving]
    moves += [(fresh / name, target / name) for name in names]
    aside.mkdir()
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            os.rename(source, destination)
            done.append((source, destination))
    except BaseException:
        for source, destination in reversed(done):
            os.rename(destination, source)
        shutil.rmtree(aside.parent)
        raise


def _place(name: str) -> int:
    return LAST_IN.index(name) if name in LAST_IN else -1


def write_model_card(
    folder: str | os.PathLike,
    *,
    model: ImplicitRecForScoring,
    processor: ImplicitRecProcessor,
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    data_report: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> Path:
    """Write `README.md`, a model card whose every number comes from the arguments.

    It shows the picture that [`plot_training`] made, where there is one in the folder.

    Args:
        folder: of the checkpoint; its name is the model's in the card.
        model: for its configuration and size.
        processor: for the catalogue and the example, which uses its most frequent items.
        results: of the test part: by protocol (`"all"`, `"new"`, `"repeated"`), then by scorer,
            `EvaluationResult.to_dict()`. The first scorer is the model, the others baselines; its
            `"groups"`, where it has them, are what `EvaluationResult.by_group` gives.
        data_report: `CleaningReport.to_dict()`.
        training: settings really used by name; `"users"` is the number of users trained on, `"period"`
            the first and the last day of their events, `"differential privacy"` a plan's `to_dict()`,
            `"privacy audit"` what `scripts/audit_privacy.py` found.
        license: that you give the weights, by its Hub identifier; by default the card claims none.

    Returns:
        The path of the card.

    Raises:
        ValueError: if a protocol is unknown or has no scorer, the report does not add up, or model
            and processor do not belong together.
    """
    processor.check_model(model.config)
    _check_results(results)
    target = Path(folder).resolve() / "README.md"
    name = _one_line(target.parent.name) or "implicitrec"
    data = ModelCardData(
        license=license,
        library_name="transformers",
        tags=["recommendation", "implicit-feedback", "implicitrec"],
        model_name=name,
        eval_results=_eval_results(results) or None,
    )
    settings = {name: NOT_MEASURED if x is None else x for name, x in (training or {}).items()}
    about = {name: settings.pop(name, NOT_MEASURED) for name in ("users", "period")}
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=_escape(name),
        config=model.config,
        num_parameters=f"{sum(p.numel() for p in model.parameters()):,}",
        histories=_example_histories(processor),
        exclude_seen=model.config.exclude_seen or bool(results) and "all" not in results,
        not_measured=NOT_MEASURED,
        data=_data_rows(processor, data_report, about),
        notes=_table(("note", "value"), _named((data_report or {}).get("notes", {}))),
        accuracy=_protocol_tables(results, of_lists=False),
        lists=_protocol_tables(results, of_lists=True),
        groups=_group_tables(results),
        **_how_made(settings, target.parent),
    )
    return _write_text(target, card.content)


def _write_text(target: Path, text: str) -> Path:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    return target


def _check_results(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    for protocol, scorers in results.items():
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocols must be among {list(PROTOCOLS)}, got {protocol!r}")
        if not scorers:
            raise ValueError(f"protocol {protocol!r} must have the model's result, got none")


def _eval_results(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[EvalResult]:
    """The model's own metrics as the Hub's `model-index` holds them."""
    return [
        EvalResult(
            task_type="recommendation",
            task_name="Recommendation",
            dataset_type="implicit-feedback",
            dataset_name=f"Test part of the log, {PROTOCOLS[protocol]}",
            dataset_config=protocol,
            dataset_split="test",
            metric_type=_one_line(key),
            metric_name=_one_line(key),
            metric_value=float(value),
        )
        for protocol, scorers in results.items()
        for key, value in next(iter(scorers.values()))["metrics"].items()
        if math.isfinite(value)
    ]


def _example_histories(processor: ImplicitRecProcessor) -> str:
    """Python source of a batch of one history, on one line and without a backtick."""
    count = min(EXAMPLE_ITEMS, processor.vocab_size - 1)
    items = processor.decode_items(range(1, count + 1))
    return ascii([[item if isinstance(item, str) else int(item) for item in items]]).replace(
        "`", "\\x60"
    )


def _data_rows(
    processor: ImplicitRecProcessor,
    data_report: Mapping[str, Any] | None,
    about: Mapping[str, Any],
) -> str:
    """The table of what the model was trained on."""
    rows: list[tuple[str, Any]] = []
    if data_report is None:
        rows += [("events in the log", NOT_MEASURED), ("events kept", NOT_MEASURED)]
    else:
        report = CleaningReport(**data_report)
        rows += [("events in the log", report.rows_in)]
        rows += [(f"dropped: {reason}", count) for reason, count in report.dropped.items()]
        rows += [("events kept", report.rows_out)]
    rows += [("events that vocabulary and weights are fitted on", int(processor.item_counts.sum()))]
    period = about["period"]
    rows += [
        ("days of the training events", period if isinstance(period, str) else " to ".join(period))
    ]
    rows += [("users trained on", about["users"])]
    rows += [("items", processor.vocab_size - 1)]
    rows += [("event types", ", ".join(map(str, processor.event_types)) or "none told apart")]
    if processor.platforms:
        rows += [("platforms", ", ".join(map(str, processor.platforms)))]
    return _table(("", "number"), [(_escape(name), _value(value)) for name, value in rows])


def _protocol_tables(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], *, of_lists: bool
) -> list[dict[str, str]]:
    """Title, number of users and table of each protocol: a row a metric, a column a scorer."""
    tables = []
    for protocol, scorers in results.items():
        keys = dict.fromkeys(key for result in scorers.values() for key in result["metrics"])
        rows = [
            (_escape(key), *(_measured(result, key) for result in scorers.values()))
            for key in keys
            if (key.split("@")[0] in LIST_METRICS) == of_lists
        ]
        users = next(iter(scorers.values())).get("num_users")
        tables.append(
            {
                "title": PROTOCOLS[protocol].capitalize(),
                "users": NOT_MEASURED if users is None else f"{users:,}",
                "table": _table(("metric", *map(_escape, scorers)), rows),
            }
        )
    return tables


def _group_tables(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Of each protocol the model's metrics for groups of users: a row a metric, a column a group."""
    tables = []
    for protocol, scorers in results.items():
        groups = next(iter(scorers.values())).get("groups", {})
        keys = dict.fromkeys(key for group in groups.values() for key in group["metrics"])
        rows = [("users", *(f"{group['num_users']:,}" for group in groups.values()))]
        rows += [(_escape(key), *(_measured(g, key) for g in groups.values())) for key in keys]
        if groups:
            table = _table(("history", *map(_escape, groups)), rows)
            tables.append({"title": PROTOCOLS[protocol], "table": table})
    return tables


def _how_made(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The plan of a private training, the tables of an audit and of all other settings, the plot."""
    others = dict(settings)
    plan, audit = others.pop("differential privacy", None), others.pop("privacy audit", None)
    table = _table(("setting", "value"), _named(others))
    plot = PLOT if (folder / PLOT).is_file() else ""
    audited = _audit_table(audit) if audit else ""
    return {"plan": plan, "audit": audited, "training": table, "plot": plot}


def _audit_table(audit: Mapping[str, Any]) -> str:
    """How well attacks told the users of the training from others."""
    attacks = {name: audit[name] for name in ("loss threshold", "calibrated")}
    attacks["planted canaries"] = audit["exposure in bits"]["auc"]
    rows = [
        (name, f"{one['auc']:.3f} [{one['interval'][0]:.3f}, {one['interval'][1]:.3f}]")
        for name, one in attacks.items()
    ]
    return _table(("attack", "AUC"), rows)


def _measured(result: Mapping[str, Any], key: str) -> str:
    """A metric with its interval where it has one."""
    value = result["metrics"].get(key)
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    low, high = result.get("intervals", {}).get(key, (math.nan, math.nan))
    interval = f" [{low:.4f}, {high:.4f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.4f}{interval}"


def _named(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(_escape(name), _value(value)) for name, value in values.items()]


def _value(value: Any) -> str:
    """Whole numbers with thousands separators, what a mapping names, all else as it prints."""
    if isinstance(value, Mapping):
        parts = {n: f"{v:.4f}" if isinstance(v, float) else _value(v) for n, v in value.items()}
        return ", ".join(f"{_escape(name)} {part}" for name, part in parts.items())
    whole = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if whole else _escape(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are escaped already, or nothing without rows."""
    if not rows:
        return ""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _one_line(value: Any) -> str:
    """Text without line breaks, control characters and broken surrogates."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _escape(value: Any) -> str:
    """Text that Markdown and HTML show as it is, in a heading or a table cell."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", _one_line(value))
