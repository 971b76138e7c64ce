"""Execute an IR on the CPU in segments of the graph, so that only one segment's weights are in memory.

The engine expands weights to float32 when it compiles a graph: 2.8 GB for SDXL's second text encoder. Cut into
segments of bounded weight, compiled and run one after the other, the same operations need a few hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

SEGMENT_BYTES = 64 << 20  # of weights, as float32
_STRUCTURAL = {"Constant", "Parameter", "Result"}


def run_in_segments(graph: Path, feeds: Mapping[str, np.ndarray], segment_bytes: int = SEGMENT_BYTES) -> dict[str, np.ndarray]:
    """Output name -> array, computed in float32.

    feeds: by input name, in the dtypes of the inputs.  segment_bytes: a segment ends when its weights exceed this.
    """
    core = ov.Core()
    model = core.read_model(graph)
    values: dict[tuple[str, int], np.ndarray] = {}
    for parameter in model.get_parameters():
        values[parameter.get_name(), 0] = np.asarray(feeds[parameter.get_friendly_name()])
    outputs = {(r.input_value(0).get_node().get_name(), r.input_value(0).get_index()): r for r in model.get_results()}
    ops = [node for node in model.get_ordered_ops() if node.get_type_name() not in _STRUCTURAL]
    last_use = {source: i for i, node in enumerate(ops) for source in _sources(node)}
    position = 0
    for segment in _segments(ops, segment_bytes):
        position += len(segment)
        wanted = [
            output
            for node in segment
            for output in node.outputs()
            if last_use.get(_key(output), -1) >= position or _key(output) in outputs
        ]
        values.update(_run(core, segment, wanted, values))
        for key in [key for key in values if last_use.get(key, -1) < position and key not in outputs]:
            del values[key]
    return {result.input_value(0).get_any_name(): values[key] for key, result in outputs.items()}


def _segments(ops: list[Any], segment_bytes: int) -> Iterator[list[Any]]:
    """Consecutive operations; a decompression belongs to the segment of the operation that reads it."""
    segment: list[Any] = []
    weight = 0
    for node in ops:
        segment.append(node)
        weight += sum(_constant_bytes(source.get_node()) for source in node.input_values())
        if weight > segment_bytes and not _is_decompression(node):
            yield segment
            segment, weight = [], 0
    if segment:
        yield segment


def _is_decompression(node: Any) -> bool:
    return node.get_type_name() == "Convert" and node.input_value(0).get_node().get_type_name() == "Constant"


def _constant_bytes(node: Any) -> int:
    return 4 * int(np.prod(node.get_output_shape(0))) if node.get_type_name() == "Constant" else 0


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _sources(node: Any) -> list[tuple[str, int]]:
    return [_key(source) for source in node.input_values() if source.get_node().get_type_name() != "Constant"]


def _run(core: ov.Core, segment: list[Any], wanted: list[Any], values: Mapping[tuple[str, int], np.ndarray]) -> dict[Any, np.ndarray]:
    """Run one segment: every value from an earlier one becomes an input of the shape that it has."""
    inside = {node.get_name() for node in segment}
    parameters: dict[tuple[str, int], Any] = {}
    for node in segment:
        for port in node.inputs():
            source = port.get_source_output()
            key = _key(source)
            if key[0] in inside or source.get_node().get_type_name() == "Constant":
                continue
            if key not in parameters:
                parameters[key] = opset.parameter(list(values[key].shape), source.get_element_type())
            port.replace_source_output(parameters[key].output(0))
    keys = [_key(output) for output in wanted]
    model = ov.Model([opset.result(output) for output in wanted], list(parameters.values()))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"})
    results = compiled.create_infer_request().infer([values[key] for key in parameters], share_inputs=True)
    return {key: np.array(results[i]) for i, key in enumerate(keys)}
