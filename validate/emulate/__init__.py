"""Run an artifact's graph on the CPU as a 16-bit GPU would, so that an overflow shows on a machine without one.

A CPU executes f32 whatever precision is asked for, which hides the overflow. Here every operation still computes in f32,
as a GPU's accumulators do, and each value that a GPU kernel writes to memory is rounded: nearest even; in fp16, 65520
and beyond become inf. How the rounding is kept in the graph is the engine's affair: `openvino.py` for `.xml`, `onnx.py`
for `.onnx`.

The emulation is optimistic in one way: a kernel that accumulates in fp16 can overflow inside, which does not show
here. That is why the repair leaves headroom (it aims at 65504/16).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from numpy.typing import NDArray

from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError
from vaefix.runtime.install import not_installed

from ..ranges import LayerRange
from ..request import EMULATIONS

Mode = Literal["each", "fused", "f32"]

_ENGINES = {".xml": "openvino", ".onnx": "onnx"}


class EmulatedSession:
    """One graph, compiled to run on the CPU with the rounding of 16-bit arithmetic; runs as a `Session` does.

    An IR is rounded to fp16; an ONNX graph has types, so each value is rounded to its own: fp16 or bf16.

    mode: `each` rounds the output of every operation (conservative: non-finite means at risk); `fused` keeps in f32
    what a fused GPU kernel keeps in its accumulator: convolution or matmul + bias + activation or residual add,
    normalisation + activation (non-finite means it will overflow). Attention is one operation in both: a GPU keeps its
    scores in f32. `f32` rounds nothing: the same graph as it is, 16-bit weights widened.
    ranges: also measure what each layer's output reaches, inside the graph; `ranges` then holds it, in the order of
    the graph, for the last run. What a fused kernel keeps in its accumulator is measured there.

    Raises ArtifactError for a graph that cannot be read or emulated, DeviceError where the engine is not there or
    cannot emulate.
    """

    device = "CPU"

    def __init__(self, model_path: str | Path, mode: Mode = "each", *, ranges: bool = False) -> None:
        if mode not in get_args(Mode):
            raise RequestError(f"unknown emulation mode {mode!r}", remedy=f"use one of {', '.join(get_args(Mode))}")
        self._source = Path(model_path)
        self._engine = _engine_of(self._source)
        try:
            self._emulation = self._engine.Emulation(self._source, mode, ranges=ranges)
        except self._engine.ERRORS as error:
            raise ArtifactError(f"unreadable graph ({self._engine.cause_of(error)})", source=model_path) from error
        self.inputs: tuple[str, ...] = self._emulation.inputs
        self.outputs: tuple[str, ...] = self._emulation.outputs
        self.precision: str = self._emulation.precision
        self.ranges: tuple[LayerRange, ...] = ()

    def run(self, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Every output by name, float32, for the inputs by name.

        Raises RequestError when the names are not those of the inputs, DeviceError when the arrays do not fit the graph.
        """
        if feeds.keys() != {*self.inputs}:
            reason = f"fed {', '.join(sorted(feeds)) or 'nothing'}"
            raise RequestError(reason, source=self._source, remedy=f"feed exactly {', '.join(self.inputs)}")
        try:
            results: dict[str, NDArray]
            results, self.ranges = self._emulation.run(feeds)
        except self._engine.ERRORS as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise DeviceError(f"cannot run on {shapes}: {self._engine.cause_of(error)}", source=self._source) from error
        return results


def emulated_in(precision: str, model_path: Path, *, ranges: bool = False) -> EmulatedSession:
    """The graph in emulated `precision`, one of EMULATIONS. Raises DeviceError where such graphs are emulated in another."""
    session = EmulatedSession(model_path, ranges=ranges)
    if EMULATIONS[precision] not in session.precision:
        reason = f"{session.precision} is all there is for such a graph, and {precision} was asked for"
        raise DeviceError(
            reason, source=model_path, remedy="a CPU that has bf16 runs OpenVINO in it: compare with --device CPU"
        )
    return session


def emulate(model_path: str | Path, feeds: Mapping[str, NDArray], mode: Mode = "each") -> dict[str, NDArray]:
    """The outputs of one run in emulated 16 bits; see EmulatedSession."""
    return EmulatedSession(model_path, mode).run(feeds)


def computed_in_16_bits(model_path: Path) -> tuple[str, ...]:
    """The values that a graph itself computes in 16 bits, whatever the device makes of the rest; its inputs and outputs aside.

    Raises ArtifactError for a graph that cannot be read.
    """
    engine = _engine_of(model_path)
    try:
        names: tuple[str, ...] = engine.narrow_values(model_path)
    except engine.ERRORS as error:
        raise ArtifactError(f"unreadable graph ({engine.cause_of(error)})", source=model_path) from error
    return names


def _engine_of(graph: Path) -> Any:
    """The module for such a graph: `Emulation(path, mode)`, `narrow_values(path)`, the engine's `ERRORS`, `cause_of` one."""
    if graph.suffix not in _ENGINES:
        reason = f"{graph.suffix or 'a file without ending'} is no graph"
        raise ArtifactError(reason, source=graph, remedy=f"give a file ending in {' or '.join(_ENGINES)}")
    engine = _ENGINES[graph.suffix]
    try:
        return importlib.import_module(f"{__name__}.{engine}")
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        if not package.startswith(engine):
            raise
        raise not_installed(package, engine) from None
