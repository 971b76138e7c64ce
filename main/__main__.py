"""`vaefix convert | run | validate | doctor`, also as `python -m vaefix`; `vaefix-convert` and its like are short forms.

Only the standard library is imported before the boundary: see `runtime/boundary.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from vaefix.runtime.boundary import guarded

COMMANDS = {
    "convert": "vaefix.convert.cli",
    "run": "vaefix.runtime.cli",
    "validate": "vaefix.validate.cli",
    "doctor": "vaefix.doctor",
}
"""Name -> the module that has it, as `app`."""


def main() -> NoReturn:
    """The command `vaefix`."""
    name, rest = (sys.argv[1], sys.argv[2:]) if sys.argv[1:2] and sys.argv[1] in COMMANDS else (None, sys.argv[1:])
    _start(name, rest, "vaefix" if name is None else f"vaefix {name}")


def convert() -> NoReturn:
    """The command `vaefix-convert`."""
    _start("convert", sys.argv[1:], "vaefix-convert")


def run() -> NoReturn:
    """The command `vaefix-run`."""
    _start("run", sys.argv[1:], "vaefix-run")


def validate() -> NoReturn:
    """The command `vaefix-validate`."""
    _start("validate", sys.argv[1:], "vaefix-validate")


def _start(name: str | None, arguments: Sequence[str], program: str) -> NoReturn:
    def work() -> object:
        from vaefix.runtime.command import call

        module = "vaefix.group" if name is None else COMMANDS[name]
        return call(import_module(module).app, arguments, program)

    guarded(work, as_json="--json" in arguments)


if __name__ == "__main__":
    main()
