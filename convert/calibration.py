"""A user's own calibration data: latents and pictures that the repair measures besides its seeded ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.format import MAGIC_PREFIX, read_array_header_1_0, read_array_header_2_0, read_magic

from vaefix.runtime.errors import RequestError
from vaefix.runtime.libraries import refusals

from .families import Component

_HEADERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
_REMEDY = "give latents as float [N, 4, H, W] in .npy, not yet scaled, or pictures (.png, .jpg)"


def own_inputs(component: Component, files: Iterable[Path]) -> list[dict[str, npt.NDArray[np.float32]]]:
    """One feed for each sample in `files` that fits the component's single input by its channels; others are skipped.

    Raises RequestError naming a file that is neither finite latents nor a picture.
    """
    if len(component.inputs) != 1 or len(component.inputs[0].shape) != 4:
        return []
    item = component.inputs[0]
    arrays = [array for file in files if (array := _read(file)).shape[1] == item.shape[1]]
    return [{item.name: array[index : index + 1]} for array in arrays for index in range(len(array))]


def check_file(file: Path) -> None:
    """Look at the beginning of a file. Raises RequestError for what is neither latents nor a picture, or is not there."""
    if not file.is_file():
        reason = "not a file" if file.exists() else "no such file"
        raise RequestError(reason, source=file, remedy="give another --calibration: latents in .npy, or pictures")
    from PIL import Image

    with refusals(RequestError, "unreadable", source=file, remedy=_REMEDY):
        if file.suffix != ".npy":
            with Image.open(file):
                return
        with file.open("rb") as stream:
            if stream.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
                raise RequestError("not an array of NumPy, whatever its name says", source=file, remedy=_REMEDY)
            stream.seek(0)
            shape, _, kind = _HEADERS[read_magic(stream)](stream)
    if kind.kind not in "fiu":
        raise RequestError(f"it holds {kind}, not numbers", source=file, remedy=_REMEDY)
    if len(shape) != 4 or 0 in shape:
        raise RequestError(f"its shape is {shape}", source=file, remedy=_REMEDY)


def _read(file: Path) -> npt.NDArray[np.float32]:
    """float32 [N, C, H, W]: latents as they are, a picture in [-1, 1], cropped to multiples of 8."""
    check_file(file)
    from PIL import Image

    with refusals(RequestError, "unreadable", source=file, remedy=_REMEDY):
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False).astype(np.float32)
        else:
            pixels = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32)
            height, width = (size - size % 8 for size in pixels.shape[:2])
            array = (pixels[:height, :width] / 127.5 - 1).transpose(2, 0, 1)[None]
    if array.ndim != 4 or not array.size or not np.isfinite(array).all():
        raise RequestError(f"shape {array.shape}, or values that are not finite", source=file, remedy=_REMEDY)
    return array
