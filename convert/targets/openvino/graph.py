"""`Program` -> `Skeleton`: build the graph with OpenVINO's own opset, then cut its XML at the holes.

Every weight is a graph Parameter of known shape while the graph is built, so OpenVINO can fold or merge none by value.
Nodes are named after the PyTorch module path and the operation, the same on every run.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import Output, Type
from openvino import opset13 as opset

from vaefix.runtime.errors import ModelError
from vaefix.runtime.versions import remedy_or_versions

from ...execute import static_values
from ...program import Op, Program, Ref
from .. import TRIGONOMETRIC
from .ops import LOWERINGS, TYPES, Value
from .skeleton import Literal, Scalar, Skeleton, scalar_layer
from .weights import Edge, Hole

_LAYER = re.compile(r'<layer id="(\d+)" name="([^"]*)" type="(\w+)".*?</layer>\n?', re.DOTALL)
_EDGE = re.compile(r'<edge from-layer="(\d+)" from-port="(\d+)" to-layer="(\d+)" to-port="(\d+)"')


def lower(program: Program) -> Skeleton:
    """The program in OpenVINO IR, weights and repairable literals left open.

    Raises ModelError naming the operation and its module path if the opset has no lowering for it here.
    """
    graph = Graph(program)
    for op in program.ops:
        graph.add(op)
    return _cut(graph.model(), graph, tuple(sorted(program.ancestors(TRIGONOMETRIC))))


class Graph:
    """The graph under construction: values by name, and what has to stay open.

    types: of every value of the program, see `Program.types`.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values: dict[str, Value] = {}
        self._static = static_values(program)
        self.types = program.types()
        self._named: set[str] = set()
        self.holes: dict[str, Any] = {}
        self.literals: dict[str, tuple[str, str, float]] = {}  # node name -> (operation, attribute, value)
        self.scalars: dict[str, tuple[str, float]] = {}  # node name -> (operation, value)
        self._open: list[Any] = []  # the nodes of these
        self._inputs = []
        for item in program.inputs:
            node = _parameter(item.name, [-1 if size is None else size for size in item.shape], TYPES[item.dtype])
            node.output(0).get_tensor().set_names({item.name})
            self._inputs.append(node)
            self._values[item.name] = node.output(0)
        self._named.update(node.get_name() for node in self._inputs)

    def add(self, op: Op) -> None:
        """Lower one operation."""
        if op.name in self._static:
            return
        lowering = LOWERINGS.get(op.target)
        if lowering is None:
            raise self.unsupported(op, "")
        value = lowering(self, op)
        self._values[op.name] = value
        outputs = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Output)]
        for output in outputs:
            self._name(output.get_node(), f"{op.path}/{op.name}".removeprefix("/"))

    def value(self, argument: Any) -> Value:
        """The output, list of outputs or size that an argument refers to; a plain number is itself."""
        if not isinstance(argument, Ref):
            return argument
        if argument.name in self._program.parameters:
            return self.parameter(argument.name, self._program.parameters[argument.name].shape)
        if argument.name in self._static:
            constant = opset.constant(np.asarray(self._static[argument.name]))
            self._name(constant, argument.name)
            return constant.output(0)
        return self._values[argument.name]

    def parameter(self, value_name: str, shape: tuple[int, ...]) -> Output:
        """The hole of a weight, in the shape the graph wants. Raises ValueError if two uses want different shapes."""
        name = self._program.parameters[value_name].name
        node = self.holes.get(name)
        if node is None:
            node = self.holes[name] = _parameter(name, list(shape), Type.f32)
            self._named.add(node.get_name())
        if tuple(node.get_partial_shape().to_shape()) != shape:
            raise ValueError(f"parameter {name} is used as {node.get_partial_shape()} and as {shape}")
        return node.output(0)

    def mark_literal(self, op: Op, node: Any, attribute: str, value: float) -> None:
        """Leave `attribute` of the node open: a repair may scale it."""
        name = f"{op.path}/{op.name}/{node.get_type_name()}"
        self._name(node, name)
        self.literals[name] = (op.name, attribute, value)

    def literal(self, op: Op, value: float) -> Output:
        """A number of the operation as a constant that stays open: a repair may scale it."""
        node = _parameter(f"{op.path}/{op.name}/literal".removeprefix("/"), [], Type.f32)
        self._named.add(node.get_name())
        self._open.append(node)
        self.scalars[node.get_friendly_name()] = (op.name, float(value))
        return node.output(0)

    def unsupported(self, op: Op, detail: str) -> ModelError:
        """The error for an operation that has no lowering."""
        return ModelError(
            f"operation {op.target} {detail}".rstrip() + " has no OpenVINO lowering",
            source=op.path or op.name,
            remedy=remedy_or_versions("this model's architecture is not supported yet; please report it"),
        )

    def model(self) -> ov.Model:
        """The finished graph, its outputs named."""
        results = []
        for public, value_name in self._program.outputs:
            output = self.value(Ref(value_name))
            output.get_tensor().set_names({public})
            result = opset.result(output)
            result.set_friendly_name(f"result/{public}")
            results.append(result)
        return ov.Model(results, [*self._inputs, *self.holes.values(), *self._open], "vaefix")

    def _name(self, node: Any, name: str) -> None:
        """Name a new node, and the unnamed helpers that feed it after it."""
        if node.get_name() in self._named:
            return
        self._named.add(node.get_name())
        node.set_friendly_name(name)
        for index, source in enumerate(node.input_values()):
            self._name(source.get_node(), f"{name}/{index}")


def _parameter(name: str, shape: list[int], element_type: Type) -> Any:
    node = opset.parameter(shape, element_type)
    node.set_friendly_name(name)
    return node


def _cut(model: ov.Model, graph: Graph, precise: tuple[str, ...]) -> Skeleton:
    with tempfile.TemporaryDirectory() as folder:
        xml, constants = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        ov.serialize(model, xml, constants)
        text, small = xml.read_text(encoding="utf-8"), constants.read_bytes()
    layers, _, rest = text.partition("</layers>")
    parts: list[str | Hole | Literal] = []
    scalars: list[Scalar] = []
    position = last_id = 0
    pending = ""
    for match in _LAYER.finditer(layers):
        layer_id, name = int(match[1]), match[2]
        last_id = max(last_id, layer_id)
        pending += layers[position : match.start()]
        position = match.end()
        if name in graph.holes:
            shape = tuple(graph.holes[name].get_partial_shape().to_shape())
            parts += [pending, Hole(name, layer_id, shape)]
            pending = ""
        elif name in graph.scalars:
            small += bytes(-len(small) % 4)
            scalars.append(Scalar(*graph.scalars[name], len(small)))
            pending += scalar_layer(layer_id, name, len(small))
            small += bytes(4)
        elif name in graph.literals:
            op_name, attribute, value = graph.literals[name]
            before, after = re.split(rf'(?<= {attribute}=")[^"]*', match[0], maxsplit=1)
            parts += [pending + before, Literal(op_name, value)]
            pending = after
        else:
            pending += match[0]
    edges: tuple[Edge, ...] = tuple((int(m[1]), int(m[2]), int(m[3]), int(m[4])) for m in _EDGE.finditer(rest))
    return Skeleton((*parts, pending + layers[position:].rstrip()), edges, small, last_id + 1, precise, tuple(scalars))
