"""Measure emulation and ranges beside the plain f32 run of the same graph, and whole validations, for both targets.

A ratio is the median over rounds; in each round every kind of run takes its turn, so that a machine that is busy for a while
slows all of them. The VAE decoder has SDXL's own widths and random weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench_result import GIB, USAGE, Limit, Result, cells, table
from process_tree import Usage, measure
from rich.table import Table

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import DEMO_SIZE, demo_model
from vaefix.convert.synthetic import SdxlSize, ensure_sdxl
from vaefix.runtime.artifact import Artifact
from vaefix.validate.emulate import EmulatedSession
from vaefix.validate.inputs import PictureSize, sample_inputs

TARGETS = ("openvino-gpu", "onnx-cuda")
DECODER, DEMO = "SDXL's VAE decoder", "demo model"
DEMO_PIXELS, DEMO_ROUNDS = 64, 15  # a run takes milliseconds
# SDXL's VAE beside the demo model's other components, which are not used.
_FULL = SdxlSize()
SIZE = replace(DEMO_SIZE, vae_channels=_FULL.vae_channels, norm_groups=_FULL.norm_groups, unet_channels=(32, 64, 64))


@dataclass(frozen=True)
class Cost:
    """Of running one component in emulated fp16.

    model: DECODER or DEMO.  pixels: side of the square picture.  plain_seconds: of the run in f32 that rounds nothing.
    emulated: in units of that.  ranges: too, with the layers measured.
    """

    model: str
    name: str
    pixels: int
    plain_seconds: float
    emulated: float
    ranges: float


@dataclass(frozen=True)
class Validation:
    """A `vaefix-validate` as a process of its own. model: DECODER or DEMO."""

    model: str
    name: str
    usage: Usage


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, DECODER or DEMO, its folder, and its artifact for one target."""

    model: str
    folder: Path
    artifact: Artifact

    def costs(self, pixels: int, rounds: int) -> Iterator[Cost]:
        """Of every component."""
        for name, entry in self.artifact.components.items():
            feeds = sample_inputs(Checkpoint.open(self.folder), name, 0, PictureSize(pixels, pixels))
            graph = self.artifact.folder / entry.model
            sessions = (EmulatedSession(graph, "f32"), EmulatedSession(graph), EmulatedSession(graph, ranges=True))
            seconds, (emulated, ranges) = ratios([partial(session.run, feeds) for session in sessions], rounds)
            yield Cost(self.model, f"{self.artifact.target}, {name}, {pixels} px", pixels, seconds, emulated, ranges)

    def validation(self, work: Path, pixels: int) -> Validation:
        """Against the model it was made from, in emulated fp16; the demo model with a page about it, the decoder with ranges.

        Raises SystemExit unless it passed.
        """
        command = [sys.executable, "-m", "vaefix.validate.cli", str(self.artifact.folder), "--reference", str(self.folder)]
        if self.model == DECODER:
            command += ["--components", "vae_decoder", "--ranges", "--width", str(pixels), "--height", str(pixels)]
        else:
            command += ["--report", str(work / "report.html")]
        name = f"{self.artifact.target}, {f'{pixels} px' if self.model == DECODER else 'with a page'}"
        log = work / "last.log"
        usage = measure([*command, "--emulate", "fp16"], log=log, environment={**os.environ, "HF_HUB_OFFLINE": "1"})
        if usage.exit_code:
            raise SystemExit(f"{name}: exit code {usage.exit_code}\n{log.read_text(errors='replace')[-4000:]}")
        return Validation(self.model, name, usage)


def subjects(work: Path) -> list[Subject]:
    """Convert the models for every target."""
    found = []
    models = {DECODER: ensure_sdxl(work / "sdxl-vae", SIZE), DEMO: demo_model(work / "cache")}
    for model, folder in models.items():
        for target in TARGETS:
            output = work / f"{folder.name}-{target}"
            shutil.rmtree(output, ignore_errors=True)
            options = ConvertOptions(output, folder, target, {"*": "fp16"}, cache=work / "cache")
            only = replace(options, components=("vae_decoder",)) if model == DECODER else options
            found.append(Subject(model, folder, convert(only)))
    return found


def ratios(runs: Sequence[Callable[[], object]], rounds: int) -> tuple[float, list[float]]:
    """The median seconds of the first run, and for each of the others the median of its time in units of the first's."""
    for run in runs:
        run()  # engines allocate
    times = [[_seconds(run) for run in runs] for _ in range(rounds)]
    others = range(1, len(runs))
    return statistics.median(row[0] for row in times), [statistics.median(row[n] / row[0] for row in times) for n in others]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def limits(costs: Sequence[Cost], validations: Sequence[Validation]) -> list[Limit]:
    """What the project promises. Of the demo model's ratios it promises nothing: its channels are tiny, so rounding is dear."""
    promised = []
    for cost in costs:
        if cost.model == DECODER:
            promised.append(Limit(f"{DECODER}: {cost.name}: emulated / plain", cost.emulated, 1.3))
            promised.append(Limit(f"{DECODER}: {cost.name}: with ranges / plain", cost.ranges, 1.5))
    for validation in validations:
        name, usage = f"{validation.model}: {validation.name}", validation.usage
        if validation.model == DECODER:
            promised.append(Limit(f"{name}: peak anonymous, GiB", usage.peak_anonymous / GIB, 6))
        else:
            promised.append(Limit(f"{name}: wall s", usage.wall_seconds, 60))
    return promised


def shown(costs: Sequence[Cost], validations: Sequence[Validation]) -> list[Table]:
    """The runs and the processes."""
    lines = [
        (f"{cost.model}: {cost.name}", f"{cost.plain_seconds:.3f}", f"{cost.emulated:.2f}", f"{cost.ranges:.2f}")
        for cost in costs
    ]
    processes = [(f"{validation.model}: {validation.name}", *cells(validation.usage)) for validation in validations]
    return [
        table("runs", ("", "plain f32 s", "emulated / plain", "with ranges / plain"), lines),
        table("validations", ("", *USAGE), processes),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--pixels", type=int, nargs="+", default=[256, 512], help="sides of the VAE decoder's pictures")
    parser.add_argument("--rounds", type=int, default=5, help="of the VAE decoder's runs")


def result(arguments: argparse.Namespace) -> Result:
    """Run everything, processes last."""
    costs: list[Cost] = []
    validations: list[Validation] = []
    made = subjects(arguments.work)
    for subject in made:
        full = subject.model == DECODER
        for pixels in arguments.pixels if full else [DEMO_PIXELS]:
            for cost in subject.costs(pixels, arguments.rounds if full else DEMO_ROUNDS):
                costs.append(cost)
                print(f"{cost.model}: {cost.name}: {cost.emulated:.2f}, {cost.ranges:.2f}", file=sys.stderr)
    for subject in made:
        validations.append(subject.validation(arguments.work, max(arguments.pixels)))
        print(f"{subject.model}: {validations[-1].name}: {validations[-1].usage.wall_seconds:.1f} s", file=sys.stderr)
    return Result([*costs, *validations], shown(costs, validations), limits(costs, validations))
