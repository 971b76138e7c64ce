"""A short generation by both sides, on the same path through diffusers: latents after every step, and the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import PictureError, VaefixError
from vaefix.runtime.pipeline import load_pipeline

from .budgets import generation_budget
from .comparing import compared_in_f32
from .emulate import EMULATIONS, EmulatedSession
from .inputs import Prompt
from .metrics import Difference, compare
from .reference import Outputs, generate
from .references import Reference
from .verdict import Comparison


@dataclass(frozen=True)
class Drawn:
    """What came of a generation, see `Verdict`."""

    comparisons: tuple[Comparison, ...] = ()
    steps: tuple[Difference, ...] = ()
    pictures: Mapping[str, NDArray] = field(default_factory=dict)


def draw(artifact: Artifact, reference: Reference, prompt: Prompt, *, emulate: str | None) -> Drawn:
    """Compare a generation in f32. emulate: also decode the reference's latents as a GPU would, for the eye."""
    precisions = {name: entry.precision for name, entry in artifact.components.items()}
    try:
        # The artifact first: if it cannot draw, the reference need not.
        outputs = generate(load_pipeline(artifact.folder), prompt)
        expected = reference.generation(prompt, precisions)
        pictures = {"PyTorch in fp32": expected.untouched["picture"], "artifact in fp32": outputs["picture"]}
        if emulate is not None and artifact.component("vae_decoder").execution == EMULATIONS[emulate]:
            pictures[f"artifact in emulated {emulate}"] = _decoded(artifact, expected.untouched)
    except PictureError as error:
        return Drawn((Comparison("generation", "parity", "picture", failures=(str(error),)),))
    except VaefixError as error:
        return Drawn((Comparison("generation", "parity", obstacle=str(error)),))
    coarsest = "bf16" if "bf16" in precisions.values() else "fp16"
    comparisons = compared_in_f32("generation", expected, outputs, partial(generation_budget, precision=coarsest))
    steps = expected.untouched["trajectory"], outputs["trajectory"]
    comparable = steps[0].shape == steps[1].shape  # another schedule may take other steps; that is among the comparisons
    return Drawn(
        tuple(comparisons),
        tuple(map(compare, *steps)) if comparable else (),
        {name: _as_bytes(picture) for name, picture in pictures.items()},
    )


def _decoded(artifact: Artifact, expected: Outputs) -> NDArray:
    """The reference's final latents as a 16-bit GPU decodes them: float32 [1, H, W, 3] in 0..1."""
    scaling_factor = artifact.config("vae_decoder")["scaling_factor"]
    session = EmulatedSession(artifact.folder / artifact.component("vae_decoder").model)
    sample = session.run({"latent_sample": expected["latents"] / np.float32(scaling_factor)})["sample"]
    return sample.transpose(0, 2, 3, 1) / 2 + 0.5


def _as_bytes(picture: NDArray) -> NDArray:
    """The first picture as uint8; what is not finite is black, as on a screen."""
    return (np.nan_to_num(picture[0], nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
