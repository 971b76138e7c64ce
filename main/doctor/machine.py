"""Memory, disk and the cache folder of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import psutil

_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "anon"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"),
)
"""How Linux says a container's limit, in both generations of control groups: folder, limit, what its processes hold."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the machine, or of the container that this runs in where that has less."""

    total: int
    available: int


@dataclass(frozen=True)
class Disk:
    """A folder that is written to. what: for.  size: bytes that it holds; None for what is not vaefix's own."""

    what: str
    folder: str
    free: int | None
    writable: bool
    size: int | None = None


def memory() -> Memory:
    """What there is, and what of it can be had without swapping."""
    there = psutil.virtual_memory()
    total, available = there.total, there.available
    for folder, limit, own in _GROUPS:
        with suppress(OSError, ValueError, KeyError):  # `max` is no number: no limit
            most = int((folder / limit).read_text("ascii"))
            used = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            if most < total:
                total, available = most, min(available, max(0, most - int(used[own])))
    return Memory(total, available)


def disks() -> tuple[Disk, ...]:
    """Where outputs, cached captures and temporary files go."""
    cache = platformdirs.user_cache_path("vaefix")
    found = [_disk("the working directory", _working()), _disk("the cache", cache, _size(cache))]
    with suppress(FileNotFoundError):  # there is no folder that can be written to
        found.append(_disk("temporary files", Path(tempfile.gettempdir())))
    return tuple(found)


def _working() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was deleted
        return Path()


def _disk(what: str, folder: Path, size: int | None = None) -> Disk:
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = None
    return Disk(what, str(folder), free, there.is_dir() and os.access(there, os.W_OK | os.X_OK), size)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; of those that can be read."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(root, name).lstat().st_size
    return total
