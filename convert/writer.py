"""The staged folder: files are streamed, hashed and journalled beside the output, which appears by one rename.

`OUT.partial/artifact/` holds the files, `OUT.partial/journal.jsonl` those that are complete. A killed conversion
leaves `OUT` untouched; the next one with the same inputs takes up the complete files.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from vaefix.runtime.artifact import FileEntry, sha256_of
from vaefix.runtime.errors import RequestError, ResourceError, VaefixError

_LARGE = 1 << 16  # from this many bytes on, hashing in another thread pays


class Sink:
    """One file being written. `write` hashes and writes at the same time."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor, written: Callable[[int], None]) -> None:
        self._file, self._pool, self._written = file, pool, written
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; the buffer may be reused as soon as this returns."""
        hashed = self._pool.submit(self._digest.update, data) if len(data) >= _LARGE else None
        if hashed is None:
            self._digest.update(data)
        self._file.write(data)
        self.size += len(data)
        self._written(len(data))
        if hashed is not None:
            hashed.result()

    def pad_to(self, offset: int) -> None:
        """Append zeros up to byte `offset`."""
        self.write(bytes(offset - self.size))

    def entry(self) -> FileEntry:
        """Size and hash of what was written."""
        return FileEntry(self.size, self._digest.hexdigest())


class Stage:
    """The staged folder of one conversion.

    folder: the artifact to be.  files: what is complete in it.
    """

    def __init__(
        self, root: Path, files: dict[str, FileEntry], pool: ThreadPoolExecutor, written: Callable[[int], None]
    ) -> None:
        self.folder, self.files, self._resumed = root / "artifact", files, dict(files)
        self._journal, self._pool, self._written = root / "journal.jsonl", pool, written

    @contextmanager
    def file(self, name: str) -> Iterator[Sink]:
        """Write the file `name` (forward slashes): complete and journalled when the block ends without error."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            sink = Sink(file, self._pool, self._written)
            yield sink
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = sink.entry()
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
    output: Path, fingerprint: Mapping[str, Any], *, force: bool = False, written: Callable[[int], None] = lambda _: None
) -> Iterator[Stage]:
    """A stage beside `output`, renamed to `output` when the block ends without error.

    fingerprint: what the files depend on; files staged under another one are discarded.
    force: replace an existing output, in one step.  written: called with the number of bytes as they are written.
    Raises RequestError if the output exists or another conversion is writing it, ResourceError for a disk that is full
    or read-only (complete files stay for the next attempt). After any other error the stage is removed.
    """
    output = output.absolute()
    root = output.with_name(output.name + ".partial")
    if output.exists() and not force:
        raise RequestError("the output exists", source=output, remedy="give another --output, or --force to replace it")
    lock = FileLock(root / "lock", timeout=0)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RequestError("another conversion is writing here", source=root, remedy="wait for it to end") from None
    except OSError as error:
        raise _disk(error, output) from None
    try:
        with ThreadPoolExecutor(1) as pool:
            stage = Stage(root, _resume(root, fingerprint), pool, written)
            yield stage
        _publish(stage.folder, output)
    except OSError as error:
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
    free = shutil.disk_usage(next(folder for folder in output.parents if folder.exists())).free
    return ResourceError(
        f"cannot write ({error.strerror or error}); {free / 2**30:.2f} GiB are free",
        source=error.filename or output,
        remedy="make room or choose another --output; complete files are kept and taken up by the next attempt",
    )
