"""What is validated: an artifact and its reference, opened and found to belong together."""

from __future__ import annotations

from dataclasses import dataclass

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.hub import locate
from vaefix.convert.pipeline import check_scheduler, check_tokenizers
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.configs import require_configs
from vaefix.runtime.errors import ModelError, UsageError

from .budgets import Kind
from .references import ModelReference, Reference
from .request import EMULATIONS, ValidateOptions, check, check_size, demo_reference
from .saved import Recorder, SavedReference
from .verdict import Comparison

_SAME_MODEL = "compare an artifact with the model it was made from"
# Where a config comes from, and how a pipeline is to hold the model: nothing that the networks compute.
_NOT_COMPARED = {"_diffusers_version", "transformers_version", "_name_or_path", "torch_dtype", "dtype", "force_upcast"}


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
    """Raises what `check` raises, ArtifactError for altered files, ModelError for a reference of another kind."""
    check(options)
    artifact = Artifact.load(options.artifact, verify=True)
    require_configs(artifact)
    reference = _reference(artifact, options)
    if reference.family != artifact.family:
        reason = f"of the family {reference.family}, the artifact is {artifact.family}"
        raise ModelError(reason, source=reference.name, remedy=_SAME_MODEL)
    check_size(options.size, reference.parts["vae_decoder"].config)
    return Subject(artifact, reference, options)


def _reference(artifact: Artifact, options: ValidateOptions) -> Reference:
    if options.load_reference is not None:
        return SavedReference(options.load_reference)
    folder = (
        demo_reference(artifact, options.cache) if options.reference is None else locate(options.reference, options.variant)
    )
    checkpoint = Checkpoint.open(folder, options.variant)
    reference = ModelReference(checkpoint)
    if options.generation:  # what draws beside the networks
        check_scheduler(checkpoint, options.cache)
    check_tokenizers(checkpoint, reference.tokenizers, options.cache)
    return reference if options.save_reference is None else Recorder(reference)


def selected(subject: Subject) -> tuple[str, ...]:
    """The components to compare, in the family's order. Raises UsageError naming one that is not there."""
    there = [name for name in subject.reference.parts if name in subject.artifact.components]
    names = there if subject.options.components is None else subject.options.components
    unknown = sorted({*names, *(subject.artifact.components if names is there else ())} - {*there})
    if unknown or not names:
        reason = f"no component {', '.join(unknown)} to compare" if unknown else "no component to compare"
        raise UsageError(reason, source="--components", remedy=f"choose from {', '.join(there)}")
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
