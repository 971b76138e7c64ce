"""The command in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from vaefix import __main__ as commands

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run `vaefix doctor` with words: the exit code, and what it printed."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["vaefix", "doctor", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            commands.main()
        return int(caught.value.code or 0), capsys.readouterr().out

    return run
