"""Execute a graph in float32 on the CPU in segments, so that only one segment's weights are in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from vaefix.runtime.backends.onnx.engine import load_engine
from vaefix.runtime.widen import widened

SEGMENT_BYTES = 64 << 20  # of weights, as float32


def run_in_segments(graph: Path, feeds: Mapping[str, np.ndarray], segment_bytes: int = SEGMENT_BYTES) -> dict[str, np.ndarray]:
    """Output name -> array, computed in float32.

    feeds: by input name.  segment_bytes: a segment ends when its weights exceed this.
    """
    model = widened(onnx.load(graph, load_external_data=False))
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = [item.name for item in model.graph.output]
    values = {item.name: _fitted(feeds[item.name], item) for item in model.graph.input}
    last_use = {name: i for i, node in enumerate(model.graph.node) for name in node.input}
    last_use |= dict.fromkeys(outputs, len(model.graph.node))
    done = 0
    for segment in _segments(model.graph.node, initializers, segment_bytes):
        done += len(segment)
        kept = [name for node in segment for name in node.output if last_use.get(name, -1) >= done]
        values |= _run(graph.parent, model, segment, initializers, values, kept)
        for name in [name for name in values if last_use.get(name, -1) < done]:
            del values[name]
    return {name: values[name] for name in outputs}


def _fitted(array: np.ndarray, item: onnx.ValueInfoProto) -> np.ndarray:
    """In the element type and rank of the input: a timestep may come as an int64 vector."""
    kind = item.type.tensor_type
    array = array.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return array if kind.shape.dim else array.reshape(())


def _segments(
    nodes: Iterator[NodeProto], initializers: Mapping[str, TensorProto], segment_bytes: int
) -> Iterator[list[NodeProto]]:
    segment: list[NodeProto] = []
    size = 0
    for node in nodes:
        segment.append(node)
        if node.op_type != "Gather":  # takes rows of a table that stays on disk
            size += sum(4 * math.prod(initializers[name].dims) for name in node.input if name in initializers)
        if size > segment_bytes:
            yield segment
            segment, size = [], 0
    if segment:
        yield segment


def _run(
    folder: Path,
    model: onnx.ModelProto,
    segment: list[NodeProto],
    initializers: Mapping[str, TensorProto],
    values: Mapping[str, np.ndarray],
    kept: list[str],
) -> dict[str, np.ndarray]:
    """Run one segment: every value from an earlier one becomes an input."""
    read = dict.fromkeys(name for node in segment for name in node.input)
    made = {name for node in segment for name in node.output}
    feeds = {name: values[name] for name in read if name in values and name not in made}
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in kept]
    weights = [initializers[name] for name in read if name in initializers]
    graph = helper.make_graph(segment, "segment", inputs, outputs, weights)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = load_engine(part.SerializeToString(), folder, arena=False)  # an arena would keep what a segment needed
    return dict(zip(kept, session.run(kept, feeds), strict=True))
