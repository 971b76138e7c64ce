"""Calling other libraries on what a user gave: their refusals become errors of ours, and their chatter stays out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import VaefixError, in_one_line
from .versions import remedy_or_versions

_LONGEST = 300  # characters of another library's words; some print whole graphs


@contextmanager
def refusals(error: type[VaefixError], what: str, *, source: str | Path, remedy: str) -> Iterator[None]:
    """Whatever is raised inside becomes `error`, saying `what` and then the library's own words; its warnings are dropped.

    Where a package is of a version that is not known to work, the remedy says so in place of blaming the input.
    Errors of ours pass, and so does running out of memory, which is no fault of the input.
    """
    try:
        with quiet():
            yield
    except (VaefixError, MemoryError):
        raise
    except Exception as cause:
        raise error(f"{what} ({words_of(cause)})", source=source, remedy=remedy_or_versions(remedy)) from cause


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log lines below an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def words_of(error: BaseException, *, whole: bool = False) -> str:
    """The error's type and what its message says first, or the whole of it; in one line, cut where it does not end."""
    said = in_one_line(str(error), _LONGEST, whole=whole)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
