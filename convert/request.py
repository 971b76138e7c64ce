"""What is asked of a conversion, and the model it is asked of: everything that is known before a weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs

from vaefix.runtime.errors import UsageError

from .cache import cached
from .checkpoint import Checkpoint, TensorRef
from .demo import demo_model
from .families import Component, find_family
from .hub import locate
from .policy import storages
from .precision import ELEMENT_TYPES
from .program import Program
from .repair.plan import ScalePlan
from .targets import Job, Target, find_target

REPAIR_MODES = ("auto", "always", "never")
VERIFY_MODES = ("auto", "full")


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and how.

    output: the folder to make.  model: a diffusers folder or a hub id; None is the built-in demo model.
    precision: component name -> `fp32`, `fp16`, `bf16`, `int8`, `int4`, `fp8_e4m3` or `fp8_e5m2`; `*` stands for every
        component that is not named. `auto` chooses, see `choose.py`.
    budget: bytes of memory to run in, one component at a time, for `auto`.
    io: `fp32` or `fp16`, of the graphs' inputs and outputs (`fp16`: components in fp16 for ONNX only).
    components: those to convert; None is all of them.
    repair: `auto` examines fragile components that execute in 16 bits, `always` every component, `never` none.
    calibration: the user's own latents (.npy) or pictures, measured for the repair besides seeded ones.
    verify: `auto` executes every component of up to 1e9 weights beside PyTorch, `full` the full-size UNet as well,
        and reads every written file back.
    variant, revision: of the checkpoint's files.  force: replace an existing output.  cache: folder of the skeletons.
    """

    output: Path
    model: str | Path | None = None
    target: str = "openvino-gpu"
    precision: Mapping[str, str] = field(default_factory=lambda: {"*": "fp16"})
    budget: int | None = None
    io: str = "fp32"
    components: tuple[str, ...] | None = None
    repair: str = "auto"
    calibration: tuple[Path, ...] = ()
    verify: str = "auto"
    variant: str | None = None
    revision: str | None = None
    force: bool = False
    cache: Path = field(default_factory=lambda: platformdirs.user_cache_path("vaefix"))


@dataclass(frozen=True)
class Request:
    """An opened request.

    precision: of each component.  tensors: part of the checkpoint -> its tensors by name.
    """

    options: ConvertOptions
    target: Target
    checkpoint: Checkpoint
    family: ModuleType
    components: tuple[Component, ...]
    precision: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, TensorRef]]

    @classmethod
    def of(cls, options: ConvertOptions) -> Request:
        """Read headers and configs. Raises InputError for a bad model, or a request that it or the target cannot meet."""
        target = find_target(options.target)
        model = options.model
        folder = demo_model(options.cache) if model is None else locate(model, options.variant, options.revision)
        checkpoint = Checkpoint.open(folder, options.variant)
        family = find_family(checkpoint)
        components = _selected(family.components(checkpoint), options)
        precision = _precisions(components, options, target)
        tensors = {part: checkpoint.tensors(part) for part in dict.fromkeys(component.part for component in components)}
        return cls(options, target, checkpoint, family, components, precision, tensors)

    def jobs(self) -> Iterator[Job]:
        """Of every component, see `job`."""
        return map(self.job, self.components)

    def job(self, component: Component) -> Job:
        """Capture and lower the component, or take both from the cache, and bind the checkpoint's tensors to it."""
        options, target, precision = self.options, self.target, self.precision[component.name]
        key = {"family": self.family.__name__, "component": component.name, "config": dict(component.config)}

        def capture() -> Any:
            from .capture import capture as trace

            return trace(component.build(), component.inputs, component.outputs, component.root).to_json()

        program = Program.from_json(cached(options.cache, f"{component.name}-program", key, capture))
        skeleton = cached(options.cache, f"{component.name}-{target.engine_name}", key, lambda: target.engine.lower(program))
        shapes = {parameter.name: parameter.shape for parameter in program.parameters.values()}
        execution = target.execution[precision]
        examined = options.repair == "always" or (options.repair == "auto" and component.fragile and execution == "f16")
        return Job(
            component=component,
            program=program,
            skeleton=skeleton,
            tensors=component.bind(shapes, self.tensors[component.part]),
            plan=ScalePlan(),
            examined=examined,
            precision=precision,
            storage=storages(program, precision, component.kept, "f32" if examined else "f16"),
            execution=execution,
            device=target.device,
            io=ELEMENT_TYPES[options.io],
        )


def _selected(components: tuple[Component, ...], options: ConvertOptions) -> tuple[Component, ...]:
    """The components asked for. Raises RequestError naming one that does not exist, or a mode that does not."""
    for mode, known, flag in ((options.repair, REPAIR_MODES, "--repair"), (options.verify, VERIFY_MODES, "--verify")):
        if mode not in known:
            raise UsageError(f"unknown mode {mode!r}", source=flag, remedy=f"choose from {', '.join(known)}")
    names = [component.name for component in components]
    for asked, flag in ((options.components or (), "--components"), (options.precision.keys() - {"*"}, "--precision")):
        for name in sorted(set(asked) - set(names)):
            raise UsageError(f"unknown component {name!r}", source=flag, remedy=f"choose from {', '.join(names)}")
    if options.components == ():
        raise UsageError("no component to convert", source="--components", remedy=f"choose from {', '.join(names)}")
    return tuple(component for component in components if options.components is None or component.name in options.components)


def _precisions(components: Iterable[Component], options: ConvertOptions, target: Target) -> dict[str, str]:
    """Component name -> precision. Raises RequestError naming those that the target has."""
    if options.io not in target.engine.IO:
        reason = f"{target.name} has no inputs and outputs in {options.io!r}"
        raise UsageError(reason, source="--io", remedy=f"choose from {', '.join(target.engine.IO)}")
    known = f"choose from {', '.join(target.execution)}"
    if unknown := sorted(set(options.precision.values()) - target.execution.keys()):
        raise UsageError(f"{target.name} has no precision {unknown[0]!r}", source="--precision", remedy=known)
    chosen: dict[str, str] = {}
    for component in components:
        precision = options.precision.get(component.name, options.precision.get("*"))
        if precision is None:
            raise UsageError(f"no precision given for {component.name}", source="--precision", remedy=known)
        if options.io == "fp16" and precision != "fp16":
            reason = f"inputs and outputs in fp16, but {component.name} is {precision}"
            raise UsageError(reason, source="--io", remedy="leave --io out, or convert to --precision fp16")
        chosen[component.name] = precision
    return chosen
