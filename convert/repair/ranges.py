"""What a component reaches in float32: every activation on calibration inputs, and every weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from ..execute import Weights, execute
from ..program import Op, Program
from .plan import Range, WeightStatistics
from .rules import is_floating

_CHUNK = 1 << 22  # elements of a weight converted at a time
_LARGEST = torch.finfo(torch.float32).max


def activation_ranges(program: Program, weights: Weights, inputs: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, Range]:
    """Operation name -> its range over all inputs, for every floating-point output.

    weights, inputs: as for `execute`; one mapping for each calibration run. Memory: live activations and one weight.
    Raises ValueError if there are no inputs.
    """
    ranges: dict[str, Range] = {}

    def observe(op: Op, output: torch.Tensor) -> None:
        if is_floating(op.dtype) and output.numel():
            reached, before = _range(output), ranges.get(op.name, Range(0.0))
            ranges[op.name] = Range(max(before.absmax, reached.absmax), before.nonfinite + reached.nonfinite)

    for feeds in inputs:
        execute(program, weights, feeds, observe)
    if not ranges:
        raise ValueError("no calibration input, or none that reaches an operation")
    return ranges


def weight_statistics(program: Program, weights: Weights) -> dict[str, WeightStatistics]:
    """Parameter name -> its statistics in float64; a weight is read once, and dropped before the next."""
    names = dict.fromkeys(parameter.name for parameter in program.parameters.values())
    return {name: _statistics(weights(name)) for name in names}


def _range(output: torch.Tensor) -> Range:
    low, high = (float(bound) for bound in torch.aminmax(output))
    absmax = max(-low, high)
    if absmax < _LARGEST:
        return Range(absmax)
    magnitude = output.abs()
    finite = magnitude[magnitude < _LARGEST]
    return Range(float(finite.max()) if finite.numel() else 0.0, int((~output.isfinite()).sum()))


def _statistics(weight: torch.Tensor) -> WeightStatistics:
    absmax, squares = 0.0, 0.0
    for chunk in weight.reshape(-1).split(_CHUNK):
        low, high = torch.aminmax(chunk)
        absmax = max(absmax, -float(low), float(high))
        squares += float(chunk.double().square().sum())
    return WeightStatistics(absmax, math.sqrt(squares / max(weight.numel(), 1)), weight.dim())
