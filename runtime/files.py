"""Files: whether one may be put somewhere, or read there; written so that they appear under their name whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


def is_writable(path: Path) -> bool:
    """Whether `whole` can put a file there, as far as permissions say."""
    final = Path(os.path.realpath(path))
    return all(os.access(place, os.W_OK) for place in (final, final.parent) if place.exists())


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, all links followed, is the folder or in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def file_above(path: Path) -> Path | None:
    """What is no folder where this path, which need not exist, has one."""
    nearest = next((folder for folder in path.parents if os.path.exists(folder)), None)  # noqa: PTH110 (never raises)
    return None if nearest is None or nearest.is_dir() else nearest


def require_regular(path: Path) -> None:
    """Raise OSError for what is no regular file, and what is not there: a pipe that nobody writes to would be read for ever."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))


@contextmanager
def whole(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to; the file there becomes `path` when the block ends, and is removed if it raises.

    replace: what has the name already; of a link, what it leads to. Otherwise that raises FileExistsError.
    """
    final = Path(os.path.realpath(path)) if replace else path
    temporary = final.with_name(f".vaefix-{uuid4().hex}")
    try:
        yield temporary
        if replace:
            temporary.replace(final)
        else:
            _link(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, final: Path) -> None:
    """Unlike a rename, a second name never replaces; where the file system has none, what is there is looked for first."""
    with suppress(OSError):
        final.hardlink_to(temporary)
        return
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    temporary.rename(final)
