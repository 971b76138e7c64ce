"""What the commands share: how an error leaves the process, and the progress bar."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .boundary import guarded
from .errors import UsageError


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit, see `boundary.guarded`.

    arguments: the command line without the program's name; by default that of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    guarded(lambda: call(app, words, None), as_json="--json" in words)


def call(app: typer.Typer, arguments: Sequence[str], program: str | None) -> object:
    """The exit code of a command, or what else it returns; errors are raised. program: its name in messages."""
    return app(arguments, prog_name=program, standalone_mode=False)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vaefix {version('vaefix')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")]
"""An option of every command."""


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
