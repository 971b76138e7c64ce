"""How large a picture an artifact draws: its own size, and what others there are."""

from __future__ import annotations

from .artifact import Artifact
from .errors import UsageError

_DEFAULT_LATENT_SIDE = 128  # of diffusers' pipelines, for a UNet that does not say its own


def vae_scale(artifact: Artifact) -> int:
    """Pixels of the picture for each of the latent, along a side: the VAE halves once between two levels."""
    levels = artifact.config("vae_decoder").get("block_out_channels", [0])
    return int(2 ** (len(levels) - 1))


def native_size(artifact: Artifact) -> tuple[int, int]:
    """Height and width in pixels for which the model was made."""
    side = artifact.config("unet").get("sample_size") or _DEFAULT_LATENT_SIDE
    height, width = (side, side) if isinstance(side, int) else side
    return vae_scale(artifact) * height, vae_scale(artifact) * width


def picture_size(artifact: Artifact, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels; the model's own where None is asked for. Raises UsageError for what it cannot draw."""
    native, scale = native_size(artifact), vae_scale(artifact)
    chosen = height or native[0], width or native[1]
    if any(side % scale for side in chosen):
        reason = f"{chosen[1]}x{chosen[0]} cannot be drawn: both must be multiples of {scale}"
        remedy = f"the model's own size is {native[1]}x{native[0]}"
        raise UsageError(reason, source="--width, --height", remedy=remedy)
    return chosen
