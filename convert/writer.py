"""The staged folder: files are streamed, hashed and journalled beside the output, which appears by one rename.

`OUT.partial/artifact/` holds the files, `OUT.partial/journal.jsonl` lists those that are complete. A conversion that is killed
or stopped leaves `OUT` untouched; the next one with the same inputs takes up the complete files. How it is published: `output`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaefix.runtime.artifact import MANIFEST, FileEntry, sha256_of
from vaefix.runtime.errors import InterruptError, ResourceError, VaefixError

from .output import discard, disk_error, locked, prepare, publish

BLOCK = 4 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK = {errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ENOENT, errno.EBUSY}


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
        """Close the file, complete or not: in the thread that writes, after the blocks that it was given."""
        self._threads.writing.submit(os.close, self._file).result()

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
            journal.write(_line(name, entry) + "\n")
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
                path.unlink(missing_ok=True)  # so that the next attempt writes it again
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
    force: replace an artifact at `output`.  needed: bytes that must fit, at least.
    written: called with the number of bytes as they are written.
    Raises RequestError if something is at the output, or appears there meanwhile, or another conversion is writing it;
    ResourceError for a disk that is full or read-only; InterruptError for Ctrl-C. Each time complete files stay for the next
    attempt, as they do when the process is killed. After any other VaefixError of the block the stage is removed.
    """
    output = prepare(output, force=force)
    with locked(output) as root, _explained(output, root):
        try:
            with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing:
                stage = Stage(root, _resume(root, fingerprint), Threads(hashing, writing), written)
                _require_room(root, needed - sum(entry.size for entry in stage.files.values()))
                yield stage
        except ResourceError:
            raise
        except VaefixError:
            discard(root)
            raise
        publish(output, root, force=force)
        discard(root)


@contextmanager
def _explained(output: Path, root: Path) -> Iterator[None]:
    """Ctrl-C and errors of the disk as errors that say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if not (root / "artifact").exists():  # already published
            raise
        remedy = "the same command goes on from where it stopped"
        raise InterruptError("stopped; complete files are kept here", source=root, remedy=remedy) from None
    except OSError as error:
        here = not isinstance(error.filename, str) or root in Path(error.filename).parents
        if error.errno in _FULL or (here and error.errno in _DISK):  # else it is of the model, or of no file
            raise disk_error(error, output) from error
        raise


def _require_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        reason = f"{needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free"
        raise ResourceError(reason, source=root, remedy="make room or choose another --output")


def _resume(root: Path, fingerprint: Mapping[str, Any]) -> dict[str, FileEntry]:
    """The complete files of an earlier attempt with the same fingerprint; everything else in the stage is removed.

    The manifest, which is written last, counts as complete only if every other file does.
    """
    folder, journal, text = root / "artifact", root / "journal.jsonl", json.dumps(fingerprint, sort_keys=True)
    listed = _listed(journal, text)
    files = {name: entry for name, entry in listed.items() if _has(folder / name, entry.size)}
    if files.keys() != listed.keys():
        files.pop(MANIFEST, None)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
    fresh = journal.with_name("journal.new")
    with fresh.open("w", encoding="utf-8") as lines:
        lines.write("\n".join([text, *map(_line, files, files.values()), ""]))
        lines.flush()
        os.fsync(lines.fileno())
    fresh.replace(journal)
    folder.mkdir(exist_ok=True)
    return files


def _listed(journal: Path, fingerprint: str) -> dict[str, FileEntry]:
    """The files that a journal lists as complete, up to its first line that is damaged or cut short."""
    files: dict[str, FileEntry] = {}
    if not journal.exists():
        return files
    first, *lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    if first == fingerprint:
        with suppress(ValueError, TypeError):
            for line in lines[:-1]:
                name, entry = json.loads(line)
                files[name] = FileEntry(**entry)
    return files


def _line(name: str, entry: FileEntry) -> str:
    return json.dumps([name, asdict(entry)])


def _has(path: Path, size: int) -> bool:
    return not path.is_symlink() and path.is_file() and path.stat().st_size == size
