"""A verdict for people and machines: one file per format, each a function of the verdict alone."""

from __future__ import annotations

from pathlib import Path

from vaefix.runtime.errors import ResourceError
from vaefix.runtime.files import whole

from ..outputs import check_report
from ..verdict import Verdict
from .html import to_html
from .json import to_json
from .junit import to_junit
from .markdown import to_markdown
from .summary import reasons
from .table import to_table

__all__ = ["reasons", "to_html", "to_json", "to_junit", "to_markdown", "to_table", "write"]

_FORMATS = {".html": to_html, ".json": to_json, ".md": to_markdown, ".xml": to_junit}


def write(verdict: Verdict, path: str | Path) -> None:
    """Write the report in the format that the ending names: .html, .json, .md (Markdown) or .xml (JUnit).

    Raises RequestError for another ending, ResourceError where the file cannot be written.
    """
    check_report(path)
    text = _FORMATS[Path(path).suffix.lower()](verdict)
    try:
        with whole(Path(path)) as file:
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", source=path, remedy="choose another --report") from None
