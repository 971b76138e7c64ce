"""ATen operations in OpenVINO's opset: one small function per operation, found by its target in `LOWERINGS`.

Each takes the graph under construction and the operation and returns the output (a list of outputs for an operation
that returns several). Sizes are Python integers where they are static and scalar i64 outputs where they are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from openvino import Output, Type
from openvino import opset13 as opset

from ...program import Op
from ...promotion import promoted

if TYPE_CHECKING:
    from .graph import Graph

Value = Any  # an Output, a list of outputs, or a Python int for a static size
Lowering = Callable[["Graph", Op], Value]
TYPES = {"float32": Type.f32, "int64": Type.i64, "int32": Type.i32, "bool": Type.boolean}
_END = 2**63 - 1


def _constant(value: Any, dtype: type = np.int64) -> Output:
    return opset.constant(np.asarray(value, dtype=dtype)).output(0)


def _rank(value: Output) -> int:
    return value.get_partial_shape().rank.get_length()


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _sizes(parts: Sequence[Any]) -> Output:
    """A shape as one i64 vector, from integers and scalar outputs."""
    if all(isinstance(part, int) for part in parts):
        return _constant(list(parts))
    vectors = [
        _constant([part]) if isinstance(part, int) else opset.reshape(part, _constant([1]), False).output(0) for part in parts
    ]
    return opset.concat(vectors, 0).output(0)


def _identity(graph: Graph, op: Op) -> Value:
    return graph.value(op.args[0])


def _unary(function: Callable[[Output], Any]) -> Lowering:
    return lambda graph, op: function(graph.value(op.args[0])).output(0)


def _binary(function: Callable[[Output, Output], Any], neutral: float | None = None, *, scaled: bool = False) -> Lowering:
    """Arithmetic of two tensors or a tensor and a number; `neutral` as second operand changes nothing.

    scaled: a number in it moves with an exponent of the repair.
    """

    def lower(graph: Graph, op: Op) -> Value:
        left, right = op.args[:2]
        if op.kwargs.get("alpha", 1) != 1:
            raise graph.unsupported(op, "with alpha")
        result = TYPES[op.dtype or "float32"]
        if neutral is not None and right == neutral:
            return _as(graph.value(left), result)
        if scaled and result == Type.f32:
            left, right = (graph.literal(op, side) if _is_number(side) else side for side in (left, right))
        wanted = Type.i32 if result == Type.boolean else result  # of truth values as of integers
        return _as(function(_operand(graph, left, wanted), _operand(graph, right, wanted)).output(0), result)

    return lower


def _is_number(argument: Any) -> bool:
    return isinstance(argument, (int, float))


def _operand(graph: Graph, argument: Any, wanted: Type) -> Output:
    """A tensor or a number, in this type."""
    value = graph.value(argument)
    return _as(value, wanted) if isinstance(value, Output) else opset.constant(value, wanted).output(0)


def _as(value: Output, wanted: Type) -> Output:
    return value if value.get_element_type() == wanted else opset.convert(value, wanted.to_string()).output(0)


def _compare(function: Callable[[Output, Output], Any]) -> Lowering:
    """A comparison of two tensors or a tensor and a number, in the type that PyTorch compares them in."""

    def lower(graph: Graph, op: Op) -> Value:
        wanted = TYPES[promoted(graph.types, *op.args[:2])]
        wanted = Type.i32 if wanted == Type.boolean else wanted  # an order of truth values is one of integers
        return function(*(_operand(graph, side, wanted) for side in op.args[:2])).output(0)

    return lower


def _sym_size(graph: Graph, op: Op) -> Value:
    value, axis = graph.value(op.args[0]), op.args[1]
    size = value.get_partial_shape()[axis]
    if size.is_static:
        return size.get_length()
    return opset.gather(opset.shape_of(value, "i64"), _constant(axis), _constant(0)).output(0)


def _integer(function: Callable[[Output, Output], Any], static: Callable[[int, int], int]) -> Lowering:
    """Arithmetic of sizes."""

    def lower(graph: Graph, op: Op) -> Value:
        left, right = (graph.value(argument) for argument in op.args)
        if isinstance(left, int) and isinstance(right, int):
            return static(left, right)
        left, right = (_constant(side) if isinstance(side, int) else side for side in (left, right))
        return function(left, right).output(0)

    return lower


def _getitem(graph: Graph, op: Op) -> Value:
    return graph.value(op.args[0])[op.args[1]]


def _arange(graph: Graph, op: Op) -> Value:
    start, end = (0, op.args[0]) if len(op.args) == 1 else op.args[:2]
    limits = [_constant(v) if isinstance(v, int) else v for v in (graph.value(start), graph.value(end))]
    return opset.range(limits[0], limits[1], _constant(1), TYPES[op.dtype or "int64"].to_string()).output(0)


def _reshape(graph: Graph, op: Op) -> Value:
    shape = [graph.value(size) for size in op.args[1]]
    dynamic = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    if len(dynamic) == 1 and -1 not in shape:  # one unknown size needs no arithmetic
        shape[dynamic[0]] = -1
    return opset.reshape(graph.value(op.args[0]), _sizes(shape), False).output(0)


def _flatten(graph: Graph, op: Op) -> Value:
    if len(op.args) > 1:
        raise graph.unsupported(op, "of some axes")
    return opset.reshape(graph.value(op.args[0]), _constant([-1]), False).output(0)


def _expand(graph: Graph, op: Op) -> Value:
    shape = [1 if size == -1 else graph.value(size) for size in op.args[1]]
    return opset.broadcast(graph.value(op.args[0]), _sizes(shape), broadcast_spec="BIDIRECTIONAL").output(0)


def _full(graph: Graph, op: Op) -> Value:
    shape, number = op.args
    wanted = TYPES[op.dtype or "float32"]
    return opset.broadcast(opset.constant(number, wanted), _sizes([graph.value(size) for size in shape])).output(0)


def _masked_fill(graph: Graph, op: Op) -> Value:
    value, mask, number = op.args
    return opset.select(graph.value(mask), _operand(graph, number, TYPES[op.dtype or "float32"]), graph.value(value)).output(0)


def _unsqueeze(graph: Graph, op: Op) -> Value:
    return opset.unsqueeze(graph.value(op.args[0]), _constant([_axis(op.args[1], op.rank)])).output(0)


def _transpose(graph: Graph, op: Op) -> Value:
    order = list(range(op.rank))
    a, b = (_axis(axis, op.rank) for axis in op.args[1:3])
    order[a], order[b] = order[b], order[a]
    return opset.transpose(graph.value(op.args[0]), _constant(order)).output(0)


def _permute(graph: Graph, op: Op) -> Value:
    return opset.transpose(graph.value(op.args[0]), _constant([_axis(axis, op.rank) for axis in op.args[1]])).output(0)


def _convert(graph: Graph, op: Op) -> Value:
    return _as(graph.value(op.args[0]), TYPES[op.dtype or "float32"])


def _slice(graph: Graph, op: Op) -> Value:
    source, axis, start, end, step = op.arguments("self", "dim", "start", "end", "step", dim=0, step=1)
    value, start, end = graph.value(source), start or 0, _END if end is None else end
    if (start, end, step) == (0, _END, 1):
        return value
    bounds = [_sizes([graph.value(bound)]) for bound in (start, end, step)]
    return opset.slice(value, *bounds, _constant([_axis(axis, op.rank)])).output(0)


def _concat(graph: Graph, op: Op) -> Value:
    parts, axis = op.arguments("tensors", "dim", dim=0)
    return opset.concat([graph.value(part) for part in parts], _axis(axis, op.rank)).output(0)


def _chunk(graph: Graph, op: Op) -> Value:
    source, count, axis = op.arguments("self", "chunks", "dim", dim=0)
    value = graph.value(source)
    return opset.split(value, _constant(_axis(axis, _rank(value))), count).outputs()


def _embedding(graph: Graph, op: Op) -> Value:
    return opset.gather(graph.value(op.args[0]), graph.value(op.args[1]), _constant(0)).output(0)


def _index(graph: Graph, op: Op) -> Value:
    """`x[i, j]` with one index tensor for each of the leading axes."""
    value, indices = graph.value(op.args[0]), [graph.value(index) for index in op.args[1]]
    columns = [opset.unsqueeze(_as(index, Type.i64), _constant([-1])).output(0) for index in indices]
    return opset.gather_nd(value, opset.concat(columns, -1), 0).output(0)


def _argmax(graph: Graph, op: Op) -> Value:
    source, axis, keepdim = op.arguments("self", "dim", "keepdim")
    value = graph.value(source)
    if keepdim or axis is None:
        raise graph.unsupported(op, "with keepdim, or of the whole tensor")
    top = opset.topk(value, _constant(1), _axis(axis, _rank(value)), "max", "value", "i64", stable=True)
    return opset.squeeze(top.output(1), _constant([axis])).output(0)


def _linear(graph: Graph, op: Op) -> Value:
    product = opset.matmul(graph.value(op.args[0]), graph.value(op.args[1]), False, True).output(0)
    (*_, bias) = op.arguments("input", "weight", "bias")
    return product if bias is None else opset.add(product, graph.value(bias)).output(0)


def _conv2d(graph: Graph, op: Op) -> Value:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    value, weight, bias, stride, padding, dilation, groups = op.arguments(*names, **defaults)
    if groups != 1:
        raise graph.unsupported(op, "in groups")
    weight = graph.value(weight)
    result = opset.convolution(graph.value(value), weight, stride, padding, padding, dilation).output(0)
    if bias is None:
        return result
    channels = weight.get_partial_shape()[0].get_length()
    return opset.add(result, graph.parameter(bias.name, (1, channels, 1, 1))).output(0)


def _layer_norm(graph: Graph, op: Op) -> Value:
    value, shape, weight, bias, epsilon = op.arguments("input", "normalized_shape", "weight", "bias", "eps", eps=1e-5)
    axes = _constant(list(range(-len(shape), 0)))
    result = opset.mvn(graph.value(value), axes, True, epsilon, "inside_sqrt").output(0)
    graph.mark_literal(op, result.get_node(), "eps", epsilon)
    if weight is not None:
        result = opset.multiply(result, graph.value(weight)).output(0)
    return result if bias is None else opset.add(result, graph.value(bias)).output(0)


def _group_norm(graph: Graph, op: Op) -> Value:
    value, groups, weight, bias, epsilon = op.arguments("input", "num_groups", "weight", "bias", "eps", eps=1e-5)
    if weight is None or bias is None:
        raise graph.unsupported(op, "without weight and bias")
    node = opset.group_normalization(*(graph.value(item) for item in (value, weight, bias)), groups, epsilon)
    graph.mark_literal(op, node, "epsilon", epsilon)
    return node.output(0)


def _gelu(graph: Graph, op: Op) -> Value:
    mode = "tanh" if op.kwargs.get("approximate", "none") == "tanh" else "erf"
    return opset.gelu(graph.value(op.args[0]), mode).output(0)


def _softmax(graph: Graph, op: Op) -> Value:
    return opset.softmax(graph.value(op.args[0]), op.args[1]).output(0)


def _attention(graph: Graph, op: Op) -> Value:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    *tensors, mask, _, causal, scale = op.arguments(*names, is_causal=False)
    inputs = [graph.value(tensor) for tensor in tensors]
    default = 1 / math.sqrt(inputs[0].get_partial_shape()[-1].get_length())
    if mask is not None:
        inputs.append(graph.value(mask))
    if scale is not None and not math.isclose(scale, default, rel_tol=1e-7):
        if mask is None:
            inputs.append(_constant(0.0, np.float32))
        inputs.append(_constant(scale, np.float32))
    return opset.scaled_dot_product_attention(*inputs, causal=causal).output(0)


def _avg_pool(graph: Graph, op: Op) -> Value:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    defaults = {"padding": [0, 0], "ceil_mode": False, "count_include_pad": True}
    value, kernel, stride, padding, ceil, counted, divisor = op.arguments(*names, **defaults)
    if ceil or divisor is not None:
        raise graph.unsupported(op, "with ceil_mode or divisor_override")
    return opset.avg_pool(graph.value(value), stride or kernel, padding, padding, kernel, not counted).output(0)


def _upsample_nearest(graph: Graph, op: Op) -> Value:
    value, size, factors = op.arguments("input", "output_size", "scale_factors")
    wanted = _constant(factors, np.float32) if size is None else _sizes([graph.value(part) for part in size])
    return opset.interpolate(
        graph.value(value),
        wanted,
        mode="nearest",
        shape_calculation_mode="scales" if size is None else "sizes",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        axes=_constant([2, 3]),
    ).output(0)


def _pad(graph: Graph, op: Op) -> Value:
    source, pads, mode, fill = op.arguments("self", "pad", "mode", "value", mode="constant")
    if mode != "constant":
        raise graph.unsupported(op, f"in mode {mode}")
    begin, end = [0] * op.rank, [0] * op.rank
    for i in range(len(pads) // 2):  # PyTorch counts from the last axis
        begin[op.rank - 1 - i], end[op.rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    return opset.pad(
        graph.value(source), _constant(begin), _constant(end), "constant", _constant(fill or 0.0, np.float32)
    ).output(0)


_COMPARISONS = {
    "eq": opset.equal,
    "ne": opset.not_equal,
    "lt": opset.less,
    "le": opset.less_equal,
    "gt": opset.greater,
    "ge": opset.greater_equal,
}
LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}.{form}": _compare(kind) for name, kind in _COMPARISONS.items() for form in ("Tensor", "Scalar")},
    "aten._softmax.default": _softmax,
    "aten.add.Tensor": _binary(opset.add, scaled=True),
    "aten.arange.default": _arange,
    "aten.arange.start": _arange,
    "aten.argmax.default": _argmax,
    "aten.avg_pool2d.default": _avg_pool,
    "aten.cat.default": _concat,
    "aten.chunk.default": _chunk,
    "aten.clone.default": _identity,
    "aten.concat.default": _concat,
    "aten.contiguous.default": _identity,
    "aten.conv2d.default": _conv2d,
    "aten.cos.default": _unary(opset.cos),
    "aten.div.Tensor": _binary(opset.divide, neutral=1),
    "aten.dropout.default": _identity,
    "aten.embedding.default": _embedding,
    "aten.exp.default": _unary(opset.exp),
    "aten.expand.default": _expand,
    "aten.flatten.using_ints": _flatten,
    "aten.full.default": _full,
    "aten.gelu.default": _gelu,
    "aten.group_norm.default": _group_norm,
    "aten.index.Tensor": _index,
    "aten.layer_norm.default": _layer_norm,
    "aten.linear.default": _linear,
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.mish.default": _unary(opset.mish),
    "aten.mul.Tensor": _binary(opset.multiply, neutral=1),
    "aten.pad.default": _pad,
    "aten.permute.default": _permute,
    "aten.relu.default": _unary(opset.relu),
    "aten.reshape.default": _reshape,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.sigmoid.default": _unary(opset.sigmoid),
    "aten.silu.default": _unary(opset.swish),
    "aten.sin.default": _unary(opset.sin),
    "aten.slice.Tensor": _slice,
    "aten.sub.Tensor": _binary(opset.subtract, scaled=True),
    "aten.sym_size.int": _sym_size,
    "aten.tanh.default": _unary(opset.tanh),
    "aten.to.device": _convert,
    "aten.to.dtype": _convert,
    "aten.transpose.int": _transpose,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.upsample_nearest2d.vec": _upsample_nearest,
    "aten.view.default": _reshape,
    "operator.add": _integer(opset.add, lambda a, b: a + b),
    "operator.floordiv": _integer(opset.divide, lambda a, b: a // b),
    "operator.getitem": _getitem,
    "operator.mod": _integer(opset.floor_mod, lambda a, b: a % b),
    "operator.mul": _integer(opset.multiply, lambda a, b: a * b),
    "operator.sub": _integer(opset.subtract, lambda a, b: a - b),
}
