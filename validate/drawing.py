"""A short generation by both sides, on the same path through diffusers: latents after every step, and the picture."""

from __future__ import annotations

from functools import partial

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.pipeline import load_pipeline

from .budgets import generation_budget
from .comparing import compared_in_f32
from .inputs import Prompt
from .reference import generate
from .references import Reference
from .verdict import Comparison


def compare_generation(artifact: Artifact, reference: Reference, prompt: Prompt) -> list[Comparison]:
    """Raises VaefixError where one side cannot draw."""
    # The artifact first: if it cannot draw, the reference need not.
    outputs = generate(load_pipeline(artifact.folder), prompt)
    precisions = {name: entry.precision for name, entry in artifact.components.items()}
    expected = reference.generation(prompt, precisions)
    coarsest = "bf16" if "bf16" in precisions.values() else "fp16"
    return compared_in_f32("generation", expected, outputs, partial(generation_budget, precision=coarsest))
