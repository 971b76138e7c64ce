"""Emulation against real 16-bit arithmetic, on models that were made ill at random: do they agree on what overflows?

The reference is torch's own half precision on the CPU, and a graphics card where there is one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from vaefix.convert.capture import capture
from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.demo import demo_model as make_demo_model
from vaefix.convert.execute import execute, load, static_values
from vaefix.convert.families import sdxl
from vaefix.convert.program import Program
from vaefix.convert.repair.identity import scaled_weights
from vaefix.convert.repair.plan import Range, ScalePlan, apply_to_program
from vaefix.convert.repair.plant import plant
from vaefix.convert.repair.ranges import activation_ranges
from vaefix.convert.targets.onnx.graph import Form, build
from vaefix.runtime.artifact import Artifact, ComponentEntry
from vaefix.runtime.session import open_session
from vaefix.validate.emulate import emulate
from vaefix.validate.metrics import compare

HALVES = ("vae_decoder", "vae_encoder")
MODELS = 25
LATENT_SIDE = 4  # torch's half arithmetic is slow on a CPU
LARGEST_PEAK = 2.0**19  # of the worst activation, down to a 64th of it: some of the models overflow and some do not
FP16_MAX = 65504.0
HALF = Form("f16", "f16", "f32", 23, frozenset(), {})


@dataclass(frozen=True)
class Healthy:
    """One half of the demo model's healthy VAE. ranges: what its activations reach."""

    program: Program
    weights: dict[str, torch.Tensor]
    ranges: dict[str, Range]
    feeds: dict[str, np.ndarray]
    output: np.ndarray

    def planted(self) -> Iterator[ScalePlan]:
        """Random illnesses, without those whose weights fp16 cannot store: what then overflows are activations."""
        sizes = {name: float(weight.abs().max()) for name, weight in self.weights.items()}
        for seed in itertools.count():
            plan = plant(self.program, self.ranges, seed, largest_peak=LARGEST_PEAK)
            if all(sizes[name] * 2.0**exponent <= FP16_MAX for name, exponent in plan.parameters.items()):
                yield plan

    def write(self, plan: ScalePlan, path: Path) -> Path:
        """The model that the plan makes of it, as a true fp16 ONNX graph with its weights inside."""
        constants = {name: value.numpy() for name, value in static_values(self.program).items()}
        graph = build(self.program, constants, plan, HALF)
        scaled = scaled_weights(self.weights.__getitem__, plan)
        tensors = []
        for hole in graph.holes.values():
            stored = scaled(hole.parameter).half().numpy()
            stored = np.ascontiguousarray(stored.T) if hole.transposed else stored
            tensors.append(numpy_helper.from_array(stored.reshape(hole.shape), hole.parameter))
        onnx.save(graph.model(tensors), path)
        return path

    def in_torch_half(self, plan: ScalePlan) -> np.ndarray:
        """The output of torch's own half arithmetic, as float32."""
        casts = json.dumps(apply_to_program(self.program, plan).to_json()).replace("dtype:float32", "dtype:float16")
        scaled = scaled_weights(self.weights.__getitem__, plan)
        feeds = {name: torch.from_numpy(value).half() for name, value in self.feeds.items()}
        (output,) = execute(Program.from_json(json.loads(casts)), lambda name: scaled(name).half(), feeds).values()
        return output.float().numpy()


@pytest.fixture(scope="module")
def healthy(cache_folder: Path) -> Callable[[str], Healthy]:
    """healthy(half): captured and measured once."""
    checkpoint = Checkpoint.open(make_demo_model(cache_folder, healthy=True))
    components = {component.name: component for component in sdxl.components(checkpoint)}

    @cache
    def of(half: str) -> Healthy:
        component = components[half]
        program = capture(component.build(), component.inputs, component.outputs, component.root)
        shapes = {parameter.name: parameter.shape for parameter in program.parameters.values()}
        weights = {name: load(tensor) for name, tensor in component.bind(shapes, checkpoint.tensors(component.part)).items()}
        feeds = sdxl.sample_inputs(component, 0, LATENT_SIDE)
        inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        ranges = activation_ranges(program, weights.__getitem__, [inputs])
        (output,) = execute(program, weights.__getitem__, inputs).values()
        return Healthy(program, weights, ranges, feeds, output.numpy())

    return of


def check_agreement(model: Healthy, folder: Path, real: Callable[[ScalePlan, Path], np.ndarray]) -> None:
    """Of models planted at random, the same overflow in emulation and in reality: some, not all. Else both are as exact."""
    overflows = 0
    for number, plan in zip(range(MODELS), model.planted(), strict=False):
        path = model.write(plan, folder / f"{number}.onnx")
        (emulated,) = emulate(path, model.feeds).values()
        differences = [compare(model.output, output) for output in (emulated, real(plan, path))]
        finite = {difference.nonfinite_actual == 0 for difference in differences}
        assert len(finite) == 1, f"model {number}: {differences}"
        if finite == {False}:
            overflows += 1
        else:
            errors = sorted(difference.relative for difference in differences)
            assert errors[1] <= 1.5 * errors[0], f"model {number}: {errors}"
    assert 5 <= overflows <= MODELS - 5


@pytest.mark.parametrize("half", HALVES)
def test_emulation_and_torch_half_agree_on_what_overflows(healthy: Callable[[str], Healthy], tmp_path: Path, half: str) -> None:
    model = healthy(half)
    check_agreement(model, tmp_path, lambda plan, _: model.in_torch_half(plan))


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
def test_emulation_and_a_graphics_card_agree_on_what_overflows(
    healthy: Callable[[str], Healthy], tmp_path: Path, half: str
) -> None:
    model = healthy(half)

    def on_cuda(_: ScalePlan, path: Path) -> np.ndarray:
        entry = ComponentEntry(path.name, "fp16", "f16")
        session = open_session(Artifact(path.parent, "onnx-cuda", "sdxl", {half: entry}, {}), half, "CUDA")
        assert session.precision == "f16"
        (output,) = session.run(model.feeds).values()
        return output

    check_agreement(model, tmp_path, on_cuda)
