"""A short generation by both sides, on the same path through diffusers: what the UNet is told, latents, the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray

from vaefix.runtime.errors import VaefixError
from vaefix.runtime.pipeline import load_pipeline

from .budgets import ARITHMETIC, COARSENESS, Kind, generation_budget
from .comparing import IN_F32, Announce, Measures, attempt, compared, compared_in_f32, elsewhere
from .emulate import emulated_in
from .inputs import Prompt
from .metrics import Difference, compare, compare_pictures
from .reference import Expected, Outputs, generate
from .subject import Subject, kinds_asked
from .verdict import Comparison

GENERATION = "generation"
_REFERENCE, _IN_F32 = "PyTorch in fp32", "artifact in fp32"


@dataclass(frozen=True)
class Drawn:
    """What came of a generation, see `Verdict`; steps and pictures are those of the first prompt."""

    comparisons: tuple[Comparison, ...] = ()
    steps: tuple[Difference, ...] = ()
    pictures: Mapping[str, NDArray] = field(default_factory=dict)


def draw(subject: Subject, prompts: Sequence[Prompt], announce: Announce) -> Drawn:
    """Compare a generation of each prompt: in f32, on the device, and the reference's latents as a 16-bit GPU decodes them.

    announce: is told what begins.
    """
    artifact = subject.artifact
    decoder = artifact.components.get("vae_decoder")
    kinds = kinds_asked(subject.options, decoder.execution if decoder else None)
    announce("load")
    try:
        pipeline = load_pipeline(artifact.folder, options=IN_F32)  # first: what cannot be loaded needs no reference
        precisions = {name: entry.precision for name, entry in artifact.components.items()}
        announce("reference")
        expected = subject.reference.generations(prompts, precisions)
    except VaefixError as error:
        return Drawn(tuple(Comparison(GENERATION, kind, obstacle=str(error)) for kind in kinds))
    generation = _Generation(subject, prompts, expected)
    tasks: dict[Kind, Callable[[], list[Comparison]]] = {
        "parity": partial(generation.in_f32, pipeline),
        "emulated": generation.decoded_in_16_bits,
        "hardware": generation.on_device,
    }
    comparisons: list[Comparison] = []
    for kind in kinds:
        announce(kind)
        comparisons += attempt(GENERATION, kind, tasks[kind])
    return Drawn(tuple(comparisons), generation.steps(), generation.pictures())


class _Generation:
    """expected: by prompt.  Each way to draw compares what it made of every prompt, and keeps it for the eye."""

    def __init__(self, subject: Subject, prompts: Sequence[Prompt], expected: Sequence[Expected]) -> None:
        self._artifact, self._options = subject.artifact, subject.options
        self._prompts, self._expected = prompts, expected
        self._parameters = max(part.parameters for part in subject.reference.parts.values())
        self._measures: Measures = {"picture": partial(compare_pictures, perceptual=self._options.lpips)}
        self._drawn: dict[str, Sequence[Outputs]] = {}

    def in_f32(self, pipeline: StableDiffusionXLPipeline) -> list[Comparison]:
        self._draw(_IN_F32, pipeline)
        return self._compare(_IN_F32, self._against_both)

    def decoded_in_16_bits(self) -> list[Comparison]:
        """Of the reference's latents, so that what differs is the decoder's doing."""
        precision = str(self._options.emulate)
        name = f"artifact in emulated {precision}"
        config = self._artifact.config("vae_decoder")
        session = emulated_in(precision, self._artifact.folder / self._artifact.component("vae_decoder").model)
        samples = [
            session.run({"latent_sample": _unscaled(expected.stored["latents"], config)})["sample"]
            for expected in self._expected
        ]
        self._drawn[name] = [{"picture": (sample.transpose(0, 2, 3, 1) / 2 + 0.5).clip(0, 1)} for sample in samples]
        return self._compare(name, partial(self._against_one, kind="emulated", precision=precision))

    def on_device(self) -> list[Comparison]:
        device = str(self._options.device)
        name = f"artifact on {device}"
        pipeline = load_pipeline(self._artifact.folder, device)
        self._draw(name, pipeline)
        modules = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae)
        precision = ARITHMETIC[max({module.session.precision for module in modules}, key=["f32", "f16", "bf16"].index)]
        found = self._compare(name, partial(self._against_one, kind="hardware", precision=precision))
        return [replace(item, warnings=elsewhere(pipeline.unet.session, device)) for item in found]

    def steps(self) -> tuple[Difference, ...]:
        """Of the latents after each step, in f32; none where another schedule takes other steps."""
        if _IN_F32 not in self._drawn:
            return ()
        expected, found = self._expected[0].untouched["trajectory"], self._drawn[_IN_F32][0]["trajectory"]
        return tuple(map(compare, expected, found)) if expected.shape == found.shape else ()

    def pictures(self) -> dict[str, NDArray]:
        """What there is of the first prompt, the reference's first: uint8 [H, W, 3]."""
        drawn = {_REFERENCE: [expected.untouched for expected in self._expected], **self._drawn}
        return {name: _as_bytes(outputs[0]["picture"]) for name, outputs in drawn.items()}

    def _draw(self, name: str, pipeline: StableDiffusionXLPipeline) -> None:
        encode = "vae_encoder" in self._artifact.components
        self._drawn[name] = [generate(pipeline, prompt, encode=encode) for prompt in self._prompts]

    def _compare(self, name: str, compare_one: Callable[[Expected, Outputs], list[Comparison]]) -> list[Comparison]:
        return [
            replace(comparison, output=comparison.output + self._which(number))
            for number, (expected, outputs) in enumerate(zip(self._expected, self._drawn[name], strict=True))
            for comparison in compare_one(expected, outputs)
        ]

    def _against_both(self, expected: Expected, outputs: Outputs) -> list[Comparison]:
        precision = max((entry.precision for entry in self._artifact.components.values()), key=COARSENESS.index)
        budgets = partial(generation_budget, parameters=self._parameters, precision=precision)
        return compared_in_f32(GENERATION, expected, outputs, budgets, self._measures)

    def _against_one(self, expected: Expected, outputs: Outputs, *, kind: Kind, precision: str) -> list[Comparison]:
        reference = {name: value for name, value in expected.stored.items() if name in outputs}
        budget = generation_budget(kind, self._parameters, precision)
        return compared(GENERATION, kind, (reference, outputs), budget, self._measures)

    def _which(self, number: int) -> str:
        """Every seed draws all prompts, one after another."""
        if len(self._prompts) == 1:
            return ""
        texts = len(self._options.prompts)
        prompt = f", prompt {number % texts + 1}" if texts > 1 else ""
        return f"{prompt}, seed {self._prompts[number].seed}"


def _unscaled(latents: NDArray, config: Mapping[str, Any]) -> NDArray:
    """What the pipeline decodes, as diffusers computes it."""
    values = latents / np.float32(config["scaling_factor"])
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return values
    per_channel = (1, -1, 1, 1)
    return values * np.float32(std).reshape(per_channel) + np.float32(mean).reshape(per_channel)


def _as_bytes(picture: NDArray) -> NDArray:
    """The first picture as uint8; what is not finite is black, as on a screen."""
    return (np.nan_to_num(picture[0], nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255).round().astype(np.uint8)
