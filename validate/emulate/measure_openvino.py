"""Numbers about each layer of an IR, computed inside it, as one more output.

The time that OpenVINO takes to compile grows with the number of nodes, so there are few for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from vaefix.convert.targets.openvino.segments import is_weight

from ..ranges import RANKS, SKETCH, STRIDE, SUBNORMAL, factors, padding
from .layers import Value, layer_outputs, module_of


def layers_of(model: ov.Model) -> dict[str, ov.Output]:
    """Layer -> its output, for what has as many dimensions as can be measured."""
    nodes = model.get_ordered_ops()
    outputs = {_name(output): output for node in nodes for output in node.outputs()}
    weights = (node.get_friendly_name() for node in nodes if node.get_type_name() == "Constant")
    layers = layer_outputs(_values(nodes), weights)
    return {layer: outputs[name] for layer, name in layers.items() if _rank(outputs[name]) in RANKS}


def _values(nodes: Sequence[ov.Node]) -> Iterator[Value]:
    """Every floating-point value but weights; who asks for a shape reads nothing."""
    for node in nodes:
        for output in node.outputs():
            if output.get_element_type() == ov.Type.f32 and not is_weight(node):
                readers = [port.get_node() for port in output.get_target_inputs()]
                paths = tuple(_reader(reader) for reader in readers if reader.get_type_name() != "ShapeOf")
                yield Value(_name(output), module_of(node.get_friendly_name()), paths)


def _reader(node: ov.Node) -> str | None:
    return None if node.get_type_name() == "Result" else module_of(node.get_friendly_name())


def measured(model: ov.Model, layers: Sequence[ov.Output]) -> ov.Model:
    """The model with one output before its own: float32 [layers, NUMBERS], see `layer_ranges`.

    First and only one, because the CPU plugin keeps what a later output needs alive until then.
    """
    meter = _Meter()
    numbers = ops.result(ops.concat([meter.numbers(output) for output in layers], 0))
    return ov.Model([numbers, *model.get_results()], model.get_parameters(), model.get_friendly_name())


class _Meter:
    """Builds what measures. Constants are shared."""

    def __init__(self) -> None:
        self._constants: dict[str, ov.Node] = {}

    def numbers(self, value: ov.Output) -> ov.Node:
        """float32 [1, NUMBERS] of a value."""
        rank = _rank(value)
        every = self._constant(f"every{rank}", np.arange(rank))
        sketch = self._sketch(value)
        parts = [
            ops.reduce_max(value, every, True),
            ops.reduce_min(value, every, True),
            self._nonfinite(value, every),
            self._subnormal(value, every),
            sketch,
        ]
        row = ops.reshape(ops.concat(parts, rank - 1), self._constant("row", np.array([1, -1])), False)
        padded = self._constant(f"padding{rank}", np.array([padding(rank)], np.float32))
        shape = ops.unsqueeze(ops.convert(ops.shape_of(value), "f32"), self._constant("first", np.array([0])))
        return ops.concat([row, padded, shape], 1)

    def _sketch(self, value: ov.Output) -> ov.Node:
        """[1, ..., 1, SKETCH]: one axis after the other, the last one first; the batch is summed."""
        rank = _rank(value)
        result = ops.matmul(value, self._factors(value, -1), False, False)
        for axis in range(-2, -rank, -1):
            axes = [axis] if axis > 1 - rank else [axis, -rank]
            weighted = ops.multiply(result, self._factors(value, axis))
            result = ops.reduce_sum(weighted, self._constant(f"axes{axes}", np.array(axes)), True)
        return result if rank > 2 else ops.reduce_sum(result, self._constant("first", np.array([0])), True)

    def _factors(self, value: ov.Output, axis: int) -> ov.Node:
        """The weights along an axis: [size, SKETCH], with as many axes of size 1 in between as `axis` is from the last."""
        position, between = _rank(value) + axis, [1] * (-axis - 2)
        size = value.get_partial_shape()[position]
        if size.is_static:
            known = size.get_length()
            return self._constant(f"factors{axis}/{known}", factors(axis)[:known].reshape(known, *between, SKETCH))
        index = self._constant(f"axis{position}", np.array([position]))
        length = ops.gather(ops.shape_of(value), index, self._constant("zero", np.array(0)))
        first, step = self._constant("first", np.array([0])), self._constant("step", np.array([1]))
        table = self._constant(f"factors{axis}", factors(axis).reshape(-1, *between, SKETCH))
        return ops.slice(table, first, length, step, first)

    def _nonfinite(self, value: ov.Output, every: ov.Node) -> ov.Node:
        """How many values are not finite, [1, ..., 1]."""
        finite = ops.less(ops.absolute(value), self._constant("inf", np.float32(np.inf)))
        wrong = ops.select(finite, self._constant("none", np.float32(0)), self._constant("one", np.float32(1)))
        return ops.reduce_sum(wrong, every, True)

    def _subnormal(self, value: ov.Output, every: ov.Node) -> ov.Node:
        """How many values of every STRIDE-th row are subnormal in fp16, [1, ..., 1]."""
        bounds = (("first", 0), ("end", 2**31 - 1), ("stride", STRIDE), ("last", -2))
        size = ops.absolute(ops.slice(value, *(self._constant(name, np.array([number])) for name, number in bounds)))
        small = ops.less(size, self._constant("limit", np.float32(SUBNORMAL)))
        return ops.reduce_sum(ops.sign(ops.select(small, size, self._constant("none", np.float32(0)))), every, True)

    def _constant(self, name: str, value: NDArray | np.float32) -> ov.Node:
        if name not in self._constants:
            self._constants[name] = ops.constant(value)
        return self._constants[name]


def _name(output: ov.Output) -> str:
    return f"{output.get_node().get_name()}:{output.get_index()}"


def _rank(output: ov.Output) -> int:
    return int(output.get_partial_shape().rank.get_length())
