"""Execute an IR on the CPU in segments of the graph, so that only one segment's weights are in memory.

The engine expands weights to float32 when it compiles a graph: 2.8 GB for SDXL's second text encoder. Cut into
segments of bounded weight, compiled and run one after the other, the same operations need a few hundred megabytes.
Rows of embedding tables are read from the mapped file, because the engine would expand a whole table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from vaefix.runtime.backends.openvino import IN_F32

SEGMENT_BYTES = 64 << 20  # of weights, as float32
_STRUCTURAL = {"Constant", "Parameter", "Result"}
_DECOMPRESSION = {"Convert", "Multiply", "Reshape"}

Key = tuple[str, int]  # an output: name of its node, index


def run_in_segments(graph: Path, feeds: Mapping[str, np.ndarray], segment_bytes: int = SEGMENT_BYTES) -> dict[str, np.ndarray]:
    """Output name -> array, computed in float32.

    feeds: by input name, in the dtypes of the inputs.  segment_bytes: a segment ends when its weights exceed this.
    """
    core = ov.Core()
    model = core.read_model(graph)
    values: dict[Key, np.ndarray] = {
        (parameter.get_name(), 0): np.asarray(feeds[parameter.get_friendly_name()]) for parameter in model.get_parameters()
    }
    outputs = {_key(result.input_value(0)): result.input_value(0).get_any_name() for result in model.get_results()}
    ops = [node for node in model.get_ordered_ops() if node.get_type_name() not in _STRUCTURAL and not is_weight(node)]
    last_use = {_key(source): i for i, node in enumerate(ops) for source in node.input_values()}
    done = 0
    for segment in _segments(ops, segment_bytes):
        done += len(segment)
        if _is_lookup(segment[0]):
            table, indices = segment[0].input_values()[:2]
            values[_key(segment[0].output(0))] = _rows(table.get_node(), values[_key(indices)])
        else:
            made = [output for node in segment for output in node.outputs()]
            kept = [output for output in made if last_use.get(_key(output), -1) >= done or _key(output) in outputs]
            values.update(_run(core, segment, kept, values))
        for key in [key for key in values if last_use.get(key, -1) < done and key not in outputs]:
            del values[key]
    return {name: values[key] for key, name in outputs.items()}


def _segments(ops: list[Any], segment_bytes: int) -> Iterator[list[Any]]:
    """Consecutive operations; a lookup in an embedding table is a segment of its own."""
    segment: list[Any] = []
    size = 0
    for node in ops:
        if _is_lookup(node):
            if segment:
                yield segment
            yield [node]
            segment, size = [], 0
            continue
        segment.append(node)
        weights = [source for source in node.input_values() if is_weight(source.get_node())]
        size += sum(4 * int(np.prod(weight.get_shape())) for weight in weights)
        if size > segment_bytes:
            yield segment
            segment, size = [], 0
    if segment:
        yield segment


def is_weight(node: Any) -> bool:
    """Whether the node is a constant, or makes one of constants."""
    if node.get_type_name() in _DECOMPRESSION:
        return all(is_weight(source.get_node()) for source in node.input_values())
    return bool(node.get_type_name() == "Constant")


def _is_lookup(node: Any) -> bool:
    return node.get_type_name() == "Gather" and _is_matrix(node.input_value(0))


def _is_matrix(value: Any) -> bool:
    return is_weight(value.get_node()) and len(value.get_shape()) == 2


def _rows(table: Any, indices: np.ndarray) -> np.ndarray:
    """Of the constant that this node is, or decompresses, in float32."""
    constant = table.input_value(0).get_node() if table.get_type_name() == "Convert" else table
    if constant.get_element_type() == ov.Type.bf16:  # which numpy lacks: its bits are a float32's upper half
        return (constant.data.view(np.uint16)[indices].astype(np.uint32) << 16).view(np.float32)
    rows: np.ndarray = constant.data[indices].astype(np.float32)
    return rows


def _key(output: Any) -> Key:
    return output.get_node().get_name(), output.get_index()


def _run(core: ov.Core, segment: list[Any], kept: list[Any], values: Mapping[Key, np.ndarray]) -> dict[Key, np.ndarray]:
    """Run one segment: every value from an earlier one becomes an input, of any shape, as the inputs of the whole graph are.

    (With sizes that are known, the engine's fusions differ from those of the graph that is used; 2026.4 dies of some.)
    """
    inside = {node.get_name() for node in segment}
    parameters: dict[Key, Any] = {}
    for node in segment:
        for port in node.inputs():
            source = port.get_source_output()
            key = _key(source)
            if key[0] in inside or is_weight(source.get_node()):
                continue
            if key not in parameters:
                parameters[key] = opset.parameter(ov.PartialShape([-1] * values[key].ndim), source.get_element_type())
            port.replace_source_output(parameters[key].output(0))
    keys = [_key(output) for output in kept]
    model = ov.Model([opset.result(output) for output in kept], list(parameters.values()))
    compiled = core.compile_model(model, "CPU", {**IN_F32, "NUM_STREAMS": "1"})
    results = compiled.create_infer_request().infer([values[key] for key in parameters], share_inputs=True)
    return {key: np.array(results[i]) for i, key in enumerate(keys)}
