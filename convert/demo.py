"""The built-in demo model: a seeded tiny SDXL of the real architecture, made on first use and kept in the cache folder."""

from __future__ import annotations

from pathlib import Path

from .synthetic import SdxlSize, ensure_sdxl

_VERSION = 1  # raise it when the bytes change, so that no stale copy is used

DEMO_SIZE = SdxlSize(
    vocabulary=2048,
    text_hidden=(32, 64),
    text_layers=(2, 3),
    text_heads=(2, 4),
    unet_channels=(32, 64, 64),
    unet_heads=(2, 4, 4),
    unet_depth=(1, 1, 2),
    time_embedding=16,
    vae_channels=(16, 32, 64, 64),
    norm_groups=8,
    sample_size=16,
)


def demo_model(cache: Path, *, healthy: bool = False) -> Path:
    """The folder of the demo model under `cache`, in diffusers layout; written there unless it is complete.

    healthy: its twin, whose VAE computes the same float32 function and does not overflow in float16.
    """
    return ensure_sdxl(cache / f"demo-sdxl-v{_VERSION}{'-healthy' if healthy else ''}", DEMO_SIZE, healthy=healthy)
