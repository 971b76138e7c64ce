"""Where reports and saved references go: nothing that is there for another purpose is written over."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vaefix.runtime.errors import RequestError, UsageError
from vaefix.runtime.files import is_writable, lies_in

REPORTS = (".html", ".json", ".md", ".xml")
"""The endings of reports."""
SAVED_FORMAT = "vaefix-reference-1"
"""What the metadata of a saved reference say of it."""


def check_report(path: str | Path) -> None:
    """Raises UsageError where no format has this ending, RequestError where no file can be; before the work, not after it."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in REPORTS:
        reason = f"no report is called {suffix}" if suffix else "the name of a report has no ending"
        raise UsageError(reason, source=path, remedy=f"end it in {', '.join(REPORTS)}")
    _require_writable(path, "--report")


def check_saved(path: Path) -> None:
    """Raises RequestError where no file can be, or where there is one that is no saved reference."""
    _require_writable(path, "--save-reference")
    if path.exists() and not _is_saved_reference(path):
        raise RequestError("exists and is no saved reference", source=path, remedy="choose another --save-reference")


def check_apart(outputs: Iterable[Path], artifact: Path, model: Path | None) -> None:
    """Raises UsageError for a file that is given twice, RequestError for one in the model or one of the artifact's own."""
    seen: set[str] = set()
    for path in outputs:
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError("is given for two files", source=path, remedy="choose another name for one of them")
        seen.add(real)
        if model is not None and lies_in(path, model):
            raise RequestError("lies in the model, which is only read", source=path, remedy="choose another folder")
        if path.exists() and lies_in(path, artifact):
            raise RequestError("is a file of the artifact", source=path, remedy="choose another name")


def _require_writable(file: Path, option: str) -> None:
    if file.is_dir() or not file.parent.is_dir() or not is_writable(file):
        raise RequestError("no file can be written there", source=file, remedy=f"choose another {option}")


def _is_saved_reference(path: Path) -> bool:
    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("format") == SAVED_FORMAT
    except (OSError, SafetensorError):
        return False
