"""Every error vaefix raises on purpose, and the exit code its commands return for it.

    VaefixError
    ├── ParityError        1   compared, and the two differ
    ├── PictureError       1   a decode that is not a picture: non-finite, or one constant colour
    ├── InputError         3   what was given cannot be used
    │   ├── CheckpointError    a weights file or a tensor in it
    │   ├── ModelError         a model folder: model_index.json, a config, a missing component
    │   ├── ArtifactError      a converted folder: manifest, a missing or altered file
    │   ├── RequestError       a request that this model or this output does not allow
    │   │   └── UsageError  2   a wrong command line: an option's value that no model and no folder could make right
    │   └── DeviceError        a device that is not there, or cannot do what was asked
    ├── ResourceError      4   out of memory or disk
    └── InterruptError   130   stopped by Ctrl-C

An error says where (`source`: a file, a component, a tensor or an option), what (`reason`) and what to do (`remedy`).
A wrong command line that the command-line library finds has exit code 2 too. Exit code 5 is a fault of vaefix itself: whatever
is raised that is not in this tree, see `command.run`.
"""

from __future__ import annotations

import re
from pathlib import Path

_NO_MEMORY = re.compile(
    r"bad_alloc|out of memory|OUT_OF_|ALLOC_FAILED|not enough memory|can(?:no|')t alloc|failed to allocate|unable to allocate|"
    r"allocation failed|failed to create memory|could not allocate|failed to map segment",
    re.IGNORECASE,
)


def in_one_line(text: str, most: int, *, whole: bool = False) -> str:
    """What another program says: its first line, and those after it while they announce more by a colon; or the whole.

    most: characters, beyond which it is cut.
    """
    said = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        said = f"{said} {line}".lstrip()
        if not (whole or said.endswith(":")):
            break
    return said if len(said) <= most else f"{said[:most]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error, of whatever library or engine, is want of memory."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


class VaefixError(Exception):
    """The root. `source` is the file, component or tensor concerned; `remedy` is what the user can do."""

    exit_code = 1

    def __init__(self, reason: str, *, source: str | Path | None = None, remedy: str | None = None) -> None:
        self.reason = " ".join(filter(None, map(str.strip, reason.splitlines())))  # a message is one line
        self.source = None if source is None else str(source)
        self.remedy = remedy
        where = f"{self.source}: " if self.source else ""
        super().__init__(f"{where}{self.reason}" + (f"\n  remedy: {remedy}" if remedy else ""))


class ParityError(VaefixError):
    """A comparison was made and it failed."""


class PictureError(VaefixError):
    """A decoded picture is not finite, or is one constant colour."""


class InputError(VaefixError):
    """What was given cannot be used."""

    exit_code = 3


class CheckpointError(InputError):
    """A weights file, or a tensor in it, is malformed, missing, surplus or not finite."""


class ModelError(InputError):
    """A model folder is incomplete, unsafe or of an unknown kind."""


class ArtifactError(InputError):
    """A converted folder is incomplete, altered or of another format version."""


class RequestError(InputError):
    """The request asks for something that this model, artifact or output does not allow."""


class UsageError(RequestError):
    """An option's value is wrong in itself, or contradicts another; `source` is the option."""

    exit_code = 2


class DeviceError(InputError):
    """The device is not there, or cannot execute what was asked of it."""


class ResourceError(VaefixError):
    """Out of memory or disk: `reason` says what was needed and what there was."""

    exit_code = 4


class InterruptError(VaefixError):
    """The user stopped it; `remedy` says how to go on."""

    exit_code = 130


class VaefixWarning(UserWarning):
    """What a command shows as a line: vaefix warns by this class alone, other packages never do."""
