"""`vaefix-run`: draw pictures with a converted model."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import command
from .artifact import Artifact
from .errors import RequestError, ResourceError, UsageError
from .memory import Plan, plan
from .needs import Picture, native_picture, step
from .session import Device, EngineOptions

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from PIL.Image import Image

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class _Request:
    """What to draw. width, height: pixels, None for the model's own.  seed: of the first picture, the next have the next."""

    prompt: str
    negative_prompt: str | None
    steps: int
    seed: int
    width: int | None
    height: int | None
    guidance: float
    images: int


@app.command()
def vaefix_run(
    artifact: Annotated[Path, typer.Argument(help="A folder written by vaefix-convert.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture; several are numbered: out-1.png, out-2.png.")],
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="CPU, GPU, GPU.1, NPU, AUTO, CUDA, CUDA:1; for one: vae_decoder=CPU. Repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds draw equal pictures; the next has the next.")
    ] = 0,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; the model's own by default.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; the model's own by default.")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="How closely to follow the prompt; 1 is not at all.")] = 5.0,
    images: Annotated[int, typer.Option(min=1, help="How many pictures to draw.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="A scheduler of diffusers; the model's own by default.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="A folder for compiled graphs: the next start is faster (OpenVINO).")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Run on the CPU what its device cannot run, with a warning.")
    ] = False,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Record the kernels of a step once and replay them (CUDA).")
    ] = False,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[COMPONENT:]KEY=VALUE",
            help="An OpenVINO property or an option of ONNX Runtime's CUDA provider. Repeatable.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Draw within this much memory: 4GB, 3.5GiB. Slower where it must be.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check the sha256 of every file first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object about what was done.")] = False,
) -> None:
    """Draw pictures with a converted model."""
    paths = _paths(output, images)
    request = _Request(prompt, negative_prompt, steps, seed, width, height, guidance, images)
    limit = None if memory is None else command.size_in_bytes(memory, source="--memory")
    if limit is not None and allow_fallback:
        reason = "where a component runs must be known for its memory to be planned"
        raise UsageError(reason, source="--memory", remedy="leave --allow-fallback out, or run it on the CPU")
    options = EngineOptions(cache, allow_fallback, cuda_graphs, settings=_settings(engine_option or []))
    devices = _devices(device or ["CPU"])
    started = time.perf_counter()
    size = _picture(artifact, request)
    planned = None if limit is None else _planned(artifact, devices, size, limit)
    pipeline = _load(artifact, devices, scheduler, options, planned, verify=verify)
    loaded = time.perf_counter()
    pictures = _draw(pipeline, request, size)
    drawn = time.perf_counter()
    for path, picture in zip(paths, pictures, strict=True):
        _save(picture, path)
    if not as_json:
        print(*paths, sep="\n")
        return
    result = {
        **asdict(request),
        **dict(zip(("width", "height"), pictures[0].size, strict=True)),
        "scheduler": type(pipeline.scheduler).__name__,
        "pictures": [{"file": str(path), "seed": seed + index} for index, path in enumerate(paths)],
        "components": _components(pipeline),
        **({} if planned is None else {"memory": asdict(planned)}),
        "load_seconds": loaded - started,
        "draw_seconds": drawn - loaded,
    }
    print(json.dumps(result, indent=1))


def main() -> None:
    """The entry point of the command."""
    command.run(app)


def _paths(output: Path, images: int) -> list[Path]:
    """Checked before the model is loaded, so that a picture is not drawn in vain."""
    from PIL import Image

    if output.suffix.lower() not in Image.registered_extensions():
        raise UsageError("no picture format is known by this name", source=output, remedy="name the output out.png")
    if not output.parent.is_dir():
        raise RequestError("its folder does not exist", source=output, remedy=f"create {output.parent}")
    if images == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{number}{output.suffix}") for number in range(1, images + 1)]


def _devices(values: list[str]) -> Device:
    """`["GPU", "vae_decoder=CPU"]` -> `{"*": "GPU", "vae_decoder": "CPU"}`."""
    devices = {}
    for value in values:
        component, _, name = value.rpartition("=")
        devices[component or "*"] = name
    return devices


def _settings(values: list[str]) -> dict[str, dict[str, str]]:
    """`["NUM_STREAMS=2", "unet:use_tf32=1"]` -> `{"*": {"NUM_STREAMS": "2"}, "unet": {"use_tf32": "1"}}`."""
    settings: dict[str, dict[str, str]] = {}
    for text in values:
        name, equals, value = text.partition("=")
        component, _, key = name.rpartition(":")
        if not (equals and key):
            reason = f"{text!r} is not [COMPONENT:]KEY=VALUE"
            raise UsageError(reason, source="--engine-option", remedy="write it as in unet:use_tf32=1")
        settings.setdefault(component or "*", {})[key] = value
    return settings


def _picture(folder: Path, request: _Request) -> Picture:
    """What is asked for, in the model's own size where nothing else is. Raises UsageError for a size it cannot have."""
    artifact = Artifact.load(folder)
    for name in ("unet", "vae_decoder"):
        artifact.component(name)
    native = native_picture(artifact.config("unet"), artifact.config("vae_decoder"))
    height, width, multiple = request.height or native.height, request.width or native.width, step(native.factor)
    if height % multiple or width % multiple:
        reason = f"{width}x{height} cannot be drawn: both must be multiples of {multiple}"
        raise UsageError(reason, source="--width, --height", remedy=f"the model's own size is {native.width}x{native.height}")
    return Picture(height, width, request.images, native.factor)


def _planned(folder: Path, device: Device, picture: Picture, limit: int) -> Plan:
    found = plan(Artifact.load(folder), device, picture.height, picture.width, limit, picture.batch)
    print(found.sentence, file=sys.stderr)
    return found


def _load(
    artifact: Path, device: Device, scheduler: str | None, options: EngineOptions, planned: Plan | None, *, verify: bool
) -> StableDiffusionXLPipeline:
    with command.progress() as bar:
        task = bar.add_task("loading", total=None)
        from transformers.utils import logging

        from .pipeline import Thrift, load_pipeline, scheduler_class

        logging.set_verbosity_error()  # it warns about image processors that drawing never uses
        chosen = None if scheduler is None else scheduler_class(scheduler, source="--scheduler")
        thrift = Thrift()
        if planned is not None:
            options = replace(options, low_memory=planned.low_memory)
            thrift = Thrift(planned.one_at_a_time, planned.tile, planned.split_cfg)
        pipeline = load_pipeline(
            artifact,
            device,
            verify=verify,
            options=options,
            thrift=thrift,
            on_load=lambda name: bar.update(task, description=f"loading {name}"),
        )
    if chosen is not None:
        pipeline.scheduler = chosen.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(pipeline: StableDiffusionXLPipeline, request: _Request, picture: Picture) -> list[Image]:
    import torch

    with command.progress() as bar:
        task = bar.add_task("drawing", total=request.steps)

        def advance(pipeline: Any, index: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            bar.update(task, completed=index + 1, total=pipeline.num_timesteps)  # some schedulers take two per step
            return values

        try:
            pictures: list[Image] = pipeline(
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                width=picture.width,
                height=picture.height,
                num_images_per_prompt=request.images,
                generator=[torch.Generator().manual_seed(request.seed + index) for index in range(request.images)],
                callback_on_step_end=advance,
            ).images
        except ValueError as error:  # how diffusers refuses what a scheduler cannot do
            raise RequestError(str(error), source="diffusers", remedy="change the option that it names") from None
    return pictures


def _save(picture: Image, path: Path) -> None:
    try:
        picture.save(path)
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror or error})", source=path, remedy="choose another -o") from None


def _components(pipeline: StableDiffusionXLPipeline) -> dict[str, dict[str, str]]:
    modules = {
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2,
        "unet": pipeline.unet,
        "vae_decoder": pipeline.vae,
    }
    return {name: {"device": module.session.device, "precision": module.session.precision} for name, module in modules.items()}


if __name__ == "__main__":
    main()
