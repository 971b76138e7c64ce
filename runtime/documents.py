"""JSON that others wrote: manifests, configs, indices. Read in one way, refused in one way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import VaefixError
from .files import require_regular

_DEEPEST = 64  # of lists and objects in one another; configs have three or four


def read_bytes(path: Path, error: type[VaefixError], *, remedy: str) -> bytes:
    """A small file. Raises what `require_file` does."""
    require_file(path, error, remedy=remedy)
    try:
        return path.read_bytes()
    except OSError as cause:
        reason = f"unreadable ({cause.strerror or cause})"
    raise error(reason, source=path, remedy=remedy)


def require_file(path: Path, error: type[VaefixError], *, remedy: str) -> None:
    """Raises `error` where it is missing or no file: a folder, a pipe, a link that leads nowhere or in a circle."""
    try:
        require_regular(path)
        return
    except (FileNotFoundError, NotADirectoryError):
        reason = f"missing: it is a link to {path.readlink()}, which is not there" if path.is_symlink() else "missing"
    except (OSError, ValueError) as cause:  # ValueError: a name with a zero byte
        reason = f"unreadable ({getattr(cause, 'strerror', None) or cause})"
    raise error(reason, source=path, remedy=remedy) from None


def read_object(path: Path, error: type[VaefixError], *, remedy: str, finite: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object, see `parse`. Raises `error` for any other data."""
    data = parse(read_bytes(path, error, remedy=remedy), error, source=path, remedy=remedy, finite=finite)
    if not isinstance(data, dict):
        raise error("not a JSON object", source=path, remedy=remedy)
    return data


def parse(
    data: bytes,
    error: type[VaefixError],
    *,
    source: str | Path,
    remedy: str,
    finite: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Any:
    """The data in JSON text, which must be UTF-8 without a byte order mark, as the libraries want it.

    finite: refuse NaN and Infinity, which Python reads.  pairs: makes an object of its names and values, or raises ValueError.
    Raises `error` for anything else, and for what later code could not hold: nested too deep, numbers of too many digits.
    """
    try:
        found = json.loads(data.decode(), object_pairs_hook=pairs)
        _check(found, finite=finite)
    except UnicodeDecodeError as cause:
        reason = f"not UTF-8 (byte {cause.start})"
    except RecursionError:
        reason = "not usable JSON (nested too deep)"
    except ValueError as cause:
        reason = f"not valid JSON ({cause})"
    else:
        return found
    raise error(reason, source=source, remedy=remedy) from None


def _check(data: Any, *, finite: bool) -> None:
    """Raise RecursionError or ValueError. Not recursive itself: Python's own limit depends on who calls."""
    level = [data]
    for _ in range(_DEEPEST):
        if finite and any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise ValueError("NaN or Infinity, or a number as large")
        nested = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level = [item for items in nested for item in items]
    if level:
        raise RecursionError
