"""A verdict as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from ..verdict import Verdict
from .summary import legible, numbers, rows

_STYLES = {"passed": "green", "not compared": "yellow", "failed": "bold red"}


def to_table(verdict: Verdict) -> Table:
    """One row per component and kind of comparison, with the numbers of its worst output."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in ("component", "kind", "result"):
        table.add_column(column, no_wrap=True)
    table.add_column("worst output", overflow="fold")
    for column in ("max abs", "relative", "PSNR dB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(verdict):
        status = Text(row.worst.status, style=_STYLES[row.worst.status])
        # Text, because a plain string may hold markup of the terminal's.
        names = (Text(legible(name)) for name in (row.component, row.kind, row.worst.output))
        component, kind, output = names
        table.add_row(component, kind, status, output, *numbers(row.worst))
    return table
