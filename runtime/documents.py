"""JSON that others wrote: manifests, configs, indices. Read in one way, refused in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import VaefixError


def read_bytes(path: Path, error: type[VaefixError], *, remedy: str) -> bytes:
    """A small file. Raises `error` where it is missing or unreadable: a folder, a link that leads nowhere or in a circle."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        reason = f"missing: its link leads to {path.readlink()}" if path.is_symlink() else "missing"
    except (OSError, RuntimeError) as cause:
        reason = f"unreadable ({getattr(cause, 'strerror', None) or cause})"
    raise error(reason, source=path, remedy=remedy) from None


def read_json(path: Path, error: type[VaefixError], *, remedy: str) -> Any:
    """A JSON file's data, see `parse`."""
    return parse(read_bytes(path, error, remedy=remedy), error, source=path, remedy=remedy)


def read_object(path: Path, error: type[VaefixError], *, remedy: str) -> dict[str, Any]:
    """A JSON file that holds an object, see `parse`. Raises `error` for any other data."""
    data = read_json(path, error, remedy=remedy)
    if not isinstance(data, dict):
        raise error("not a JSON object", source=path, remedy=remedy)
    return data


def parse(
    data: bytes,
    error: type[VaefixError],
    *,
    source: str | Path,
    remedy: str,
    pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None,
) -> Any:
    """The data in JSON text, in UTF-8 with or without a byte order mark.

    pairs: makes an object of its names and values; may raise ValueError.
    Raises `error` for anything that Python cannot hold as well: nested too deep, numbers of too many digits.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs)
    except UnicodeDecodeError as cause:
        reason = f"not UTF-8 (byte {cause.start})"
    except RecursionError:
        reason = "not usable JSON (nested too deep)"
    except ValueError as cause:
        reason = f"not valid JSON ({cause})"
    raise error(reason, source=source, remedy=remedy) from None
