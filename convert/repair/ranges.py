"""What a component reaches in float32: every activation on calibration inputs, and every weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from ..execute import Observer, Weights, execute
from ..precision import Storage
from ..program import Op, Program
from ..rounding import range_loss
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
    for feeds in inputs:
        execute(program, weights, feeds, into(ranges))
    if not ranges:
        raise ValueError("no calibration input, or none that reaches an operation")
    return ranges


def into(ranges: dict[str, Range]) -> Observer:
    """What widens these ranges, by operation name, by every floating-point output that it is told of."""

    def observe(op: Op, output: torch.Tensor) -> None:
        if is_floating(op.dtype) and output.numel():
            reached, before = _range(output), ranges.get(op.name, Range(0.0))
            ranges[op.name] = Range(max(before.absmax, reached.absmax), before.nonfinite + reached.nonfinite)

    return observe


def weight_statistics(
    program: Program, weights: Weights, storage: Mapping[str, Storage] | None = None
) -> dict[str, WeightStatistics]:
    """Parameter name -> its statistics in float64; a weight is read once, and dropped before the next.

    storage: by parameter, to find what it loses to float16's range.
    """
    names = dict.fromkeys(parameter.name for parameter in program.parameters.values())
    return {name: statistics(weights(name), storage[name] if storage else None) for name in names}


def _range(output: torch.Tensor) -> Range:
    low, high = (float(bound) for bound in torch.aminmax(output))
    absmax = max(-low, high)
    if absmax < _LARGEST:
        return Range(absmax)
    magnitude = output.abs()
    finite = magnitude[magnitude < _LARGEST]
    return Range(float(finite.max()) if finite.numel() else 0.0, int((~output.isfinite()).sum()))


def statistics(weight: torch.Tensor, storage: Storage | None = None) -> WeightStatistics:
    """Of one weight, a few rows at a time."""
    absmax, squares, lost = 0.0, 0.0, 0.0
    rows = weight.reshape(len(weight) if weight.dim() else 1, -1)
    for chunk in rows.split(max(1, _CHUNK // max(rows.shape[1], 1))):
        low, high = torch.aminmax(chunk)
        absmax = max(absmax, -float(low), float(high))
        squares += float(chunk.double().square().sum())
        if storage is not None:
            shaped = chunk if weight.dim() > 1 else chunk.reshape(-1)
            lost += float(range_loss(shaped, storage).double().square().sum())
    return WeightStatistics(
        absmax, math.sqrt(squares / max(weight.numel(), 1)), weight.dim(), math.sqrt(lost / squares) if lost else 0.0
    )
