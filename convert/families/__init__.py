"""Architectures: one file per family, found by listing this folder.

A family module offers

- `PIPELINES`: the diffusers pipeline classes it converts,
- `NAMES`: of its components, in their order,
- `TOKENIZERS`: tokenizer folder -> the component that it feeds,
- `check(checkpoint)`: raises ModelError for a `model_index.json` that names anything unknown,
- `components(checkpoint)`: its components, described but not built,
- `sample_inputs(component, seed, side)`: inputs of realistic statistics.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vaefix.runtime.errors import CheckpointError, ModelError
from vaefix.runtime.needs import Picture
from vaefix.runtime.versions import remedy_or_versions

from ..checkpoint import Checkpoint, TensorRef
from ..program import Input

if TYPE_CHECKING:
    import torch

_FLOATING = {"F32", "F16", "BF16"}
_PICTURE = Picture(1024, 1024)


@dataclass(frozen=True)
class Component:
    """One converted network.

    name: its folder in the artifact.  part: its folder in the checkpoint.  config: that folder's config.json, complete.
    inputs, outputs: of the artifact, in order.
    dynamic_axes: names of the dynamic dimensions of each of them, as in `torch.onnx.export`.
    build: makes the module on the meta device; imports torch.  root: the attribute that holds the real module.
    owns: prefixes of its tensors in the checkpoint.  aliases: (new, old) spellings of parts of parameter names.
    optional: tensors that older checkpoints carry and nothing needs.
    kept: what is found in the names of the weights that stay in 16 bits where others have 8 or 4, a regular expression.
    fragile: its activations are known to leave the range of fp16, so `--repair auto` measures it in any case.
    picture: what the model draws where nobody asks for another size.
    """

    name: str
    part: str
    config: Mapping[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    dynamic_axes: Mapping[str, Mapping[int, str]]
    build: Callable[[], torch.nn.Module]
    root: str = ""
    owns: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    kept: str | None = None
    fragile: bool = False
    picture: Picture = _PICTURE

    def bind(self, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
        """Parameter name -> tensor, in the order of the tensors' bytes.

        shapes: every parameter of the component.  tensors: everything in its part of the checkpoint.
        Raises CheckpointError naming the first tensor that is missing, surplus, of another shape or not floating point.
        """
        bound = {}
        for name, shape in shapes.items():
            tensor = next((tensors[key] for key in self._spellings(name) if key in tensors), None)
            if tensor is None:
                raise self._missing(name, shapes, tensors)
            if tensor.shape != shape:
                reason = f"tensor {tensor.name} has shape {list(tensor.shape)}, the config asks for {list(shape)}"
                raise CheckpointError(reason, source=tensor.file, remedy=_OTHER)
            if tensor.dtype not in _FLOATING:
                reason = f"tensor {tensor.name} is {tensor.dtype}, expected {sorted(_FLOATING)}"
                raise CheckpointError(reason, source=tensor.file, remedy="store the weights in float32, float16 or bfloat16")
            bound[name] = tensor
        used = {tensor.name for tensor in bound.values()} | set(self.optional)
        for key, tensor in tensors.items():
            if key not in used and key.startswith(self.owns):
                raise CheckpointError(f"tensor {key} belongs to no parameter of {self.name}", source=tensor.file, remedy=_OTHER)
        order = {key: number for number, key in enumerate(tensors)}
        return dict(sorted(bound.items(), key=lambda item: order[item[1].name]))

    def _missing(self, name: str, shapes: Iterable[str], tensors: Mapping[str, TensorRef]) -> CheckpointError:
        """The error for a parameter without a tensor; where there is a tensor for none of them, names are at fault."""
        source = _where(tensors, self.part)
        if tensors.keys().isdisjoint(spelling for parameter in shapes for spelling in self._spellings(parameter)):
            reason = f"no tensor is named as any parameter of {self.name} is, such as {name}"
            return CheckpointError(reason, source=source, remedy=remedy_or_versions(_OTHER_NAMES))
        return CheckpointError(f"tensor {name} is missing", source=source, remedy=remedy_or_versions(_OTHER))

    def _spellings(self, parameter: str) -> list[str]:
        old = parameter
        for new_part, old_part in self.aliases:
            old = old.replace(new_part, old_part)
        return [parameter, old]


_OTHER = "the weights and the config are of different models; give matching ones"
_OTHER_NAMES = "give a diffusers folder, whose weights have the names of diffusers and transformers"


def _where(tensors: Mapping[str, TensorRef], part: str) -> Any:
    return next((tensor.file for tensor in tensors.values()), part)


def component_names() -> tuple[str, ...]:
    """Of every family, each once."""
    families = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    return tuple(dict.fromkeys(name for family in families for name in family.NAMES))


def find_family(checkpoint: Checkpoint) -> ModuleType:
    """The family that converts this checkpoint. Raises ModelError naming the pipeline classes that are known."""
    name = checkpoint.index.get("_class_name")
    known = []
    for module in pkgutil.iter_modules(__path__):
        family = importlib.import_module(f"{__name__}.{module.name}")
        if name in family.PIPELINES:
            family.check(checkpoint)
            return family
        known += family.PIPELINES
    raise ModelError(
        f"unknown pipeline class {name!r}",
        source=checkpoint.folder / "model_index.json",
        remedy=f"vaefix converts {', '.join(known)}",
    )
