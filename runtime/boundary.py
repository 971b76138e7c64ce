"""The boundary of the commands: whatever happens inside leaves the process as one message and one exit code.

It imports the standard library alone, so that a broken installation of anything else is a message too.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

from .errors import (
    InputError,
    InterruptError,
    ResourceError,
    UsageError,
    VaefixError,
    VaefixWarning,
    in_one_line,
    is_out_of_memory,
)

FAULT = 5
"""The exit code of a fault of vaefix itself: an error that is not a VaefixError and that nothing below makes one."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_OTHER_OUTPUT = "choose another place for the output, or make room"


def guarded(work: Callable[[], object], *, as_json: bool) -> NoReturn:
    """Do the work of a command and exit.

    work: returns an exit code, or anything else for 0. What it raises becomes a message on stderr and an exit code, see
        `errors`; an error of memory or disk, of whatever library, is a ResourceError.
    as_json: an error is one JSON object on stdout as well: `{"error": {"kind", "exit_code", "source", "reason", "remedy"}}`.
    Warnings and logs of other packages are not shown, those of vaefix are, each as a line.
    """
    try:
        with _quiet(), _streams():
            code = work()
            sys.stdout.flush()  # what is left in its buffer fails here, if it must, and not when the process ends
        sys.exit(code if isinstance(code, int) else 0)
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        _fail(error, as_json=as_json)


def _fail(error: BaseException, *, as_json: bool) -> NoReturn:
    if os.environ.get("VAEFIX_TRACEBACK"):
        traceback.print_exception(error)
    known = as_vaefix_error(error)
    code = known.exit_code
    if isinstance(known, InterruptError):
        with suppress(ValueError):  # not in the main thread, which alone is interrupted
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one would cut the message off
    if not known.reason:  # a command without arguments has shown its help
        sys.exit(code)
    with suppress(OSError, ValueError):  # nothing is left to say it on
        print(f"error: {known}", file=sys.stderr)
    if as_json:
        facts = {"source": known.source, "reason": known.reason, "remedy": known.remedy}
        with suppress(OSError, ValueError):  # the message is on stderr
            print(json.dumps({"error": {"kind": type(known).__name__, "exit_code": code, **facts}}))
    _discard(sys.stdout)
    sys.exit(code)


class _FaultError(VaefixError):
    """A fault of vaefix."""

    exit_code = FAULT


def as_vaefix_error(error: BaseException) -> VaefixError:
    """The error itself, or what an error of Python, the command-line library or an engine means to a user."""
    if isinstance(error, VaefixError):
        return error
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return InterruptError("stopped", remedy="the same command begins again")
    if hasattr(error, "format_message"):  # how click, also as a part of typer, refuses a command line
        return UsageError(error.format_message(), remedy="--help lists the options")
    text = str(error) or type(error).__name__
    if is_out_of_memory(error):
        reason = f"out of memory ({_first_line(text)})"
        return ResourceError(reason, remedy="close other programs, or ask for less at a time")
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, ImportError):
        reason = f"{error.name or 'a package'} cannot be imported ({_first_line(text)})"
        return InputError(reason, source="installation", remedy="install vaefix again in a new virtual environment")
    remedy = "please report it with this line; VAEFIX_TRACEBACK=1 in the environment shows where it happened"
    return _FaultError(f"a fault of vaefix: {type(error).__name__}: {_first_line(text)}{_place(error)}", remedy=remedy)


def _of_system(error: OSError) -> VaefixError:
    reason = f"{error.strerror or error}"
    if isinstance(error, BrokenPipeError):
        return ResourceError("the reader of the output closed it", source="standard output", remedy="read it to its end")
    if error.errno in _NO_SPACE:
        return ResourceError(reason, source=error.filename or "standard output", remedy=_OTHER_OUTPUT)
    return InputError(reason, source=error.filename, remedy="check that it is there, readable, and what it should be")


def _first_line(text: str) -> str:
    return in_one_line(text, 500)


def _place(error: BaseException) -> str:
    """Where in vaefix, for a report."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.sep + "site-packages" not in frame.filename]
    return f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""  # noqa: PTH119


@contextmanager
def _quiet() -> Iterator[None]:
    """Only what vaefix itself warns of reaches the screen, without the file and line, which help nobody at a terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", VaefixWarning)
            warnings.showwarning = _show
            yield
    finally:
        logging.disable(before)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


@contextmanager
def _streams() -> Iterator[None]:
    """Standard streams that take every character, and are there.

    Raises ResourceError where standard output is closed: the next file that is opened would take its place.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        raise ResourceError("it is closed", source="standard output", remedy="send it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot show a character of a file name shows its code
            stream.reconfigure(errors="backslashreplace")
    yield


def _discard(stream: TextIO | None) -> None:
    """What cannot be written is dropped; otherwise Python reports it once more when it exits."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), 1)
