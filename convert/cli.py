"""`vaefix-convert`: a thin shell over `convert`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vaefix.runtime import vocabulary
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.command import SETTINGS, Version, run, size_in_bytes
from vaefix.runtime.documents import read_object
from vaefix.runtime.errors import ArtifactError, ResourceError
from vaefix.runtime.progress import display

from .choose import Choice
from .choose import table as chosen_table
from .convert import ConvertOptions, Progress, convert
from .dry_run import DryRun, dry_run
from .dry_run import table as dry_run_table
from .request import check_options

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True, context_settings=SETTINGS)
def command(
    target: Annotated[
        str, typer.Option("--target", "-t", help="openvino-gpu, openvino-cpu, onnx-cuda or onnx-cpu.")
    ] = "openvino-gpu",
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            "-p",
            metavar="[COMPONENT=]PRECISION",
            help="fp32, fp16, bf16, int8, int4, fp8_e4m3, fp8_e5m2, or auto within a --budget; repeatable. The rest: fp16.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Diffusers folder or hub id; without it, the built-in demo model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make; default: MODEL-TARGET-PRECISION here.")
    ] = None,
    io: Annotated[str, typer.Option(help="fp32, or fp16 for ONNX in fp16: of the graphs' inputs and outputs.")] = "fp32",
    components: Annotated[str | None, typer.Option(help="Only these, comma-separated: unet,vae.")] = None,
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
    version: Version = False,  # noqa: ARG001 (it ends the command)
) -> None:
    """Convert an SDXL checkpoint to OpenVINO IR or ONNX. What overflows fp16 is repaired exactly, by powers of two."""
    target = vocabulary.target(target)
    given = vocabulary.by_component(precision or [], "precision", "--precision", vocabulary.precision)
    precisions = {vocabulary.ALL: "fp16", **given}
    name = f"{_name_of(model)}-{target}-{'mixed' if len(precisions) > 1 else precisions['*']}"
    options = ConvertOptions(
        output=output or Path(name),
        model=model,
        target=target,
        precision=precisions,
        budget=None if budget is None else size_in_bytes(budget, source="--budget"),
        io=vocabulary.precision(io),
        components=vocabulary.component_names(components) if components is not None else None,
        repair=repair.lower(),
        calibration=tuple(calibration or ()),
        verify=verify.lower(),
        variant=variant,
        revision=revision,
        force=force,
        **({"cache": cache} if cache else {}),
    )
    check_options(options)
    if model is None:
        typer.echo("no --model given: converting the built-in demo model (tiny, random weights)", err=True)
    with display() as shown:
        if only_say:
            found = dry_run(options, shown.stage)
        else:
            artifact = convert(options, Progress(shown.stage, shown.expect, shown.advance, _show_choices))
    if only_say:
        _say(found, as_json=as_json)
        return
    if repair == "never":
        typer.echo("--repair never: a VAE that overflows fp16 will give black pictures on a GPU", err=True)
    for name, compared in artifact.parity.items():
        for warning in compared.get("warnings", ()):
            typer.echo(f"warning: {name}: {warning}", err=True)
    _tell(json.dumps(_result(artifact)) if as_json else _summary(artifact), artifact.folder)


def _name_of(model: str | None) -> str:
    """The model's name, also where it is given as `.`."""
    if model is None:
        return "demo"
    name = Path(model).name
    return name if name not in ("", "..") else Path(os.path.realpath(model)).name or "model"


def _tell(text: str, folder: Path) -> None:
    try:
        typer.echo(text)
    except OSError as error:
        reason = f"the result cannot be printed ({error.strerror}), but the artifact is finished"
        raise ResourceError(reason, source=folder, remedy="vaefix.json in it says the same") from None


def _say(found: DryRun, *, as_json: bool) -> None:
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
        lines.append(f"    {_storing(compared['storing'])}")
        if "activations" in compared and compared["activations"] not in ("measured", "sampled"):
            lines.append(f"    activations {compared['activations']}")
        lines += [f"    {line}" for line in (_limits_of(artifact, name) if entry.repaired else ())]
    return "\n".join(lines)


def _storing(found: Mapping[str, Any]) -> str:
    """What storing costs, in words."""
    if "worst_tensor" not in found:
        return "storing loses nothing of the weights"
    worst = f"storing loses {found['weights']:.1e} of the weights (rms), at most {found['worst']:.1e} ({found['worst_tensor']})"
    return f"{worst}, {found['outputs']:.1e} of an output, limit {found['limit']:.0e}" if "outputs" in found else worst


def _limits_of(artifact: Artifact, name: str) -> list[str]:
    """What the repair of this component could not do exactly."""
    plan = read_object(artifact.folder / name / "repair.json", ArtifactError, remedy="convert the model again")
    lines = []
    if plan["keep_fp32"]:
        lines.append(f"marked to stay in fp32, no power of two brings them in range: {', '.join(plan['keep_fp32'])}")
    if plan["below_floor"]:
        lines.append(f"lose precision in fp16, their scaled weights are tiny: {', '.join(plan['below_floor'])}")
    return lines


if __name__ == "__main__":
    main()
