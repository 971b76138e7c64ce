"""A verdict for people and machines: one file per format, each a function of the verdict alone."""

from __future__ import annotations

import os
from pathlib import Path

from vaefix.runtime.errors import RequestError, ResourceError, UsageError

from ..verdict import Verdict
from .html import to_html
from .json import to_json
from .junit import to_junit
from .markdown import to_markdown
from .summary import reasons
from .table import to_table

__all__ = ["check_path", "reasons", "to_html", "to_json", "to_junit", "to_markdown", "to_table", "write"]

_FORMATS = {".html": to_html, ".json": to_json, ".md": to_markdown, ".xml": to_junit}


def check_path(path: str | Path) -> None:
    """Raises RequestError where no format has this ending, or no file can be; for asking before the work, not after it."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        reason = f"no report is called {suffix}" if suffix else "the name of a report has no ending"
        raise UsageError(reason, source=path, remedy=f"end it in {', '.join(_FORMATS)}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError("no file can be written there", source=path, remedy="choose another --report")


def write(verdict: Verdict, path: str | Path) -> None:
    """Write the report in the format that the ending names: .html, .json, .md (Markdown) or .xml (JUnit).

    Raises RequestError for another ending, ResourceError where the file cannot be written.
    """
    check_path(path)
    text = _FORMATS[Path(path).suffix.lower()](verdict)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", source=path, remedy="choose another --report") from None
