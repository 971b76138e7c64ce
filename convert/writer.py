"""The staged folder: files are streamed, hashed and journalled beside the output, which appears by one rename.

`OUT.partial/artifact/` holds the files, `OUT.partial/journal.jsonl` those that are complete. A killed conversion
leaves `OUT` untouched; the next one with the same inputs takes up the complete files.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vaefix.runtime.artifact import MANIFEST, FileEntry, sha256_of
from vaefix.runtime.errors import RequestError, ResourceError, VaefixError

BLOCK = 4 << 20
_STAGED = {"lock", "journal.jsonl", "artifact", "replaced"}
_DIRECT = getattr(os, "O_DIRECT", 0)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK = _FULL | {errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}


class Sink:
    """One file being written in blocks: while one block is hashed and written, the next is filled.

    Blocks go past the system's cache where it allows that (O_DIRECT): it takes a tenth of the CPU time, and leaves the
    cache to the model that is being read. A file that was closed without error is on the disk.
    """

    def __init__(self, path: Path, threads: Threads, written: Callable[[int], None]) -> None:
        self._file = _open_direct(path)
        self._threads, self._written = threads, written
        self._digest = hashlib.sha256()
        self._block, self._other = (memoryview(mmap.mmap(-1, BLOCK)) for _ in range(2))  # page-aligned, as O_DIRECT asks
        self._filled = 0
        self._pending: list[Future[None]] = []
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; the buffer may be reused as soon as this returns."""
        left = memoryview(data)
        self.size += len(left)
        self._written(len(left))
        while left:
            count = min(len(left), BLOCK - self._filled)
            self._block[self._filled : self._filled + count] = left[:count]
            self._filled += count
            left = left[count:]
            if self._filled == BLOCK:
                self._wait()
                self._pending = [
                    self._threads.hashing.submit(self._digest.update, self._block),
                    self._threads.writing.submit(_write_all, self._file, self._block),
                ]
                self._block, self._other, self._filled = self._other, self._block, 0

    def pad_to(self, offset: int) -> None:
        """Append zeros up to byte `offset`."""
        self.write(bytes(offset - self.size))

    def finish(self) -> FileEntry:
        """Write what is left and wait for the disk. Returns size and hash of the file."""
        self._wait()
        rest = self._block[: self._filled]
        self._digest.update(rest)
        if _DIRECT:  # the rest is no whole number of disk blocks
            import fcntl  # does not exist where O_DIRECT does not

            fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) & ~_DIRECT)
        _write_all(self._file, rest)
        os.fsync(self._file)
        return FileEntry(self.size, self._digest.hexdigest())

    def close(self) -> None:
        """Close the file, complete or not."""
        wait(self._pending)
        os.close(self._file)

    def _wait(self) -> None:
        for future in self._pending:
            future.result()


@dataclass(frozen=True)
class Threads:
    """One thread that hashes and one that writes, so that each takes its blocks in order."""

    hashing: ThreadPoolExecutor
    writing: ThreadPoolExecutor


def _open_direct(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | _DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system without direct writes answers
            raise
        return os.open(path, flags, 0o644)


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


class Stage:
    """The staged folder of one conversion.

    folder: the artifact to be.  files: what is complete in it.
    """

    def __init__(self, root: Path, files: dict[str, FileEntry], threads: Threads, written: Callable[[int], None]) -> None:
        self.folder, self.files, self._resumed = root / "artifact", files, dict(files)
        self._journal, self._threads, self._written = root / "journal.jsonl", threads, written

    @contextmanager
    def file(self, name: str) -> Iterator[Sink]:
        """Write the file `name` (forward slashes): complete and journalled when the block ends without error."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(Sink(path, self._threads, self._written)) as sink:
            yield sink
            entry = sink.finish()
        self.files[name] = entry
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps([name, asdict(self.files[name])]) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, unless it is there already."""
        if name not in self.files:
            with self.file(name) as sink:
                sink.write(data)

    def verify(self, *, full: bool) -> None:
        """Read back what an earlier attempt wrote; with `full`, every file.

        What this attempt wrote was hashed on its way and comes back from the system's cache, not from the disk.
        Raises ResourceError naming the first file whose bytes are not those that were written.
        """
        for name, entry in self.files.items() if full else self._resumed.items():
            path = self.folder / name
            if path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
                raise ResourceError(
                    "read back other bytes than were written", source=path, remedy="check the disk, convert again"
                )


@contextmanager
def staged(
    output: Path,
    fingerprint: Mapping[str, Any],
    *,
    force: bool = False,
    needed: int = 0,
    written: Callable[[int], None] = lambda _: None,
) -> Iterator[Stage]:
    """A stage beside `output`, renamed to `output` when the block ends without error.

    fingerprint: what the files depend on; files staged under another one are discarded.
    force: replace an existing output, in one step.  needed: bytes that must fit, at least.
    written: called with the number of bytes as they are written.
    Raises RequestError if the output exists or another conversion is writing it, ResourceError for a disk that is full
    or read-only (complete files stay for the next attempt, as they do when the process is killed). After any other
    VaefixError the stage is removed.
    """
    output = output.absolute()
    root = output.with_name(output.name + ".partial")
    _require_free(output, force)
    if root.is_dir() and not {path.name for path in root.iterdir()} <= _STAGED:
        raise RequestError("holds what is not a staged conversion", source=root, remedy="move it, or give another --output")
    lock = FileLock(root / "lock", timeout=0)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RequestError("another conversion is writing here", source=root, remedy="wait for it to end") from None
    except OSError as error:
        raise _disk(error, output) from None
    try:
        with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing:
            stage = Stage(root, _resume(root, fingerprint), Threads(hashing, writing), written)
            _require_room(root, needed - sum(entry.size for entry in stage.files.values()))
            yield stage
        _publish(stage.folder, output)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise _disk(error, output) from error
    except ResourceError:
        raise
    except VaefixError:
        shutil.rmtree(root, ignore_errors=True)
        raise
    else:
        shutil.rmtree(root, ignore_errors=True)
    finally:
        lock.release()


def _require_free(output: Path, force: bool) -> None:
    """Raise RequestError for an output that exists, unless it is an artifact, or empty, and `force` replaces it."""
    if not os.path.lexists(output):
        return
    if not force:
        raise RequestError("the output exists", source=output, remedy="give another --output, or --force to replace it")
    ours = not output.is_symlink() and output.is_dir() and ((output / MANIFEST).is_file() or not any(output.iterdir()))
    if not ours:
        reason = "exists and is no artifact of vaefix, so --force does not replace it"
        raise RequestError(reason, source=output, remedy="move it, or give another --output")


def _require_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        reason = f"{needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free"
        raise ResourceError(reason, source=root, remedy="make room or choose another --output")


def _resume(root: Path, fingerprint: Mapping[str, Any]) -> dict[str, FileEntry]:
    """The complete files of an earlier attempt with the same fingerprint; everything else in the stage is removed."""
    journal, text = root / "journal.jsonl", json.dumps(fingerprint, sort_keys=True)
    files: dict[str, FileEntry] = {}
    lines = journal.read_text(encoding="utf-8").split("\n") if journal.exists() else []
    if lines and lines[0] == text:
        for line in lines[1:-1]:  # the last one is empty, or was cut short
            name, entry = json.loads(line)
            files[name] = FileEntry(**entry)
    for path in sorted((root / "artifact").rglob("*"), reverse=True):
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
            continue
        name = path.relative_to(root / "artifact").as_posix()
        if name not in files or path.stat().st_size != files[name].size:
            path.unlink()
            files.pop(name, None)
    files = {name: entry for name, entry in files.items() if (root / "artifact" / name).exists()}
    with journal.open("w", encoding="utf-8") as fresh:
        fresh.write("\n".join([text, *(json.dumps([name, asdict(entry)]) for name, entry in files.items()), ""]))
        fresh.flush()
        os.fsync(fresh.fileno())
    return files


def _publish(folder: Path, output: Path) -> None:
    """Give the staged folder its final name; an existing output is exchanged in one step where the system can."""
    if not output.exists():
        folder.rename(output)
    elif not _exchange(folder, output):
        old = folder.with_name("replaced")
        output.rename(old)
        folder.rename(output)
    if os.name == "posix":
        descriptor = os.open(output.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically (Linux's renameat2 with RENAME_EXCHANGE); False where that does not exist."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    return renameat2 is not None and renameat2(-100, os.fsencode(first), -100, os.fsencode(second), 2) == 0


def _disk(error: OSError, output: Path) -> ResourceError:
    reason, remedy = f"cannot write ({error.strerror or error})", "choose another --output"
    if error.errno in _FULL:
        free = shutil.disk_usage(next(folder for folder in output.parents if folder.exists())).free
        reason += f"; {free / 2**30:.2f} GiB are free"
        remedy = f"make room or {remedy}; complete files are kept and taken up by the next attempt"
    return ResourceError(reason, source=error.filename or output, remedy=remedy)
