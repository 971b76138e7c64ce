"""`vaefix-run`: draw pictures with a converted model."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import command, vocabulary
from .drawing import Drawing, PictureRequest, checked, components, draw, load
from .errors import UsageError
from .output import check_format, check_place, named_after, numbered, save
from .progress import display
from .session import EngineOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


_SCHEDULER = (
    "The model's own by default; euler, euler_a, ddim, pndm, lms, heun, dpm2, dpm2_a, dpm++2m, dpm++2m_sde, dpm++3m_sde, "
    "dpm++sde, unipc, deis, lcm, tcd, most of them with _karras as well; or a class of diffusers."
)
_SIDE = typer.Option(min=8, max=command.MOST_PIXELS, help="Pixels; the model's own by default.")


@app.command(no_args_is_help=True, context_settings=command.SETTINGS)
def vaefix_run(
    artifact: Annotated[Path, typer.Argument(help="A folder written by vaefix-convert.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to draw.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The picture; several are numbered: out-1.png, out-2.png. By default a new file here, named after the prompt.",
        ),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid.")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[COMPONENT=]DEVICE", help="CPU, GPU, GPU.1, NPU, AUTO, CUDA, CUDA:1; for one: vae=CPU. Repeatable."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Denoising steps.")] = 30,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds draw equal pictures; the next has the next.")
    ] = 0,
    width: Annotated[int | None, _SIDE] = None,
    height: Annotated[int | None, _SIDE] = None,
    guidance: Annotated[float, typer.Option(min=0, help="How closely to follow the prompt; 1 is not at all.")] = 5.0,
    images: Annotated[int, typer.Option(min=1, max=10_000, help="How many pictures to draw.")] = 1,
    scheduler: Annotated[str | None, typer.Option(metavar="NAME", help=_SCHEDULER)] = None,
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
    version: command.Version = False,  # noqa: ARG001 (it ends the command)
) -> None:
    """Draw pictures with a converted model."""
    limit = None if memory is None else command.size_in_bytes(memory, source="--memory")
    paths = named_after(prompt, images, Path()) if output is None else numbered(output, images)
    for path in paths:
        check_place(path, artifact)
    request = PictureRequest(prompt, negative_prompt, steps, seed, height, width, guidance, images)
    devices = vocabulary.by_component(device or ["CPU"], "device", "--device", vocabulary.device)
    options = EngineOptions(cache, allow_fallback, cuda_graphs, settings=_settings(engine_option or []))
    drawing = Drawing(artifact, devices, options, scheduler, limit, verify)
    request, drawing = checked(request, drawing)
    check_format(paths[0], request.height or 0, request.width or 0)
    if drawing.plan is not None:
        print(drawing.plan.sentence, file=sys.stderr)
    started = time.perf_counter()
    with display() as shown:
        pipeline = load(drawing, shown)
        loaded = time.perf_counter()
        pictures = draw(pipeline, request, shown)
        drawn = time.perf_counter()
        for path, picture in zip(paths, pictures, strict=True):
            save(picture, path, replace=output is not None)
    if not as_json:
        print(*paths, sep="\n")
        return
    result = {
        **asdict(request),
        "scheduler": type(pipeline.scheduler).__name__,
        "pictures": [{"file": str(path), "seed": seed + index} for index, path in enumerate(paths)],
        "components": components(pipeline),
        **({} if drawing.plan is None else {"memory": asdict(drawing.plan)}),
        "load_seconds": loaded - started,
        "draw_seconds": drawn - loaded,
    }
    print(json.dumps(result, indent=1))


def main() -> None:
    """The entry point of the command."""
    command.run(app)


def _settings(values: list[str]) -> dict[str, dict[str, str]]:
    """`["NUM_STREAMS=2", "unet:use_tf32=1"]` -> `{"*": {"NUM_STREAMS": "2"}, "unet": {"use_tf32": "1"}}`."""
    settings: dict[str, dict[str, str]] = {}
    for text in values:
        name, equals, value = text.partition("=")
        component, _, key = name.rpartition(":")
        if not (equals and key):
            reason = f"{text!r} is not [COMPONENT:]KEY=VALUE"
            raise UsageError(reason, source="--engine-option", remedy="write it as in unet:use_tf32=1")
        settings.setdefault(component or vocabulary.ALL, {})[key] = value
    return settings


if __name__ == "__main__":
    main()
