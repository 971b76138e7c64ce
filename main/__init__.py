"""vaefix converts SDXL to OpenVINO and ONNX, runs it, and compares it with PyTorch.

    from vaefix import convert, load_pipeline, validate

    convert(model="sdxl-folder", output="sdxl", target="openvino-gpu", precision="fp16")
    load_pipeline("sdxl", device="GPU")("a lighthouse").images[0].save("lighthouse.png")
    assert validate(artifact="sdxl", reference="sdxl-folder").passed

`convert` and `validate` are packages that can be called. Nothing is imported before it is used: `import vaefix` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .convert.convert import convert as convert
    from .runtime.pipeline import load_pipeline as load_pipeline
    from .validate.validate import validate as validate

    __version__: str

__all__ = ["__version__", "convert", "load_pipeline", "validate"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vaefix")
    if name == "load_pipeline":
        from .runtime.pipeline import load_pipeline

        return load_pipeline
    if name in ("convert", "validate"):
        from importlib import import_module

        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
