"""What is validated: an artifact and its reference, opened and found to belong together."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from vaefix.convert.checkpoint import Checkpoint, content_hash
from vaefix.convert.demo import demo_model
from vaefix.convert.hub import locate
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError, RequestError, UsageError
from vaefix.runtime.needs import step, vae_factor

from .budgets import Kind
from .emulate import EMULATIONS
from .inputs import PictureSize
from .references import ModelReference, Reference
from .saved import Recorder, SavedReference
from .verdict import Comparison

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
    emulate: `fp16` or `bf16` also runs every component that executes in it as a GPU would, and decodes so; what the
    artifact does not execute is not emulated.
    ranges: measure what every layer reaches, in each run. Where a component fails this is done in any case.
    device: also run every component and the generation there (`GPU`, `CUDA:1`), in what that computes in.
    lpips: measure pictures by LPIPS too, see `metrics.lpips`.
    seeds: of the inputs, and of the pictures.  variant: of the reference's weight files.
    prompts: each is drawn with every seed; where there are none, each seed has a sentence of its own.
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
    lpips: bool = False
    seeds: tuple[int, ...] = (0, 1)
    prompts: tuple[str, ...] = ()
    variant: str | None = None
    save_reference: Path | None = None
    load_reference: Path | None = None
    cache: Path = field(default_factory=lambda: platformdirs.user_cache_path("vaefix"))


@dataclass(frozen=True)
class Subject:
    """The artifact and its reference."""

    artifact: Artifact
    reference: Reference
    options: ValidateOptions


def kinds_asked(options: ValidateOptions, execution: str | None) -> list[Kind]:
    """The comparisons of a component that executes in `execution` (`f32`, `f16`, `bf16`); a generation has its decoder's."""
    emulated: list[Kind] = ["emulated"] if options.emulate and execution == EMULATIONS[options.emulate] else []
    hardware: list[Kind] = ["hardware"] if options.device else []
    return ["parity", *emulated, *hardware]


def open_subject(options: ValidateOptions) -> Subject:
    """Raises RequestError for senseless options, ModelError for a reference of another kind than the artifact."""
    if not options.seeds or options.steps < 1:
        raise UsageError(
            "no seeds or no steps, so nothing would be compared", source="--seeds, --steps", remedy="give at least one of each"
        )
    if options.emulate not in (None, *EMULATIONS):
        raise UsageError(f"unknown emulation {options.emulate!r}", source="--emulate", remedy=f"choose {', '.join(EMULATIONS)}")
    if (options.prompts or options.lpips) and not options.generation:
        raise UsageError(
            "prompts and LPIPS are for pictures, and none is drawn", source="--prompts, --lpips", remedy="add --generation"
        )
    artifact = Artifact.load(options.artifact, verify=True)
    reference = _reference(artifact, options)
    if reference.family != artifact.family:
        reason = f"of the family {reference.family}, the artifact is {artifact.family}"
        raise ModelError(reason, source=reference.name, remedy=_SAME_MODEL)
    multiple = step(vae_factor(reference.parts["vae_decoder"].config))
    if any(side < multiple or side % multiple for side in (options.size.height, options.size.width)):
        reason = f"{options.size.width}x{options.size.height} pixels"
        raise UsageError(reason, source="--width, --height", remedy=f"choose multiples of {multiple}")
    return Subject(artifact, reference, options)


def _reference(artifact: Artifact, options: ValidateOptions) -> Reference:
    if options.load_reference is not None:
        if any(item is not None for item in (options.reference, options.variant, options.save_reference)):
            raise UsageError("a saved reference takes the place of the model", source="--load-reference", remedy="give one")
        return SavedReference(options.load_reference)
    folder = _demo_reference(artifact, options) if options.reference is None else locate(options.reference, options.variant)
    if (file := options.save_reference) is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
        raise RequestError("no file can be written there", source=file, remedy="choose another --save-reference")
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


def selected(subject: Subject) -> tuple[str, ...]:
    """The components to compare, in the family's order. Raises RequestError naming one that is not there."""
    there = [name for name in subject.reference.parts if name in subject.artifact.components]
    names = there if subject.options.components is None else subject.options.components
    unknown = sorted({*names, *(subject.artifact.components if names is there else ())} - {*there})
    if unknown or not names:
        reason = f"no component {', '.join(unknown)} to compare" if unknown else "no component to compare"
        raise RequestError(reason, source=subject.artifact.folder, remedy=f"choose from {', '.join(there)}")
    return tuple(dict.fromkeys(names))


def config_comparison(subject: Subject, name: str) -> Comparison:
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
