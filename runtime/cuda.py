"""NVIDIA's cards and what ONNX Runtime needs to use them, found without loading a graph."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .install import REMOVE_ONNXRUNTIME

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of the driver's cuDeviceGetAttribute


@dataclass(frozen=True)
class Card:
    """One card. memory_bytes: in all.  capability: compute capability, (8, 0) and up computes in bf16."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]


def cards() -> Iterator[Card]:
    """The cards that NVIDIA's driver shows, in its order. Raises OSError saying why it shows none."""
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    _call(driver, "cuInit", 0)
    count = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    for ordinal in range(count.value):
        device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        _call(driver, "cuDeviceGet", ctypes.byref(device), ordinal)
        _call(driver, "cuDeviceGetName", name, len(name), device)
        _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(size), device)
        major, minor = (_attribute(driver, which, device) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
        yield Card(name.value.decode(errors="replace"), size.value, (major, minor))


def _attribute(driver: ctypes.CDLL, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), which, device)
    return value.value


def _call(driver: ctypes.CDLL, function: str, *arguments: Any) -> None:
    if code := getattr(driver, function)(*arguments):
        raise OSError(f"NVIDIA's driver: {function} returned {code}")


def require_build(source: str) -> None:
    """Raise DeviceError where the build of ONNX Runtime for the CPU is installed, which is told by its files."""
    spec = importlib.util.find_spec("onnxruntime")
    if (
        spec is not None
        and spec.origin is not None
        and not any(map(Path.exists, _providers(Path(spec.origin).parent / "capi")))
    ):
        raise cpu_build(source)


def cpu_build(source: str) -> DeviceError:
    """The error of an ONNX Runtime that has no CUDA."""
    remedy = f"for an NVIDIA card: {REMOVE_ONNXRUNTIME}; pip install 'vaefix[cuda]'. Without one, choose the device CPU"
    return DeviceError("the installed onnxruntime is the build for the CPU, without CUDA", source=source, remedy=remedy)


def _providers(folder: Path) -> tuple[Path, ...]:
    """What the CUDA provider is called, on Linux and on Windows."""
    return tuple(folder / name for name in ("libonnxruntime_providers_cuda.so", "onnxruntime_providers_cuda.dll"))


def missing_library() -> str | None:
    """Why ONNX Runtime's CUDA provider does not load: `libcudnn.so.9: cannot open shared object file`. None if it does."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as engine

    if preload := getattr(onnxruntime, "preload_dlls", None):  # finds those that pip installed
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, and what it misses is not always needed
            preload()
    for path in _providers(Path(engine.__file__).parent):
        try:
            if path.exists():
                ctypes.CDLL(str(path))
        except OSError as error:
            return str(error)
    return None
