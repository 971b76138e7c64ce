"""boundary.py: one message and one exit code, whatever happens inside a command."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest

from vaefix.runtime.boundary import guarded
from vaefix.runtime.errors import InterruptError, ModelError, RequestError, UsageError, VaefixWarning


def run(work: Callable[[], object], *, as_json: bool = False) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as caught:
        guarded(work, as_json=as_json)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def raising(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("bad", source="--steps"), 2, "--steps: bad"),
        (RequestError("bad"), 3, "bad"),
        (InterruptError("stopped"), 130, "stopped"),
        (KeyboardInterrupt(), 130, "stopped"),
        (MemoryError("Unable to allocate 8 GiB"), 4, "out of memory (Unable to allocate 8 GiB)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 4, "out of memory"),
        (RuntimeError("std::bad_alloc"), 4, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "out.bin"), 4, "out.bin: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "standard output: No space left on device"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 4, "standard output: "),
        (PermissionError(errno.EACCES, "Permission denied", "unet"), 3, "unet: Permission denied"),
        (ModuleNotFoundError("No module named 'rich'", name="rich"), 3, "installation: rich cannot be imported"),
        (ZeroDivisionError("division by zero"), 5, "a fault of vaefix: ZeroDivisionError: division by zero (test_boundary.py"),
        (KeyError("x\ny"), 5, "a fault of vaefix: KeyError"),
        (AssertionError(), 5, "a fault of vaefix: AssertionError"),
    ],
)
def test_every_error_is_one_message_and_one_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"error: {said}")
    assert output.err.count("error: ") == 1
    assert "Traceback" not in output.err


def test_an_error_is_a_json_object_too_where_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ModelError("no weights", source="unet", remedy="give some")), as_json=True) == 3
    facts = {"kind": "ModelError", "exit_code": 3, "source": "unet", "reason": "no weights", "remedy": "give some"}
    assert json.loads(capsys.readouterr().out) == {"error": facts}


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_what_the_work_returns_is_the_exit_code(result: object, code: int) -> None:
    assert run(lambda: result) == code


def test_only_what_vaefix_warns_of_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        warnings.warn("of another package", stacklevel=1)
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        logging.getLogger("another").warning("falling back")
        warnings.warn("unet runs on the CPU", VaefixWarning, stacklevel=1)

    before = warnings.showwarning
    assert run(work) == 0
    assert capsys.readouterr() == ("", "warning: unet runs on the CPU\n")
    assert warnings.showwarning is before
    assert logging.getLogger("another").isEnabledFor(logging.WARNING)


def test_the_traceback_is_for_those_who_ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VAEFIX_TRACEBACK", "1")
    assert run(raising(ValueError("inside"))) == 5
    assert "Traceback" in capsys.readouterr().err


_PRINT = "from vaefix.runtime.boundary import guarded; guarded(lambda: print('x' * 10), as_json=False)"


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "standard output: it is closed"), (">/dev/full", "standard output: No space left"), ("| true", "closed it")],
)
def test_output_that_nobody_can_read_is_an_error_of_its_own(redirection: str, reason: str) -> None:
    script = f'set -o pipefail; {sys.executable} -c "{_PRINT}" {redirection}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("error: ")) == (4, 1)
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
