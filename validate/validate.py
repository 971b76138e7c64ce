"""Compare an artifact with the model it was made from: each component, then a whole short generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import platformdirs

from vaefix.convert.checkpoint import Checkpoint, content_hash
from vaefix.convert.demo import demo_model
from vaefix.convert.hub import locate
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError, RequestError, VaefixError
from vaefix.runtime.session import Session, open_session

from .budgets import Kind, component_budget
from .comparing import attempt, compared, compared_in_f32
from .drawing import Drawn, draw
from .emulate import EMULATIONS, EmulatedSession
from .inputs import PictureSize, Prompt, prompt_text
from .reference import Feeds, Outputs
from .references import Case, ModelReference, Reference
from .saved import Recorder, SavedReference
from .tracing import Ranges, located, trace
from .verdict import Comparison, Verdict

_MULTIPLE = 32  # pixels: the VAE's factor of 8, times the two halvings in the UNet
_SAME_MODEL = "compare an artifact with the model it was made from"
# Where a config comes from, and how a pipeline is to hold the model: nothing that the networks compute.
_NOT_COMPARED = {"_diffusers_version", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "force_upcast"}


@dataclass(frozen=True)
class ValidateOptions:
    """What to compare, and how thoroughly.

    artifact: a folder written by vaefix-convert.
    reference: the model it was made from, a diffusers folder or a hub id; None is the built-in demo model.
    components: those to compare; None is all the artifact has.
    generation: compare a whole generation of `steps` steps too.  size: of its picture, and of the components' inputs.
    emulate: `fp16` or `bf16` also runs every component that executes in it as a GPU would; what the artifact does not
    execute is not emulated.
    ranges: measure what every layer reaches, in each run. Where a component fails this is done in any case.
    device: also run every component there (`GPU`, `CUDA:1`), in what that computes in.
    seeds: of the inputs; the first one draws the picture.  variant: of the reference's weight files.
    prompts: of the pictures; a seeded sentence where there are none.
    save_reference: a file for what the reference computed.  load_reference: such a file, in place of the model.
    cache: where the demo model is kept.
    """

    artifact: Path
    reference: str | Path | None = None
    components: tuple[str, ...] | None = None
    generation: bool = True
    size: PictureSize = field(default_factory=lambda: PictureSize(height=64, width=96))
    steps: int = 5
    emulate: str | None = None
    ranges: bool = False
    device: str | None = None
    seeds: tuple[int, ...] = (0, 1)
    prompts: tuple[str, ...] = ()
    variant: str | None = None
    save_reference: Path | None = None
    load_reference: Path | None = None
    cache: Path = field(default_factory=lambda: platformdirs.user_cache_path("vaefix"))


@dataclass(frozen=True)
class _Subject:
    """The artifact and its reference."""

    artifact: Artifact
    reference: Reference
    options: ValidateOptions


def validate(options: ValidateOptions, progress: Callable[[str], None] | None = None) -> Verdict:
    """Compare everything asked for; whatever could not be compared is in the verdict too, with the reason.

    progress: called with a line when something begins.
    Raises InputError when there is nothing sensible to compare: a damaged artifact, another model, an unknown name.
    """
    announce = progress or (lambda _: None)
    subject = _open(options)
    names = _selected(subject)
    configs = {name: _config_comparison(subject, name) for name in names}
    comparisons: list[Comparison] = []
    ranges: dict[str, Ranges] = {}
    for name in names:
        announce(name)
        found, layers = _component(subject, name)
        comparisons += [configs[name], *found]
        if layers:
            ranges[name] = layers
    if options.emulate and not any(comparison.kind == "emulated" for comparison in comparisons):
        comparisons.append(Comparison("all", "emulated", obstacle=_nothing_to_emulate(subject, names)))
    drawn = Drawn()
    if options.generation:
        announce("generation")
        drawn = _drawn(subject)
        comparisons += drawn.comparisons
    if isinstance(subject.reference, Recorder) and options.save_reference is not None:
        subject.reference.save(options.save_reference)
    return Verdict(
        artifact=str(subject.artifact.folder),
        reference=subject.reference.name,
        target=subject.artifact.target,
        seeds=options.seeds,
        comparisons=tuple(comparisons),
        ranges=ranges,
        steps=drawn.steps,
        pictures=drawn.pictures,
    )


def _open(options: ValidateOptions) -> _Subject:
    """Raises RequestError for senseless options, ModelError for a reference of another kind than the artifact."""
    if not options.seeds or options.steps < 1:
        raise RequestError("no seeds or no steps, so nothing would be compared", remedy="give at least one of each")
    if any(side < _MULTIPLE or side % _MULTIPLE for side in (options.size.height, options.size.width)):
        reason = f"{options.size.width}x{options.size.height} pixels"
        raise RequestError(reason, source="--width, --height", remedy=f"choose multiples of {_MULTIPLE}")
    if options.emulate not in (None, *EMULATIONS):
        raise RequestError(
            f"unknown emulation {options.emulate!r}", source="--emulate", remedy=f"choose {', '.join(EMULATIONS)}"
        )
    artifact = Artifact.load(options.artifact, verify=True)
    reference = _reference(artifact, options)
    if reference.family != artifact.family:
        reason = f"of the family {reference.family}, the artifact is {artifact.family}"
        raise ModelError(reason, source=reference.name, remedy=_SAME_MODEL)
    return _Subject(artifact, reference, options)


def _reference(artifact: Artifact, options: ValidateOptions) -> Reference:
    if options.load_reference is not None:
        if options.reference is not None or options.save_reference is not None:
            raise RequestError("a saved reference takes the place of the model", source="--load-reference", remedy="give one")
        return SavedReference(options.load_reference)
    folder = _demo_reference(artifact, options) if options.reference is None else locate(options.reference, options.variant)
    if options.save_reference is not None and not options.save_reference.parent.is_dir():
        raise RequestError("its folder does not exist", source=options.save_reference, remedy="choose another --save-reference")
    reference = ModelReference(Checkpoint.open(folder, options.variant))
    return reference if options.save_reference is None else Recorder(reference)


def _demo_reference(artifact: Artifact, options: ValidateOptions) -> Path:
    """The demo model, if the artifact was made from it. Raises RequestError if not."""
    folder = demo_model(options.cache)
    if all((folder / name).is_file() and content_hash(folder / name) == digest for name, digest in artifact.sources.items()):
        return folder
    raise RequestError(
        "it was not made from the built-in demo model, so a reference is needed",
        source=artifact.folder,
        remedy="give the model it was made from with --reference",
    )


def _selected(subject: _Subject) -> tuple[str, ...]:
    """The components to compare, in the family's order. Raises RequestError naming one that is not there."""
    there = [name for name in subject.reference.parts if name in subject.artifact.components]
    names = there if subject.options.components is None else subject.options.components
    unknown = sorted({*names, *(subject.artifact.components if names is there else ())} - {*there})
    if unknown or not names:
        reason = f"no component {', '.join(unknown)} to compare" if unknown else "no component to compare"
        raise RequestError(reason, source=subject.artifact.folder, remedy=f"choose from {', '.join(there)}")
    return tuple(dict.fromkeys(names))


def _config_comparison(subject: _Subject, name: str) -> Comparison:
    """Numbers that the arithmetic around the network uses, such as `scaling_factor`, must be those of the reference.

    Raises ModelError where anything else differs: the two are not the same architecture.
    """
    ours, theirs = subject.artifact.config(name), subject.reference.parts[name].config
    failures = []
    for key in sorted((ours.keys() | theirs.keys()) - _NOT_COMPARED):
        found, expected = ours.get(key), theirs.get(key)
        if found == expected:
            continue
        difference = f"{key} is {found!r}, the reference has {expected!r}"
        if not isinstance(found, float) and not isinstance(expected, float):
            raise ModelError(f"another architecture: {difference}", source=name, remedy=_SAME_MODEL)
        failures.append(difference)
    return Comparison(name, "config", "config.json", failures=tuple(failures))


def _nothing_to_emulate(subject: _Subject, names: Sequence[str]) -> str:
    executed = {subject.artifact.component(name).execution for name in names}
    others = [name for name, execution in EMULATIONS.items() if execution in executed]
    advice = f": ask for --emulate {others[0]}" if others else ""
    found = ", ".join(sorted(executed))
    return f"made for {subject.artifact.target}, it computes in {found}, not in {subject.options.emulate}{advice}"


def _component(subject: _Subject, name: str) -> tuple[list[Comparison], Ranges]:
    """Its comparisons, and what its layers reach, if that was measured."""
    entry, options = subject.artifact.component(name), subject.options
    tasks: dict[Kind, Callable[[_Subject, str, Case], list[Comparison]]] = {"parity": _in_f32}
    if options.emulate is not None and entry.execution == EMULATIONS[options.emulate]:
        tasks["emulated"] = _in_16_bits
    if options.device is not None:
        tasks["hardware"] = _on_device
    try:
        case = subject.reference.case(name, options.seeds, options.size, entry.precision)
    except VaefixError as error:
        return [Comparison(name, kind, obstacle=str(error)) for kind in tasks], {}
    found = [item for kind, task in tasks.items() for item in attempt(name, kind, partial(task, subject, name, case))]
    return _located(subject, name, case, found)


def _located(subject: _Subject, name: str, case: Case, comparisons: list[Comparison]) -> tuple[list[Comparison], Ranges]:
    """The comparisons, with the layer to blame where one failed, and what the layers reach, if that was measured."""
    options, entry = subject.options, subject.artifact.component(name)
    graph = subject.artifact.folder / entry.model
    failed = any(item.status == "failed" and item.kind in ("parity", "emulated") for item in comparisons)
    if not (failed or options.ranges or options.save_reference is not None):  # a saved reference must serve failures, too
        return comparisons, {}
    emulated = any(item.kind == "emulated" for item in comparisons)
    try:
        reference = subject.reference.ranges(name, options.seeds[0], options.size, entry.precision)
        ranges = trace(graph, reference, case.feeds[0], emulated=emulated)
        return located(comparisons, ranges, graph.parent, options.emulate), ranges
    except VaefixError as error:
        return [*comparisons, Comparison(name, "ranges", obstacle=str(error))], {}


def _in_f32(subject: _Subject, name: str, case: Case) -> list[Comparison]:
    budget = partial(component_budget, parameters=_size(subject, name), precision=subject.artifact.component(name).precision)
    return compared_in_f32(name, case.expected, _run(open_session(subject.artifact, name), case.feeds), budget)


def _in_16_bits(subject: _Subject, name: str, case: Case) -> list[Comparison]:
    graph = subject.artifact.folder / subject.artifact.component(name).model
    outputs = _run(EmulatedSession(graph), case.feeds)
    limits = component_budget("emulated", _size(subject, name), str(subject.options.emulate))
    found = compared(name, "emulated", (case.expected.untouched, outputs), limits)
    if not any(item.difference is not None and item.difference.nonfinite_actual for item in found):
        return found
    fused = _run(EmulatedSession(graph, "fused"), case.feeds)
    return [_with_certainty(item, fused) for item in found]


def _on_device(subject: _Subject, name: str, case: Case) -> list[Comparison]:
    session = open_session(subject.artifact, name, str(subject.options.device))
    precision = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}[session.precision]
    expected = case.expected.stored if precision == "fp32" else case.expected.untouched
    limits = component_budget("hardware", _size(subject, name), precision)
    return compared(name, "hardware", (expected, _run(session, case.feeds)), limits)


def _size(subject: _Subject, name: str) -> int:
    return subject.reference.parts[name].parameters


def _with_certainty(comparison: Comparison, fused: Outputs) -> Comparison:
    """Tells an overflow that every GPU has from one that only those have which write each operation's result to memory."""
    if comparison.difference is None or not comparison.difference.nonfinite_actual:
        return comparison
    certain = not np.isfinite(fused[comparison.output]).all()
    note = "will overflow" if certain else "at risk: it overflows where a GPU fuses no operations"
    return replace(comparison, failures=(*comparison.failures, note))


def _run(session: Session | EmulatedSession, feeds: Sequence[Feeds]) -> Outputs:
    results = [session.run(feed) for feed in feeds]
    return {name: np.stack([result[name] for result in results]) for name in session.outputs}


def _drawn(subject: _Subject) -> Drawn:
    """Every prompt; steps and pictures of the first."""
    options = subject.options
    seed = options.seeds[0]
    texts = options.prompts or (prompt_text(seed),)
    result = Drawn()
    for number, text in enumerate(texts, start=1):
        prompt = Prompt(text, seed, options.steps, options.size)
        drawn = draw(subject.artifact, subject.reference, prompt, emulate=options.emulate)
        which = f" of prompt {number}" if len(texts) > 1 else ""
        found = [replace(comparison, output=comparison.output + which) for comparison in drawn.comparisons]
        first = drawn if number == 1 else result
        result = replace(first, comparisons=(*result.comparisons, *found))
    return result
