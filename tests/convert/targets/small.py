"""A function of a few tensors as a graph of either engine, without a weight and without a conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino as ov
import torch

from vaefix.convert.capture import capture
from vaefix.convert.execute import static_values
from vaefix.convert.policy import storages
from vaefix.convert.program import Input, Program
from vaefix.convert.repair.plan import ScalePlan
from vaefix.convert.targets.onnx.graph import Form, build
from vaefix.convert.targets.openvino.graph import lower
from vaefix.convert.targets.openvino.skeleton import Skeleton, fill

Feeds = Mapping[str, np.ndarray]
ENGINES = ("openvino", "onnx")


def program_of(function: Callable[[torch.Tensor], torch.Tensor], a: Input) -> Program:
    """The function of one input, captured; its output is `y`."""

    class Small(torch.nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return function(a)

    return capture(Small(), [a], ["y"])


def run(engine: str, program: Program, feeds: Feeds, folder: Path, plan: ScalePlan = ScalePlan()) -> dict[str, Any]:
    """The outputs of a program without weights, in float32 on the CPU. feeds: in the order of the program's inputs."""
    names = [name for name, _ in program.outputs]
    if engine == "openvino":
        skeleton = Skeleton.from_json(lower(program).to_json())
        (folder / "m.xml").write_text("".join(fill(skeleton, {}, {}, plan, {})))
        (folder / "m.bin").write_bytes(skeleton.scaled_constants(plan))
        compiled = ov.Core().compile_model(folder / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return dict(zip(names, map(np.array, compiled(list(feeds.values())).values()), strict=True))
    constants = {name: value.numpy() for name, value in static_values(program).items()}
    model = build(program, constants, plan, Form(storages(program, "fp32", None), "f32", "f32", 20, frozenset(), {})).model([])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))
