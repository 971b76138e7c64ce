"""`vaefix-validate`: a thin shell over `validate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from vaefix.runtime import vocabulary
from vaefix.runtime.command import MOST_PIXELS, SETTINGS, Version, run
from vaefix.runtime.progress import Activity, display

from .inputs import PictureSize
from .request import ValidateOptions, check, read_prompts

if TYPE_CHECKING:
    from .verdict import Verdict

Format = Literal["table", "markdown"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(no_args_is_help=True, context_settings=SETTINGS)
def command(
    artifact: Annotated[Path, typer.Argument(help="A folder written by vaefix-convert.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            "-r",
            "--model",
            "-m",
            help="The model it was made from: diffusers folder or hub id; none for the demo model.",
        ),
    ] = None,
    components: Annotated[str | None, typer.Option(help="Only these, comma-separated: unet,vae.")] = None,
    generation: Annotated[
        bool | None, typer.Option(help="Compare a whole generation too; by default where --components is not given.")
    ] = None,
    emulate: Annotated[
        str | None, typer.Option(help="fp16 or bf16: also run what executes in it as a GPU would, on the CPU.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Also run every component, and draw, there: GPU, CUDA:1.")] = None,
    seeds: Annotated[
        int, typer.Option(max=10_000, help="How many seeded inputs each component gets, and pictures each prompt.")
    ] = 2,
    steps: Annotated[int, typer.Option(max=10_000, help="Denoising steps of the generation.")] = 5,
    width: Annotated[int, typer.Option(max=MOST_PIXELS, help="Pixels of the picture, and of the components' inputs.")] = 96,
    height: Annotated[int, typer.Option(max=MOST_PIXELS, help="Pixels of the picture, and of the components' inputs.")] = 64,
    variant: Annotated[str | None, typer.Option(help="Variant of the reference's weight files, such as fp16.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder in which the demo model is kept.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file of prompts to draw, one a line; else a seeded one.")] = None,
    save_reference: Annotated[
        Path | None, typer.Option(help="Write here what the reference computed, to compare elsewhere.")
    ] = None,
    load_reference: Annotated[Path | None, typer.Option(help="Compare with this instead of the model.")] = None,
    ranges: Annotated[
        bool, typer.Option("--ranges", help="Measure what every layer reaches; a page (--report x.html) shows it.")
    ] = False,
    lpips: Annotated[
        bool, typer.Option("--lpips", help="Measure pictures by LPIPS too; needs the package of that name.")
    ] = False,
    report: Annotated[
        list[Path] | None, typer.Option(help="Write the result here: .html, .json, .md, or .xml (JUnit); repeatable.")
    ] = None,
    output_format: Annotated[Format, typer.Option("--format", help="Of what is printed.")] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead.")] = False,
    version: Version = False,  # noqa: ARG001 (it ends the command)
) -> None:
    """Compare an artifact with the PyTorch model it was made from.

    Exit code 0: everything asked for was compared and passed; 1: something differs; 3: something could not be compared.
    """
    options = ValidateOptions(
        artifact=artifact,
        reference=reference,
        components=None if components is None else vocabulary.component_names(components),
        generation=components is None if generation is None else generation,
        size=PictureSize(height, width),
        steps=steps,
        emulate=None if emulate is None else vocabulary.precision(emulate),
        ranges=ranges or any(path.suffix.lower() == ".html" for path in report or ()),
        device=None if device is None else vocabulary.device(device),
        lpips=lpips,
        seeds=tuple(range(seeds)),
        prompts=() if prompts is None else read_prompts(prompts),
        variant=variant,
        save_reference=save_reference,
        load_reference=load_reference,
        **({"cache": cache} if cache else {}),
    )
    check(options, report or ())
    verdict = _validate(options)
    from .report import write  # not at the top: it imports torch, and a mistake above must be told at once

    for path in report or ():
        write(verdict, path)
    _show(verdict, output_format, as_json=as_json)
    raise typer.Exit(verdict.exit_code)


def main() -> None:
    """The console script."""
    run(app)


def _quieten_libraries() -> None:
    """No progress bars of theirs inside ours, and no warnings about what a comparison never uses."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def _validate(options: ValidateOptions) -> Verdict:
    with display() as shown:
        shown.stage(Activity("load PyTorch"))
        _quieten_libraries()
        from .validate import validate  # see `write`

        return validate(options, shown.stage)


def _show(verdict: Verdict, output_format: Format, *, as_json: bool) -> None:
    from .report import reasons, to_json, to_markdown, to_table

    if as_json:
        print(to_json(verdict))
    elif output_format == "markdown":
        print(to_markdown(verdict))
    else:
        Console().print(to_table(verdict))
        for line in reasons(verdict):
            print(line)
        print(f"{'passed' if verdict.passed else 'NOT PASSED'}: {verdict.artifact} against {verdict.reference}")


if __name__ == "__main__":
    main()
