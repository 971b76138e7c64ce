"""`vaefix doctor`: a thin shell over `diagnose`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from vaefix.runtime.command import SETTINGS, Version, run
from vaefix.runtime.progress import Activity, Display, display

from .diagnosis import diagnose
from .show import show

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
BROKEN = 3
"""The exit code where something does not work."""


@app.command(context_settings=SETTINGS)
def command(
    given: Annotated[str | None, typer.Argument(metavar="ARTIFACT|MODEL")] = None,
    with_torch: Annotated[bool, typer.Option("--torch", help="Ask PyTorch as well, which takes seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    version: Version = False,  # noqa: ARG001 (it ends the command)
) -> int:
    """Say what is installed here, whether it is known to work, and what it can run; whether an artifact or a model is whole.

    ARTIFACT is a converted folder, every byte of which is read; MODEL a diffusers folder, of which headers and configs are.

    Exit code 0: what is here works; what may not is said. 3: something is broken, here or in what was given.
    """
    with display() as shown:
        shown.stage(Activity("look at packages and engines"))
        found = diagnose(given, partial(_reading, shown), with_torch=with_torch)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        show(found, Console())
    return BROKEN if found.broken else 0


def _reading(shown: Display, done: int, size: int) -> None:
    """So many bytes of so many have been read."""
    shown.stage(Activity("read its files"))
    shown.reach(done, size)


def main() -> None:
    """The console script."""
    run(app)


if __name__ == "__main__":
    main()
