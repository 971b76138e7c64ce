"""A whole generation by `vaefix-run` in a process whose private memory the kernel limits: in the least that it can be planned
for, and in what the project promises.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench_process import MemoryLimitReachedError, finished, worker
from bench_result import Limit
from process_tree import Usage

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ResourceError
from vaefix.runtime.memory import plan

GB = 10**9
LADDER = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 12, 16)
"""The limits that are tried, in GB."""
_COMPONENTS = "text_encoder,text_encoder_2,unet,vae_decoder"


@dataclass(frozen=True)
class Model:
    """What to draw with. precision: of the encoders and the UNet; the VAE is in fp16.  promised: GB that are enough."""

    engine: str
    target: str
    precision: str
    promised: float | None = None


MODELS = (
    Model("onnx", "onnx-cpu", "int8", promised=4),
    Model("onnx", "onnx-cpu", "fp16", promised=8),
    Model("openvino", "openvino-cpu", "int8"),
    Model("openvino", "openvino-cpu", "bf16"),
    Model("openvino", "openvino-cpu", "fp16"),
)


@dataclass(frozen=True)
class Generation:
    """One attempt. limit_gb: of RLIMIT_DATA.  works: a picture was drawn.  obstacle: why not."""

    engine: str
    precision: str
    pixels: int
    limit_gb: float
    works: bool
    usage: Usage
    obstacle: str = ""


def generations(work: Path, source: Path, model: Model, pixels: int, tries: int) -> Iterator[Generation]:
    """Convert the model, draw under limits, remove the artifact. tries: at most so many, until one is enough."""
    artifact, log = work / "generation", work / "last.log"
    shutil.rmtree(artifact, ignore_errors=True)
    command = [sys.executable, "-m", "vaefix.convert.cli", "--model", str(source), "--cache", str(work / "cache")]
    command += ["--target", model.target, "--precision", model.precision, "--precision", "vae_decoder=fp16"]
    finished("conversion", [*command, "--components", _COMPONENTS, "--output", str(artifact)], log)

    def attempt(limit_gb: float) -> Generation:
        command = [sys.executable, "-m", "vaefix.runtime.cli", str(artifact), "--prompt", "a lighthouse in the snow"]
        command += ["--steps", "2", "--width", str(pixels), "--height", str(pixels), "--memory", f"{limit_gb:g}GB"]
        command = worker(int(limit_gb * GB), "command", *command, "--output", work / "picture.png")
        try:
            usage, obstacle = finished(f"{model.engine}, {model.precision}, {limit_gb:g} GB", command, log), ""
        except MemoryLimitReachedError as error:
            usage, obstacle = error.usage, error.reason
        return Generation(model.engine, model.precision, pixels, limit_gb, not obstacle, usage, obstacle)

    yield from search(attempt, _planned(artifact, pixels), tries, model.promised)
    shutil.rmtree(artifact)


def _planned(folder: Path, pixels: int) -> list[float]:
    """The limits for which the runtime has a plan."""
    artifact, found = Artifact.load(folder), []
    for limit_gb in LADDER:
        with suppress(ResourceError):
            plan(artifact, "CPU", pixels, pixels, int(limit_gb * GB))
            found.append(limit_gb)
    return found


def search(
    attempt: Callable[[float], Generation], limits_gb: Sequence[float], tries: int, promised: float | None
) -> Iterator[Generation]:
    """Attempts from the first limit upwards until one is enough, and one at the limit that is promised to be."""
    tried = []
    for limit_gb in limits_gb[:tries]:
        found = attempt(limit_gb)
        yield found
        tried.append(limit_gb)
        if found.works:
            break
    if promised is not None and promised in limits_gb and promised not in tried:
        yield attempt(promised)


def lowest(found: Sequence[Generation], engine: str, precision: str) -> float:
    """The least limit that was enough, as every larger one was, in GB; infinite where none was."""
    tried = [one for one in found if (one.engine, one.precision) == (engine, precision)]
    failed = max((one.limit_gb for one in tried if not one.works), default=0.0)
    return min((one.limit_gb for one in tried if one.works and one.limit_gb > failed), default=math.inf)


def limits(found: Sequence[Generation]) -> list[Limit]:
    """What the project promises of the models that were tried."""
    return [
        Limit(
            f"{model.engine}, a picture in {model.precision}: the least limit that is enough, GB",
            lowest(found, model.engine, model.precision),
            model.promised,
        )
        for model in MODELS
        if model.promised and any((one.engine, one.precision) == (model.engine, model.precision) for one in found)
    ]


HEADINGS = ("engine", "precision", "limit GB", "drawn", "peak anonymous GB", "peak mapped GB", "peak private GB", "seconds")


def cells(one: Generation) -> tuple[str, ...]:
    """Of a table, under `HEADINGS`."""
    usage = one.usage
    sizes = (usage.peak_anonymous, usage.peak_mapped, usage.peak_private)
    drawn = "yes" if one.works else "no"
    return (
        one.engine,
        one.precision,
        f"{one.limit_gb:g}",
        drawn,
        *(f"{size / GB:.2f}" for size in sizes),
        f"{usage.wall_seconds:.0f}",
    )
