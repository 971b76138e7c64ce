"""What each layer's output reaches, and the first layer where two runs part.

A layer is a module with weights that makes a tensor of its own: a convolution, a linear or normalisation layer, and a block
that adds its residual. Nothing but a few numbers of it is kept: its range, and a sketch.

The sketch of a tensor x is K sums p = sum x * r with fixed pseudo-random weights r. Their expected square is the sum of
squares of x (up to a constant), and they are linear, so |p - p'| / |p| estimates the relative error |x - x'| / |x| of two
runs without keeping either: Alon, Matias and Szegedy 1996, "The space complexity of approximating the frequency moments";
Johnson and Lindenstrauss 1984. r is a product of one factor for each axis (Pagh 2013, "Compressed matrix multiplication"),
so that a graph of any size computes it from a small table. With K = 8 the estimate is mostly within a factor 2.
A swap, a transposition, a dropped bias or a scale changes x, so it changes p in the layer where it happens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaefix.runtime.documents import read_object
from vaefix.runtime.errors import ArtifactError, InputError

_NAMED = "use an artifact of vaefix, whose operations are named after the PyTorch modules"
FP16_MAX = 65504.0
SUBNORMAL = 2.0**-14
"""fp16's smallest normal number."""
SAFE_HEADROOM = 4
"""With less a kernel that accumulates in fp16 may overflow inside, though what it writes would be finite."""
STRIDE = 16
"""Of the rows (the last axis but one) in which subnormal values are counted."""
LONGEST = 1 << 16
"""The longest axis that can be sketched."""
SKETCH = 8
"""Numbers in a sketch."""
RANKS = range(2, 5)
"""Dimensions of a tensor that can be sketched; the first is the batch."""
NUMBERS = 4 + SKETCH + RANKS[-1]
"""What is computed of a layer, see `layer_ranges`."""


@dataclass(frozen=True)
class LayerRange:
    """What one layer's output reaches in one run.

    layer: PyTorch module path within the component, `decoder.up_blocks.2.resnets.0.conv1`.
    count: values.  nonfinite: how many of them are NaN or infinite.
    absmax: the largest magnitude; inf where any value is not finite.
    subnormal: share of the values that are not zero and below 2**-14 in magnitude, counted in every sixteenth row.
    sketch: fixed pseudo-random projections, see the module.
    """

    layer: str
    count: int
    nonfinite: int
    absmax: float
    subnormal: float
    sketch: tuple[float, ...]


def headroom(ranges: Sequence[LayerRange]) -> float:
    """How many times fp16's largest number is what the layers reach: below 1 is an overflow, 4 and more is safe.

    inf where every layer is zero. Raises InputError if there is no layer.
    """
    if not ranges:
        raise InputError("no layer was measured", remedy=_NAMED)
    largest = max(item.absmax for item in ranges)
    return FP16_MAX / largest if largest else math.inf


def relative_error(reference: LayerRange, actual: LayerRange) -> float:
    """The estimated relative error of one layer, at least that of its absmax; NaN where anything is not finite.

    A layer of another size is infinitely far away.
    """
    if reference.count != actual.count:
        return math.inf
    expected, found = (np.array([*item.sketch, item.absmax]) for item in (reference, actual))
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return math.nan
    parts = (slice(None, -1), slice(-1, None))
    return max(_ratio(np.linalg.norm(found[part] - expected[part]), np.linalg.norm(expected[part])) for part in parts)


def first_parting(reference: Sequence[LayerRange], actual: Sequence[LayerRange], tolerance: float) -> str | None:
    """The first layer, in the order of the reference, whose output differs in `actual`; None if none does.

    tolerance: of the relative error. Healthy layers of the demo model have at most 3e-6 in f32 and 6e-3 in emulated fp16.
    A layer that is not finite differs, unless the reference's is not finite either. A layer that one side lacks is left
    out. What the repair scaled is scaled back first, see `unscaled`.
    Raises InputError if the two have no layer in common: nothing would be compared.
    """
    found = {item.layer: item for item in actual}
    common = [item for item in reference if item.layer in found]
    if not common:
        raise InputError("the two runs have no layer in common", remedy=_NAMED)
    for item in common:
        if not item.nonfinite and not relative_error(item, found[item.layer]) <= tolerance:
            return item.layer
    return None


def scaled_layers(component: Path) -> dict[str, int]:
    """Layer -> k: the repair made its output 2**k times what it was. From repair.json in the component's folder, if there.

    A layer is what its module computes last. Raises ArtifactError for a file that is no plan.
    """
    plan = component / "repair.json"
    if not plan.is_file():
        return {}
    content = read_object(plan, ArtifactError, remedy="convert the model again")
    try:
        return {str(op["path"]): int(op["exponent"]) for op in content["ops"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"no scale plan ({error!r})", source=plan, remedy="convert the model again") from error


def unscaled(ranges: Sequence[LayerRange], exponents: Mapping[str, int]) -> tuple[LayerRange, ...]:
    """The ranges as they are without the repair, exactly. exponents: by layer, 0 where absent.

    `subnormal` stays as it is: it tells what the 16-bit run lost.
    """

    def restored(item: LayerRange) -> LayerRange:
        factor = 2.0 ** -exponents.get(item.layer, 0)
        return replace(item, absmax=item.absmax * factor, sketch=tuple(number * factor for number in item.sketch))

    return tuple(map(restored, ranges))


@contextmanager
def recorded(model: torch.nn.Module) -> Iterator[list[LayerRange]]:
    """The layers of a PyTorch model, in the order in which they run while the context is open.

    Left out are modules without weights, and those that hand on what a module inside them made, such as containers.
    """
    ranges: list[LayerRange] = []
    made: list[torch.Tensor] = []  # by the last module that ended

    def keep(layer: str, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        tensor = output if isinstance(output, torch.Tensor) and output.is_floating_point() else None
        if tensor is not None and tensor.ndim in RANKS and not (made and made[0] is tensor):
            ranges.append(_measured(layer, tensor.detach()))
            made[:] = [tensor]

    modules = [(name, module) for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    handles = [module.register_forward_hook(partial(keep, name)) for name, module in modules]
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def layer_ranges(layers: Sequence[str], numbers: NDArray) -> tuple[LayerRange, ...]:
    """The layers of one run, from what a graph computed of them.

    numbers: float32 [layers, NUMBERS], of each layer the largest and the smallest value, how many values are not finite,
    how many in every STRIDE-th row are subnormal, the sketch, and the shape with 1 for each dimension that it has not.
    """
    return tuple(_layer_range(layer, row.tolist()) for layer, row in zip(layers, numbers, strict=True))


def _layer_range(layer: str, numbers: Sequence[float]) -> LayerRange:
    largest, smallest, nonfinite, subnormal = numbers[:4]
    shape = [int(size) for size in numbers[4 + SKETCH :]]
    counted = math.prod(shape) // shape[-2] * -(-shape[-2] // STRIDE)
    absmax = math.inf if nonfinite else max(largest, -smallest)
    return LayerRange(layer, math.prod(shape), int(nonfinite), absmax, subnormal / counted, tuple(numbers[4 : 4 + SKETCH]))


@cache
def factors(axis: int) -> NDArray:
    """The weights along an axis, counted from the last, -1: float32 [LONGEST, SKETCH], of random sign and 0.5 to 1.5 large.

    None is near zero and no two are equal, so that every exchange shows.
    """
    random = np.random.RandomState(-axis)  # of which numpy promises the same numbers for ever
    return (random.choice([-1.0, 1.0], (LONGEST, SKETCH)) * random.uniform(0.5, 1.5, (LONGEST, SKETCH))).astype(np.float32)


def _measured(layer: str, tensor: torch.Tensor) -> LayerRange:
    projection = tensor.float() @ torch.from_numpy(factors(-1)[: tensor.shape[-1]])
    for axis in range(-2, -tensor.ndim, -1):  # the batch is summed
        projection = torch.einsum("...ak,ak->...k", projection, torch.from_numpy(factors(axis)[: projection.shape[-2]]))
    sketch = projection.sum(0)
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    nonfinite = 0 if math.isfinite(float(sketch.sum())) else int((~tensor.isfinite()).sum())
    size = tensor[..., ::STRIDE, :].abs()
    subnormal = int(((size > 0) & (size < SUBNORMAL)).sum())
    return _layer_range(layer, [high, low, nonfinite, subnormal, *sketch.tolist(), *padding(tensor.ndim), *tensor.shape])


def padding(rank: int) -> list[int]:
    """What stands before the shape of a tensor with this many dimensions."""
    return [1] * (RANKS[-1] - rank)


def _ratio(numerator: Any, denominator: Any) -> float:
    if denominator:
        return float(numerator / denominator)
    return math.inf if numerator else 0.0
