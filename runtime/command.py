"""What the three commands share: how an error leaves the process, and the progress bar."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .errors import ResourceError, UsageError, VaefixError


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: a VaefixError becomes its message on stderr and its `exit_code`.

    arguments: the command line without the program's name; by default that of the process.
    Running out of memory is a ResourceError. Exit code 2 (wrong usage) and the usage message stay with typer.
    """
    # Without the file and line of this package, which help nobody at a terminal.
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app(arguments)
    except MemoryError as error:
        _fail(ResourceError(f"out of memory ({error})", remedy="close other programs, or ask for less at a time"))
    except VaefixError as error:
        _fail(error)


def _fail(error: VaefixError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def size_in_bytes(text: str, *, source: str) -> int:
    """`4GB`, `3.5GiB`, `800MB` or `512MiB` in bytes. Raises RequestError naming `source` for anything else, and for nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])(i?)B", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** (2 if match[2] in "mM" else 3)) if match else 0
    if not size:
        raise UsageError(f"{text!r} is not a size", source=source, remedy="write it as in 4GB, 3.5GiB or 800MB")
    return size


def progress() -> Progress:
    """A bar on stderr, silent when stderr is not a terminal. Use it as a context manager and add tasks to it."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
