"""What every format says of a verdict: the sentence on top, a row per component and kind, the reasons."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from ..budgets import Budget
from ..verdict import Comparison, Status, Verdict

STATUSES: tuple[Status, ...] = ("passed", "not compared", "failed")
"""From good to bad."""
# Control characters, invisible ones that reorder a line, halves of characters, and what is no character.
_ILLEGIBLE = {"Cc", "Cf", "Cs", "Cn"}


@dataclass(frozen=True)
class Row:
    """One component and kind of comparison: its outputs, and the worst of them."""

    component: str
    kind: str
    worst: Comparison
    comparisons: tuple[Comparison, ...]


def outcome(verdict: Verdict) -> Status:
    """The verdict in the words of its comparisons; a failure outweighs what could not be compared, as in `exit_code`."""
    return {0: STATUSES[0], 1: STATUSES[2]}.get(verdict.exit_code, STATUSES[1])


def sentence(verdict: Verdict) -> str:
    """How many comparisons there were, and what became of them."""
    if not verdict.comparisons:
        return "Nothing was compared."
    found = [comparison.status for comparison in verdict.comparisons]
    counts = [f"{found.count(status)} {status}" for status in reversed(STATUSES) if status in found]
    warned = len(list(warnings(verdict)))
    more = [f"{warned} warning{'s' if warned > 1 else ''}"] if warned else []
    return f"{len(found)} comparison{'s' if len(found) > 1 else ''}: {', '.join(counts + more)}."


def rows(verdict: Verdict) -> Iterator[Row]:
    """In the order of the verdict."""
    for (component, kind), group in groupby(verdict.comparisons, key=lambda item: (item.component, item.kind)):
        comparisons = tuple(group)
        yield Row(component, kind, max(comparisons, key=_badness), comparisons)


def reasons(verdict: Verdict) -> Iterator[str]:
    """A line for everything that did not pass: what it is, and why; then the warnings."""
    for item in verdict.comparisons:
        if item.status != "passed":
            name = " ".join(filter(None, (item.component, item.kind, item.output)))
            yield legible(f"{item.status}: {name}: {reason(item)}")
    yield from (f"warning: {warning}" for warning in warnings(verdict))


def warnings(verdict: Verdict) -> Iterator[str]:
    """A line for every warning; once for all outputs of a component."""
    found = (f"{item.component} {item.kind}: {warning}" for item in verdict.comparisons for warning in item.warnings)
    return map(legible, dict.fromkeys(found))


def reason(comparison: Comparison) -> str:
    """Why it did not pass, in one line; empty where it did."""
    return legible("; ".join(comparison.failures) if comparison.obstacle is None else comparison.obstacle)


def numbers(comparison: Comparison) -> tuple[str, str, str]:
    """Max abs, relative error and PSNR in dB; empty where there are none."""
    difference = comparison.difference
    if difference is None:
        return ("", "", "")
    return (f"{difference.max_abs:.1e}", f"{difference.relative:.1e}", f"{difference.psnr_db:.1f}")


def limits(budget: Budget) -> str:
    """What it allows, in one line."""
    parts = []
    if budget.max_abs is not None:
        parts.append(f"max abs up to {budget.max_abs:.1e} of the peak")
    if budget.relative is not None:
        parts.append(f"relative error up to {budget.relative:.1e}")
    if budget.psnr_db is not None:
        parts.append(f"PSNR from {budget.psnr_db:.0f} dB")
    if budget.ssim is not None:
        parts.append(f"SSIM from {budget.ssim:.4f}")
    return ", ".join(parts) or "anything finite"


def legible(text: str) -> str:
    """One line of text that may come from an artifact, with what could forge or break a display made visible."""
    line = "; ".join(part.strip() for part in text.splitlines())
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _ILLEGIBLE else char for char in line)


def _badness(comparison: Comparison) -> tuple[int, float]:
    """By status, then by relative error; NaN is worst."""
    relative = comparison.difference.relative if comparison.difference else 0.0
    return STATUSES.index(comparison.status), math.inf if math.isnan(relative) else relative
