"""Where the artifact appears: looked at before the work and again when it is published, put in order after a kill.

Beside the output `OUT` lies its stage, the folder `OUT.partial`:

    lock             held by the one conversion that writes here
    journal.jsonl    which files are complete, see `writer`
    artifact/        what becomes OUT by one rename
    replaced/        what was at OUT, while a conversion with `force` publishes
    discarded/       what was at OUT, being removed

No rename here replaces anything (but for an empty folder that appears within microseconds). A process that is killed leaves at
OUT the old artifact or the new one; or the old one is whole in `replaced`, and the next run for OUT puts it back.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vaefix.runtime.artifact import MANIFEST
from vaefix.runtime.errors import RequestError, ResourceError, UsageError, VaefixError
from vaefix.runtime.files import file_above, lies_in

_FOLDERS = {"artifact", "replaced", "discarded"}
_FILES = {"journal.jsonl", "journal.new", "lock"}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_ANOTHER = "choose another --output"


def located(output: Path) -> Path:
    """The output's absolute path, free of links and `..` but for its last part, which nothing here follows.

    Raises RequestError for a path that names no folder to make, or lies in a file or in another artifact.
    """
    try:
        if output.name in ("", ".."):  # `/`, `.`, `` and `a/..`
            raise RequestError("names no folder to make", source=str(output), remedy="give the folder that is to appear")
        absolute = Path(os.path.realpath(output.parent)) / output.name
        if b"\0" in os.fsencode(absolute):
            raise ValueError("it holds a null byte")
    except FileNotFoundError:  # realpath asks for nothing but the current folder
        reason = "the current folder does not exist any more"
        raise RequestError(reason, source=output, remedy="change to one that does, or give an absolute --output") from None
    except ValueError as error:
        raise RequestError(f"no path of a file system ({error})", source=ascii(str(output)), remedy=_ANOTHER) from None
    if (file := file_above(absolute)) is not None:
        raise RequestError(f"{file} is not a folder", source=absolute, remedy=_ANOTHER)
    for folder in absolute.parents:
        if os.path.isfile(folder / MANIFEST):  # noqa: PTH113 (never raises)
            raise RequestError("lies in another artifact", source=absolute, remedy=_ANOTHER)
    return absolute


def require_cache_apart(output: Path, cache: Path | None) -> None:
    """Raise UsageError for a cache that is the output or its stage, or lies in one of them, by whatever links."""
    if cache is not None and any(lies_in(cache, own) for own in (output, stage_of(output))):
        raise UsageError(f"it lies in the output {output}", source="--cache", remedy="give another folder")


def require_cache_outside(cache: Path | None, model: Path) -> None:
    """Raise RequestError for a cache in the model, by whatever links either is reached."""
    if cache is not None and _is_inside(cache, model):
        reason = "the cache lies in the model, which is only read"
        raise RequestError(reason, source=cache, remedy=f"choose another --cache, outside {model.absolute()}")


def _is_inside(path: Path, model: Path) -> bool:
    own = _holders(path)
    return any(_identity(folder) in own for folder in _folders_of(model))


def _folders_of(model: Path) -> list[Path]:
    """A model's own and those of its components, which may be links."""
    return [model, *(path for path in model.iterdir() if path.is_dir())]


def require_apart(output: Path, model: Path) -> None:
    """Raise RequestError for an output that lies in the model, or holds it, by whatever links either is reached."""
    own = _holders(output)
    for folder in _folders_of(model):
        inside, around = _identity(folder) in own, output.exists() and _identity(output) in _holders(folder)
        if inside or around:
            reason = "lies in the model, which is only read" if inside else "holds the model that is to be converted"
            raise RequestError(reason, source=output, remedy=f"{_ANOTHER}, outside {model.absolute()}")


def prepare(output: Path, *, force: bool) -> Path:
    """Put in order what a killed run left for this output. Returns its absolute path, see `located`.

    Raises RequestError for an output that exists and is not to be replaced, or that another conversion is writing, and
    ResourceError for a place where nothing can be written.
    """
    output = located(output)
    root = stage_of(output)
    try:
        if _is_there(root):
            with locked(output):
                if not _is_there(root / "artifact"):
                    discard(root)
        if reason := _obstacle(output, force):
            remedy = "move it, or give another --output" if force else "give another --output, or --force to replace it"
            raise RequestError(reason, source=output, remedy=remedy)
        nearest = next(folder for folder in output.parents if folder.exists())
        if not os.access(nearest, os.W_OK):
            raise ResourceError("cannot be written to", source=nearest, remedy=_ANOTHER)
    except OSError as error:
        raise disk_error(error, output) from None
    return output


def stage_of(output: Path) -> Path:
    """The stage of an output."""
    return output.with_name(output.name + ".partial")


@contextmanager
def locked(output: Path) -> Iterator[Path]:
    """The stage of an output, made if need be, in order, and this process's own until the block ends.

    Raises RequestError if it is somebody else's folder or another conversion writes there, ResourceError if it cannot be made.
    """
    root = stage_of(output)
    if _is_there(root) and not _is_stage(root):
        raise RequestError("holds what is not a staged conversion", source=root, remedy="move it, or give another --output")
    lock = FileLock(root / "lock", timeout=0)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RequestError("another conversion is writing here", source=root, remedy="wait for it to end") from None
    except OSError as error:
        raise disk_error(error, output) from None
    try:
        _settle(root, output)
        yield root
    finally:
        lock.release()


def publish(output: Path, root: Path, *, force: bool) -> None:
    """Give the staged artifact its name. What is at the output is looked at now; with `force` an artifact there is replaced.

    Raises RequestError, and leaves the stage, if something else is there.
    """
    artifact, replaced = root / "artifact", root / "replaced"
    reason = _obstacle(output, force)
    try:
        if force and not reason and _is_there(output):
            _move(output, replaced)
            reason = None if _is_replaceable(replaced) else "is no artifact of vaefix any more"
        if not reason:
            _move(artifact, output)
            _sync(output.parent)
    except FileExistsError:
        reason = "the output exists"
    finally:
        _settle(root, output)
    if reason:
        remedy = f"move it, then give the same command again: the conversion is finished, in {artifact}, and is only published"
        raise RequestError(f"{reason}: it appeared meanwhile and was not touched", source=output, remedy=remedy)


def discard(root: Path) -> None:
    """Remove a stage: its own files alone, and never what was at the output."""
    for name in ("artifact", "discarded"):
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("journal.new", "journal.jsonl", "lock"):
        (root / name).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        root.rmdir()


def disk_error(error: OSError, output: Path) -> VaefixError:
    """What an error of the file system at the output, or its stage, means."""
    if error.errno == errno.ENAMETOOLONG:
        reason = f"the name is too long for the file system, which holds it as {stage_of(output).name} first"
        return RequestError(reason, source=output, remedy="choose a shorter --output")
    reason, remedy = f"cannot write ({error.strerror or error})", _ANOTHER
    if error.errno in _FULL:
        free = shutil.disk_usage(next(folder for folder in output.parents if folder.exists())).free
        reason += f"; {free / 2**30:.2f} GiB are free"
        remedy = f"make room or {remedy}; complete files are kept and taken up by the next attempt"
    return ResourceError(reason, source=error.filename or output, remedy=remedy)


def _settle(root: Path, output: Path) -> None:
    """After a publication, complete or not: the old output is away if the new one is in its place, else back there."""
    replaced, discarded = root / "replaced", root / "discarded"
    shutil.rmtree(discarded, ignore_errors=True)
    if not _is_there(replaced):
        return
    if not _is_there(output):
        _move(replaced, output)
    elif _is_there(root / "artifact"):
        reason = f"holds what was at {output.name}, where something else is now"
        raise RequestError(reason, source=replaced, remedy="move one of the two, then give the same command again")
    else:
        replaced.rename(discarded)  # so that half of it is never taken for the old output
        shutil.rmtree(discarded, ignore_errors=True)


def _obstacle(output: Path, force: bool) -> str | None:
    """Why the output cannot be made now: what is there may not be replaced. None if it can be."""
    if not _is_there(output):
        return None
    if not force:
        return "the output exists"
    if not _is_replaceable(output):
        return "exists and is no artifact of vaefix, so --force does not replace it"
    if _identity(output) in _holders(Path()):
        return "exists and is the current folder, or holds it"
    return None


def _is_replaceable(path: Path) -> bool:
    """An artifact, or an empty folder; not a link to one."""
    return not path.is_symlink() and path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


def _is_stage(root: Path) -> bool:
    """Whether nothing in a folder is anybody else's. What it was given first is the journal, after the lock."""
    if root.is_symlink() or not root.is_dir():
        return False
    entries = list(root.iterdir())
    names = {path.name for path in entries}
    ours = all(path.is_dir() if path.name in _FOLDERS else path.name in _FILES and path.is_file() for path in entries)
    return ours and not any(path.is_symlink() for path in entries) and ("journal.jsonl" in names or not names & _FOLDERS)


def _is_there(path: Path) -> bool:
    """Whether anything has this name, a dangling link included. Raises OSError where that cannot be known."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _move(source: Path, target: Path) -> None:
    """Rename. Raises FileExistsError if anything is at the target."""
    if not _is_there(target):
        try:
            source.rename(target)
        except OSError:
            if not _is_there(target):
                raise
        else:
            return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _holders(path: Path) -> set[tuple[int, int]]:
    """Which folders a path is or lies in: those that exist."""
    real = Path(os.path.realpath(path))
    return {_identity(folder) for folder in (real, *real.parents) if folder.exists()}


def _identity(path: Path) -> tuple[int, int]:
    """Device and number: the same for every name of a folder."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino
