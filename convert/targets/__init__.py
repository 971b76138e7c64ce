"""Targets: one module or package per engine, found by listing this folder. `openvino-gpu` is engine and device.

A target module offers

- `EXECUTION`: device -> precision -> the precision the engine computes in (`f32`, `f16`, `bf16`),
- `PACKAGES`: the modules it cannot do without,
- `IO`: the element types that a graph's inputs and outputs may have (`fp32`, `fp16`),
- `lower(program)`: JSON data that `write` makes the graph of (may import torch and the engine),
- `write(stage, job, tally)`: stream the weights into the holes (imports neither); returns the graph's path,
- `tokenizer_graphs(folder)`: further files of a tokenizer that the engine wants, as base64,
- `check(folder, job)`: reload what was written and compare its structure with the program,
- `run(folder, job, feeds)`: execute what was written in float32 on the CPU, in little memory.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vaefix.runtime.errors import UsageError
from vaefix.runtime.install import is_installed, not_installed

from ..checkpoint import TensorRef
from ..families import Component
from ..precision import Storage
from ..program import Program
from ..repair.plan import ScalePlan

TRIGONOMETRIC = ("aten.sin.default", "aten.cos.default")
"""What leads to these is computed in float32 on every device, as in diffusers: `timestep * frequency` in 16 bits would be
off by up to a quarter of a radian."""


@dataclass(frozen=True)
class Job:
    """One component on its way to a target: what to write, from which tensors, how scaled and stored.

    tensors: by parameter name, in the order of their bytes.
    precision: `fp32`, `int8`, ..., what was asked for.  storage: how each parameter is stored.
    execution: `f32`, `f16`, `bf16`, of the arithmetic.
    device: of the target (`gpu`, `cuda`, `cpu`).  io: `f32`, `f16`, of the graph's inputs and outputs.
    examined: it is measured for a repair in any case, not only where a small input or what storing costs asks for it.
    """

    component: Component
    program: Program
    skeleton: Any
    tensors: Mapping[str, TensorRef]
    plan: ScalePlan
    examined: bool
    precision: str
    storage: Mapping[str, Storage]
    execution: str
    device: str
    io: str

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(tensor.count for tensor in self.tensors.values())

    @property
    def has_range_of_float16(self) -> bool:
        """Whether anything of it is stored or computed in float16, so that it can be too large or too small."""
        return self.execution == "f16" or any(how.element_type not in ("f32", "bf16") for how in self.storage.values())

    @property
    def stored_bytes(self) -> int:
        """What the weights take on disk, without what aligns them."""
        return sum(size for name, tensor in self.tensors.items() for size in self.storage[name].parts(tensor.shape).values())


@dataclass(frozen=True)
class Target:
    """An engine and a device: `execution` maps each precision that the target has to what it computes in."""

    name: str
    engine: ModuleType
    device: str
    execution: Mapping[str, str]

    @property
    def engine_name(self) -> str:
        """`openvino`, `onnx`: the engine's module, and the beginning of the target's name."""
        return self.engine.__name__.rpartition(".")[2]


def find_target(name: str) -> Target:
    """The target called `name`. Raises UsageError naming those that exist, DeviceError for what is not installed."""
    targets = {}
    for module in pkgutil.iter_modules(__path__):
        engine = importlib.import_module(f"{__name__}.{module.name}")
        for device, execution in engine.EXECUTION.items():
            targets[f"{module.name}-{device}"] = Target(f"{module.name}-{device}", engine, device, execution)
    if name not in targets:
        raise UsageError(f"unknown target {name!r}", source="--target", remedy=f"choose from {', '.join(targets)}")
    target = targets[name]
    if missing := [package for package in target.engine.PACKAGES if not is_installed(package)]:
        raise not_installed(missing[0], "cuda" if target.device == "cuda" else target.engine_name, source=name)
    return target
