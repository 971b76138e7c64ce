"""What a conversion would write and need, and what drawing with it would take, said without reading a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from vaefix.runtime.memory import DRAWING, ladder
from vaefix.runtime.needs import MIB, Model, Picture, Place, needs_of

from .choose import Choice, resolve
from .policy import weight_counts
from .request import ConvertOptions, Request
from .targets import Job
from .verify import LARGE

PIXELS = (512, 1024)
"""Sides of the pictures that drawing is planned for."""
_PLAIN, _WITH_TORCH = 96 * MIB, 840 * MIB
"""Converting a UNet whose capture is kept, without torch: 53 to 81 MiB. With torch, to repair or to compare: up to 775."""


@dataclass(frozen=True)
class Estimate:
    """One component.

    examined: it will be measured for a repair.  disk_bytes: of its weights.  convert_bytes: of memory, to convert it.
    run_bytes: device -> side of the picture -> memory to run it, loaded alone (UNet: with guidance).
    """

    component: str
    precision: str
    execution: str
    examined: bool
    disk_bytes: int
    convert_bytes: int
    run_bytes: Mapping[str, Mapping[int, int]]


@dataclass(frozen=True)
class DryRun:
    """A conversion that was not made.

    draw_bytes: device -> side of the picture -> memory to draw it with everything loaded, and the least that is enough.
    Empty where components are left out that drawing needs.
    choices: what `auto` was resolved to.
    """

    target: str
    components: tuple[Estimate, ...]
    draw_bytes: Mapping[str, Mapping[int, tuple[int, int]]]
    choices: tuple[Choice, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def dry_run(options: ConvertOptions) -> DryRun:
    """What `convert` would do. Of the checkpoint only headers and configs are read; captures are made, and kept for later.

    Raises what `convert` raises of a bad model or request.
    """
    options, choices = resolve(options)
    prepared, engine = tuple(Request.of(options).jobs()), options.target.partition("-")[0]
    estimates = tuple(_estimate(job, engine, full=options.verify == "full") for job in prepared)
    drawing = [job for job in prepared if job.component.name in DRAWING]
    if len(drawing) < len(DRAWING):
        return DryRun(options.target, estimates, {}, choices)
    draw: dict[str, dict[int, tuple[int, int]]] = {}
    for device in devices(prepared[0].device):
        parts = [(model_of(job), Place(engine, device, job.execution)) for job in drawing]
        draw[device] = {side: _first_and_least(parts, side, prepared[0].component.picture.factor) for side in PIXELS}
    return DryRun(options.target, estimates, draw, choices)


def devices(device: str) -> tuple[str, ...]:
    """Where what was made for a device runs: there and on a CPU."""
    return tuple(dict.fromkeys((device.upper(), "CPU")))


def model_of(job: Job) -> Model:
    """The component as the planner sees it."""
    return Model(job.component.name, job.component.config, weight_counts(job.program, job.storage))


def _first_and_least(parts: list[tuple[Model, Place]], side: int, factor: int) -> tuple[int, int]:
    needed = [rung.needed_bytes for rung in ladder(parts, side, side, factor=factor)]
    return needed[0], min(needed)


def _estimate(job: Job, engine: str, *, full: bool) -> Estimate:
    model = model_of(job)
    counts = [tensor.count for tensor in job.tensors.values()]
    compared = full or sum(counts) <= LARGE
    own = _WITH_TORCH if job.examined or compared else _PLAIN
    batch = 2 if job.component.name == "unet" else 1
    run = {}
    for device in devices(job.device):
        place = Place(engine, device, job.execution)
        pictures = {side: Picture(side, side, batch, job.component.picture.factor) for side in PIXELS}
        run[device] = {side: needs_of(model, place, picture).peak for side, picture in pictures.items()}
    needed = own + 4 * max(counts)  # one tensor at a time, in float32 at most
    return Estimate(job.component.name, job.precision, job.execution, job.examined, job.stored_bytes, needed, run)


def table(found: DryRun) -> Table:
    """For people: a line for each component, and two for drawing. Fits in 80 columns."""
    where = [(device, side) for device in found.components[0].run_bytes for side in PIXELS]
    title = f"{found.target}: nothing was made. GB of files, of memory to make them and to run"
    caption = "* is examined for the repair" if any(part.examined for part in found.components) else None
    shown = Table(title=title, caption=caption, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("", "as", "in"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("files", "make", *(f"{device} {side} px" for device, side in where)):
        shown.add_column(heading, justify="right")
    for line in _lines(found, where):
        shown.add_row(*line)
    return shown


def _lines(found: DryRun, where: list[tuple[str, int]]) -> Iterator[tuple[str, ...]]:
    for part in found.components:
        run = (_gb(part.run_bytes[device][side]) for device, side in where)
        name = f"{part.component}{' *' if part.examined else ''}"
        yield name, part.precision, part.execution, _gb(part.disk_bytes), _gb(part.convert_bytes), *run
    disk = sum(part.disk_bytes for part in found.components)
    convert = max(part.convert_bytes for part in found.components)
    for name, index in (("all loaded", 0), ("at least", 1)):
        if found.draw_bytes:
            drawn = (_gb(found.draw_bytes[device][side][index]) for device, side in where)
            yield name, "", "", _gb(disk), _gb(convert), *drawn


def _gb(count: int) -> str:
    return f"{count / 1e9:.{2 if count >= 10**8 else 3}f}"
