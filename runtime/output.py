"""Where pictures go: their names, the formats that can hold them, and writing them."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RequestError, ResourceError, UsageError
from .files import file_above, is_writable, lies_in, whole

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 60  # characters of a name made of a prompt
_FAILURES = (OSError, ValueError, KeyError, OverflowError, SystemError)
"""What Pillow's writers raise of a picture that they cannot hold."""


def numbered(output: Path, images: int) -> list[Path]:
    """`[out.png]`, or `[out-1.png, out-2.png]` for several."""
    if images == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, images + 1)]


def named_after(prompt: str, images: int, folder: Path) -> list[Path]:
    """`a-red-cat.png`, `a-red-cat-2.png`, ...: names in `folder` that nothing has yet."""
    words = re.findall(r"\w+", prompt.lower()) or ["picture"]
    stem = words[0][:_LONGEST]
    for word in words[1:]:
        if len(stem) + len(word) >= _LONGEST:
            break
        stem = f"{stem}-{word}"
    paths: list[Path] = []
    number = 1
    while len(paths) < images:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        if not os.path.lexists(path):
            paths.append(path)
        number += 1
    return paths


def check_place(path: Path, artifact: Path) -> None:
    """Raises UsageError where the ending names no picture format, RequestError where none can be, or the artifact has one."""
    from PIL import Image

    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise UsageError("no picture format is known by this name", source=path, remedy="name the output out.png")
    if (file := file_above(path)) is not None:
        raise RequestError(f"{file} is not a folder", source=path, remedy="choose another -o")
    if not path.parent.is_dir():
        raise RequestError("its folder does not exist", source=path, remedy=f"create {path.parent}")
    if path.is_dir():
        raise RequestError("it is a folder", source=path, remedy="choose another -o")
    if not is_writable(path):
        raise RequestError("it may not be written", source=path, remedy="choose another -o")
    if path.exists() and lies_in(path, artifact):
        raise RequestError("it is a file of the artifact", source=path, remedy="choose another -o")
    check_format(path, 16, 16)


def check_format(path: Path, height: int, width: int) -> None:
    """Raise UsageError where the format that the ending names cannot be written, or holds no picture of this size."""
    for size in ((width, 1), (1, height)):  # as long and as high as the picture, and small
        if (reason := _refused(path.suffix.lower(), size)) is not None:
            reason = f"{path.suffix} cannot hold a picture of {width}x{height} pixels ({reason})"
            raise UsageError(reason, source=path, remedy="name the output out.png")


def _refused(suffix: str, size: tuple[int, int]) -> str | None:
    """Why no picture of this size, in pixels, can be written in the format; None if it can."""
    from PIL import Image

    name, file = Image.registered_extensions()[suffix], io.BytesIO()
    if name not in Image.SAVE:
        return "it can only be read"
    try:
        Image.new("RGB", size).save(file, name)
        if name in Image.OPEN and (kept := Image.open(file, formats=[name]).size) != size:
            return f"it would be {kept[0]}x{kept[1]}"
    except _FAILURES as error:
        return str(error)
    return None


def save(picture: Image, path: Path, *, replace: bool) -> None:
    """Write a picture in the format that the ending names.

    replace: what has that name already; otherwise that is an error, whoever made it meanwhile.
    Raises ResourceError where it cannot be written.
    """
    from PIL import Image

    data = io.BytesIO()
    try:
        picture.save(data, Image.registered_extensions()[path.suffix.lower()])
        with whole(path, replace=replace) as file:
            file.write_bytes(data.getbuffer())
    except _FAILURES as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ResourceError(f"cannot be written ({reason})", source=path, remedy="choose another -o") from None
