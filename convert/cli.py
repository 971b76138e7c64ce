"""`vaefix-convert`: a thin shell over `convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.command import progress, run, size_in_bytes
from vaefix.runtime.errors import UsageError

from .choose import Choice
from .choose import table as chosen_table
from .convert import ConvertOptions, Progress, convert
from .dry_run import dry_run
from .dry_run import table as dry_run_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True)
def command(
    target: Annotated[str, typer.Option(help="openvino-gpu, openvino-cpu, onnx-cuda or onnx-cpu.")] = "openvino-gpu",
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[COMPONENT=]PRECISION",
            help="fp32, fp16, bf16, int8, int4, fp8_e4m3, fp8_e5m2, or auto within a --budget; repeatable. The rest: fp16.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Diffusers folder or hub id; without it, the built-in demo model.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; default: MODEL-TARGET-PRECISION here.")
    ] = None,
    io: Annotated[str, typer.Option(help="fp32, or fp16 for ONNX in fp16: of the graphs' inputs and outputs.")] = "fp32",
    components: Annotated[str | None, typer.Option(help="Only these, comma-separated: unet,vae_decoder.")] = None,
    repair: Annotated[str, typer.Option(help="auto, always or never.")] = "auto",
    calibration: Annotated[
        list[Path] | None, typer.Option(help="Own latents (.npy) or pictures to measure; repeatable.")
    ] = None,
    verify: Annotated[str, typer.Option(help="auto, or full: execute the UNet beside PyTorch as well.")] = "auto",
    variant: Annotated[str | None, typer.Option(help="Variant of the weight files, such as fp16.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub id.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of the skeleton cache.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="For --precision auto: memory to run in, one component at a time: 4GB.")
    ] = None,
    only_say: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only say what would be written, and the memory it takes; read no weights (of a hub id, they are fetched).",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Convert an SDXL checkpoint to OpenVINO IR or ONNX. What overflows fp16 is repaired exactly, by powers of two."""
    precisions = _precisions(precision or [])
    name = f"{Path(model).name if model else 'demo'}-{target}-{'mixed' if len(precisions) > 1 else precisions['*']}"
    options = ConvertOptions(
        output=output or Path(name),
        model=model,
        target=target,
        precision=precisions,
        budget=None if budget is None else size_in_bytes(budget, source="--budget"),
        io=io,
        components=tuple(filter(None, components.split(","))) if components is not None else None,
        repair=repair,
        calibration=tuple(calibration or ()),
        verify=verify,
        variant=variant,
        revision=revision,
        force=force,
        **({"cache": cache} if cache else {}),
    )
    if model is None:
        typer.echo("no --model given: converting the built-in demo model (tiny, random weights)", err=True)
    if only_say:
        _say(options, as_json=as_json)
        return
    with progress() as bar:
        task = bar.add_task("reading", total=None)

        def begin(text: str, size: int | None) -> None:
            megabytes = None if size is None else size / 1e6
            bar.reset(task, description=text if size is None else f"{text} MB", total=megabytes)

        def wrote(count: int) -> None:
            bar.advance(task, count / 1e6)

        artifact = convert(options, Progress(begin, wrote, _show_choices))
    if repair == "never":
        typer.echo("--repair never: a VAE that overflows fp16 will give black pictures on a GPU", err=True)
    typer.echo(json.dumps(_result(artifact)) if as_json else _summary(artifact))


def _say(options: ConvertOptions, *, as_json: bool) -> None:
    found = dry_run(options)
    _show_choices(found.choices)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        Console().print(dry_run_table(found))


def _show_choices(choices: tuple[Choice, ...]) -> None:
    if choices:
        Console(stderr=True).print(chosen_table(choices))


def main() -> None:
    """The console script."""
    run(app)


def _precisions(values: list[str]) -> dict[str, str]:
    """`["bf16", "unet=fp32"]` -> `{"*": "bf16", "unet": "fp32"}`; the rest is fp16. Raises RequestError for a contradiction."""
    precisions: dict[str, str] = {}
    for value in values:
        component, _, precision = value.rpartition("=")
        if precisions.setdefault(component or "*", precision) != precision:
            raise UsageError(f"two precisions for {component or 'all components'}", source="--precision", remedy="give one")
    return {"*": "fp16", **precisions}


def _result(artifact: Artifact) -> dict[str, object]:
    return {"output": str(artifact.folder), **json.loads(artifact.manifest())}


def _summary(artifact: Artifact) -> str:
    lines = [f"{artifact.folder}: {artifact.target}, {sum(entry.size for entry in artifact.files.values()) / 1e6:.1f} MB"]
    for name, entry in artifact.components.items():
        compared = artifact.parity[name]
        proof = (
            f"with these weights equal to PyTorch within {compared['relative_max_abs_limit']:.0e}"
            if "relative_max_abs_limit" in compared
            else "structure checked"
        )
        lines.append(f"  {name:<15} {entry.precision}{', repaired exactly' if entry.repaired else ''}; {proof}")
        lines += [f"    {line}" for line in (_limits_of(artifact, name) if entry.repaired else ())]
    return "\n".join(lines)


def _limits_of(artifact: Artifact, name: str) -> list[str]:
    """What the repair of this component could not do exactly."""
    plan = json.loads((artifact.folder / name / "repair.json").read_text(encoding="utf-8"))
    lines = []
    if plan["keep_fp32"]:
        lines.append(f"marked to stay in fp32, no power of two brings them in range: {', '.join(plan['keep_fp32'])}")
    if plan["below_floor"]:
        lines.append(f"lose precision in fp16, their scaled weights are tiny: {', '.join(plan['below_floor'])}")
    return lines


if __name__ == "__main__":
    main()
