"""A verdict as JSON, as a table and as sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

from .verdict import Comparison, Verdict

_STYLES = {"passed": "green", "not compared": "yellow", "failed": "bold red"}  # from good to bad


def to_json(verdict: Verdict) -> str:
    """One JSON object: what was compared, every number, every limit and its evidence. NaN and inf are strings."""
    body = asdict(verdict) | {"passed": verdict.passed, "exit_code": verdict.exit_code}
    for entry, comparison in zip(body["comparisons"], verdict.comparisons, strict=True):
        entry["status"] = comparison.status
    return json.dumps(_plain(body), indent=1, allow_nan=False)


def to_table(verdict: Verdict) -> Table:
    """One row per component and kind of comparison, with the numbers of its worst output."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in ("component", "kind", "result"):
        table.add_column(column, no_wrap=True)
    table.add_column("worst output", overflow="fold")
    for column in ("max abs", "relative", "PSNR dB"):
        table.add_column(column, justify="right", no_wrap=True)
    for (component, kind), group in groupby(verdict.comparisons, key=lambda item: (item.component, item.kind)):
        worst = max(group, key=_badness)
        table.add_row(component, kind, f"[{_STYLES[worst.status]}]{worst.status}[/]", worst.output, *_numbers(worst))
    return table


def reasons(verdict: Verdict) -> Iterator[str]:
    """A line for everything that did not pass: what it is, and why."""
    for item in verdict.comparisons:
        if item.status != "passed":
            why = "; ".join(item.failures) if item.obstacle is None else item.obstacle
            yield f"{item.status}: {item.component} {item.kind} {item.output}: {why}"


def _numbers(comparison: Comparison) -> Sequence[str]:
    difference = comparison.difference
    if difference is None:
        return ("", "", "")
    return (f"{difference.max_abs:.1e}", f"{difference.relative:.1e}", f"{difference.psnr_db:.1f}")


def _badness(comparison: Comparison) -> tuple[int, float]:
    """By status, then by relative error; NaN is worst."""
    relative = comparison.difference.relative if comparison.difference else 0.0
    return list(_STYLES).index(comparison.status), math.inf if math.isnan(relative) else relative


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
