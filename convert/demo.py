"""The built-in demo model: a seeded tiny SDXL of the real architecture, made on first use and kept in the cache folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache as once
from pathlib import Path

from vaefix.runtime.errors import ResourceError

from .cache import warn_uncached
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


def demo_model(cache: Path | None, *, healthy: bool = False) -> Path:
    """The folder of the demo model under `cache`, in diffusers layout; written there unless it is complete.

    healthy: its twin, whose VAE computes the same float32 function and does not overflow in float16.
    Where there is no cache that can be written, it lies in a folder that goes with the process. Raises ResourceError if that
    cannot be made either.
    """
    name = f"demo-sdxl-v{_VERSION}{'-healthy' if healthy else ''}"
    if cache is None:
        warn_uncached(None, "no home is known")
    else:
        try:
            return ensure_sdxl(cache / name, DEMO_SIZE, healthy=healthy)
        except OSError as error:
            warn_uncached(cache, error.strerror or str(error))
    try:
        return ensure_sdxl(_folder_of_this_process() / name, DEMO_SIZE, healthy=healthy)
    except OSError as error:
        reason = f"the demo model cannot be written ({error.strerror or error})"
        raise ResourceError(reason, source=error.filename, remedy="give a --cache that can be, or a --model") from None


@once
def _folder_of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vaefix-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
