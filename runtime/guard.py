"""Is this tensor healthy? A decode that overflowed shows NaN, Inf or one constant colour, and must not pass for a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import PictureError

MINIMUM_SPREAD = 1 / 255
"""The least difference between two pixels of a picture in [-1, 1]: half a step of an 8-bit picture."""


@dataclass(frozen=True)
class Health:
    """What was counted. size: number of values.  nan, inf: how many of them are not a number, or infinite."""

    size: int
    nan: int
    inf: int

    @property
    def finite(self) -> bool:
        """True when there is something and all of it is finite."""
        return self.size > 0 and self.nan == 0 and self.inf == 0

    def __str__(self) -> str:
        return f"{self.nan} NaN and {self.inf} Inf among {self.size} values"


def examine(values: np.ndarray) -> Health:
    """Count the values that are not finite. values: floating point, any shape."""
    return Health(size=values.size, nan=int(np.isnan(values).sum()), inf=int(np.isinf(values).sum()))


def spread(picture: np.ndarray) -> float:
    """The largest difference between two pixels in any channel, once clipped to the visible range [-1, 1].

    picture: finite float [C, H, W]. Clipping matters: values that all lie below -1 vary, and are seen as plain black.
    """
    brightest = np.clip(picture.max(axis=(1, 2)), -1, 1)
    darkest = np.clip(picture.min(axis=(1, 2)), -1, 1)
    return float((brightest - darkest).max())


def require_latents(latents: np.ndarray, *, remedy: str) -> None:
    """Raise PictureError when latents about to be decoded are not finite: then the decoder is not to blame."""
    health = examine(latents)
    if not health.finite:
        raise PictureError(f"the latents are not finite before the decode: {health}", source="latents", remedy=remedy)


def require_pictures(pixels: np.ndarray, *, source: str, remedy: str) -> None:
    """Raise PictureError unless every decoded picture is finite and more than one constant colour.

    pixels: float [B, 3, H, W], nominally in [-1, 1].  source, remedy: who decoded it, and what to do when it failed.
    """
    if pixels.size == 0:
        raise PictureError(f"nothing was decoded: shape {list(pixels.shape)}", source=source, remedy=remedy)
    for number, picture in enumerate(pixels, start=1):
        which = f"picture {number} of {len(pixels)}"
        health = examine(picture)
        if not health.finite:
            raise PictureError(f"{which} is not finite: {health}", source=source, remedy=remedy)
        contrast = spread(picture)
        if not contrast >= MINIMUM_SPREAD:
            raise PictureError(f"{which} is one constant colour (spread {contrast:.2g})", source=source, remedy=remedy)
