"""ONNX: `model.onnx` and `model.onnx_data`, in the layout of optimum-onnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...loss import Tally
from ...precision import QUANTIZED, encode
from ...program import Program
from ...writer import Stage

if TYPE_CHECKING:
    from .. import Job

PACKAGES = ("onnx", "onnxruntime")
EXECUTION = {
    "cuda": {"fp32": "f32", "fp16": "f16", "bf16": "bf16", **dict.fromkeys(QUANTIZED, "f16")},
    "cpu": {"fp32": "f32", "fp16": "f32", **dict.fromkeys(QUANTIZED, "f32")},
}
IO = ("fp32", "fp16")
GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"


def lower(program: Program) -> dict[str, Any]:
    """What lowering needs torch for: the values that depend on no input, in JSON data.

    The graph itself is built when it is written, since its types follow the precision and the repair.
    """
    from ...execute import static_values

    values = {name: value.numpy() for name, value in static_values(program).items()}
    return {name: [str(value.dtype), list(value.shape), value.ravel().tolist()] for name, value in values.items()}


def write(stage: Stage, job: Job, tally: Tally | None = None) -> str:
    """Stream the component's weights and graph into the stage; returns the graph's path in the artifact.

    tally: takes what the weights lose. A file that the stage already holds is left as it is.
    Raises ModelError for an operation that has no lowering.
    """
    from .graph import build
    from .layout import external_data, form_of

    constants = {name: np.array(values, dtype).reshape(shape) for name, (dtype, shape, values) in job.skeleton.items()}
    graph = build(job.program, constants, job.plan, form_of(job))
    places = external_data(graph.holes, job)
    name = job.component.name
    if f"{name}/{WEIGHTS}" not in stage.files:
        with stage.file(f"{name}/{WEIGHTS}") as sink:
            for parameter, tensor in job.tensors.items():
                exponent, flipped = job.plan.parameters.get(parameter, 0), graph.holes[parameter].transposed
                for suffix, pieces in encode(tensor, exponent, job.storage[parameter], transposed=flipped, tally=tally):
                    sink.pad_to(places[parameter + suffix].offset)
                    for piece in pieces:
                        sink.write(piece)
    if f"{name}/{GRAPH}" not in stage.files:
        stage.write(
            f"{name}/{GRAPH}", graph.model([place.tensor(WEIGHTS) for place in places.values()]).SerializeToString(True)
        )
    return f"{name}/{GRAPH}"


def check(folder: Path, job: Job) -> None:
    """Reload the written graph and compare every weight's place, shape and type with the program's parameter."""
    from .structure import check_graph

    check_graph(folder / job.component.name, job)


def run(folder: Path, job: Job, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The written component's outputs in float32 on the CPU, computed in segments of little memory."""
    from .segments import run_in_segments

    return run_in_segments(folder / job.component.name / GRAPH, feeds)


def tokenizer_graphs(folder: Path) -> dict[str, str]:  # noqa: ARG001 (every engine has one)
    """None: ONNX Runtime's users tokenize in Python."""
    return {}
