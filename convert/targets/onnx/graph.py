"""`Program` -> ONNX graph, with every weight declared as external data that is still to be written.

A graph is typed while it is built: an operation computes in the execution precision, or in float32 where it must, and
a Cast is inserted where a value of one kind meets an operation of the other. Nodes and their outputs are named after
the PyTorch module path and the operation, the same on every run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vaefix.runtime.errors import ModelError
from vaefix.runtime.versions import remedy_or_versions

from ...precision import SCALE, Storage
from ...program import Op, Program, Ref
from ...repair.plan import ScalePlan
from .. import TRIGONOMETRIC
from .attention import flat_attentions
from .ops import LOWERINGS, Value

TYPES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "i8": TensorProto.INT8,
    "i4": TensorProto.INT4,
    "f8e4m3": TensorProto.FLOAT8E4M3FN,
    "f8e5m2": TensorProto.FLOAT8E5M2,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_SCALARS = ("timestep",)  # optimum-onnx feeds it as a float32 without dimension, which also keeps fractions


@dataclass(frozen=True)
class Form:
    """How to write a graph: how each parameter is stored, and element types (`f32`, `f16`, `bf16`) of arithmetic and edges.

    io: of inputs and outputs.  opset: of the default domain.
    in_f32: targets of operations that the engine cannot compute in `execution`.
    axes: names of the dynamic dimensions of each input and output.
    """

    storage: Mapping[str, Storage]
    execution: str
    io: str
    opset: int
    in_f32: frozenset[str]
    axes: Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Hole:
    """A weight to be written: `shape` as the graph wants it; transposed: a matrix, rows and columns exchanged."""

    parameter: str
    shape: tuple[int, ...]
    transposed: bool

    def scale_shape(self, stored: Storage) -> tuple[int, ...]:
        """One for each output channel, or for each group of inputs, along their own axis."""
        if stored.group is None:
            return (self.shape[1 - self._inputs],)
        return tuple(size // stored.group if axis == self._inputs else size for axis, size in enumerate(self.shape))

    @property
    def _inputs(self) -> int:
        return 0 if self.transposed else 1

    def attributes(self, stored: Storage) -> dict[str, int]:
        """Of the DequantizeLinear node."""
        return {"axis": 1 - self._inputs} if stored.group is None else {"axis": self._inputs, "block_size": stored.group}


def build(program: Program, constants: Mapping[str, np.ndarray], plan: ScalePlan, form: Form) -> Graph:
    """The program as an ONNX graph.

    constants: value of every operation that depends on neither an input nor a weight.
    Raises ModelError naming the operation and its module path if it has no lowering here.
    """
    graph = Graph(program, constants, plan, form)
    for op in program.ops:
        if op.name not in constants:
            graph.add(op)
    graph.finish()
    return graph


class Graph:
    """The graph under construction.

    holes: by parameter.  opset: of the default domain.  float: the element type in which the current operation computes.
    flat: attentions whose heads need not be split off.  types: of every value of the program, see `Program.types`.
    """

    def __init__(self, program: Program, constants: Mapping[str, np.ndarray], plan: ScalePlan, form: Form) -> None:
        self.holes: dict[str, Hole] = {}
        self.opset = form.opset
        self._program, self._plan, self._form = program, plan, form
        self.flat, self._undone = flat_attentions(program) if form.opset >= 23 else ({}, frozenset())
        self._constants = constants
        self.types = program.types()
        self._precise = program.ancestors(TRIGONOMETRIC)
        self._shapes: dict[str, tuple[int | str | None, ...]] = {item.name: item.shape for item in program.inputs}
        self._shapes |= {value: parameter.shape for value, parameter in program.parameters.items()}
        self._shapes |= {op.name: op.shape for op in program.ops}
        self._values: dict[str, Value] = {}  # of the program, by name
        self._types: dict[str, int] = {}  # element type of every value of the graph
        self._casts: dict[tuple[str, int], str] = {}
        self._small: dict[tuple[int, tuple[int, ...], bytes], TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._names: Counter[str] = Counter()
        self._scaled: set[str] = set()  # operations whose numbers the plan could scale
        self._scope, self.float = "", TYPES["f32"]
        self._inputs = [self._input(item.name, item.dtype, item.shape) for item in program.inputs]
        self._outputs: list[onnx.ValueInfoProto] = []

    def add(self, op: Op) -> None:
        """Lower one operation."""
        lowering = LOWERINGS.get(op.target)
        if lowering is None:
            raise self.unsupported(op, "")
        in_f32 = op.target in self._form.in_f32 or op.name in self._precise or op.name in self._plan.keep_fp32
        self._scope = f"{op.path}/{op.name}".removeprefix("/")
        self.float = TYPES["f32" if in_f32 else self._form.execution]
        self._values[op.name] = self.raw(op.args[0]) if op.name in self._undone else lowering(self, op)

    def node(self, kind: str, inputs: list[str], *, dtype: int | None = None, **attributes: Any) -> str:
        """A new node with one output, of element type `dtype` or else `float`; returns the output's name."""
        (output,) = self.nodes(kind, inputs, 1, dtype=dtype, **attributes)
        return output

    def nodes(self, kind: str, inputs: list[str], count: int, *, dtype: int | None = None, **attributes: Any) -> list[str]:
        """A new node with `count` outputs of one element type; returns their names."""
        name = self._unique(f"{self._scope}/{kind}")
        outputs = [name] if count == 1 else [f"{name}/{index}" for index in range(count)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name, **attributes))
        self._types.update(dict.fromkeys(outputs, self.float if dtype is None else dtype))
        return outputs

    def value(self, argument: Any) -> Any:
        """The name of the value an argument refers to, floating ones in `float`; a size or a plain number is itself."""
        found = self.raw(argument)
        return self.typed(found) if isinstance(found, str) else found

    def raw(self, argument: Any) -> Value:
        """As `value`, in the type the value has."""
        if not isinstance(argument, Ref):
            return argument
        if argument.name in self._program.parameters:
            return self.weight(argument)
        if argument.name in self._constants:
            return self.constant(self._constants[argument.name])
        return self._values[argument.name]

    def typed(self, name: str, dtype: int | None = None) -> str:
        """The value in element type `dtype` or else `float`, unless it is not floating."""
        wanted = self.float if dtype is None else dtype
        if self._types[name] not in _FLOATING or self._types[name] == wanted:
            return name
        return self.cast(name, wanted)

    def cast(self, name: str, dtype: int) -> str:
        """The value in element type `dtype`; made once however often it is asked for."""
        if (name, dtype) not in self._casts:
            scope, self._scope = self._scope, name
            self._casts[name, dtype] = self.node("Cast", [name], dtype=dtype, to=dtype)
            self._scope = scope
        return self._casts[name, dtype]

    def type_of(self, name: str) -> int:
        """The element type of a value."""
        return self._types[name]

    def is_floating(self, name: str) -> bool:
        """Whether the value is floating point."""
        return self._types[name] in _FLOATING

    def weight(self, ref: Ref, shape: tuple[int, ...] | None = None, *, transposed: bool = False) -> str:
        """The hole of a weight, in its storage type; codes are dequantized.

        shape: its elements as they are, -1 for what is left.  transposed: a matrix, rows and columns exchanged.
        Raises ValueError if two uses want different layouts.
        """
        parameter = self._program.parameters[ref.name]
        wanted = parameter.shape[::-1] if transposed else parameter.shape
        if shape is not None:
            wanted = tuple(math.prod(wanted) // -math.prod(shape) if size == -1 else size for size in shape)
        hole = Hole(parameter.name, wanted, transposed)
        if self.holes.setdefault(parameter.name, hole) != hole:
            raise ValueError(f"parameter {parameter.name} is used as {self.holes[parameter.name]} and as {hole}")
        stored = self._form.storage[parameter.name]
        self._types[parameter.name] = TYPES[stored.element_type]
        return self._dequantized(hole, stored) if stored.is_quantized else parameter.name

    def _dequantized(self, hole: Hole, stored: Storage) -> str:
        """The weight made of codes and scales, in `float`; scales in float32 are too fine for less, and used as they are."""
        scale = hole.parameter + SCALE
        dtype = self._types[scale] = TYPES[stored.scale_type]
        if dtype != TYPES["f32"]:
            scale, dtype = self.typed(scale), self.float
        return self.typed(self.node("DequantizeLinear", [hole.parameter, scale], dtype=dtype, **hole.attributes(stored)))

    def constant(self, value: Any, dtype: int | None = None) -> str:
        """A small constant inside the graph, floating ones in `float` unless `dtype` is given; equal ones exist once."""
        array = np.asarray(value)
        if dtype is None:
            dtype = self.float if array.dtype.kind == "f" else TYPES[str(array.dtype)]
        with np.errstate(over="ignore"):  # the lowest number of float32, which fills masks, is -inf in 16 bits
            array = array.astype(helper.tensor_dtype_to_np_dtype(dtype))
        key = dtype, array.shape, array.tobytes()
        if key not in self._small:
            name = f"constant/{len(self._small)}"
            self._small[key] = numpy_helper.from_array(array, name)
            self._types[name] = dtype
        return self._small[key].name

    def hold(self, *numbers: float) -> None:
        """Compute the current operation in float32 if its type cannot hold these; so does PyTorch, with scalars."""
        dtype = helper.tensor_dtype_to_np_dtype(self.float)
        with np.errstate(over="ignore"):
            held = [np.float32(number).astype(dtype) for number in numbers]
        if any(found != np.float32(number) for found, number in zip(held, numbers, strict=True)):
            self.float = TYPES["f32"]

    def shape(self, argument: Ref) -> tuple[int | str | None, ...]:
        """The sizes of a tensor: integers, symbols that are equal where sizes are, None where nothing is known."""
        return self._shapes[argument.name]

    def literal(self, op: Op, value: float) -> float:
        """A number of the operation as the repair scales it."""
        self._scaled.add(op.name)
        return float(value * 2.0 ** self._plan.literals.get(op.name, 0))

    def unsupported(self, op: Op, detail: str) -> ModelError:
        """The error for an operation that has no lowering."""
        return ModelError(
            f"operation {op.target} {detail}".rstrip() + " has no ONNX lowering",
            source=op.path or op.name,
            remedy=remedy_or_versions("this model's architecture is not supported yet; please report it"),
        )

    def finish(self) -> None:
        """Give the outputs their public names and element types; drop what leads to none of them.

        Raises ValueError if the plan scales a number that no lowering asked for.
        """
        if foreign := self._plan.literals.keys() - self._scaled:
            raise ValueError(f"no literal to scale in {sorted(foreign)}")
        for public, value_name in self._program.outputs:
            value = self.raw(Ref(value_name))
            dtype = TYPES[self._form.io] if self.is_floating(value) else self._types[value]
            if self._types[value] == dtype:
                self._nodes.append(helper.make_node("Identity", [value], [public], f"{public}/Identity"))
            else:
                self._nodes.append(helper.make_node("Cast", [value], [public], f"{public}/Cast", to=dtype))
            sizes = [size if isinstance(size, int) else None for size in self._shapes[value_name]]
            self._outputs.append(self._info(public, dtype, sizes))
        needed = {item.name for item in self._outputs}
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
        self._nodes = [node for node in self._nodes if not needed.isdisjoint(node.output)]
        self._small = {key: tensor for key, tensor in self._small.items() if tensor.name in needed}

    def model(self, external: list[TensorProto]) -> onnx.ModelProto:
        """The finished model. external: the weights."""
        graph = helper.make_graph(
            self._nodes, "vaefix", self._inputs, self._outputs, initializer=[*self._small.values(), *external]
        )
        opsets = [helper.make_opsetid("", self._form.opset)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets), producer_name="vaefix"
        )

    def _input(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> onnx.ValueInfoProto:
        element_type = TYPES[dtype]
        if name in _SCALARS:
            element_type, shape = TYPES["f32"], ()
        elif dtype == "float32" and not self._is_precise(name):
            element_type = TYPES[self._form.io]
        self._values[name], self._types[name] = name, element_type
        return self._info(name, element_type, list(shape))

    def _is_precise(self, name: str) -> bool:
        return any(op.name in self._precise and op.dtype != "int" and Ref(name) in op.refs() for op in self._program.ops)

    def _info(self, name: str, dtype: int, sizes: list[int | None]) -> onnx.ValueInfoProto:
        axes = self._form.axes.get(name, {})
        shape = [axes.get(axis) if size is None else size for axis, size in enumerate(sizes)]
        return helper.make_tensor_value_info(name, dtype, shape)

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"
