"""Numbers about each layer of an ONNX graph, computed inside it, as one more output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ..ranges import NUMBERS, RANKS, SKETCH, STRIDE, SUBNORMAL, factors, padding
from .layers import Value, layer_outputs, module_of

_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
Shape = tuple[int | None, ...]


def layers_of(model: onnx.ModelProto) -> dict[str, tuple[str, Shape]]:
    """Layer -> the value that is its output, and its shape, for what has as many dimensions as can be measured."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {item.name: item.type.tensor_type for item in (*graph.value_info, *graph.output)}
    values = (value for value in _values(model.graph) if value.name in types and types[value.name].elem_type in _FLOATING)
    outputs = layer_outputs(values, (tensor.name for tensor in graph.initializer))
    shapes = {
        name: tuple(size.dim_value or None for size in kind.shape.dim) for name, kind in types.items() if kind.HasField("shape")
    }
    return {layer: (name, shapes[name]) for layer, name in outputs.items() if len(shapes.get(name, ())) in RANKS}


def _values(graph: onnx.GraphProto) -> Iterator[Value]:
    """Every value, a Cast being no value of its own but what it casts; who asks for a shape reads nothing."""
    source: dict[str, str] = {}
    readers: dict[str, list[str | None]] = defaultdict(list)
    for node in graph.node:
        read = [source.get(name, name) for name in node.input]
        if node.op_type == "Cast":
            source[node.output[0]] = read[0]
        elif node.op_type != "Shape":
            for name in read:
                readers[name].append(module_of(node.name))
    for item in graph.output:
        readers[source.get(item.name, item.name)].append(None)
    for node in graph.node:
        if node.op_type not in ("Cast", "Shape"):
            yield from (Value(name, module_of(node.name), tuple(readers[name])) for name in node.output)


def measure(model: onnx.ModelProto, layers: Mapping[str, tuple[str, Shape]]) -> None:
    """Add one output before those of a model in f32, in place: float32 [layers, NUMBERS], see `layer_ranges`."""
    meter = _Meter()
    # ONNX Runtime begins with the last node and what it needs, of that again with the last: so, a layer is measured as soon
    # as it is computed, and its memory is free.
    rows = [meter.numbers(name, shape) for name, shape in reversed([*layers.values()])]
    result = helper.make_tensor_value_info(meter.node("Concat", *rows[::-1], axis=0), TensorProto.FLOAT, [len(rows), NUMBERS])
    outputs = [result, *model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    model.graph.node.extend(meter.nodes)
    model.graph.initializer.extend(meter.constants.values())


class _Meter:
    """The nodes that measure, and their constants. prefix: of all names."""

    def __init__(self, prefix: str = "layers") -> None:
        self._prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def numbers(self, value: str, shape: Shape) -> str:
        """float32 [1, NUMBERS] of a value with these dimensions."""
        rank = len(shape)
        sketch = self._sketch(value, shape)
        parts = [
            self.node("ReduceMax", value),
            self.node("ReduceMin", value),
            self._nonfinite(value, sketch, rank),
            self._subnormal(value),
            sketch,
        ]
        joined = self.node("Reshape", self.node("Concat", *parts, axis=-1), self._constant("flat", [-1]))
        padded = [self._constant(f"padding{rank}", np.array(padding(rank), np.float32))] if padding(rank) else []
        sizes = self.node("Cast", self.node("Shape", value), to=TensorProto.FLOAT)
        return self.node("Unsqueeze", self.node("Concat", joined, *padded, sizes, axis=0), self._constant("first", [0]))

    def _sketch(self, value: str, shape: Shape) -> str:
        """[1, ..., 1, SKETCH]: one axis after the other, the last one first; the batch is summed."""
        rank = len(shape)
        result = self.node("MatMul", value, self._factors(value, shape, -1))
        for axis in range(-2, -rank, -1):
            result = self.node("Mul", result, self._factors(value, shape, axis))
            axes = [axis] if axis > 1 - rank else [0, axis]
            result = self.node("ReduceSum", result, self._constant(f"axes{axes}", axes))
        return result if rank > 2 else self.node("ReduceSum", result, self._constant("batch", [0]))

    def _factors(self, value: str, shape: Shape, axis: int) -> str:
        """The weights along an axis: [size, SKETCH], with as many axes of size 1 in between as `axis` is from the last."""
        size, between = shape[axis], [1] * (-axis - 2)
        if size is not None:
            return self._constant(f"factors{axis}/{size}", factors(axis)[:size].reshape(size, *between, SKETCH))
        table = self._constant(f"factors{axis}", factors(axis).reshape(-1, *between, SKETCH))
        length = self.node("Shape", value, start=len(shape) + axis, end=len(shape) + axis + 1)
        return self.node("Slice", table, self._constant("first", [0]), length)

    def _nonfinite(self, value: str, sketch: str, rank: int) -> str:
        """How many values are not finite, [1, ..., 1]. A finite sketch says none, so they are rarely counted."""
        total = self.node("ReduceSum", sketch)
        flag = self.node("IsNaN", self.node("Sub", total, total))
        count, none = _Meter(f"{flag}/count"), _Meter(f"{flag}/none")
        wrong = count.node("Cast", count.node("IsNaN", count.node("Sub", value, value)), to=TensorProto.INT64)
        counted = count.node("Cast", count.node("ReduceSum", wrong), to=TensorProto.FLOAT)
        zero = none.node("Constant", value=numpy_helper.from_array(np.zeros([1] * rank, np.float32)))
        branches = {
            "then_branch": helper.make_graph(count.nodes, "count", [], [_info(counted, rank)]),
            "else_branch": helper.make_graph(none.nodes, "none", [], [_info(zero, rank)]),
        }
        return self.node("If", self.node("Squeeze", flag), **branches)

    def _subnormal(self, value: str) -> str:
        """How many values of every STRIDE-th row are subnormal in fp16, [1, ..., 1]."""
        sample = (("first", [0]), ("end", [2**31 - 1]), ("rows", [-2]), ("stride", [STRIDE]))
        size = self.node("Abs", self.node("Slice", value, *(self._constant(*item) for item in sample)))
        small = self.node("Less", size, self._constant("limit", np.float32(SUBNORMAL)))
        there = self.node("Greater", size, self._constant("zero", np.float32(0)))
        return self.node("ReduceSum", self.node("Cast", self.node("And", small, there), to=TensorProto.FLOAT))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A new node; the name of its output."""
        name = f"{self._prefix}/{len(self.nodes)}/{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _constant(self, name: str, value: object) -> str:
        name = f"layers/constant/{name}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _info(name: str, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1] * rank)
