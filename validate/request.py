"""What is asked of a comparison: everything that can be found wrong with it before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaefix.convert.cache import default_cache
from vaefix.convert.checkpoint import Checkpoint, content_hash
from vaefix.convert.demo import demo_model
from vaefix.convert.families import find_family
from vaefix.convert.hub import is_on_the_hub, locate
from vaefix.convert.output import require_cache_outside
from vaefix.runtime.arguments import fit_fields
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError, RequestError, UsageError
from vaefix.runtime.install import is_installed
from vaefix.runtime.memory import require_room
from vaefix.runtime.needs import step, vae_factor
from vaefix.runtime.session import check_devices
from vaefix.runtime.vocabulary import in_full

from .inputs import PictureSize
from .outputs import check_apart, check_report, check_saved

EMULATIONS = {"fp16": "f16", "bf16": "bf16"}
"""What may be emulated, and the `execution` of the components that this applies to."""


@dataclass(frozen=True)
class ValidateOptions:
    """What to compare, and how thoroughly.

    artifact: a folder written by vaefix-convert.
    reference: the model it was made from, a diffusers folder or a hub id; None is the built-in demo model.
    components: those to compare, `vae` for both halves, or a single one; None is all the artifact has.
    generation: compare a whole generation of `steps` steps too.  size: of its picture, and of the components' inputs.
    emulate: `fp16` or `bf16` also runs every component that executes in it as a GPU would, and decodes so; what the
    artifact does not execute is not emulated.
    ranges: measure what every layer reaches, in each run. Where a component fails this is done in any case.
    device: also run every component and the generation there (`GPU`, `CUDA:1`), in what that computes in.
    lpips: measure pictures by LPIPS too, see `metrics.lpips`.
    seeds: of the inputs, and of the pictures.  variant: of the reference's weight files.
    prompts: each is drawn with every seed; where there are none, each seed has a sentence of its own.
    save_reference: a file for what the reference computed.  load_reference: such a file, in place of the model.
    cache: where the demo model is kept; None, or one that cannot be written, keeps nothing.
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
    cache: Path | None = field(default_factory=default_cache)

    def __post_init__(self) -> None:
        fit_fields(self)
        if self.components is not None:
            object.__setattr__(self, "components", in_full(self.components))


def check(options: ValidateOptions, reports: Sequence[Path] = ()) -> Artifact:
    """The artifact, its files there and of the right size, and everything about the request found possible.

    What takes long is left: the contents of files, and a model that must be fetched.  reports: files to be written as well.
    Raises InputError for what cannot be compared, ResourceError for pictures that no memory here could hold.
    """
    _check_numbers(options)
    _check_places(options, reports)
    artifact = Artifact.load(options.artifact)
    names = tuple(artifact.components) if options.components is None else options.components
    unknown = ", ".join(sorted({*names} - artifact.components.keys()))
    if unknown or not names:
        reason = f"no component {unknown} to compare" if unknown else "no component to compare"
        raise UsageError(reason, source="--components", remedy=f"choose from {', '.join(artifact.components)}")
    for name in {"vae_decoder", "vae_encoder"} & artifact.components.keys():
        check_size(options.size, artifact.config(name))
    if options.device is not None:
        check_devices(artifact, names, options.device)
    if options.reference is not None and not is_on_the_hub(options.reference):
        folder = locate(options.reference)
        require_cache_outside(options.cache, folder)
        find_family(Checkpoint.open(folder, options.variant))
    if options.reference is None and options.load_reference is None:
        demo_reference(artifact, options.cache)
    require_room(artifact, "CPU", options.size.height, options.size.width, names=names)
    return artifact


def check_size(size: PictureSize, vae: Mapping[str, Any]) -> None:
    """Raises UsageError for a size that a model with this VAE cannot have. vae: its config."""
    multiple = step(vae_factor(vae))
    if any(side < multiple or side % multiple for side in (size.height, size.width)):
        reason = f"{size.width}x{size.height} pixels"
        raise UsageError(reason, source="--width, --height", remedy=f"choose multiples of {multiple}")


def demo_reference(artifact: Artifact, cache: Path | None) -> Path:
    """The demo model, if the artifact was made from it. Raises RequestError if not."""
    folder = demo_model(cache)
    if all((folder / name).is_file() and content_hash(folder / name) == digest for name, digest in artifact.sources.items()):
        return folder
    raise RequestError(
        "it was not made from the built-in demo model, so a reference is needed",
        source=artifact.folder,
        remedy="give the model it was made from with --reference",
    )


def read_prompts(file: Path) -> tuple[str, ...]:
    """The lines that are not empty. Raises RequestError if there are none."""
    try:
        lines = tuple(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"unreadable ({error})", source=file, remedy="give a text file, one prompt a line") from None
    if not lines:
        raise RequestError("no prompt in it", source=file, remedy="write one prompt a line")
    return lines


def _check_numbers(options: ValidateOptions) -> None:
    if not options.seeds or options.steps < 1:
        raise UsageError(
            "no seeds or no steps, so nothing would be compared", source="--seeds, --steps", remedy="give at least one of each"
        )
    if min(options.seeds) < 0:
        raise UsageError(f"a seed is {min(options.seeds)}", source="--seeds", remedy="give whole numbers from 0")
    if options.emulate not in (None, *EMULATIONS):
        raise UsageError(f"unknown emulation {options.emulate!r}", source="--emulate", remedy=f"choose {', '.join(EMULATIONS)}")
    if (options.prompts or options.lpips) and not options.generation:
        raise UsageError(
            "prompts and LPIPS are for pictures, and none is drawn", source="--prompts, --lpips", remedy="add --generation"
        )
    if options.lpips and not is_installed("lpips"):
        raise RequestError("the package lpips is not installed", source="--lpips", remedy="pip install lpips")


def _check_places(options: ValidateOptions, reports: Sequence[Path]) -> None:
    if options.reference == "":
        raise UsageError("it is empty", source="--reference", remedy="give a diffusers folder or a hub id, or leave it out")
    if (file := options.load_reference) is not None:
        if any(item is not None for item in (options.reference, options.variant, options.save_reference)):
            raise UsageError("a saved reference takes the place of the model", source="--load-reference", remedy="give one")
        if not file.is_file():
            raise ModelError("no such file", source=file, remedy="give a file written by vaefix-validate --save-reference")
    outputs = [*reports]
    for path in reports:
        check_report(path)
    if options.save_reference is not None:
        check_saved(options.save_reference)
        outputs.append(options.save_reference)
    model = None if options.reference is None or is_on_the_hub(options.reference) else Path(options.reference)
    check_apart(outputs, Path(options.artifact), model)
