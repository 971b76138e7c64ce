"""From a request to pictures: what can be checked first, then loading, then drawing. Importing this file imports no torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import Artifact
from .errors import RequestError, UsageError, VaefixWarning
from .memory import DRAWING, Plan, plan, require_room
from .pipeline import require_drawing
from .progress import Activity, Display
from .scheduler_names import require_drawing_sampler
from .session import EngineOptions, check_devices, check_options
from .size import picture_size

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from PIL.Image import Image

_DRAW, _DECODE = Activity("draw"), Activity("decode")


@dataclass(frozen=True)
class PictureRequest:
    """What to draw. height, width: pixels, None for the model's own.  seed: of the first picture, the next have the next."""

    prompt: str
    negative_prompt: str | None
    steps: int
    seed: int
    height: int | None
    width: int | None
    guidance: float
    images: int


@dataclass(frozen=True)
class Drawing:
    """What draws it, and how.

    devices, options: see `load_pipeline`.  scheduler: of diffusers, None for the model's own.
    limit_bytes: of memory, None for all there is.  verify: check the sha256 of every file first.
    """

    folder: Path
    devices: Mapping[str, str]
    options: EngineOptions
    scheduler: str | None = None
    limit_bytes: int | None = None
    verify: bool = False
    plan: Plan | None = field(default=None)


def checked(request: PictureRequest, drawing: Drawing) -> tuple[PictureRequest, Drawing]:
    """Both, with the size and the plan in their places. Raises what is found wrong with them, InputError or ResourceError."""
    for text in (request.prompt, request.negative_prompt or ""):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError("has bytes that are no text in UTF-8", source="--prompt", remedy="type it again")
    if not math.isfinite(request.guidance):
        raise UsageError(f"{request.guidance} is no number", source="--guidance", remedy="5 is usual")
    if drawing.limit_bytes is not None and drawing.options.allow_fallback:
        reason = "where a component runs must be known for its memory to be planned"
        raise UsageError(reason, source="--memory", remedy="leave --allow-fallback out, or run it on the CPU")
    if drawing.scheduler is not None:
        require_drawing_sampler(drawing.scheduler, source="--scheduler")
    artifact = Artifact.load(drawing.folder)
    require_drawing(artifact)
    fallback = dict.fromkeys(drawing.devices, "CPU")
    check_devices(artifact, DRAWING, fallback if drawing.options.allow_fallback else drawing.devices)
    check_options(artifact, DRAWING, drawing.devices, drawing.options)
    height, width = picture_size(artifact, request.height, request.width)
    request = replace(request, height=height, width=width)
    require_room(artifact, drawing.devices, height, width, request.images)
    if drawing.limit_bytes is None:
        return request, drawing
    found = plan(artifact, drawing.devices, height, width, drawing.limit_bytes, request.images)
    return request, replace(drawing, plan=found, options=replace(drawing.options, low_memory=found.low_memory))


def load(drawing: Drawing, shown: Display) -> StableDiffusionXLPipeline:
    """The pipeline. Raises as `load_pipeline` and `chosen_scheduler` do."""
    shown.stage(Activity("load PyTorch"))
    import diffusers  # noqa: F401 (seconds, in which the line above is true)

    from .pipeline import Thrift, load_pipeline
    from .schedulers import chosen_scheduler

    name, folder = drawing.scheduler, drawing.folder / "scheduler"
    chosen = None if name is None else chosen_scheduler(folder, name, source="--scheduler")
    plan = drawing.plan
    if drawing.verify:
        shown.stage(Activity("check the files"))
    pipeline = load_pipeline(
        drawing.folder,
        drawing.devices,
        verify=drawing.verify,
        options=drawing.options,
        thrift=Thrift() if plan is None else Thrift(plan.one_at_a_time, plan.tile, plan.split_cfg),
        on_load=lambda name: shown.stage(Activity("load", name)),
    )
    if chosen is not None:
        pipeline.scheduler = chosen
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: StableDiffusionXLPipeline, request: PictureRequest, shown: Display) -> list[Image]:
    """Raises RequestError for what diffusers refuses, PictureError for what is none, ResourceError out of memory."""
    import torch

    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        for cut in _cut(pipeline, text or ""):
            warnings.warn(f"the {name} is too long; left out: {cut}", VaefixWarning, stacklevel=2)
    shown.expect(request.steps, "steps")
    shown.stage(_DRAW)

    def advance(pipeline: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            shown.expect(pipeline.num_timesteps, "steps")  # some schedulers take two for each that is asked for
        shown.stage(_DRAW)
        shown.advance(1)
        if index + 1 == pipeline.num_timesteps:
            shown.expect(0)
            shown.stage(_DECODE)
        return values

    try:
        pictures: list[Image] = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            width=request.width,
            height=request.height,
            num_images_per_prompt=request.images,
            generator=[torch.Generator().manual_seed(request.seed + index) for index in range(request.images)],
            callback_on_step_end=advance,
        ).images
    except ValueError as error:  # how diffusers refuses what a scheduler cannot do
        raise RequestError(str(error), source="diffusers", remedy="change the option that it names") from None
    return pictures


def components(pipeline: StableDiffusionXLPipeline) -> dict[str, dict[str, str]]:
    """Where each component runs, and in what precision."""
    modules = {
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
        "unet": pipeline.unet,
        "vae_decoder": pipeline.vae,
    }
    return {name: {"device": module.session.device, "precision": module.session.precision} for name, module in modules.items()}


def _cut(pipeline: StableDiffusionXLPipeline, text: str) -> Iterator[str]:
    """What the tokenizers leave out of a text, once where they leave out the same."""
    said = set()
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        tokens = tokenizer(text).input_ids
        rest = tokenizer.decode(tokens[tokenizer.model_max_length - 1 : -1]).strip()
        if rest and rest not in said:
            said.add(rest)
            yield rest
