"""An OpenVINO graph with fp16 rounding behind every value that a GPU kernel writes to memory.

A plain pair of Converts (f32 -> f16 -> f32) is removed by the compiler. It stays when the first one carries the
attribute `DisablePrecisionConversion`, which only the IR file format can set: the pair is read from a small IR and
spliced in. Because that attribute is internal to OpenVINO, the rounding is tried on known numbers before it is used;
should it fail, the same rounding is written in arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from vaefix.runtime.backends.openvino import IN_F32
from vaefix.runtime.backends.openvino import cause_of as cause_of  # part of what this module offers
from vaefix.runtime.errors import ArtifactError, DeviceError

from ..ranges import FP16_MAX, LayerRange, layer_ranges
from . import Mode
from .canary import survives
from .measure_openvino import layers_of, measured

Rounding = Callable[[Sequence[ov.Output]], list[ov.Output]]

ERRORS = (RuntimeError,)
"""What OpenVINO raises."""

# The IR file format of `value -> narrow -> widen -> result`, for any number of pairs on one value.
_IR = """<?xml version="1.0"?>
<net name="round_to_fp16" version="11"><layers>
<layer id="0" name="value" type="Parameter" version="opset1"><data shape="..." element_type="f32"/>
<output><port id="0" precision="FP32"/></output></layer>{layers}
</layers><edges>{edges}
</edges></net>"""
_IR_LAYERS = """
<layer id="{narrow}" name="narrow{pair}" type="Convert" version="opset1"><data destination_type="f16"/>
<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:dynamic"/></rt_info>
<input><port id="0" precision="FP32"/></input><output><port id="1" precision="FP16"/></output></layer>
<layer id="{widen}" name="widen{pair}" type="Convert" version="opset1"><data destination_type="f32"/>
<input><port id="0" precision="FP16"/></input><output><port id="1" precision="FP32"/></output></layer>
<layer id="{result}" name="result{pair}" type="Result" version="opset1">
<input><port id="0" precision="FP32"/></input></layer>"""
_IR_EDGES = """
<edge from-layer="0" from-port="0" to-layer="{narrow}" to-port="0"/>
<edge from-layer="{narrow}" from-port="1" to-layer="{widen}" to-port="0"/>
<edge from-layer="{widen}" from-port="1" to-layer="{result}" to-port="0"/>"""

# Operations that copy values which are fp16 already, or that have no value to round.
_MOVES = frozenset(
    "Broadcast Concat Gather Pad Reshape Result Slice Split Squeeze StridedSlice Tile Transpose Unsqueeze VariadicSplit".split()
)
_CONTRACTIONS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})
_NORMALIZATIONS = frozenset({"GroupNormalization", "MVN"})
_ACTIVATIONS = frozenset({"Gelu", "Relu", "Sigmoid", "Swish"})
_PRECISE = ("precise", "DisablePrecisionConversion")  # OpenVINO's older and newer name of the attribute
_BODIES = frozenset({"If", "Loop", "TensorIterator"})


class Emulation:
    """One IR, compiled for the CPU with fp16 rounding; see EmulatedSession. OpenVINO's own errors pass through."""

    def __init__(self, model_path: Path, mode: Mode, *, ranges: bool) -> None:
        core = ov.Core()
        model = core.read_model(str(model_path))
        layers = layers_of(model) if ranges else {}
        rounded: dict[ov.Output, ov.Output] = {}
        if mode != "f32":
            rounded = round_to_fp16(model, mode, working_rounding(), source=str(model_path))
        self.inputs = tuple(port.get_any_name() for port in model.inputs)
        self.outputs = tuple(port.get_any_name() for port in model.outputs)
        if layers:
            model = measured(model, [rounded.get(output, output) for output in layers.values()])
        self._layers = tuple(layers)
        self._request = _compile_f32(core, model).create_infer_request()
        self.precision = "f32" if mode == "f32" else "emulated f16"

    def run(self, feeds: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], tuple[LayerRange, ...]]:
        """Every output by name, float32, for exactly the inputs by name; and the layers' ranges, if asked for."""
        results = [np.array(result) for result in self._request.infer(dict(feeds), share_inputs=True).values()]
        measured = results[: -len(self.outputs)]
        ranges = layer_ranges(self._layers, *measured) if measured else ()
        return dict(zip(self.outputs, results[len(measured) :], strict=True)), ranges


def convert_pairs(values: Sequence[ov.Output]) -> list[ov.Output]:
    """Convert each value to f16 and back, marked so that the compiler keeps the pair."""
    pairs = range(len(values))
    ids = [{"pair": pair, "narrow": 3 * pair + 1, "widen": 3 * pair + 2, "result": 3 * pair + 3} for pair in pairs]
    layers, edges = ("".join(text.format(**entry) for entry in ids) for text in (_IR_LAYERS, _IR_EDGES))
    donor = ov.Core().read_model(model=_IR.format(layers=layers, edges=edges), weights=ov.Tensor(np.zeros(0, np.uint8)))
    node = {operation.get_friendly_name(): operation for operation in donor.get_ordered_ops()}
    for pair, value in zip(pairs, values, strict=True):
        node[f"narrow{pair}"].input(0).replace_source_output(value)
        node[f"result{pair}"].input(0).replace_source_output(node["value"].output(0))
    return [node[f"widen{pair}"].output(0) for pair in pairs]


def arithmetic(values: Sequence[ov.Output]) -> list[ov.Output]:
    """The same rounding in f32 arithmetic: Veltkamp's splitting for normal numbers, Round for subnormal ones."""
    return [_round_by_arithmetic(value) for value in values]


def _round_by_arithmetic(value: ov.Output) -> ov.Output:
    product = ops.multiply(value, _constant(2.0**13 + 1))
    normal = ops.subtract(product, ops.subtract(product, value))
    subnormal = ops.multiply(ops.round(ops.multiply(value, _constant(2.0**24)), "half_to_even"), _constant(2.0**-24))
    size = ops.absolute(value)
    finite = ops.select(ops.less(size, _constant(2.0**-14)), subnormal, normal)
    infinite = ops.multiply(ops.sign(value), _constant(np.inf))
    return ops.select(ops.greater_equal(size, _constant(65520.0)), infinite, finite).output(0)


def survives_compiling(rounding: Rounding) -> bool:
    """Whether the rounding, compiled between two other operations, still gives exactly numpy's float16."""
    parameter = ops.parameter([-1], np.float32)
    (rounded,) = rounding([ops.multiply(parameter, _constant(2.0)).output(0)])
    compiled = _compile_f32(ov.Core(), ov.Model([ops.multiply(rounded, _constant(0.125))], [parameter]))
    return survives(lambda values: compiled([values])[0], np.float16)


def working_rounding(candidates: Sequence[Rounding] = (convert_pairs, arithmetic)) -> Rounding:
    """The first rounding that survives this OpenVINO's compiler. Raises DeviceError if none does."""
    for rounding in candidates:
        if survives_compiling(rounding):
            return rounding
    raise DeviceError(
        "this OpenVINO removes the fp16 rounding from a CPU graph, so overflow cannot be emulated",
        source=f"openvino {ov.__version__}",
        remedy="install the OpenVINO version named in the constraints file",
    )


def round_to_fp16(model: ov.Model, mode: Mode, rounding: Rounding, *, source: str) -> dict[ov.Output, ov.Output]:
    """Insert `rounding` behind every value of `model` that a GPU in fp16 would write to memory, in place.

    Returns what was written -> the rounded value.

    Constants are narrowed too. What is computed from no input, such as the shape arithmetic of an upsampler, is left alone,
    and so is what passes between operations that the graph marks as precision-sensitive: a GPU executes those in f32.
    A normalisation with its scale and shift is one operation, as in PyTorch, where the IR has three.
    """
    nodes = model.get_ordered_ops()
    if bodies := {node.get_type_name() for node in nodes} & _BODIES:
        raise ArtifactError(f"its {', '.join(sorted(bodies))} has a body, which is not emulated", source=source)
    computed = _computed(nodes)
    order = {node.get_name(): position for position, node in enumerate(nodes)}
    written = [
        output
        for node in nodes
        if node.get_name() in computed and node.get_type_name() not in _MOVES
        for output in node.outputs()
        if output.get_element_type() == ov.Type.f32
        if not _is_inside_normalization(node, computed)
        if not (mode == "fused" and _stays_in_kernel(node, computed, order))
    ]
    for node in nodes:
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32 and not _feeds_precise(node):
            _narrow_constant(node)
    consumers = [  # before the rounding becomes one of them
        [port for port in output.get_target_inputs() if not _stays_in_f32(output.get_node(), port.get_node())]
        for output in written
    ]
    rounded = dict(zip(written, rounding(written), strict=True))
    for (output, result), inputs in zip(rounded.items(), consumers, strict=True):
        _replace(output, result, inputs)
    model.validate_nodes_and_infer_types()
    return rounded


def _is_precise(node: ov.Node) -> bool:
    return any(key.startswith(_PRECISE) for key in node.get_rt_info())


def _feeds_precise(node: ov.Node) -> bool:
    return any(_is_precise(port.get_node()) for port in node.output(0).get_target_inputs())


def _stays_in_f32(source: ov.Node, consumer: ov.Node) -> bool:
    return _is_precise(consumer) and (_is_precise(source) or source.get_type_name() == "Parameter")


def narrow_values(model_path: Path) -> tuple[str, ...]:
    """The values inside the graph that are computed in 16 bits."""
    nodes = ov.Core().read_model(model_path).get_ordered_ops()
    computed = _computed(nodes)
    narrow = (ov.Type.f16, ov.Type.bf16)
    return tuple(
        node.get_friendly_name()
        for node in nodes
        if node.get_name() in computed and any(output.get_element_type() in narrow for output in node.outputs())
    )


def _computed(nodes: list[ov.Node]) -> frozenset[str]:
    """The names of the nodes whose values depend on the model's inputs, beyond their shapes."""
    computed: set[str] = set()
    for node in nodes:
        kind = node.get_type_name()
        sources = (source.get_name() for source in _sources(node))
        if kind == "Parameter" or (kind != "ShapeOf" and not computed.isdisjoint(sources)):
            computed.add(node.get_name())
    return frozenset(computed)


def _is_inside_normalization(node: ov.Node, computed: frozenset[str]) -> bool:
    """Whether only a normalisation's own scale or shift reads the value."""
    consumers = list(node.output(0).get_target_inputs())
    return len(consumers) == 1 and _is_normalized(node, computed) and _is_affine(consumers[0].get_node(), computed)


def _is_normalized(node: ov.Node, computed: frozenset[str]) -> bool:
    """Whether the value is what a normalisation computes, perhaps scaled and shifted."""
    if node.get_type_name() in _NORMALIZATIONS:
        return True
    return _is_affine(node, computed) and any(_is_normalized(source, computed) for source in _sources(node))


def _stays_in_kernel(node: ov.Node, computed: frozenset[str], order: Mapping[str, int]) -> bool:
    """Whether a fused GPU kernel keeps this value in its f32 accumulator and writes only what follows."""
    consumers = list(node.output(0).get_target_inputs())
    if len(consumers) != 1:
        return False
    consumer = consumers[0].get_node()
    if consumer.get_type_name() in _ACTIVATIONS:
        return _is_normalized(node, computed) or _in_accumulator(node, computed)
    if consumer.get_type_name() != "Add" or not _in_accumulator(node, computed):
        return False
    if _is_bias_add(consumer, computed):
        return True
    # Of the two sides of a residual add, the one computed last finds the other in memory and takes it in.
    last = max(
        (side for side in _sources(consumer) if _in_accumulator(side, computed)), key=lambda side: order[side.get_name()]
    )
    return last.get_name() == node.get_name()


def _in_accumulator(node: ov.Node, computed: frozenset[str]) -> bool:
    if node.get_type_name() in _CONTRACTIONS:
        return True
    return _is_bias_add(node, computed) and any(source.get_type_name() in _CONTRACTIONS for source in _sources(node))


def _is_bias_add(node: ov.Node, computed: frozenset[str]) -> bool:
    return node.get_type_name() == "Add" and _is_affine(node, computed)


def _is_affine(node: ov.Node, computed: frozenset[str]) -> bool:
    """Whether the node scales or shifts by a weight."""
    return node.get_type_name() in ("Add", "Multiply") and any(source.get_name() not in computed for source in _sources(node))


def _sources(node: ov.Node) -> list[ov.Node]:
    return [node.input_value(index).get_node() for index in range(node.get_input_size())]


def _narrow_constant(node: ov.Node) -> None:
    """Replace an f32 constant by its fp16 values. Like OpenVINO's own pass, it saturates at +-65504."""
    values = np.clip(node.data, -FP16_MAX, FP16_MAX).astype(np.float16).astype(np.float32)
    narrowed = ops.constant(values)
    narrowed.set_friendly_name(node.get_friendly_name())
    for consumer in node.output(0).get_target_inputs():
        consumer.replace_source_output(narrowed.output(0))


def _replace(output: ov.Output, rounded: ov.Output, consumers: Sequence[ov.Input]) -> None:
    for consumer in consumers:
        consumer.replace_source_output(rounded)
        if consumer.get_node().get_type_name() == "Result":
            rounded.get_tensor().set_names(output.get_names())
            output.get_tensor().set_names(set())


def _compile_f32(core: ov.Core, model: ov.Model) -> ov.CompiledModel:
    """Compile for the CPU in f32, and read the hint back: the plugin may replace what it was asked for."""
    compiled = core.compile_model(model, "CPU", {**IN_F32, "PERFORMANCE_HINT": "LATENCY"})
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if precision != "f32":
        raise DeviceError(f"asked for f32, the CPU plugin runs {precision}", source=f"openvino {ov.__version__}")
    return compiled


def _constant(value: float) -> ov.Node:
    return ops.constant(np.array(value, np.float32))
