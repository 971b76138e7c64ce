"""Every command as a subcommand of `vaefix`: for `--help` and a wrong name, slower to import than one of them."""

from __future__ import annotations

from importlib import import_module

import typer

from vaefix.runtime.command import Version

from .__main__ import COMMANDS

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Convert SDXL to OpenVINO and ONNX, draw with it, and compare it with PyTorch.",
)


@app.callback(no_args_is_help=True)
def _(version: Version = False) -> None: ...


for _name, _module in COMMANDS.items():
    (_command,) = import_module(_module).app.registered_commands
    app.command(_name, no_args_is_help=_command.no_args_is_help)(_command.callback)
