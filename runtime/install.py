"""What to say about a package that cannot be imported."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import DeviceError

REMOVE_ONNXRUNTIME = "pip uninstall -y onnxruntime onnxruntime-gpu"


def is_installed(package: str) -> bool:
    """Whether the package is there, and not merely a folder that an uninstallation left behind. Imports nothing."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def not_installed(package: str, extra: str, source: str | None = None) -> DeviceError:
    """The error, with the command that helps. extra: vaefix's, that brings the package.

    The two builds of ONNX Runtime share a folder: one installed beside the other, or removed alone, breaks both.
    """
    if package == "onnx" and is_installed("onnxruntime"):
        remedy = "pip install onnx"  # an extra might bring the other build
    elif find_spec(package) is None:
        remedy = f"pip install 'vaefix[{extra}]'"
    else:
        remedy = f"{REMOVE_ONNXRUNTIME}; pip install 'vaefix[{extra}]'"
    return DeviceError(f"{package} is not installed", source=source, remedy=remedy)
