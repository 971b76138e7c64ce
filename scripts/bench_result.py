"""What a benchmark found: tables, and the limits that the project promises to keep."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from process_tree import Usage
from rich.console import Console
from rich.table import Table

GIB = 1 << 30
USAGE = ("wall s", "CPU s", "peak anon GiB", "peak resident GiB")
"""The headings of `cells`."""


@dataclass(frozen=True)
class Limit:
    """A promise: `measured` must not exceed `limit`."""

    name: str
    measured: float
    limit: float

    @property
    def kept(self) -> bool:
        """False for NaN too."""
        return self.measured <= self.limit


@dataclass(frozen=True)
class Result:
    """rows: dataclasses, as they go to the file.  tables: the same to look at."""

    rows: Sequence[Any]
    tables: Sequence[Table]
    limits: Sequence[Limit]

    def save(self, file: Path) -> None:
        """Write rows and limits as JSON, and on what machine they were measured."""
        machine = {"system": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
        rows, limits = ([asdict(item) for item in items] for items in (self.rows, self.limits))
        file.write_text(json.dumps({"machine": machine, "rows": rows, "limits": limits}, indent=1) + "\n", encoding="utf-8")

    def show(self) -> None:
        """Print the tables, and one of the limits."""
        lines = [
            (limit.name, f"{limit.measured:.3f}", f"{limit.limit:.3f}", "kept" if limit.kept else "EXCEEDED")
            for limit in self.limits
        ]
        console = Console(width=120)
        for shown in (*self.tables, table("limits", ("limit", "measured", "at most", ""), lines)):
            console.print(shown)


def cells(usage: Usage) -> tuple[str, str, str, str]:
    """What a process cost, under the headings of `USAGE`."""
    times = (f"{usage.wall_seconds:.1f}", f"{usage.cpu_seconds:.1f}")
    return (*times, f"{usage.peak_anonymous / GIB:.3f}", f"{usage.peak_resident / GIB:.2f}")


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is a name; the others are numbers."""
    result = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        result.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result
