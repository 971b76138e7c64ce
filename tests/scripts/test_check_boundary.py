"""check_boundary.py: each way for a traceback to reach a user is found."""

from __future__ import annotations

import pytest
from check_boundary import faults, main, scripts

ENTRY = "def main():\n    _start('x')\n\ndef _start(name):\n    guarded(name)\n"


def test_the_packages_have_none() -> None:
    assert main() == 0


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("main/__main__.py", "import typer", "imports typer before the boundary"),
        ("runtime/errors.py", "from .session import Session", r"imports .session before the boundary"),
        ("convert/cli.py", "if __name__ == '__main__':\n    app()", "runs something else"),
        ("convert/cli.py", "def main():\n    'Run.'\n    app()", "does something else than run"),
        ("convert/cli.py", "app = typer.Typer(add_completion=False)", "a Typer without"),
        ("convert/x.py", "try:\n    f()\nexcept Exception:\n    pass", "catches everything"),
        ("convert/x.py", "try:\n    f()\nexcept (OSError, BaseException):\n    pass", "catches everything"),
        ("convert/x.py", "try:\n    f()\nexcept:\n    pass", "catches everything"),
        ("convert/x.py", "try:\n    f()\nexcept OSError as error:\n    raise ValueError from error", "raises ValueError"),
        ("convert/x.py", "import traceback\ntraceback.print_exc()", "print_exc"),
        ("convert/x.py", "from threading import Thread", "Thread"),
        ("convert/x.py", "class X:\n    def __del__(self): pass", "__del__"),
    ],
)
def test_what_could_pass_the_boundary_is_found(name: str, text: str, found: str) -> None:
    assert any(found in line for line in faults(name, text)), list(faults(name, text))


def test_a_console_script_ends_in_the_boundary() -> None:
    project = '[project.scripts]\nvaefix = "vaefix.__main__:main"\n'
    assert list(scripts(project, ENTRY)) == []
    assert len(list(scripts(project.replace("__main__:main", "convert.cli:main"), ENTRY))) == 1
    assert len(list(scripts(project, ENTRY.replace("_start('x')", "app()")))) == 1
    assert len(list(scripts(project, ENTRY.replace("guarded(name)", "name()")))) == 1
