"""Convert a model: checkpoint -> components -> capture -> repair -> stream -> verify -> rename."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs

from vaefix.runtime.artifact import MANIFEST, Artifact, ComponentEntry
from vaefix.runtime.errors import RequestError

from .cache import cached, own_code, versions
from .calibration import own_inputs
from .checkpoint import Checkpoint, TensorRef, content_hash, read_file
from .demo import demo_model
from .families import Component, find_family
from .hub import locate
from .policy import storages, weight_counts
from .precision import BITS, ELEMENT_TYPES
from .program import Program
from .repair.plan import ScalePlan
from .targets import Job, Target, find_target
from .verify import verify
from .writer import Stage, staged

REPAIR_MODES = ("auto", "always", "never")
VERIFY_MODES = ("auto", "full")
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and how.

    output: the folder to make.  model: a diffusers folder or a hub id; None is the built-in demo model.
    precision: component name -> `fp32`, `fp16`, `bf16`, `int8`, `int4`, `fp8_e4m3` or `fp8_e5m2`; `*` stands for every
        component that is not named.
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
class Progress:
    """How a conversion tells what it is doing.

    stage: called when something begins, with a line and the bytes it will write, None if that is not what it does.
    wrote: called with a number of bytes as they are written.
    """

    stage: Callable[[str, int | None], None] = lambda _, __: None
    wrote: Callable[[int], None] = lambda _: None


def convert(options: ConvertOptions, progress: Progress = Progress()) -> Artifact:
    """Convert a model and return its artifact; nothing appears at `options.output` before every check has passed.

    Raises InputError (bad model or request), ResourceError (disk) or ParityError (what was written is not the model).
    """
    target = find_target(options.target)
    folder = demo_model(options.cache) if options.model is None else locate(options.model, options.variant, options.revision)
    checkpoint = Checkpoint.open(folder, options.variant)
    family = find_family(checkpoint)
    components = _selected(family.components(checkpoint), options)
    precision = _precisions(components, options, target)
    tensors = {part: checkpoint.tensors(part) for part in dict.fromkeys(component.part for component in components)}
    sources = sorted({tensor.file for part in tensors.values() for tensor in part.values()})
    fingerprint = _fingerprint(options, precision, checkpoint, sources)
    with (
        ThreadPoolExecutor(1) as pool,
        staged(
            Path(options.output),
            fingerprint,
            force=options.force,
            needed=_weight_bytes(components, precision, tensors),
            written=progress.wrote,
        ) as stage,
    ):
        hashes = {source.relative_to(folder).as_posix(): pool.submit(content_hash, source) for source in sources}
        _copy_pipeline(stage, checkpoint, family, components, target, options.cache)
        entries, parity = {}, {}
        for component in components:
            name = component.name
            progress.stage(f"{name}: capture", None)
            job = _job(component, family, tensors[component.part], target, precision[name], options)
            if job.examined:
                progress.stage(f"{name}: repair", None)
                job = _repaired(job, family, options.calibration)
            progress.stage(f"{name}: write", _stored_bytes(job))
            entries[name] = _write(stage, job, checkpoint, target)
            progress.stage(f"{name}: verify", None)
            parity[name] = verify(target, job, stage.folder, family.sample_inputs, options.verify == "full")
        progress.stage("read back", None)
        stage.verify(full=options.verify == "full")
        artifact = Artifact(
            folder=Path(options.output),
            target=target.name,
            family=family.__name__.rpartition(".")[2],
            components=entries,
            files=dict(stage.files),
            sources={name: future.result() for name, future in hashes.items()},
            tools=versions(),
            parity=parity,
        )
        stage.write(MANIFEST, artifact.manifest())
    return artifact


def _selected(components: tuple[Component, ...], options: ConvertOptions) -> tuple[Component, ...]:
    """The components asked for. Raises RequestError naming one that does not exist, or a mode that does not."""
    for mode, known, flag in ((options.repair, REPAIR_MODES, "--repair"), (options.verify, VERIFY_MODES, "--verify")):
        if mode not in known:
            raise RequestError(f"unknown mode {mode!r}", source=flag, remedy=f"choose from {', '.join(known)}")
    names = [component.name for component in components]
    for asked, flag in ((options.components or (), "--components"), (options.precision.keys() - {"*"}, "--precision")):
        for name in sorted(set(asked) - set(names)):
            raise RequestError(f"unknown component {name!r}", source=flag, remedy=f"choose from {', '.join(names)}")
    if options.components == ():
        raise RequestError("no component to convert", source="--components", remedy=f"choose from {', '.join(names)}")
    return tuple(component for component in components if options.components is None or component.name in options.components)


def _precisions(components: Iterable[Component], options: ConvertOptions, target: Target) -> dict[str, str]:
    """Component name -> precision. Raises RequestError naming those that the target has."""
    if options.io not in target.engine.IO:
        reason = f"{target.name} has no inputs and outputs in {options.io!r}"
        raise RequestError(reason, source="--io", remedy=f"choose from {', '.join(target.engine.IO)}")
    chosen: dict[str, str] = {}
    for component in components:
        precision = options.precision.get(component.name, options.precision.get("*"))
        if precision is None or precision not in target.execution:
            reason = (
                f"{target.name} has no precision {precision!r}" if precision else f"no precision given for {component.name}"
            )
            raise RequestError(reason, source="--precision", remedy=f"choose from {', '.join(target.execution)}")
        if options.io == "fp16" and precision != "fp16":
            reason = f"inputs and outputs in fp16, but {component.name} is {precision}"
            raise RequestError(reason, source="--io", remedy="leave --io out, or convert to --precision fp16")
        chosen[component.name] = precision
    return chosen


def _weight_bytes(
    components: Iterable[Component], precision: Mapping[str, str], tensors: Mapping[str, Mapping[str, TensorRef]]
) -> int:
    """What the components' weights will take on disk, at least."""
    return sum(
        tensor.count * BITS[ELEMENT_TYPES[precision[component.name]]] // 8
        for component in components
        for tensor in tensors[component.part].values()
        if tensor.name.startswith(component.owns)
    )


def _stored_bytes(job: Job) -> int:
    return sum(size for name, tensor in job.tensors.items() for size in job.storage[name].parts(tensor.shape).values())


def _fingerprint(
    options: ConvertOptions, precision: Mapping[str, str], checkpoint: Checkpoint, sources: Iterable[Path]
) -> dict[str, Any]:
    """Everything the staged files depend on: a conversion resumes only where all of it is the same."""
    configs = sorted(path for path in checkpoint.folder.glob("**/*") if path.suffix in {".json", ".txt"})
    files = {str(path.relative_to(checkpoint.folder)): path.stat() for path in [*sources, *configs]}
    return {
        "sources": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        "target": options.target,
        "precision": dict(precision),
        "io": options.io,
        "repair": options.repair,
        "calibration": [content_hash(file) if file.is_file() else str(file) for file in options.calibration],
        "verify": options.verify,
        "tools": versions(),
        "code": own_code(),
    }


def _copy_pipeline(
    stage: Stage, checkpoint: Checkpoint, family: ModuleType, components: Iterable[Component], target: Target, cache: Path
) -> None:
    """Everything of a pipeline that is not a network: index, scheduler and the tokenizers of the chosen text encoders."""
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        stage.write(name, read_file(checkpoint.folder / name))
    chosen = {component.name for component in components}
    for tokenizer, encoder in family.TOKENIZERS.items():
        if encoder not in chosen:
            continue
        checkpoint.config(tokenizer, "tokenizer_config.json")
        files = {name: read_file(path) for name in _TOKENIZER_FILES if (path := checkpoint.folder / tokenizer / name).exists()}
        for name, data in files.items():
            stage.write(f"{tokenizer}/{name}", data)
        inputs = {name: base64.b64encode(data).decode() for name, data in files.items()}

        def make(folder: Path = checkpoint.folder / tokenizer) -> Any:
            return target.engine.tokenizer_graphs(folder)

        for name, text in cached(cache, f"tokenizer-{target.engine_name}", inputs, make).items():
            stage.write(f"{tokenizer}/{name}", base64.b64decode(text))


def _job(
    component: Component,
    family: ModuleType,
    tensors: Mapping[str, TensorRef],
    target: Target,
    precision: str,
    options: ConvertOptions,
) -> Job:
    """Capture and lower the component, or take both from the cache, and bind the checkpoint's tensors to it."""
    key = {"family": family.__name__, "component": component.name, "config": dict(component.config)}

    def capture() -> Any:
        from .capture import capture as trace

        return trace(component.build(), component.inputs, component.outputs, component.root).to_json()

    program = Program.from_json(cached(options.cache, f"{component.name}-program", key, capture))
    skeleton = cached(options.cache, f"{component.name}-{target.engine_name}", key, lambda: target.engine.lower(program))
    bound = component.bind({parameter.name: parameter.shape for parameter in program.parameters.values()}, tensors)
    execution = target.execution[precision]
    examined = options.repair == "always" or (options.repair == "auto" and component.fragile and execution == "f16")
    return Job(
        component=component,
        program=program,
        skeleton=skeleton,
        tensors=bound,
        plan=ScalePlan(),
        examined=examined,
        precision=precision,
        storage=storages(program, precision, component.kept, "f32" if examined else "f16"),
        execution=execution,
        device=target.device,
        io=ELEMENT_TYPES[options.io],
    )


def _repaired(job: Job, family: ModuleType, calibration: Iterable[Path]) -> Job:
    """The job with the plan that brings the component into the range of fp16, proven to be the same function."""
    from .repair.repair import find_plan

    own = own_inputs(job.component, calibration)
    return replace(job, plan=find_plan(job.component, job.program, job.tensors, family.sample_inputs, own))


def _write(stage: Stage, job: Job, checkpoint: Checkpoint, target: Target) -> ComponentEntry:
    name, repaired = job.component.name, not job.plan.is_empty
    stage.write(f"{name}/config.json", _config(job, checkpoint))
    if repaired:
        stage.write(f"{name}/repair.json", json.dumps(job.plan.to_json(), indent=1, sort_keys=True).encode() + b"\n")
    graph = target.engine.write(stage, job)
    return ComponentEntry(graph, job.precision, job.execution, repaired, weight_counts(job.program, job.storage))


def _config(job: Job, checkpoint: Checkpoint) -> bytes:
    """The component's own. Pipelines that draw in fp16 would turn a VAE into float32, which a graph cannot become."""
    data = read_file(checkpoint.folder / job.component.part / "config.json")
    if job.io == "f32" or not job.component.config.get("force_upcast"):
        return data
    return json.dumps({**json.loads(data), "force_upcast": False}, indent=2).encode() + b"\n"
