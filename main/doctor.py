"""`vaefix doctor`: what is installed here, and what it can do."""

from __future__ import annotations

import typer

from vaefix.runtime.command import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command() -> None:
    """Say what is installed here, what it can run, and whether it is known to work."""


def main() -> None:
    """The console script."""
    run(app)
