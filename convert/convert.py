"""Convert a model: checkpoint -> components -> capture -> repair -> stream -> verify -> rename."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaefix.runtime.artifact import MANIFEST, Artifact, ComponentEntry
from vaefix.runtime.progress import Activity

from .cache import own_code, versions
from .calibration import own_inputs
from .checkpoint import content_hash
from .choose import Choice, resolve
from .cost import cost
from .loss import Tally
from .output import prepare
from .pipeline import copy_pipeline
from .policy import weight_counts
from .precision import BITS, ELEMENT_TYPES
from .request import ConvertOptions as ConvertOptions  # part of what this module offers
from .request import Request
from .targets import Job, Target
from .verify import SIDE, is_executed, verify
from .writer import Stage, staged

if TYPE_CHECKING:
    from .sample import Sample


@dataclass(frozen=True)
class Progress:
    """How a conversion tells what it is doing.

    stage: called when something begins.
    expect: called before the first byte is written, with how many there will be, at least.  wrote: with those just written.
    chosen: called with what `auto` was resolved to; nothing where it was not asked for.
    """

    stage: Callable[[Activity], None] = lambda _: None
    expect: Callable[[int], None] = lambda _: None
    wrote: Callable[[int], None] = lambda _: None
    chosen: Callable[[tuple[Choice, ...]], None] = lambda _: None


def convert(options: ConvertOptions, progress: Progress = Progress()) -> Artifact:
    """Convert a model and return its artifact; nothing appears at `options.output` before every check has passed.

    Raises InputError (bad model or request), ResourceError (disk), ParityError (what was written is not the model) or
    InterruptError (Ctrl-C).
    """
    prepare(Path(options.output), force=options.force)  # once more when it is staged: a refusal is worth no capture
    progress.stage(Activity("read the model"))
    options, choices = resolve(options, progress.stage)
    progress.chosen(choices)
    request = Request.of(options)
    sources = sorted({tensor.file for part in request.tensors.values() for tensor in part.values()})
    with staged(
        Path(options.output),
        _fingerprint(request, sources),
        force=options.force,
        needed=_least_bytes(request),
        written=progress.wrote,
    ) as stage:
        if MANIFEST in stage.files:  # finished by an earlier attempt, which could not publish it
            _read_back(stage, options, progress)
        else:
            artifact = _filled(stage, request, sources, progress)
            progress.stage(Activity("publish"))
            stage.write(MANIFEST, replace(artifact, chosen={choice.component: asdict(choice) for choice in choices}).manifest())
    return Artifact.load(options.output)


def _filled(stage: Stage, request: Request, sources: Iterable[Path], progress: Progress) -> Artifact:
    """Write every file but the manifest, and check each. Returns what the manifest is to say."""
    options, target, checkpoint, family = request.options, request.target, request.checkpoint, request.family
    with _beside() as pool:
        hashes = {source.relative_to(checkpoint.folder).as_posix(): pool.submit(content_hash, source) for source in sources}
        progress.expect(max(0, _least_bytes(request) - sum(entry.size for entry in stage.files.values())))
        progress.stage(Activity("copy tokenizers and scheduler"))
        copy_pipeline(stage, request)
        entries: dict[str, ComponentEntry] = {}
        parity: dict[str, Any] = {}
        for component in request.components:
            name = component.name
            place = name, len(entries) + 1, len(request.components)
            progress.stage(Activity("capture", *place))
            job, sample = _examined(request, request.job(component), place, progress)
            progress.stage(Activity("write", *place))
            tally = Tally()
            entries[name] = _write(stage, job, target, tally)
            progress.stage(Activity("verify", *place))
            parity[name] = verify(target, job, stage.folder, sample) | cost(job, sample, tally, options.repair)
        _read_back(stage, options, progress)
        progress.stage(Activity("hash the model's files"))
        return Artifact(
            folder=Path(options.output),
            target=target.name,
            family=family.__name__.rpartition(".")[2],
            components=entries,
            files=dict(stage.files),
            sources={name: future.result() for name, future in hashes.items()},
            tools=versions(),
            parity=parity,
        )


@contextmanager
def _beside() -> Iterator[ThreadPoolExecutor]:
    """A thread beside the work; once that fails or is stopped, nothing more is begun in it."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read_back(stage: Stage, options: ConvertOptions, progress: Progress) -> None:
    progress.stage(Activity("read back"))
    stage.verify(full=options.verify == "full")


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
    there = (path for path in [*sources, *configs] if path.is_file())  # links may lead nowhere: who needs them says so
    files = {str(path.relative_to(checkpoint.folder)): path.stat() for path in there}
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


def _examined(request: Request, job: Job, place: tuple[str, int, int], progress: Progress) -> tuple[Job, Sample | None]:
    """The job with its plan, and what the component makes of a small input, if it is small enough to be run.

    A fragile component is measured for a repair in any case, another one if its sample gives reason to.
    """
    options, inputs = request.options, request.family.sample_inputs
    if job.examined:
        progress.stage(Activity("repair", *place))
        job = _repaired(job, inputs, options.calibration)
    if not is_executed(job, full=options.verify == "full"):
        return job, None
    from .sample import is_suspect, take_sample

    progress.stage(Activity("sample", *place))
    feeds = inputs(job.component, 0, SIDE)
    sample = take_sample(job, feeds)
    if job.examined or options.repair != "auto" or not job.has_range_of_float16 or not is_suspect(job, sample):
        return job, sample
    progress.stage(Activity("repair", *place))
    repaired = _repaired(job, inputs, options.calibration)
    return (job, sample) if repaired.plan.is_empty else (repaired, take_sample(repaired, feeds))


def _repaired(job: Job, inputs: Any, calibration: Iterable[Path]) -> Job:
    """The job with the plan that brings the component into the range of fp16, proven to be the same function."""
    from .repair.repair import find_plan

    plan = find_plan(job, inputs, own_inputs(job.component, calibration))
    if plan.is_empty:
        return job
    return replace(job, plan=plan, storage={name: replace(how, scale_type="f32") for name, how in job.storage.items()})


def _write(stage: Stage, job: Job, target: Target, tally: Tally) -> ComponentEntry:
    name, repaired = job.component.name, not job.plan.is_empty
    stage.write(f"{name}/config.json", _config(job))
    if repaired:
        stage.write(f"{name}/repair.json", json.dumps(job.plan.to_json(), indent=1, sort_keys=True).encode() + b"\n")
    graph = target.engine.write(stage, job, tally)
    return ComponentEntry(graph, job.precision, job.execution, repaired, weight_counts(job.program, job.storage))


def _config(job: Job) -> bytes:
    """The component's own, complete: other software has other defaults than the library whose config it is.

    Pipelines that draw in fp16 would turn a VAE into float32, which a graph cannot become.
    """
    config = dict(job.component.config)
    if job.io != "f32" and config.get("force_upcast"):
        config["force_upcast"] = False
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
