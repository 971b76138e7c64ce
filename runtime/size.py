"""How large a picture an artifact draws."""

from __future__ import annotations

from .artifact import Artifact
from .errors import UsageError
from .needs import native_picture, step


def picture_size(artifact: Artifact, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels; the model's own where None is asked for. Raises UsageError for what it cannot draw."""
    native = native_picture(artifact.config("unet"), artifact.config("vae_decoder"))
    chosen, multiple = (height or native.height, width or native.width), step(native.factor)
    if any(side % multiple for side in chosen):
        reason = f"{chosen[1]}x{chosen[0]} cannot be drawn: both must be multiples of {multiple}"
        remedy = f"the model's own size is {native.width}x{native.height}"
        raise UsageError(reason, source="--width, --height", remedy=remedy)
    return chosen
