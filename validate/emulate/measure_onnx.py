"""Numbers about each layer of an ONNX graph, computed inside it, as more outputs.

The time that ONNX Runtime takes to compile grows with the number of nodes, so there are few for each layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from ..ranges import RANKS, SKETCH, STRIDE, SUBNORMAL, factors, padding
from .layers import Value, layer_outputs, module_of

_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_OUTPUTS = 6  # of a layer: largest, smallest, how many not finite, how many subnormal, sketch, shape
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
    """Add outputs before those of a model in f32, in place: what `numbers_of` makes sense of.

    A layer's value is measured right behind the node that makes it. Run in the order of the graph, its memory is free then.
    """
    meter = _Meter()
    outputs: list[ValueInfoProto] = []
    behind: dict[str, list[NodeProto]] = {}
    for name, shape in layers.values():
        there = len(meter.nodes)
        outputs += meter.measured(name, shape)
        behind[name] = meter.nodes[there:]
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += [node, *(new for name in node.output for new in behind.get(name, ()))]
    outputs += model.graph.output
    for held, kept in ((model.graph.node, nodes), (model.graph.output, outputs)):
        del held[:]
        held.extend(kept)
    model.graph.initializer.extend(meter.constants.values())


def numbers_of(results: Sequence[NDArray]) -> NDArray:
    """float64 [layers, NUMBERS], see `layer_ranges`, of the values of the outputs that `measure` added."""
    rows = []
    for first in range(0, len(results), _OUTPUTS):
        *numbers, sketch, shape = results[first : first + _OUTPUTS]
        rows.append([*numbers, *sketch, *padding(len(shape)), *shape])
    return np.array(rows, np.float64)


class _Meter:
    """The nodes that measure, and their constants. prefix: of all names."""

    def __init__(self, prefix: str = "layers") -> None:
        self._prefix = prefix
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}

    def measured(self, value: str, shape: Shape) -> list[ValueInfoProto]:
        """What tells about a value with these dimensions, _OUTPUTS of them."""
        sketch = self._sketch(value, shape)
        return [
            _output(self.node("ReduceMax", value, keepdims=0)),
            _output(self.node("ReduceMin", value, keepdims=0)),
            _output(self._nonfinite(value, sketch), TensorProto.INT64),
            _output(self._subnormal(value)),
            _output(sketch, shape=[SKETCH]),
            _output(self.node("Shape", value), TensorProto.INT64, [len(shape)]),
        ]

    def _sketch(self, value: str, shape: Shape) -> str:
        """[SKETCH]: the last axis first, by a MatMul, which is faster than Einsum; the batch is summed."""
        names, axes = "abc"[: len(shape) - 1], range(-2, -len(shape), -1)
        rows = self.node("MatMul", value, self._factors(value, shape, -1))
        equation = ",".join([f"{names}k", *(f"{names[axis + 1]}k" for axis in axes)]) + "->k"
        return self.node("Einsum", rows, *(self._factors(value, shape, axis) for axis in axes), equation=equation)

    def _factors(self, value: str, shape: Shape, axis: int) -> str:
        """The weights along an axis: [size, SKETCH]."""
        size = shape[axis]
        if size is not None:
            return self._constant(f"factors{axis}/{size}", factors(axis)[:size])
        length = self.node("Shape", value, start=len(shape) + axis, end=len(shape) + axis + 1)
        return self.node("Slice", self._constant(f"factors{axis}", factors(axis)), self._constant("first", [0]), length)

    def _nonfinite(self, value: str, sketch: str) -> str:
        """How many values are not finite. A finite sketch says none, so they are rarely counted."""
        finite = self.node("Less", self.node("ReduceSumSquare", sketch, keepdims=0), self._constant("inf", np.float32(np.inf)))
        count, none = _Meter(f"{finite}/count"), _Meter(f"{finite}/none")
        wrong = count.node("Cast", count.node("IsNaN", count.node("Sub", value, value)), to=TensorProto.INT64)
        counted = count.node("ReduceSum", wrong, keepdims=0)
        zero = none.node("Constant", value_int=0)
        branches = {
            "then_branch": helper.make_graph(none.nodes, "none", [], [_output(zero, TensorProto.INT64)]),
            "else_branch": helper.make_graph(count.nodes, "count", [], [_output(counted, TensorProto.INT64)]),
        }
        return self.node("If", finite, **branches)

    def _subnormal(self, value: str) -> str:
        """How many values of every STRIDE-th row are subnormal in fp16."""
        sample = (("first", [0]), ("end", [2**31 - 1]), ("rows", [-2]), ("stride", [STRIDE]))
        size = self.node("Abs", self.node("Slice", value, *(self._constant(*item) for item in sample)))
        small = self.node("Less", size, self._constant("limit", np.float32(SUBNORMAL)))
        found = self.node("Sign", self.node("Where", small, size, self._constant("zero", np.float32(0))))
        return self.node("ReduceSum", found, keepdims=0)

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


def _output(name: str, kind: int = TensorProto.FLOAT, shape: Sequence[int] = ()) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
