"""A program as a graph of either engine, without a conversion: built, given its weights and run on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import torch
from onnx import numpy_helper

from vaefix.convert.capture import capture
from vaefix.convert.execute import static_values
from vaefix.convert.policy import storages
from vaefix.convert.program import Input, Program
from vaefix.convert.repair.plan import ScalePlan
from vaefix.convert.targets.onnx.graph import Form, build
from vaefix.convert.targets.openvino.graph import lower
from vaefix.convert.targets.openvino.skeleton import Skeleton, fill
from vaefix.convert.targets.openvino.weights import layout

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], dict[str, np.ndarray]]
ENGINES = ("openvino", "onnx")


def program_of(function: Callable[[torch.Tensor], torch.Tensor], a: Input) -> Program:
    """The function of one input, captured; its output is `y`."""

    class Small(torch.nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return function(a)

    return capture(Small(), [a], ["y"])


def loaded(engine: str, program: Program, folder: Path, weights: Feeds | None = None, plan: ScalePlan | None = None) -> Run:
    """The program in float32: feeds, in the order of its inputs -> outputs. weights: by parameter name."""
    names = [name for name, _ in program.outputs]
    run = (_openvino if engine == "openvino" else _onnx)(program, folder, weights or {}, plan or ScalePlan())
    return lambda feeds: dict(zip(names, run(feeds), strict=True))


def _openvino(program: Program, folder: Path, weights: Feeds, plan: ScalePlan) -> Callable[[Feeds], Any]:
    skeleton = Skeleton.from_json(lower(program).to_json())
    storage = storages(program, "fp32", None)
    blobs = layout(storage, {name: value.shape for name, value in weights.items()}, len(skeleton.constants))
    data = bytearray(skeleton.scaled_constants(plan))
    for name, value in weights.items():
        data += bytes(blobs[name][""].offset - len(data)) + value.tobytes()
    (folder / "m.xml").write_text("".join(fill(skeleton, storage, blobs, plan, {})))
    (folder / "m.bin").write_bytes(data)
    compiled = ov.Core().compile_model(folder / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feeds: map(np.array, compiled(list(feeds.values())).values())


def _onnx(program: Program, folder: Path, weights: Feeds, plan: ScalePlan) -> Callable[[Feeds], Any]:
    constants = {name: value.numpy() for name, value in static_values(program).items()}
    graph = build(program, constants, plan, Form(storages(program, "fp32", None), "f32", "f32", 20, frozenset(), {}))
    tensors = [
        numpy_helper.from_array((weights[name].T if hole.transposed else weights[name]).reshape(hole.shape).copy(), name)
        for name, hole in graph.holes.items()
    ]
    onnx.save(graph.model(tensors), folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])

    def run(feeds: Feeds) -> Any:
        if "timestep" in feeds:
            feeds = {**feeds, "timestep": feeds["timestep"].astype(np.float32).reshape(())}
        return session.run([name for name, _ in program.outputs], dict(feeds))

    return run
