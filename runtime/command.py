"""What the commands share: how an error leaves the process, and options that all have."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from .boundary import guarded
from .errors import InterruptError, UsageError, VaefixWarning
from .versions import outside_known


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit, see `boundary.guarded`.

    arguments: the command line without the program's name; by default that of the process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    guarded(lambda: call(app, words, None), as_json="--json" in words)


def call(app: typer.Typer, arguments: Sequence[str], program: str | None) -> object:
    """The exit code of a command, or what else it returns; errors are raised. program: its name in messages.

    Versions of packages that are not known to work are warned of first.
    """
    for sentence in outside_known():
        warnings.warn(sentence, VaefixWarning, stacklevel=2)
    code = app(arguments, prog_name=program, standalone_mode=False)
    if code == InterruptError.exit_code:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vaefix {version('vaefix')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")]
"""An option of every command."""
SETTINGS = {"help_option_names": ["-h", "--help"]}
"""Of every command."""
MOST_PIXELS = 10**7
"""Along a side; what is more is a slip of the finger, and what is less may still be too much for the memory there is."""


def size_in_bytes(text: str, *, source: str) -> int:
    """`4GB`, `3.5GiB`, `800MB` or `512MiB` in bytes. Raises RequestError naming `source` for anything else, and for nothing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG])(i?)B", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** (2 if match[2] in "mM" else 3)) if match else 0
    if not size:
        raise UsageError(f"{text!r} is not a size", source=source, remedy="write it as in 4GB, 3.5GiB or 800MB")
    return size
