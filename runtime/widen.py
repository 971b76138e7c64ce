"""A 16-bit ONNX graph as the same graph in float32, for a CPU: its engine would hide an overflow, or has no kernel."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def has_narrow_edges(model: onnx.ModelProto) -> bool:
    """Whether an input or output of the graph is in 16 bits."""
    return any(item.type.tensor_type.elem_type in NARROW for item in (*model.graph.input, *model.graph.output))


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which all arithmetic, inputs and outputs are float32 where they were float16 or bfloat16.

    External weights stay as they are stored: a Cast widens each where it is used, or the rows that a Gather takes of it.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for item in (*graph.input, *graph.output):
        if item.type.tensor_type.elem_type in NARROW:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    stored = set()
    for initializer in graph.initializer:
        if initializer.data_type not in NARROW:
            continue
        if initializer.data_location == TensorProto.EXTERNAL:
            stored.add(initializer.name)
        else:
            values = numpy_helper.to_array(initializer).astype("float32")
            initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
    cast: set[str] = set()
    nodes = [widened_node for node in graph.node for widened_node in _widened(node, stored, cast)]
    del graph.node[:]
    graph.node.extend(nodes)
    return wide


def _widened(node: onnx.NodeProto, stored: set[str], cast: set[str]) -> list[onnx.NodeProto]:
    """The node for float32, behind the Casts of weights that it is the first to use; `cast` collects those."""
    if node.op_type == "Cast":
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in NARROW:
                attribute.i = TensorProto.FLOAT
    if node.op_type == "Gather" and node.input[0] in stored:
        (output,) = node.output
        node.output[0] = f"{output}/stored"
        return [node, helper.make_node("Cast", [node.output[0]], [output], f"{output}/f32", to=TensorProto.FLOAT)]
    casts = []
    for index, name in enumerate(node.input):
        if name not in stored:
            continue
        node.input[index] = f"{name}/f32"
        if name not in cast:
            cast.add(name)
            casts.append(helper.make_node("Cast", [name], [f"{name}/f32"], f"{name}/f32", to=TensorProto.FLOAT))
    return [*casts, node]
