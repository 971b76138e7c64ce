"""Convert a model: checkpoint -> components -> capture -> repair -> stream -> verify -> rename."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from vaefix.runtime.artifact import MANIFEST, Artifact, ComponentEntry

from .cache import cached, own_code, versions
from .calibration import own_inputs
from .checkpoint import content_hash, read_file
from .choose import Choice, resolve
from .policy import weight_counts
from .precision import BITS, ELEMENT_TYPES
from .request import ConvertOptions as ConvertOptions  # part of what this module offers
from .request import Request
from .targets import Job, Target
from .verify import verify
from .writer import Stage, staged

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Progress:
    """How a conversion tells what it is doing.

    stage: called when something begins, with a line and the bytes it will write, None if that is not what it does.
    wrote: called with a number of bytes as they are written.
    chosen: called with what `auto` was resolved to; nothing where it was not asked for.
    """

    stage: Callable[[str, int | None], None] = lambda _, __: None
    wrote: Callable[[int], None] = lambda _: None
    chosen: Callable[[tuple[Choice, ...]], None] = lambda _: None


def convert(options: ConvertOptions, progress: Progress = Progress()) -> Artifact:
    """Convert a model and return its artifact; nothing appears at `options.output` before every check has passed.

    Raises InputError (bad model or request), ResourceError (disk) or ParityError (what was written is not the model).
    """
    options, choices = resolve(options)
    progress.chosen(choices)
    request = Request.of(options)
    target, checkpoint, family = request.target, request.checkpoint, request.family
    sources = sorted({tensor.file for part in request.tensors.values() for tensor in part.values()})
    with (
        ThreadPoolExecutor(1) as pool,
        staged(
            Path(options.output),
            _fingerprint(request, sources),
            force=options.force,
            needed=_least_bytes(request),
            written=progress.wrote,
        ) as stage,
    ):
        hashes = {source.relative_to(checkpoint.folder).as_posix(): pool.submit(content_hash, source) for source in sources}
        _copy_pipeline(stage, request)
        entries, parity = {}, {}
        for component in request.components:
            name = component.name
            progress.stage(f"{name}: capture", None)
            job = request.job(component)
            if job.examined:
                progress.stage(f"{name}: repair", None)
                job = _repaired(job, family, options.calibration)
            progress.stage(f"{name}: write", job.stored_bytes)
            entries[name] = _write(stage, job, target)
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
            chosen={choice.component: asdict(choice) for choice in choices},
        )
        stage.write(MANIFEST, artifact.manifest())
    return artifact


def _least_bytes(request: Request) -> int:
    """What the weights will take on disk, at least."""
    return sum(
        tensor.count * BITS[ELEMENT_TYPES[request.precision[component.name]]] // 8
        for component in request.components
        for tensor in request.tensors[component.part].values()
        if tensor.name.startswith(component.owns)
    )


def _fingerprint(request: Request, sources: Iterable[Path]) -> dict[str, Any]:
    """Everything the staged files depend on: a conversion resumes only where all of it is the same."""
    options, checkpoint = request.options, request.checkpoint
    configs = sorted(path for path in checkpoint.folder.glob("**/*") if path.suffix in {".json", ".txt"})
    files = {str(path.relative_to(checkpoint.folder)): path.stat() for path in [*sources, *configs]}
    return {
        "sources": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        "target": options.target,
        "precision": dict(request.precision),
        "io": options.io,
        "repair": options.repair,
        "calibration": [content_hash(file) if file.is_file() else str(file) for file in options.calibration],
        "verify": options.verify,
        "tools": versions(),
        "code": own_code(),
    }


def _copy_pipeline(stage: Stage, request: Request) -> None:
    """Everything of a pipeline that is not a network: index, scheduler and the tokenizers of the chosen text encoders."""
    checkpoint, target = request.checkpoint, request.target
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        stage.write(name, read_file(checkpoint.folder / name))
    chosen = {component.name for component in request.components}
    for tokenizer, encoder in request.family.TOKENIZERS.items():
        if encoder not in chosen:
            continue
        checkpoint.config(tokenizer, "tokenizer_config.json")
        files = {name: read_file(path) for name in _TOKENIZER_FILES if (path := checkpoint.folder / tokenizer / name).exists()}
        for name, data in files.items():
            stage.write(f"{tokenizer}/{name}", data)
        inputs = {name: base64.b64encode(data).decode() for name, data in files.items()}

        def make(folder: Path = checkpoint.folder / tokenizer) -> Any:
            return target.engine.tokenizer_graphs(folder)

        for name, text in cached(request.options.cache, f"tokenizer-{target.engine_name}", inputs, make).items():
            stage.write(f"{tokenizer}/{name}", base64.b64decode(text))


def _repaired(job: Job, family: ModuleType, calibration: Iterable[Path]) -> Job:
    """The job with the plan that brings the component into the range of fp16, proven to be the same function."""
    from .repair.repair import find_plan

    own = own_inputs(job.component, calibration)
    return replace(job, plan=find_plan(job.component, job.program, job.tensors, family.sample_inputs, own))


def _write(stage: Stage, job: Job, target: Target) -> ComponentEntry:
    name, repaired = job.component.name, not job.plan.is_empty
    stage.write(f"{name}/config.json", _config(job))
    if repaired:
        stage.write(f"{name}/repair.json", json.dumps(job.plan.to_json(), indent=1, sort_keys=True).encode() + b"\n")
    graph = target.engine.write(stage, job)
    return ComponentEntry(graph, job.precision, job.execution, repaired, weight_counts(job.program, job.storage))


def _config(job: Job) -> bytes:
    """The component's own, complete: other software has other defaults than the library whose config it is.

    Pipelines that draw in fp16 would turn a VAE into float32, which a graph cannot become.
    """
    config = dict(job.component.config)
    if job.io != "f32" and config.get("force_upcast"):
        config["force_upcast"] = False
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
