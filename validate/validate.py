"""Compare an artifact with the model it was made from: each component, then a whole short generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import platformdirs

from vaefix.convert.checkpoint import Checkpoint, content_hash
from vaefix.convert.demo import demo_model
from vaefix.convert.families import find_family
from vaefix.convert.hub import locate
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError, PictureError, RequestError, VaefixError
from vaefix.runtime.pipeline import load_pipeline
from vaefix.runtime.session import Session, open_session

from .budgets import Budget, Kind, component_budget, generation_budget
from .emulate import EmulatedSession
from .inputs import PictureSize, Prompt, prompt_text, sample_inputs
from .metrics import compare
from .reference import Expected, Feeds, Outputs, component_outputs, generate, generation
from .verdict import Comparison, Verdict

EMULATIONS = {"fp16": "f16", "bf16": "bf16"}
"""What may be emulated, and the `execution` of the components that this applies to."""
_MULTIPLE = 32  # pixels: the VAE's factor of 8, times the two halvings in the UNet
_SAME_MODEL = "compare an artifact with the model it was made from"
# Where a config comes from, and how a pipeline is to hold the model: nothing that the networks compute.
_NOT_COMPARED = {"_diffusers_version", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "force_upcast"}

_Budgets = Callable[[Kind], Budget]


@dataclass(frozen=True)
class ValidateOptions:
    """What to compare, and how thoroughly.

    artifact: a folder written by vaefix-convert.
    reference: the model it was made from, a diffusers folder or a hub id; None is the built-in demo model.
    components: those to compare; None is all the artifact has.
    generation: compare a whole generation of `steps` steps too.  size: of its picture, and of the components' inputs.
    emulate: `fp16` or `bf16` also runs every component that executes in it as a GPU would; what the artifact does not
    execute is not emulated.
    seeds: of the inputs; the first one draws the picture.  variant: of the reference's weight files.
    cache: where the demo model is kept.
    """

    artifact: Path
    reference: str | Path | None = None
    components: tuple[str, ...] | None = None
    generation: bool = True
    size: PictureSize = field(default_factory=lambda: PictureSize(height=64, width=96))
    steps: int = 5
    emulate: str | None = None
    seeds: tuple[int, ...] = (0, 1)
    variant: str | None = None
    cache: Path = field(default_factory=lambda: platformdirs.user_cache_path("vaefix"))


@dataclass(frozen=True)
class _Subject:
    """The artifact and its reference. parts: component -> its folder in the checkpoint."""

    artifact: Artifact
    checkpoint: Checkpoint
    parts: Mapping[str, str]
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
    for name in names:
        announce(name)
        comparisons += [configs[name], *_component_comparisons(subject, name)]
    if options.emulate and not any(comparison.kind == "emulated" for comparison in comparisons):
        comparisons.append(Comparison("all", "emulated", obstacle=_nothing_to_emulate(subject, names)))
    if options.generation:
        announce("generation")
        comparisons += _attempt("generation", "parity", lambda: _generation_comparisons(subject))
    return Verdict(
        artifact=str(subject.artifact.folder),
        reference=str(subject.checkpoint.folder),
        target=subject.artifact.target,
        seeds=options.seeds,
        comparisons=tuple(comparisons),
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
    folder = _demo_reference(artifact, options) if options.reference is None else locate(options.reference, options.variant)
    checkpoint = Checkpoint.open(folder, options.variant)
    family = find_family(checkpoint)
    name = family.__name__.rpartition(".")[2]
    if name != artifact.family:
        raise ModelError(f"of the family {name}, the artifact is {artifact.family}", source=folder, remedy=_SAME_MODEL)
    parts = {component.name: component.part for component in family.components(checkpoint)}
    return _Subject(artifact, checkpoint, parts, options)


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
    there = [name for name in subject.parts if name in subject.artifact.components]
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
    ours, theirs = subject.artifact.config(name), subject.checkpoint.config(subject.parts[name])
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


def _component_comparisons(subject: _Subject, name: str) -> list[Comparison]:
    entry, options = subject.artifact.component(name), subject.options
    emulated = options.emulate is not None and entry.execution == EMULATIONS[options.emulate]
    try:
        feeds = [sample_inputs(subject.checkpoint, name, seed, options.size) for seed in options.seeds]
        expected = component_outputs(subject.checkpoint, name, feeds, entry.precision)
    except VaefixError as error:
        kinds: tuple[Kind, ...] = ("parity", "emulated") if emulated else ("parity",)
        return [Comparison(name, kind, obstacle=str(error)) for kind in kinds]
    parameters = sum(tensor.count for tensor in subject.checkpoint.tensors(subject.parts[name]).values())
    budget = partial(component_budget, parameters=parameters, precision=entry.precision)

    def in_f32() -> list[Comparison]:
        return _compared_in_f32(name, expected, _run(open_session(subject.artifact, name), feeds), budget)

    def in_16_bits() -> list[Comparison]:
        outputs = _run(EmulatedSession(subject.artifact.folder / entry.model), feeds)
        limits = component_budget("emulated", parameters, str(options.emulate))
        return _compared(name, "emulated", (expected.untouched, outputs), limits)

    return _attempt(name, "parity", in_f32) + (_attempt(name, "emulated", in_16_bits) if emulated else [])


def _run(session: Session | EmulatedSession, feeds: Sequence[Feeds]) -> Outputs:
    results = [session.run(feed) for feed in feeds]
    return {name: np.stack([result[name] for result in results]) for name in session.outputs}


def _generation_comparisons(subject: _Subject) -> list[Comparison]:
    options, entries = subject.options, subject.artifact.components
    prompt = Prompt(prompt_text(options.seeds[0]), options.seeds[0], options.steps, options.size)
    # The artifact first: if it cannot draw, the reference need not.
    outputs = generate(load_pipeline(subject.artifact.folder), prompt)
    expected = generation(subject.checkpoint, prompt, {name: entry.precision for name, entry in entries.items()})
    coarsest = "bf16" if any(entry.precision == "bf16" for entry in entries.values()) else "fp16"
    return _compared_in_f32("generation", expected, outputs, partial(generation_budget, precision=coarsest))


def _compared_in_f32(component: str, expected: Expected, outputs: Outputs, budget: _Budgets) -> list[Comparison]:
    comparisons = _compared(component, "parity", (expected.stored, outputs), budget("parity"))
    if expected.stored is not expected.untouched:
        comparisons += _compared(component, "storage", (expected.untouched, outputs), budget("storage"))
    return comparisons


def _compared(component: str, kind: Kind, pair: tuple[Outputs, Outputs], budget: Budget) -> list[Comparison]:
    """One comparison per output. pair: the reference's outputs and the artifact's."""
    reference, actual = pair
    comparisons = []
    for output in dict.fromkeys([*reference, *actual]):
        result = Comparison(component, kind, output, budget=budget)
        if output not in reference or output not in actual:
            who = "artifact" if output in reference else "reference"
            comparisons.append(replace(result, obstacle=f"the {who} has no such output"))
            continue
        try:
            difference = compare(reference[output], actual[output], source=output)
        except VaefixError as error:
            comparisons.append(replace(result, obstacle=str(error)))
            continue
        count = difference.nonfinite_reference
        obstacle = f"the reference itself has {count} values that are not finite" if count else None
        failures = budget.failures(difference)
        comparisons.append(replace(result, difference=difference, failures=failures, obstacle=obstacle))
    return comparisons


def _attempt(component: str, kind: Kind, make: Callable[[], list[Comparison]]) -> list[Comparison]:
    """Comparisons, or the one that says why there are none."""
    try:
        return make()
    except PictureError as error:
        return [Comparison(component, kind, "picture", failures=(str(error),))]
    except VaefixError as error:
        return [Comparison(component, kind, obstacle=str(error))]
