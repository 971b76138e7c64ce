"""What a `config.json` leaves out: the defaults of the library whose config it is, read from its source.

Nothing is imported, so planning stays light; and what other software assumes for an absent key (GenAI: a scaling factor
of 1) does not matter once a config is complete.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .errors import DeviceError

_TEXT_ENCODER = ("transformers", "models/clip", "CLIPTextConfig")
_VAE = ("diffusers", "models", "AutoencoderKL")
_CLASSES = {
    "text_encoder": _TEXT_ENCODER,
    "text_encoder_2": _TEXT_ENCODER,
    "unet": ("diffusers", "models", "UNet2DConditionModel"),
    **dict.fromkeys(("vae", "vae_encoder", "vae_decoder"), _VAE),
}
"""Component -> library, folder and class whose constructor takes its config."""


def completed(config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The config with the library's default for each key that it lacks; as it is where the component has no such class.

    Raises DeviceError if the library is not installed, or has no such class.
    """
    defaults = constructor_defaults(*_CLASSES[component]) if component in _CLASSES else {}
    return {**config, **{key: value for key, value in defaults.items() if key not in config}}


@cache
def constructor_defaults(library: str, folder: str, name: str) -> dict[str, Any]:
    """The arguments of a class's constructor that have a literal for a default. Raises DeviceError as `completed` does.

    folder: of the library, in which the class is.
    """
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise DeviceError(f"{library} is not installed", remedy=f"pip install {library}")
    for path in sorted(Path(spec.origin).parent.joinpath(folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if f"\nclass {name}(" in source:
            return dict(_arguments(source, name))
    raise DeviceError(f"{library} has no {name}", source=spec.origin, remedy=f"install a version of {library} that has it")


def _arguments(source: str, name: str) -> Iterator[tuple[str, Any]]:
    """The class's annotated fields and its constructor's arguments that have a literal for a default; tuples as lists."""
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name)
    pairs: list[tuple[str, ast.expr | None]] = []
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            pairs.append((node.target.id, node.value))
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            pairs += zip((argument.arg for argument in given), node.args.defaults, strict=True)
            pairs += zip((argument.arg for argument in node.args.kwonlyargs), node.args.kw_defaults, strict=True)
    for key, value in pairs:
        try:
            default = None if value is None else ast.literal_eval(value)
        except ValueError:  # computed: the library's own business
            continue
        if value is not None:
            yield key, list(default) if isinstance(default, tuple) else default
