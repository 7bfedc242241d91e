"""What cleaning did to a log, as numbers that add up."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CleaningReport:
    """Rows in, rows out and rows dropped per reason, which add up; `notes` holds all the rest.

    Args:
        examples: of each reason that lies in a row alone its first rows, each as the source's name (its
            file), `row` (the first is 1), `column` and `value`.

    Raises:
        ValueError: if `rows_in` is not `rows_out` plus the dropped rows.
    """

    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int | float | str] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        total = self.rows_out + sum(self.dropped.values())
        if self.rows_in != total:
            raise ValueError(
                f"rows_in is {self.rows_in}, but rows out and dropped add up to {total}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def example(self, reason: str) -> str:
        """Where the first row of a reason stands and what it holds; empty where none is known."""
        if not self.examples.get(reason):
            return ""
        first = self.examples[reason][0]
        place = first["file"] if first["row"] is None else f"{first['file']}, row {first['row']}"
        return f"{place}, column {first['column']!r}: {first['value']!r}"

    def __str__(self) -> str:
        rows: list[tuple[str, int | float | str]] = [("rows in", self.rows_in)]
        rows += [(f"  dropped: {reason}", count) for reason, count in self.dropped.items()]
        rows += [("rows out", self.rows_out)]
        rows += [(f"  note: {name}", value) for name, value in self.notes.items()]
        texts = [(f"  first: {reason}", self.example(reason)) for reason in self.examples]
        left = max(len(name) for name, _value in (*rows, *texts))
        right = max(len(f"{value:,}") for _name, value in rows if not isinstance(value, str))
        cells = [(n, v if isinstance(v, str) else f"{v:>{right},}") for n, v in (*rows, *texts)]
        return "\n".join(f"{name:<{left}}  {value}" for name, value in cells)
