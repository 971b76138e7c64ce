"""ATen operations as ONNX nodes: one small function per operation, found by its target in `LOWERINGS`.

Each takes the graph under construction and the operation and returns the name of its output (a list of names for an
operation that returns several). Sizes are Python integers where they are static and int64 tensors of one element where
they are not; most reshapes need none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from ...program import Op
from ...promotion import promoted

if TYPE_CHECKING:
    from .graph import Graph

Value = Any  # the name of a tensor, a list of names, or a Python int for a static size
Lowering = Callable[["Graph", Op], Value]
_INT64 = TensorProto.INT64
_EXACT = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}
_COMPUTED = {**_EXACT, "bool": TensorProto.INT32}
"""What arithmetic and comparisons of these are computed in: truth values as integers."""
_END = 2**63 - 1


def _integers(graph: Graph, values: Any) -> str:
    return graph.constant(np.asarray(values, dtype=np.int64))


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _sizes(graph: Graph, parts: Sequence[Any]) -> str:
    """A shape as one int64 vector, from integers and dynamic sizes."""
    if all(isinstance(part, int) for part in parts):
        return _integers(graph, list(parts))
    names = [_integers(graph, [part]) if isinstance(part, int) else part for part in parts]
    return graph.node("Concat", names, dtype=_INT64, axis=0) if len(names) > 1 else names[0]


def _scalar(graph: Graph, size: Any) -> str:
    if isinstance(size, int):
        return _integers(graph, size)
    return graph.node("Squeeze", [size, _integers(graph, [0])], dtype=_INT64)


def _identity(graph: Graph, op: Op) -> Value:
    return graph.raw(op.args[0])


def _move(graph: Graph, kind: str, value: str, *others: str, **attributes: Any) -> str:
    """A node that moves the elements of a floating or integer value."""
    return graph.node(kind, [value, *others], dtype=graph.type_of(value), **attributes)


def _unary(kind: str) -> Lowering:
    return lambda graph, op: graph.node(kind, [graph.value(op.args[0])])


def _binary(kind: str, neutral: float | None = None) -> Lowering:
    """Arithmetic of two tensors or a tensor and a number; `neutral` as second operand changes nothing."""

    def lower(graph: Graph, op: Op) -> Value:
        left, right = op.args[:2]
        if op.kwargs.get("alpha", 1) != 1:
            raise graph.unsupported(op, "with alpha")
        if neutral is not None and right == neutral:
            return _convert(graph, op)
        if op.dtype == "float32":
            left, right = (graph.literal(op, side) if isinstance(side, (int, float)) else side for side in (left, right))
            graph.hold(*(side for side in (left, right) if isinstance(side, float)))
        dtype = _COMPUTED.get(op.dtype or "", graph.float)
        result = graph.node(kind, [_operand(graph, left, dtype), _operand(graph, right, dtype)], dtype=dtype)
        return graph.cast(result, TensorProto.BOOL) if op.dtype == "bool" else result

    return lower


def _operand(graph: Graph, argument: Any, dtype: int) -> str:
    """A tensor or a number, in this element type."""
    value = graph.raw(argument)
    if not isinstance(value, str):
        return graph.constant(value, dtype)
    return value if graph.type_of(value) == dtype else graph.cast(value, dtype)


def _compare(kind: str) -> Lowering:
    """A comparison of two tensors or a tensor and a number, in the type that PyTorch compares them in."""

    def lower(graph: Graph, op: Op) -> Value:
        dtype = _COMPUTED.get(promoted(graph.types, *op.args[:2]), TensorProto.FLOAT)
        operands = [_operand(graph, side, dtype) for side in op.args[:2]]
        if kind != "NotEqual":
            return graph.node(kind, operands, dtype=TensorProto.BOOL)
        return graph.node("Not", [graph.node("Equal", operands, dtype=TensorProto.BOOL)], dtype=TensorProto.BOOL)

    return lower


def _sym_size(graph: Graph, op: Op) -> Value:
    source, axis = op.args
    size = graph.shape(source)[axis]
    if isinstance(size, int):
        return size
    axis = _axis(axis, len(graph.shape(source)))
    return graph.node("Shape", [graph.raw(source)], dtype=_INT64, start=axis, end=axis + 1)


def _size_arithmetic(kind: str, static: Callable[[int, int], int]) -> Lowering:
    def lower(graph: Graph, op: Op) -> Value:
        left, right = (graph.value(argument) for argument in op.args)
        if isinstance(left, int) and isinstance(right, int):
            return static(left, right)
        return graph.node(kind, [_sizes(graph, [left]), _sizes(graph, [right])], dtype=_INT64)

    return lower


def _getitem(graph: Graph, op: Op) -> Value:
    return graph.raw(op.args[0])[op.args[1]]


def _arange(graph: Graph, op: Op) -> Value:
    start, end = (0, op.args[0]) if len(op.args) == 1 else op.args[:2]
    bounds = [_scalar(graph, graph.value(bound)) for bound in (start, end, 1)]
    return graph.node("Range", bounds, dtype=_INT64)


def _reshape(graph: Graph, op: Op) -> Value:
    source, asked = op.args
    before, shape = graph.shape(source), list(op.shape)
    for i, size in enumerate(shape):
        if not isinstance(size, int) and i < len(before) and size == before[i]:
            shape[i] = 0  # as the input's
    unknown = [i for i, size in enumerate(shape) if not isinstance(size, int)]
    if len(unknown) == 1:
        shape[unknown[0]] = -1
    elif unknown:
        shape = [graph.value(size) for size in asked]
    return _move(graph, "Reshape", graph.value(source), _sizes(graph, shape))


def _flatten(graph: Graph, op: Op) -> Value:
    if len(op.args) > 1:
        raise graph.unsupported(op, "of some axes")
    return _move(graph, "Reshape", graph.value(op.args[0]), _integers(graph, [-1]))


def _expand(graph: Graph, op: Op) -> Value:
    shape = [1 if size == -1 else graph.value(size) for size in op.args[1]]
    return _move(graph, "Expand", graph.value(op.args[0]), _sizes(graph, shape))


def _full(graph: Graph, op: Op) -> Value:
    shape, number = op.args
    sizes = _sizes(graph, [graph.value(size) for size in shape])
    return _move(graph, "Expand", _filling(graph, op, number), sizes)


def _masked_fill(graph: Graph, op: Op) -> Value:
    value, mask, number = op.args
    filling = _filling(graph, op, number)
    return graph.node("Where", [graph.value(mask), filling, graph.value(value)], dtype=graph.type_of(filling))


def _filling(graph: Graph, op: Op, number: float) -> str:
    """One number in the operation's element type."""
    if op.dtype in _EXACT:
        return graph.constant(number, _EXACT[op.dtype])
    graph.hold(number)
    return graph.constant(np.float32(number))


def _unsqueeze(graph: Graph, op: Op) -> Value:
    return _move(graph, "Unsqueeze", graph.value(op.args[0]), _integers(graph, [_axis(op.args[1], op.rank)]))


def _transpose(graph: Graph, op: Op) -> Value:
    order = list(range(op.rank))
    a, b = (_axis(axis, op.rank) for axis in op.args[1:3])
    order[a], order[b] = order[b], order[a]
    return _move(graph, "Transpose", graph.value(op.args[0]), perm=order)


def _permute(graph: Graph, op: Op) -> Value:
    return _move(graph, "Transpose", graph.value(op.args[0]), perm=[_axis(axis, op.rank) for axis in op.args[1]])


def _convert(graph: Graph, op: Op) -> Value:
    value = graph.raw(op.args[0])
    if wanted := _EXACT.get(op.dtype or ""):
        return value if graph.type_of(value) == wanted else graph.cast(value, wanted)
    return value if graph.is_floating(value) else graph.cast(value, graph.float)  # PyTorch's float32 is any of ours


def _slice(graph: Graph, op: Op) -> Value:
    source, axis, start, end, step = op.arguments("self", "dim", "start", "end", "step", dim=0, step=1)
    start, end = start or 0, _END if end is None else end
    if (start, end, step) == (0, _END, 1):
        return graph.raw(source)
    begin, stop, stride = (_sizes(graph, [graph.value(bound)]) for bound in (start, end, step))
    return _move(graph, "Slice", graph.value(source), begin, stop, _integers(graph, [_axis(axis, op.rank)]), stride)


def _concat(graph: Graph, op: Op) -> Value:
    parts, axis = op.arguments("tensors", "dim", dim=0)
    names = [graph.value(part) for part in parts]
    return _move(graph, "Concat", *names, axis=_axis(axis, op.rank))


def _chunk(graph: Graph, op: Op) -> Value:
    source, count, axis = op.arguments("self", "chunks", "dim", dim=0)
    value, rank = graph.value(source), len(graph.shape(source))
    return graph.nodes("Split", [value], count, dtype=graph.type_of(value), axis=_axis(axis, rank), num_outputs=count)


def _embedding(graph: Graph, op: Op) -> Value:
    table = graph.raw(op.args[0])  # rows are converted, not the table
    return graph.typed(_move(graph, "Gather", table, graph.value(op.args[1]), axis=0))


def _index(graph: Graph, op: Op) -> Value:
    """`x[i, j]` with one index tensor for each of the leading axes."""
    value, indices = graph.value(op.args[0]), [graph.value(index) for index in op.args[1]]
    columns = [graph.node("Unsqueeze", [index, _integers(graph, [-1])], dtype=_INT64) for index in indices]
    return _move(graph, "GatherND", value, graph.node("Concat", columns, dtype=_INT64, axis=-1))


def _argmax(graph: Graph, op: Op) -> Value:
    source, axis, keepdim = op.arguments("self", "dim", "keepdim")
    if keepdim or axis is None:
        raise graph.unsupported(op, "with keepdim, or of the whole tensor")
    value = graph.cast(graph.raw(source), TensorProto.FLOAT)  # CUDA has no kernel for integers; tokens are exact below 2**24
    return graph.node("ArgMax", [value], dtype=_INT64, axis=axis, keepdims=0)


def _linear(graph: Graph, op: Op) -> Value:
    value, weight, bias = op.arguments("input", "weight", "bias")
    product = graph.node("MatMul", [graph.value(value), graph.typed(graph.weight(weight, transposed=True))])
    return product if bias is None else graph.node("Add", [product, graph.value(bias)])


def _conv2d(graph: Graph, op: Op) -> Value:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    value, weight, bias, stride, padding, dilation, groups = op.arguments(*names, **defaults)
    inputs = [graph.value(item) for item in (value, weight, bias) if item is not None]
    return graph.node(
        "Conv",
        inputs,
        kernel_shape=graph.shape(weight)[2:],
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        group=groups,
    )


def _layer_norm(graph: Graph, op: Op) -> Value:
    value, shape, weight, bias, epsilon = op.arguments("input", "normalized_shape", "weight", "bias", "eps", eps=1e-5)
    scale = graph.constant(np.ones(shape, np.float32)) if weight is None else graph.value(weight)
    inputs = [graph.value(value), scale, *([] if bias is None else [graph.value(bias)])]
    return graph.node("LayerNormalization", inputs, axis=-len(shape), epsilon=graph.literal(op, epsilon))


def _group_norm(graph: Graph, op: Op) -> Value:
    """Normalise the groups as rows, then scale and shift: ONNX Runtime has no GroupNormalization kernel."""
    source, groups, weight, bias, epsilon = op.arguments("input", "num_groups", "weight", "bias", "eps", eps=1e-5)
    if weight is None or bias is None:
        raise graph.unsupported(op, "without weight and bias")
    rows = graph.node("Reshape", [graph.value(source), _integers(graph, [0, groups, -1])])
    epsilon = graph.literal(op, epsilon)
    if graph.opset < 22:
        one, zero = (graph.constant(np.full(groups, number, np.float32)) for number in (1, 0))
        normal = graph.node("InstanceNormalization", [rows, one, zero], epsilon=epsilon)
    else:  # from here on, ONNX Runtime has no InstanceNormalization on CUDA
        length = graph.node("Shape", [rows], dtype=_INT64, start=2, end=3)
        ones = graph.node("Expand", [graph.constant(np.float32(1)), length])
        normal = graph.node("LayerNormalization", [rows, ones], axis=-1, epsilon=epsilon)
    result = graph.node("Reshape", [normal, graph.node("Shape", [graph.raw(source)], dtype=_INT64)])
    per_channel = (-1, *[1] * (op.rank - 2))
    for kind, factor in (("Mul", weight), ("Add", bias)):
        result = graph.node(kind, [result, graph.typed(graph.weight(factor, per_channel))])
    return result


def _silu(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    return graph.node("Mul", [value, graph.node("Sigmoid", [value])])


def _mish(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    return graph.node("Mul", [value, graph.node("Tanh", [graph.node("Softplus", [value])])])


def _gelu(graph: Graph, op: Op) -> Value:
    return graph.node("Gelu", [graph.value(op.args[0])], approximate=op.kwargs.get("approximate", "none"))


def _softmax(graph: Graph, op: Op) -> Value:
    return graph.node("Softmax", [graph.value(op.args[0])], axis=op.args[1])


def _attention(graph: Graph, op: Op) -> Value:
    """One Attention node where the opset has it; else the query is scaled first, so that the products stay small."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
    query, key, value, mask, _, causal, scale = op.arguments(*names, is_causal=False)
    if causal:
        raise graph.unsupported(op, "with is_causal")
    if scale is None:
        width = graph.shape(query)[-1]
        if not isinstance(width, int):
            raise graph.unsupported(op, "of dynamic width")
        scale = 1 / math.sqrt(width)
    if graph.opset >= 23:
        flat = graph.flat.get(op.name)
        tensors, heads = (flat.tensors, {"q_num_heads": flat.heads, "kv_num_heads": flat.heads}) if flat else (op.args[:3], {})
        inputs = [graph.value(item) for item in (*tensors, mask) if item is not None]
        return graph.node("Attention", inputs, scale=scale, **heads)
    scaled = graph.node("Mul", [graph.value(query), graph.constant(np.float32(scale))])
    order = [*range(op.rank - 2), op.rank - 1, op.rank - 2]
    scores = graph.node("MatMul", [scaled, graph.node("Transpose", [graph.value(key)], perm=order)])
    if mask is not None:
        allowed = graph.value(mask)
        if graph.is_floating(allowed):
            scores = graph.node("Add", [scores, allowed])
        else:
            scores = graph.node("Where", [allowed, scores, graph.constant(np.float32(-np.inf))])
    return graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), graph.value(value)])


def _avg_pool(graph: Graph, op: Op) -> Value:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    defaults = {"padding": [0, 0], "ceil_mode": False, "count_include_pad": True}
    value, kernel, stride, padding, ceil, counted, divisor = op.arguments(*names, **defaults)
    if ceil or divisor is not None:
        raise graph.unsupported(op, "with ceil_mode or divisor_override")
    window = {"kernel_shape": kernel, "strides": stride or kernel, "pads": [*padding, *padding]}
    return graph.node("AveragePool", [graph.value(value)], count_include_pad=int(counted), **window)


def _upsample_nearest(graph: Graph, op: Op) -> Value:
    source, size, factors = op.arguments("input", "output_size", "scale_factors")
    value = graph.value(source)
    if size is None:
        wanted = ["", graph.constant(np.array([1, 1, *factors], np.float32), TensorProto.FLOAT)]
    else:
        kept = graph.node("Shape", [value], dtype=_INT64, start=0, end=2)
        wanted = ["", "", graph.node("Concat", [kept, *(_sizes(graph, [graph.value(s)]) for s in size)], dtype=_INT64, axis=0)]
    return graph.node(
        "Resize", [value, *wanted], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


def _pad(graph: Graph, op: Op) -> Value:
    source, pads, mode, fill = op.arguments("self", "pad", "mode", "value", mode="constant")
    if mode != "constant":
        raise graph.unsupported(op, f"in mode {mode}")
    fill = fill or 0.0
    graph.hold(fill)
    begin, end = [0] * op.rank, [0] * op.rank
    for i in range(len(pads) // 2):  # PyTorch counts from the last axis
        begin[op.rank - 1 - i], end[op.rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    return graph.node("Pad", [graph.value(source), _integers(graph, begin + end), graph.constant(np.float32(fill))])


_COMPARISONS = {
    "eq": "Equal",
    "ne": "NotEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}.{form}": _compare(kind) for name, kind in _COMPARISONS.items() for form in ("Tensor", "Scalar")},
    "aten._softmax.default": _softmax,
    "aten.add.Tensor": _binary("Add"),
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
    "aten.cos.default": _unary("Cos"),
    "aten.div.Tensor": _binary("Div", neutral=1),
    "aten.dropout.default": _identity,
    "aten.embedding.default": _embedding,
    "aten.exp.default": _unary("Exp"),
    "aten.expand.default": _expand,
    "aten.flatten.using_ints": _flatten,
    "aten.full.default": _full,
    "aten.gelu.default": _gelu,
    "aten.group_norm.default": _group_norm,
    "aten.index.Tensor": _index,
    "aten.layer_norm.default": _layer_norm,
    "aten.linear.default": _linear,
    "aten.masked_fill.Scalar": _masked_fill,
    "aten.mish.default": _mish,
    "aten.mul.Tensor": _binary("Mul", neutral=1),
    "aten.pad.default": _pad,
    "aten.permute.default": _permute,
    "aten.relu.default": _unary("Relu"),
    "aten.reshape.default": _reshape,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.sigmoid.default": _unary("Sigmoid"),
    "aten.silu.default": _silu,
    "aten.sin.default": _unary("Sin"),
    "aten.slice.Tensor": _slice,
    "aten.sub.Tensor": _binary("Sub"),
    "aten.sym_size.int": _sym_size,
    "aten.tanh.default": _unary("Tanh"),
    "aten.to.device": _convert,
    "aten.to.dtype": _convert,
    "aten.transpose.int": _transpose,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.upsample_nearest2d.vec": _upsample_nearest,
    "aten.view.default": _reshape,
    "operator.add": _size_arithmetic("Add", lambda a, b: a + b),
    "operator.floordiv": _size_arithmetic("Div", lambda a, b: a // b),
    "operator.getitem": _getitem,
    "operator.mod": _size_arithmetic("Mod", lambda a, b: a % b),
    "operator.mul": _size_arithmetic("Mul", lambda a, b: a * b),
    "operator.sub": _size_arithmetic("Sub", lambda a, b: a - b),
}
