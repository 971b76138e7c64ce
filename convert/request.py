"""What is asked of a conversion, and the model it is asked of: everything that is known before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from vaefix.runtime.arguments import fit_fields, fitted
from vaefix.runtime.errors import ModelError, UsageError
from vaefix.runtime.libraries import refusals
from vaefix.runtime.progress import Activity
from vaefix.runtime.vocabulary import ALL, in_full, of_component, unknown_components

from .cache import cached, default_cache
from .calibration import check_file
from .checkpoint import Checkpoint, TensorRef
from .demo import demo_model
from .families import Component, component_names, find_family
from .hub import locate
from .output import located, require_apart, require_cache_apart, require_cache_outside
from .pipeline import check_scheduler, check_tokenizer_files, check_tokenizers, tokenizers_of
from .policy import storages
from .precision import ELEMENT_TYPES
from .program import Program
from .repair.plan import ScalePlan
from .targets import Job, Target, find_target

REPAIR_MODES = ("auto", "always", "never")
VERIFY_MODES = ("auto", "full")
_OTHER = "give the config.json that belongs to the weights"
AUTO = "auto"
"""The precision that `choose.py` resolves."""


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and how.

    output: the folder to make.  model: a diffusers folder or a hub id; None is the built-in demo model.
    precision: component name (`vae` for both its halves) -> `fp32`, `fp16`, `bf16`, `int8`, `int4`, `fp8_e4m3` or `fp8_e5m2`;
        `*` stands for every component that is not named; a single name stands for all of them. `auto` chooses, see
        `choose.py`.
    budget: bytes of memory to run in, one component at a time, for `auto`.
    io: `fp32` or `fp16`, of the graphs' inputs and outputs (`fp16`: components in fp16 for ONNX only).
    components: those to convert, or a single one; None is all of them.
    repair: `auto` measures fragile components that execute in f16, and what a small run of them shows to be too large or too
        small for float16; `always` every component, `never` none.
    calibration: the user's own latents (.npy) or pictures, measured for the repair besides seeded ones.
    verify: `auto` executes every component of up to 1e9 weights beside PyTorch, `full` the full-size UNet as well,
        and reads every written file back.
    variant, revision: of the checkpoint's files.  force: replace an existing output.
    cache: folder of the skeletons and the demo model; None, or one that cannot be written, keeps nothing.
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
    cache: Path | None = field(default_factory=default_cache)

    def __post_init__(self) -> None:
        given = fitted(self.precision, str | Mapping[str, str], "precision")
        object.__setattr__(self, "precision", {ALL: given} if isinstance(given, str) else given)
        fit_fields(self)
        if self.components is not None:
            object.__setattr__(self, "components", in_full(self.components))


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
        check_options(options)
        model = options.model
        folder = demo_model(options.cache) if model is None else locate(model, options.variant, options.revision)
        require_apart(located(options.output), folder)
        require_cache_outside(options.cache, folder)
        checkpoint = Checkpoint.open(folder, options.variant)
        family = find_family(checkpoint)
        components = _selected(family.components(checkpoint), options)
        precision = _precisions(components, options, target)
        tensors = {part: checkpoint.tensors(part) for part in dict.fromkeys(component.part for component in components)}
        request = cls(options, target, checkpoint, family, components, precision, tensors)
        for name, _ in request.tokenizers:  # before a library is imported for the scheduler
            check_tokenizer_files(checkpoint, name)
        check_scheduler(checkpoint, options.cache)
        check_tokenizers(checkpoint, request.tokenizers, options.cache)
        return request

    @property
    def tokenizers(self) -> tuple[tuple[str, Component], ...]:
        """Folder and text encoder of those whose encoder is converted."""
        return tokenizers_of(self.family, self.components)

    def jobs(self, stage: Callable[[Activity], None] = lambda _: None) -> Iterator[Job]:
        """Of every component, see `job`. stage: is told before each."""
        for number, component in enumerate(self.components, 1):
            stage(Activity("capture", component.name, number, len(self.components)))
            yield self.job(component)

    def job(self, component: Component) -> Job:
        """Capture and lower the component, or take both from the cache, and bind the checkpoint's tensors to it."""
        options, target, precision = self.options, self.target, self.precision[component.name]
        key = {"family": self.family.__name__, "component": component.name, "config": dict(component.config)}

        tensors, source = self.tensors[component.part], self.checkpoint.folder / component.part / "config.json"

        def capture() -> Any:
            from .capture import build
            from .capture import capture as trace

            module = build(component, tensors, source)
            with refusals(ModelError, "PyTorch cannot trace this model", source=source, remedy=_OTHER):
                return trace(module, component.inputs, component.outputs, component.root).to_json()

        def lower() -> Any:
            with refusals(ModelError, f"vaefix cannot convert this model to {target.name}", source=source, remedy=_OTHER):
                return target.engine.lower(program)

        program = Program.from_json(cached(options.cache, f"{component.name}-program", key, capture))
        shapes = {parameter.name: parameter.shape for parameter in program.parameters.values()}
        bound = component.bind(shapes, tensors)  # before lowering, which makes tables of the sizes that a config names
        program = program.without_unread()
        read = {parameter.name for parameter in program.parameters.values()}
        skeleton = cached(options.cache, f"{component.name}-{target.engine_name}", key, lower)
        execution = target.execution[precision]
        examined = options.repair == "always" or (options.repair == "auto" and component.fragile and execution == "f16")
        return Job(
            component=component,
            program=program,
            skeleton=skeleton,
            tensors={name: tensor for name, tensor in bound.items() if name in read},
            plan=ScalePlan(),
            examined=examined,
            precision=precision,
            storage=storages(program, precision, component.kept, "f32" if examined else "f16"),
            execution=execution,
            device=target.device,
            io=ELEMENT_TYPES[options.io],
        )


def check_options(options: ConvertOptions) -> None:
    """What can be said of the options before a model is found. Raises UsageError, or RequestError for a file or an output."""
    target = find_target(options.target)
    for mode, known, flag in ((options.repair, REPAIR_MODES, "--repair"), (options.verify, VERIFY_MODES, "--verify")):
        if mode not in known:
            raise UsageError(f"unknown mode {mode!r}", source=flag, remedy=f"choose from {', '.join(known)}")
    if options.io not in target.engine.IO:
        reason = f"{target.name} has no inputs and outputs in {options.io!r}"
        raise UsageError(reason, source="--io", remedy=f"choose from {', '.join(target.engine.IO)}")
    if unknown := sorted(set(options.precision.values()) - target.execution.keys() - {AUTO}):
        reason, remedy = f"{target.name} has no precision {unknown[0]!r}", f"choose from {', '.join(target.execution)}"
        raise UsageError(reason, source="--precision", remedy=remedy)
    _check_names(options, component_names())
    if unneeded := unknown_components(
        options.precision, component_names() if options.components is None else options.components
    ):
        reason = f"one is given for {', '.join(unneeded)}, which --components leaves out"
        raise UsageError(reason, source="--precision", remedy="leave it out, or convert that component too")
    _check_places(options)
    for file in options.calibration:
        check_file(file)


def _check_places(options: ConvertOptions) -> None:
    """Raises UsageError for a model, a revision or a cache that cannot be meant, whatever is there."""
    model = options.model
    if model == "":
        raise UsageError("it is empty", source="--model", remedy="give a diffusers folder or a hub id, or leave it out")
    if options.revision is not None and (model is None or Path(model).exists()):
        reason = f"only a hub id has revisions, not {model or 'the built-in demo model'}"
        raise UsageError(reason, source="--revision", remedy="leave it out")
    require_cache_apart(located(options.output), options.cache)


def _check_names(options: ConvertOptions, names: Collection[str]) -> None:
    """Raises UsageError for a component that does not exist, or none."""
    for asked, flag in ((options.components or (), "--components"), (options.precision, "--precision")):
        for name in unknown_components(asked, names):
            raise UsageError(f"unknown component {name!r}", source=flag, remedy=f"choose from {', '.join(names)}")
    if options.components == ():
        raise UsageError("no component to convert", source="--components", remedy=f"choose from {', '.join(names)}")


def _selected(components: tuple[Component, ...], options: ConvertOptions) -> tuple[Component, ...]:
    """The components asked for. Raises UsageError naming one that this model does not have."""
    _check_names(options, [component.name for component in components])
    return tuple(component for component in components if options.components is None or component.name in options.components)


def _precisions(components: Iterable[Component], options: ConvertOptions, target: Target) -> dict[str, str]:
    """Component name -> precision. Raises UsageError where there is none, or one that its inputs do not go with."""
    known = f"choose from {', '.join(target.execution)}"
    chosen: dict[str, str] = {}
    for component in components:
        precision = of_component(options.precision, component.name)
        if precision is None:
            raise UsageError(f"no precision given for {component.name}", source="--precision", remedy=known)
        if options.io == "fp16" and precision != "fp16":
            reason = f"inputs and outputs in fp16, but {component.name} is {precision}"
            raise UsageError(reason, source="--io", remedy="leave --io out, or convert to --precision fp16")
        chosen[component.name] = precision
    return chosen
