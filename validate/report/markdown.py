"""A verdict as Markdown, for a comment on a pull request."""

from __future__ import annotations

import re

from ..verdict import Verdict
from .summary import legible, numbers, outcome, reasons, rows, sentence

_SIGNS = {"passed": "✅", "not compared": "⚠️", "failed": "❌"}
# Every character that Markdown, HTML or GitHub could read as more than itself; an underscore only at the edge of a word.
_SPECIAL = re.compile(r"[^A-Za-z0-9./_-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_REASONS = 40
"""More would not fit in a comment of GitHub's, which holds 65,536 characters."""


def to_markdown(verdict: Verdict) -> str:
    """The verdict, a table with a row per component and kind of comparison, and the reasons of what did not pass."""
    status = outcome(verdict)
    head = f"### {_SIGNS[status]} vaefix-validate: {status}"
    about = f"{_code(verdict.artifact)} against {_code(verdict.reference)}, made for {_code(verdict.target)}"
    return "\n\n".join([head, f"{sentence(verdict)} {about}", *_table(verdict), *_reasons(verdict)]) + "\n"


def _table(verdict: Verdict) -> list[str]:
    lines = [
        "| component | kind | result | worst output | max abs | relative | PSNR dB |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for row in rows(verdict):
        worst = row.worst
        cells = (
            _code(row.component),
            _code(row.kind),
            f"{_SIGNS[worst.status]} {worst.status}",
            _code(worst.output),
            *numbers(worst),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines)] if len(lines) > 2 else []


def _reasons(verdict: Verdict) -> list[str]:
    """A fenced block, in which nothing is markup; each line begins with a status, so none of them ends it."""
    lines = list(reasons(verdict))
    if not lines:
        return []
    more = [f"... and {len(lines) - _REASONS} more"] if len(lines) > _REASONS else []
    return ["\n".join(["```text", *lines[:_REASONS], *more, "```"])]


def _code(text: str) -> str:
    """Text that may come from an artifact, as itself; HTML, because a code span cannot hold every pipe and backtick."""
    escaped = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", legible(text))
    return f"<code>{escaped}</code>" if escaped else ""
