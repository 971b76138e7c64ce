"""Measure a conversion of a full-size SDXL beside the copying of the same bytes, and beside a peer.

Every conversion runs in a process of its own and reads its weights from the page cache; each is preceded by a copy of
the same weights, written through to the disk. Fails when a limit that the project promises is exceeded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench_result import GIB, USAGE, Limit, Result, cells, table
from process_tree import Usage, measure
from rich.table import Table

from vaefix.convert.demo import demo_model
from vaefix.convert.synthetic import SdxlSize, ensure_sdxl

COLD, CACHED, UNET = "OpenVINO, cold", "OpenVINO, cached", "OpenVINO, UNet, cached"
ONNX_FIRST, ONNX, ONNX_UNET = "ONNX, captures cached", "ONNX, cached", "ONNX, UNet, cached"
ONNX_DEMO, PEER = "ONNX, demo model", "optimum-cli"
REPEATS = 3  # of the row that is measured against a copy: the disk's speed varies


@dataclass(frozen=True)
class Row:
    """One conversion. bytes_in: of the weights. bytes_out: of all files. copy_seconds: of copying the weights, with fsync."""

    name: str
    usage: Usage
    copy_seconds: float
    bytes_in: int
    bytes_out: int

    @property
    def slowdown(self) -> float:
        """Wall time, in units of the copy's."""
        return self.usage.wall_seconds / self.copy_seconds


@dataclass(frozen=True)
class Bench:
    """Where to work, on which model, and the peer's Python, if there is one."""

    work: Path
    model: Path
    peer: Path | None

    @property
    def output(self) -> Path:
        """Where every conversion writes."""
        return self.work / "output"

    def rows(self) -> Iterator[Row]:
        """The conversions in order: those called cached find the skeletons that one before them has left."""
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        parts = ("text_encoder", "text_encoder_2", "unet", "vae")
        openvino, onnx = self._vaefix("openvino-gpu"), self._vaefix("onnx-cuda")
        yield self._row(COLD, openvino, parts)
        yield self._row(CACHED, openvino, parts)
        yield self._row(UNET, [*openvino, "--components", "unet"], ("unet",), repeats=REPEATS)
        yield self._row(ONNX_FIRST, onnx, parts)
        yield self._row(ONNX, onnx, parts)
        yield self._row(ONNX_UNET, [*onnx, "--components", "unet"], ("unet",), repeats=REPEATS)
        demo = replace(self, model=demo_model(self.work / "cache"))
        yield demo._row(ONNX_DEMO, demo._vaefix("onnx-cuda"), parts)
        if self.peer is not None:
            peer = [str(self.peer), "-m", "optimum.commands.optimum_cli", "export", "openvino"]
            peer += ["--task", "text-to-image", "--weight-format", "fp16", "--model", str(self.model), str(self.output)]
            yield self._row(PEER, peer, parts)

    def _vaefix(self, target: str) -> list[str]:
        vaefix = [sys.executable, "-m", "vaefix.convert.cli", "--target", target, "--precision", "fp16"]
        return [*vaefix, "--model", str(self.model), "--cache", str(self.work / "cache"), "--output", str(self.output)]

    def _row(self, name: str, command: Sequence[str], parts: Sequence[str], *, repeats: int = 1) -> Row:
        """The median of the runs of `command`, by its time against the copy's."""
        weights = [file for part in parts for file in sorted((self.model / part).glob("*.safetensors"))]
        rows = sorted((self._run(name, command, weights) for _ in range(repeats)), key=lambda row: row.slowdown)
        return rows[repeats // 2]

    def _run(self, name: str, command: Sequence[str], weights: Sequence[Path]) -> Row:
        log = self.work / "last.log"
        shutil.rmtree(self.output, ignore_errors=True)
        copying = copy_seconds(weights, self.work / "copy")
        usage = measure(command, log=log, environment={**os.environ, "HF_HUB_OFFLINE": "1"})
        if usage.exit_code:
            raise SystemExit(f"{name}: exit code {usage.exit_code}\n{log.read_text(errors='replace')[-4000:]}")
        written = sum(file.stat().st_size for file in self.output.rglob("*") if file.is_file())
        shutil.rmtree(self.output)
        return Row(name, usage, copying, sum(file.stat().st_size for file in weights), written)


def copy_seconds(files: Sequence[Path], scratch: Path) -> float:
    """The time to copy `files` one after another to `scratch` and wait until the disk has them."""
    start = time.perf_counter()
    for file in files:
        shutil.copyfile(file, scratch)
        with scratch.open("rb+") as copy:
            os.fsync(copy.fileno())
    seconds = time.perf_counter() - start
    scratch.unlink()
    return seconds


def limits(rows: Sequence[Row]) -> list[Limit]:
    """What the project promises; the shares of the peer's CPU time only where a peer was measured."""
    by_name = {row.name: row for row in rows}

    def peak(name: str, gib: float) -> Limit:
        return Limit(f"{name}: peak anonymous, GiB", by_name[name].usage.peak_anonymous / GIB, gib)

    def share(name: str, other: str, most: float) -> Limit:
        measured = by_name[name].usage.cpu_seconds / by_name[other].usage.cpu_seconds
        return Limit(f"{name}: CPU against {other}", measured, most)

    promised = [peak(COLD, 1.0), peak(CACHED, 1.0), peak(UNET, 150 / 1024)]
    promised.append(Limit(f"{UNET}: time against copying", by_name[UNET].slowdown, 2.0))
    promised += [peak(name, 1.2) for name in (ONNX_FIRST, ONNX, ONNX_UNET, ONNX_DEMO)]
    promised.append(share(ONNX, CACHED, 1.3))
    if PEER in by_name:
        promised += [share(COLD, PEER, 1 / 4), share(CACHED, PEER, 1 / 10)]
    return promised


def shown(rows: Sequence[Row]) -> Table:
    """The conversions."""
    lines = []
    for row in rows:
        size = (f"{row.bytes_in / 1e9:.2f}", f"{row.bytes_out / 1e9:.2f}")
        lines.append((row.name, *cells(row.usage), *size, f"{row.copy_seconds:.1f}", f"{row.slowdown:.2f}"))
    return table("conversions", ("", *USAGE, "GB in", "GB out", "copy s", "wall / copy"), lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument(
        "--model", type=Path, help="diffusers folder; default: a full-size random SDXL, made if absent (6.5 GB)"
    )
    parser.add_argument(
        "--peer-python", type=Path, help="Python of an environment with optimum-intel; without it no peer is run"
    )


def result(arguments: argparse.Namespace) -> Result:
    """Run every conversion."""
    model = arguments.model or ensure_sdxl(arguments.work / "sdxl", SdxlSize())
    if arguments.peer_python is None:
        print("no --peer-python given: the peer is not measured", file=sys.stderr)
    rows = []
    for row in Bench(arguments.work, model, arguments.peer_python).rows():
        rows.append(row)
        print(f"{row.name}: {row.usage.wall_seconds:.1f} s", file=sys.stderr)
    return Result(rows, [shown(rows)], limits(rows))
