"""Every error vaefix raises on purpose, and the exit code its commands return for it.

    VaefixError
    ├── ParityError        1   compared, and the two differ
    ├── PictureError       1   a decode that is not a picture: non-finite, or one constant colour
    ├── InputError         3   what was given cannot be used
    │   ├── CheckpointError    a weights file or a tensor in it
    │   ├── ModelError         a model folder: model_index.json, a config, a missing component
    │   ├── ArtifactError      a converted folder: manifest, a missing or altered file
    │   ├── RequestError       an unknown precision, target or component; an output that exists
    │   └── DeviceError        a device that is not there, or cannot do what was asked
    └── ResourceError      4   out of memory or disk

An error says where (`source`: a file, a component or a tensor), what (`reason`) and what to do (`remedy`).
Wrong command lines are exit code 2 and belong to the command-line library.
"""

from __future__ import annotations

from pathlib import Path


class VaefixError(Exception):
    """The root. `source` is the file, component or tensor concerned; `remedy` is what the user can do."""

    exit_code = 1

    def __init__(self, reason: str, *, source: str | Path | None = None, remedy: str | None = None) -> None:
        self.reason = reason
        self.source = None if source is None else str(source)
        self.remedy = remedy
        where = f"{self.source}: " if self.source else ""
        super().__init__(f"{where}{reason}" + (f"\n  remedy: {remedy}" if remedy else ""))


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
    """The request names something that does not exist, or would overwrite something that does."""


class DeviceError(InputError):
    """The device is not there, or cannot execute what was asked of it."""


class ResourceError(VaefixError):
    """Out of memory or disk: `reason` says what was needed and what there was."""

    exit_code = 4
