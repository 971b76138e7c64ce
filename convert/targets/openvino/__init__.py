"""OpenVINO IR: `openvino_model.xml` and `.bin`, in the layout of optimum-intel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...loss import Tally
from ...precision import QUANTIZED, encode
from ...program import Program
from ...writer import Stage
from .skeleton import Skeleton, fill
from .weights import SHAPE, layout, shape_bytes

if TYPE_CHECKING:
    from .. import Job

PACKAGES = ("openvino", "openvino_tokenizers")
EXECUTION = {
    "gpu": {"fp32": "f32", "fp16": "f16", **dict.fromkeys(QUANTIZED, "f16")},
    "cpu": {"fp32": "f32", "fp16": "f32", "bf16": "bf16", **dict.fromkeys(QUANTIZED, "f32")},
}
IO = ("fp32",)  # what optimum-intel and GenAI feed
GRAPH, WEIGHTS = "openvino_model.xml", "openvino_model.bin"


def lower(program: Program) -> dict[str, Any]:
    """The program as a skeleton, in JSON data. Raises ModelError naming an operation that has no lowering."""
    from .graph import lower as build

    return build(program).to_json()


def write(stage: Stage, job: Job, tally: Tally | None = None) -> str:
    """Stream the component's weights and graph into the stage; returns the graph's path in the artifact.

    tally: takes what the weights lose. A file that the stage already holds is left as it is.
    """
    skeleton, name = Skeleton.from_json(job.skeleton), job.component.name
    shapes = {parameter: tensor.shape for parameter, tensor in job.tensors.items()}
    blobs = layout(job.storage, shapes, len(skeleton.constants))
    if f"{name}/{WEIGHTS}" not in stage.files:
        with stage.file(f"{name}/{WEIGHTS}") as sink:
            sink.write(skeleton.scaled_constants(job.plan))
            for parameter, tensor in job.tensors.items():
                exponent = job.plan.parameters.get(parameter, 0)
                for suffix, pieces in encode(tensor, exponent, job.storage[parameter], tally=tally):
                    sink.pad_to(blobs[parameter][suffix].offset)
                    for piece in pieces:
                        sink.write(piece)
                if SHAPE in blobs[parameter]:
                    sink.pad_to(blobs[parameter][SHAPE].offset)
                    sink.write(shape_bytes(tensor.shape))
    if f"{name}/{GRAPH}" not in stage.files:
        with stage.file(f"{name}/{GRAPH}") as sink:
            for text in fill(skeleton, job.storage, blobs, job.plan, runtime_options(job)):
                sink.write(text.encode())
    return f"{name}/{GRAPH}"


def runtime_options(job: Job) -> dict[str, str]:
    """What GenAI and the GPU plugin read from the graph.

    GenAI runs a VAE without ACTIVATIONS_SCALE_FACTOR in f32, which is what an f32 component asks for. On f16, -1.0 means
    no run-time scaling (none is needed after a repair), 128.0 is optimum-intel's value for a VAE that may overflow.
    """
    if not job.component.fragile or job.execution == "f32":
        return {}
    return {"ACTIVATIONS_SCALE_FACTOR": "-1.0" if job.examined else "128.0"}


def check(folder: Path, job: Job) -> None:
    """Reload the written graph and compare every weight's place, shape and type with the program's parameter."""
    from .structure import check_graph

    check_graph(folder / job.component.name, job)


def run(folder: Path, job: Job, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The written component's outputs in float32 on the CPU, computed in segments of little memory."""
    from .segments import run_in_segments

    return run_in_segments(folder / job.component.name / GRAPH, feeds)


def tokenizer_graphs(folder: Path) -> dict[str, str]:
    """File name -> base64 of the tokenizer as graphs, for openvino_genai."""
    from .tokenizers import tokenizer_graphs as build

    return build(folder)
