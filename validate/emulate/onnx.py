"""An ONNX graph in f32, with a rounding behind every value that a 16-bit GPU kernel writes to memory.

ONNX Runtime's CPU provider drops fp16 round trips of its own and has no bf16 kernels, so the graph is widened to f32
first. Then each value whose type was float16 or bfloat16 passes a pair of Casts, which every optimisation level keeps; that
is tried on known numbers all the same. What the graph computes in f32 stays in f32.

ONNX Runtime on CUDA runs one kernel per node, but for a few pairs: `each` is what it does, `fused` what an engine that
compiles kernels (TensorRT) does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vaefix.runtime.backends.onnx.engine import FAILURES, load_engine
from vaefix.runtime.backends.onnx.engine import cause_of as cause_of  # part of what this module offers
from vaefix.runtime.errors import ArtifactError, DeviceError
from vaefix.runtime.widen import NARROW, widened

from ..ranges import LayerRange, layer_ranges
from . import Mode
from .canary import survives
from .kernels import Kernels
from .measure_onnx import layers_of, measure, numbers_of

ERRORS = (DecodeError, OSError, *FAILURES)
"""What reading, compiling or running a graph raises."""

# Operations that copy values which are in 16 bits already.
_MOVES = frozenset(
    "Concat Expand Flatten Gather GatherND Identity Pad Reshape Slice Split Squeeze Tile Transpose Unsqueeze Where".split()
)
_BODIES = frozenset({"If", "Loop", "Scan"})
_NAMES: Mapping[int, str] = {TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16"}


class Emulation:
    """One graph, compiled for the CPU with 16-bit rounding; see EmulatedSession. ONNX Runtime's own errors pass through.

    Raises ArtifactError for a graph that computes nothing in 16 bits, unless it is to run in f32: there is nothing to emulate.
    """

    def __init__(self, model_path: Path, mode: Mode, *, ranges: bool) -> None:
        model = onnx.load(model_path, load_external_data=False)
        written = written_values(model, mode, source=str(model_path))
        used = sorted({*written.values()})
        if not used and mode != "f32":
            remedy = "convert it for onnx-cuda with --precision fp16 or bf16"
            raise ArtifactError("computes nothing in 16 bits, so there is nothing to emulate", source=model_path, remedy=remedy)
        for dtype in used:
            _check_rounding(dtype)
        executed = rounded(model, written)
        self.outputs = tuple(item.name for item in model.graph.output)
        layers = layers_of(model) if ranges else {}
        if layers:
            measure(executed, layers)
        self._layers = tuple(layers)
        self._session = load_engine(executed.SerializeToString(), model_path.parent, many_nodes=True)
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self.inputs = tuple(self._inputs)
        self.precision = "emulated " + ", ".join(_NAMES[dtype] for dtype in used) if used else "f32"

    def run(self, feeds: Mapping[str, NDArray]) -> tuple[dict[str, NDArray], tuple[LayerRange, ...]]:
        """Every output by name, float32, for exactly the inputs by name; and the layers' ranges, if asked for.

        One number may come as a vector: `timestep`.
        """
        fitted = {name: value if self._inputs[name].shape else value.reshape(()) for name, value in feeds.items()}
        results = self._session.run(None, fitted)
        measured = results[: -len(self.outputs)]
        ranges = layer_ranges(self._layers, numbers_of(measured)) if measured else ()
        return dict(zip(self.outputs, results[len(measured) :], strict=True)), ranges


def written_values(model: onnx.ModelProto, mode: Mode, *, source: str) -> dict[str, int]:
    """Name -> element type of every 16-bit value that a GPU kernel computes and writes to memory, inputs included.

    Raises ArtifactError for a graph whose values cannot be typed, or that has a body.
    """
    if mode == "f32":
        return {}
    graph = model.graph
    if bodies := {node.op_type for node in graph.node} & _BODIES:
        raise ArtifactError(f"its {', '.join(sorted(bodies))} has a body, which is not emulated", source=source)
    types = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)}
    types |= {item.name: item.type.tensor_type.elem_type for item in onnx.shape_inference.infer_shapes(model).graph.value_info}
    made = [name for node in graph.node for name in node.output if name]
    if untyped := [name for name in made if not types.get(name)]:
        raise ArtifactError(f"the element type of {untyped[0]} is not known, so it cannot be emulated", source=source)
    moved = {name for node in graph.node if node.op_type in _MOVES for name in node.output}
    kernels = Kernels(graph)
    return {
        name: types[name]
        for name in (*(item.name for item in graph.input), *made)
        if types[name] in NARROW and name not in moved and not (mode == "fused" and kernels.keep(name))
    }


def narrow_values(model_path: Path) -> tuple[str, ...]:
    """The values inside the graph that are computed in 16 bits."""
    model = onnx.load(model_path, load_external_data=False)
    edges = {item.name for item in (*model.graph.input, *model.graph.output)}
    return tuple(name for name in written_values(model, "each", source=str(model_path)) if name not in edges)


def rounded(model: onnx.ModelProto, written: Mapping[str, int]) -> onnx.ModelProto:
    """The model in f32 with the `written` values rounded to their element types."""
    wide = widened(model)
    inputs = {item.name for item in wide.graph.input} & written.keys()
    nodes = [cast for name in sorted(inputs) for cast in _round_trip(name, f"{name}/rounded", written[name])]
    for node in wide.graph.node:
        for index, name in enumerate(node.input):
            if name in inputs:
                node.input[index] = f"{name}/rounded"
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in written:
                node.output[index] = f"{name}/exact"
                nodes += _round_trip(f"{name}/exact", name, written[name])
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide


def _round_trip(exact: str, result: str, dtype: int) -> Iterator[onnx.NodeProto]:
    """Narrow and widen again. ONNX Runtime would remove Casts named as its own are: `InsertedPrecisionFreeCast_`."""
    yield helper.make_node("Cast", [exact], [f"{result}/narrow"], f"{result}/narrow", to=dtype)
    yield helper.make_node("Cast", [f"{result}/narrow"], [result], f"{result}/widen", to=TensorProto.FLOAT)


def _check_rounding(dtype: int) -> None:
    """Raises DeviceError unless the rounding survives ONNX Runtime's optimisations."""
    if not survives_compiling(dtype):
        raise DeviceError(
            f"this ONNX Runtime removes the {_NAMES[dtype]} rounding from a CPU graph, so overflow cannot be emulated",
            source=f"onnxruntime {onnxruntime.__version__}",
            remedy="install the onnxruntime version named in the constraints file",
        )


def survives_compiling(dtype: int) -> bool:
    """Whether the rounding to this element type, compiled between two other operations, still gives numpy's values."""
    nodes = [
        helper.make_node("Mul", ["values", "double"], ["exact"]),
        *_round_trip("exact", "rounded", dtype),
        helper.make_node("Mul", ["rounded", "eighth"], ["result"]),
    ]
    factors = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("double", 2), ("eighth", 0.125))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("values", "result")]
    graph = helper.make_graph(nodes, "canary", ends[:1], ends[1:], factors)
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    session = load_engine(model.SerializeToString(), Path(), many_nodes=True)
    return survives(lambda values: session.run(None, {"values": values})[0], helper.tensor_dtype_to_np_dtype(dtype))
