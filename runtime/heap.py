"""The C library's heap, which keeps what a program has freed; an engine's buffers are freed there."""

from __future__ import annotations

import ctypes
from typing import Any

_LARGE = 1 << 20
_MMAP_THRESHOLD = -3  # of glibc's mallopt


def return_large_blocks() -> None:
    """From now on, blocks of a megabyte and more go back to the system when they are freed.

    Left alone, glibc raises this limit to 32 MiB as it sees such blocks: a decode of 512 pixels in ONNX Runtime without its
    arena then takes 1.4 GB instead of 1.0 GB. Does nothing where the C library is another.
    """
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE)


def return_freed() -> None:
    """Give what has been freed back to the system. Does nothing where the C library cannot."""
    if (trim := _function("malloc_trim")) is not None:
        trim(ctypes.c_size_t(0))


def _function(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows has no library of that name
        return None
