"""Keep clean events in a folder, open them again, and add the rows of new days to them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import ibis

from .cleaning import Cleaner, CleaningOptions
from .cleaning_report import CleaningReport
from .engine import DuckDBEngine, open_duckdb
from .event_columns import ColumnRules
from .event_source import LogSource, by_platform, describe_source
from .events import (
    Events,
    EventSchema,
    Origin,
    Provenance,
    add_notes,
    finish_events,
    join_examples,
    stage_logs,
    store_events,
    with_log_order,
)

MANIFEST = "events.json"
FORMAT = 2


def save_events(events: Events, folder: str | Path) -> None:
    """Keep events in a folder of Parquet shards, whole or not at all.

    What was there before is replaced at the last moment, by the renaming of one file.

    Args:
        events: cleaned by the embedded DuckDB. Those of a Spark session lie where it wrote them.

    Raises:
        ValueError: for events of another engine.
    """
    engine = events.engine
    if not isinstance(engine, DuckDBEngine):
        raise ValueError("only events of the embedded DuckDB are saved; Spark has written its own")
    folder = Path(folder)
    data = f"data-{uuid4().hex}"
    try:
        for name in {"staged", "clean", events.folder}:
            _link_files(Path(engine.path(name)), folder / data / name)
        manifest = {
            "format": FORMAT,
            "data": data,
            "folder": events.folder,
            "buckets": engine.num_buckets,
            "report": events.report.to_dict(),
            "made": asdict(events.made),
        }
        partial = folder / f".{MANIFEST}.{data}"
        partial.write_text(json.dumps(manifest, indent=2, default=sorted) + "\n", encoding="utf-8")
        os.replace(partial, folder / MANIFEST)
    except BaseException:
        shutil.rmtree(folder / data, ignore_errors=True)
        raise
    for old in folder.glob("data-*"):
        if old.name != data:
            shutil.rmtree(old)


def open_events(folder: str | Path, *, memory_limit: str | None = None) -> Events:
    """Events that [`save_events`] kept.

    Raises:
        FileNotFoundError: where the folder holds none.
        ValueError: for another format.
    """
    manifest = _manifest(folder)
    engine = _engine(folder, manifest, memory_limit)
    report = CleaningReport(**manifest["report"])
    return Events(engine, manifest["folder"], report, made=_made(manifest))


def append_events(
    folder: str | Path,
    source: LogSource | Mapping[str, LogSource],
    *,
    memory_limit: str | None = None,
) -> Events:
    """Saved events and the rows of new days: what a log of the old and new rows would have given.

    Nothing is saved yet: give the result to [`save_events`]. Only users with new rows are cleaned again,
    from the rows as they were read. Rare users and items, and what is clipped, are found anew over all.

    Args:
        source: as for `load_events`, with the same columns; of several platforms, those that have
            new rows.
        memory_limit: DuckDB's limit, as in "1GB"; half of the machine's memory when None.

    Raises:
        ValueError: for a log that does not go with the one before.
    """
    manifest = _manifest(folder)
    old = _engine(folder, manifest, memory_limit)
    made = _made(manifest)
    # In the same folder, so that files can be linked.
    new = open_duckdb(memory_limit, folder, buckets=manifest["buckets"])
    logs = by_platform(source)
    chosen = [_origin(made, platform) for platform in logs]
    staged = stage_logs(
        new,
        list(logs.values()),
        chosen,
        first_row=made.rows_in,
        columns=old.stored("staged").columns,
        whole_ids=chosen[0].rules.whole_ids,
    )
    _check_ids(chosen, staged.origins, logs)
    cleaner = _clean_again(old, new, made)
    made = Provenance(
        [*made.origins, *staged.origins],
        made.cleaning,
        made.rows_in + staged.rows,
        dict(cleaner.dropped),
        join_examples(made.examples, staged.examples),
    )
    return finish_events(cleaner, _joined(made))


def _clean_again(old: DuckDBEngine, new: DuckDBEngine, made: Provenance) -> Cleaner:
    """Clean the users who have new rows from all of their rows; take the others as they are."""
    cleaner, before = Cleaner(new, made.cleaning), Cleaner(new, made.cleaning)
    cleaner.dropped = dict(made.dropped)
    cleaner.count_unusable(new.stored("staged"))
    names = {os.path.basename(os.path.dirname(path)) for path in old.shards("staged")}
    fresh = {os.path.basename(os.path.dirname(path)) for path in new.shards("staged")}
    for bucket in sorted(names | fresh):
        past, clean = (os.path.join(old.path(name), bucket) for name in ("staged", "clean"))
        if bucket not in fresh:
            _link_files(Path(clean), Path(new.path("clean"), bucket))
        else:
            rows = new.read("fresh", os.path.join(new.path("staged"), bucket))
            users = new.keep("users", rows.select("user_id").distinct())
            store_events(new, _bucket(cleaner, before, rows, users, past, clean), "clean", bucket)
        _link_files(Path(past), Path(new.path("staged"), bucket))
    for reason, lost in before.dropped.items():
        cleaner.dropped[reason] -= lost
    cleaner.dropped = {reason: lost for reason, lost in cleaner.dropped.items() if lost}
    return cleaner


def _bucket(
    cleaner: Cleaner,
    before: Cleaner,
    rows: ibis.Table,
    users: ibis.Table,
    past: str,
    clean: str,
) -> ibis.Table:
    """A bucket's clean events; `before` counts what the same users had lost so far."""
    engine = cleaner.engine
    assert isinstance(engine, DuckDBEngine)
    if not os.path.isdir(past):
        return cleaner.clean_staged(rows)
    old = engine.keep("own_past", engine.read("past", past).semi_join(users, "user_id"))
    before.clean_staged(old)
    every = engine.keep("own_rows", old.union(rows.select(old.columns)))
    again = cleaner.clean_staged(every)
    if not os.path.isdir(clean):
        return again
    rest = engine.read("settled", clean).anti_join(users, "user_id")
    return rest.union(with_log_order(again).select(rest.columns))


def _origin(made: Provenance, platform: str | None) -> Origin:
    """How the log of a platform was read."""
    for origin in made.origins:
        if origin.rules.platform == platform:
            return replace(origin, rules=replace(origin.rules, notes={}))
    known = [origin.rules.platform for origin in made.origins]
    raise ValueError(f"the events come from the logs {known}, there is none called {platform!r}")


def _check_ids(old: list[Origin], new: list[Origin], logs: Mapping) -> None:
    """Raise where ids that were whole numbers are not any more."""
    for before, after, log in zip(old, new, logs.values()):
        for name in before.rules.whole_ids - after.rules.whole_ids:
            raise ValueError(
                f"{name} is a whole number throughout the events so far, and not in "
                f"{describe_source(log)}: its column is {before.schema.mapped()[name]!r}"
            )


def _joined(made: Provenance) -> Provenance:
    """One origin per platform, with the notes of all its logs added up."""
    origins: dict[str | None, Origin] = {}
    for origin in made.origins:
        first = origins.setdefault(origin.rules.platform, origin)
        if first is not origin:
            notes = first.rules.notes | add_notes(first.rules.notes, origin.rules.notes)
            rules = replace(first.rules, notes=notes)
            origins[origin.rules.platform] = replace(first, rules=rules)
    return replace(made, origins=list(origins.values()))


def _manifest(folder: str | Path) -> dict:
    path = Path(folder, MANIFEST)
    if not path.is_file():
        raise FileNotFoundError(f"no saved events in {folder}: it has no {MANIFEST}")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} has format {manifest.get('format')!r}, expected {FORMAT}")
    return manifest


def _made(manifest: dict) -> Provenance:
    made = manifest["made"]
    origins = []
    for one in made["origins"]:
        rules = one["rules"] | {"whole_ids": frozenset(one["rules"]["whole_ids"]), "unreadable": ()}
        origins.append(Origin(EventSchema(**one["schema"]), ColumnRules(**rules)))
    cleaning = CleaningOptions(**made["cleaning"])
    return Provenance(origins, cleaning, made["rows_in"], made["dropped"], made["examples"])


def _engine(folder: str | Path, manifest: dict, memory_limit: str | None) -> DuckDBEngine:
    data = os.path.join(folder, manifest["data"])
    return open_duckdb(memory_limit, None, data=data, buckets=manifest["buckets"])


def _link_files(source: Path, target: Path) -> None:
    """The files of a folder in another one; on the same disk they are not copied."""
    for path in sorted(source.rglob("*.parquet")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copyfile(path, copy)
