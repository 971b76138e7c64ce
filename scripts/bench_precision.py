"""Measure every component of a full-size SDXL in every precision on a CPU: disk, memory, error and time, and whole generations.

Every conversion and every run is a process of its own. The weights are random, with the statistics of trained ones. What was
measured is kept in WORK/precision.jsonl, so that an interrupted benchmark is taken up; remove the file to begin again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import bench_generate
from bench_generate import MODELS, Generation, Model, generations
from bench_process import MemoryLimitReachedError, finished, worker
from bench_result import GIB, Limit, Result
from bench_weights import WeightError
from bench_worker import Run
from process_tree import Usage

from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import SdxlSize, ensure_sdxl

COMPONENTS = ("unet", "vae_decoder", "text_encoder_2", "vae_encoder", "text_encoder")
PRECISIONS = ("int8", "fp16", "fp8_e4m3", "int4", "fp32", "fp8_e5m2", "bf16")  # what is asked for most comes first
_SHOWN = ("fp32", "fp16", "bf16", "int8", "fp8_e4m3", "fp8_e5m2", "int4")
ENGINES = ("onnx", "openvino")
TARGETS = {"onnx": "onnx-cpu", "openvino": "openvino-cpu"}
NOT_FOR_CPU = {("onnx", "bf16"): "onnx-cuda"}
EXACT = ("fp32", "fp16")  # the checkpoint is in fp16


@dataclass(frozen=True)
class Row:
    """One component in one precision on one engine. pixels: side of the square picture.

    disk: bytes of the component's files.  conversion: of the process that made them.
    weights: None where they are those of the checkpoint, and for OpenVINO, whose codes are those of ONNX.
    run: None where `memory_limit`, in bytes, was not enough.
    """

    engine: str
    component: str
    precision: str
    pixels: int
    disk: int
    conversion: Usage
    weights: WeightError | None
    run: Run | None
    memory_limit: int


@dataclass(frozen=True)
class Bench:
    """Where to work, on which model, and at which size. memory_limit: bytes that a process that runs a component may have."""

    work: Path
    model: Path
    pixels: int
    memory_limit: int

    def row(self, engine: str, component: str, precision: str) -> Row:
        """Convert the component, compare its weights, run it, and remove it."""
        name = f"{engine}, {component}, {precision}"
        artifact, log = self.work / "artifact", self.work / "last.log"
        shutil.rmtree(artifact, ignore_errors=True)
        target = NOT_FOR_CPU.get((engine, precision), TARGETS[engine])
        command = [sys.executable, "-m", "vaefix.convert.cli", "--model", str(self.model), "--cache", str(self.work / "cache")]
        command += ["--target", target, "--precision", precision, "--components", component, "--output", str(artifact)]
        conversion = finished(name, command, log)
        weights = run = None
        answer = self.work / "answer.json"
        if engine == "onnx" and precision not in EXACT:
            finished(name, worker(None, "weights", self.model, artifact, component, answer), log)
            weights = WeightError(**json.loads(answer.read_text()))
        case = self._case(component)
        try:
            finished(name, worker(self.memory_limit, "run", artifact, component, case, answer), log)
            run = Run(**json.loads(answer.read_text()))
        except MemoryLimitReachedError as error:
            print(f"{name}: more than {self.memory_limit / GIB:g} GiB: {error.reason}", file=sys.stderr)
        disk = sum(file.stat().st_size for file in (artifact / component).iterdir())
        shutil.rmtree(artifact)
        return Row(engine, component, precision, self.pixels, disk, conversion, weights, run, self.memory_limit)

    def _case(self, component: str) -> Path:
        """Inputs and PyTorch's outputs, computed once."""
        file = self.work / f"{self.model.name}-{component}-{self.pixels}.npz"
        if not file.exists():
            partial = file.with_suffix(".partial")
            command = worker(None, "reference", self.model, component, self.pixels, partial)
            finished(f"{component}, PyTorch", command, self.work / "last.log")
            partial.rename(file)
        return file


class Store:
    """What was measured before, line by line in a file; what is added is kept at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.rows: list[Row] = []
        self.generations: list[Generation] = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            self._take(_read(json.loads(line)))

    def add(self, found: Row | Generation) -> None:
        """Keep it."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": type(found).__name__, **asdict(found)}) + "\n")
        self._take(found)

    def _take(self, found: Row | Generation) -> None:
        if isinstance(found, Row):
            self.rows.append(found)
        else:
            self.generations.append(found)


def _read(data: dict[str, Any]) -> Row | Generation:
    parts = {"conversion": Usage, "usage": Usage, "weights": WeightError, "run": Run}
    values = {name: parts[name](**value) if name in parts and value else value for name, value in data.items()}
    return Row(**values) if values.pop("kind") == "Row" else Generation(**values)


def limits(rows: Sequence[Row], found: Sequence[Generation], failures: int = 0) -> list[Limit]:
    """What the project promises of what was measured, and that all of it was."""
    dearest = max(rows, key=lambda row: row.conversion.peak_anonymous)
    name = f"converting, peak anonymous, GiB (most: {dearest.engine}, {dearest.component}, {dearest.precision})"
    promised = [Limit(name, dearest.conversion.peak_anonymous / GIB, 1.2)]
    shares = {}
    for engine in ENGINES:
        runs = {row.precision: row.run for row in rows if (row.engine, row.component) == (engine, "unet") and row.run}
        if "int8" in runs and "fp16" in runs:
            shares[engine] = runs["int8"].resident / runs["fp16"].resident
    if shares:
        best = min(shares, key=lambda engine: shares[engine])
        promised.append(Limit(f"{best}: the UNet's resident weights, int8 against fp16", shares[best], 0.55))
    return [*promised, *bench_generate.limits(found), Limit("what could not be measured", failures, 0)]


HEADINGS = (
    *("component", "precision", "engine", "disk GB", "converting GiB", "loaded GiB", "mapped GiB", "running GiB"),
    *("weight error", "output PSNR dB", "output error", "time"),
)


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Of a table, under `HEADINGS`. rows: of all engines and precisions."""
    plain = next(
        (one.run for one in rows if (one.engine, one.component, one.precision) == (row.engine, row.component, "fp32")), None
    )
    weights = next(
        (one.weights for one in rows if (one.component, one.precision) == (row.component, row.precision) and one.weights), None
    )
    error = f"{weights.relative:.2%}, {weights.largest:.2%}" if weights else "0" if row.precision in EXACT else ""
    start = (row.component, row.precision, row.engine, f"{row.disk / 1e9:.2f}", f"{row.conversion.peak_anonymous / GIB:.2f}")
    if row.run is None:
        return (*start, "", "", f"> {row.memory_limit / GIB:g}", error, "", "", "")
    sizes = (row.run.loaded, row.run.mapped, row.run.running)
    time = f"{row.run.seconds / plain.seconds:.2f}" if plain else ""
    return (*start, *(f"{size / GIB:.2f}" for size in sizes), error, f"{row.run.psnr_db:.1f}", f"{row.run.relative:.2%}", time)


def markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table to paste into a document."""
    rule = ["---"] * len(headings)
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rule, *lines)) + "\n"


def document(store: Store) -> str:
    """Both tables, components and precisions in their usual order."""

    def place(row: Row) -> tuple[int, int, int]:
        return COMPONENTS.index(row.component), _SHOWN.index(row.precision), ENGINES.index(row.engine)

    rows = sorted(store.rows, key=place)
    components = markdown(HEADINGS, [cells(row, rows) for row in rows])
    drawn = markdown(bench_generate.HEADINGS, [bench_generate.cells(one) for one in store.generations])
    return f"{components}\n{drawn}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--components", nargs="*", default=COMPONENTS, choices=COMPONENTS, help="those to measure; none: none")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--pixels", type=int, default=512, help="side of the square pictures")
    parser.add_argument("--memory", type=float, default=16, help="GiB that a process that runs a component may have")
    parser.add_argument("--tries", type=int, default=3, help="at most so many limits for a generation; 0: none")
    parser.add_argument("--small", action="store_true", help="the widths of the demo model, to try the benchmark itself")


def result(arguments: argparse.Namespace) -> Result:
    """Measure what is not measured yet, the UNet first, then the generations."""
    size, name = (DEMO_SIZE, "demo-trained-like") if arguments.small else (SdxlSize(), "sdxl-trained")
    model = ensure_sdxl(arguments.work / name, size, trained_like=True)
    store = Store(arguments.work / ("precision-small.jsonl" if arguments.small else "precision.jsonl"))
    bench = Bench(arguments.work, model, arguments.pixels, int(arguments.memory * GIB))
    models = [model for model in MODELS if model.engine in arguments.engines] if arguments.tries else []
    wanted = list(itertools.product(arguments.components, arguments.precisions, arguments.engines))
    tasks: list[Callable[[], None]] = [
        *(partial(_measure_row, store, bench, *row) for row in wanted if row[0] == "unet"),
        *(partial(_measure_generations, store, bench, model, arguments.tries) for model in models),
        *(partial(_measure_row, store, bench, *row) for row in wanted if row[0] != "unet"),
    ]
    failures = sum(not _attempted(task) for task in tasks)
    text = document(store)
    (arguments.work / "precision.md").write_text(text, encoding="utf-8")
    print(text)
    return Result([*store.rows, *store.generations], [], limits(store.rows, store.generations, failures))


def _attempted(task: Callable[[], None]) -> bool:
    """Whether it could be done; what could not is told, and the next one is tried."""
    try:
        task()
    except (SystemExit, MemoryLimitReachedError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return False
    return True


def _measure_row(store: Store, bench: Bench, component: str, precision: str, engine: str) -> None:
    key = (component, precision, engine, bench.pixels)
    if all((row.component, row.precision, row.engine, row.pixels) != key for row in store.rows):
        store.add(bench.row(engine, component, precision))
        print(", ".join(cells(store.rows[-1], store.rows)), file=sys.stderr)


def _measure_generations(store: Store, bench: Bench, model: Model, tries: int) -> None:
    key = (model.engine, model.precision, bench.pixels)
    if all((one.engine, one.precision, one.pixels) != key for one in store.generations):
        for one in list(generations(bench.work, bench.model, model, bench.pixels, tries)):  # all of them, or none
            store.add(one)
            print(", ".join(bench_generate.cells(one)), file=sys.stderr)
