"""Emulation against real 16-bit arithmetic, on models that were made ill at random: do they agree on what overflows?

The reference is torch's own half precision on the CPU, and a graphics card where there is one. torch rounds the result
of every ATen operation, which is the mode `each`. Where a graph has several nodes for one such operation, `each` rounds
more often: between a linear layer's product and its bias, and in ONNX between a group norm and its scale and shift.
torch's attention keeps the scores in float32, as the emulation does and as flash attention does on a GPU, so nothing sets
the two apart there. A GPU that writes scores of fp16 to memory would be another matter, which neither of them shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from vaefix.convert.checkpoint import TensorRef
from vaefix.convert.demo import demo_model as make_demo_model
from vaefix.convert.execute import Observer, execute, load
from vaefix.convert.families import Component, sdxl
from vaefix.convert.policy import storages
from vaefix.convert.program import Op, Program, Symbol, substitute
from vaefix.convert.repair.identity import scaled_weights
from vaefix.convert.repair.plan import Range, ScalePlan, apply_to_program
from vaefix.convert.repair.plant import plant
from vaefix.convert.repair.ranges import activation_ranges, weight_statistics
from vaefix.convert.targets import TRIGONOMETRIC, Job, find_target
from vaefix.convert.writer import staged
from vaefix.runtime.artifact import Artifact, ComponentEntry
from vaefix.runtime.session import open_session
from vaefix.validate.emulate import Mode, emulate
from vaefix.validate.emulate.openvino import convert_pairs
from vaefix.validate.metrics import compare

Arrays = Mapping[str, np.ndarray]

TARGETS = ("openvino-gpu", "onnx-cuda")
FEW = 4
MANY = {"vae_decoder": 60, "vae_encoder": 60, "text_encoder": 40, "text_encoder_2": 40, "unet": 24}
CASES = [
    pytest.param("text_encoder_2", FEW, id=f"text_encoder_2-{FEW}"),
    *(pytest.param(name, FEW, marks=pytest.mark.slow, id=f"{name}-{FEW}") for name in ("vae_decoder", "vae_encoder")),
    *(pytest.param(name, count, marks=pytest.mark.slow, id=f"{name}-{count}") for name, count in MANY.items()),
]
PEAKS = (10, 20)  # exponents of two, of the worst activation; the last finite one is 15.999
LATENT_SIDE = 4  # torch's half arithmetic is slow on a CPU
SAMPLES = {"vae_decoder": 1, "vae_encoder": 4, "text_encoder": 16, "text_encoder_2": 16, "unet": 4}  # see _feeds
FP16_MAX = 65504.0
PSNR_GAP_DB = 3.0


@dataclass(frozen=True)
class Outcome:
    """One run beside float32: whether every output is finite, and the PSNR of each that is."""

    finite: bool
    psnr_db: dict[str, float]


@dataclass(frozen=True)
class Healthy:
    """A component of the demo model's healthy twin.

    tensors, weights: by parameter name.  ranges: what its activations reach, by operation name.  outputs: in float32.
    skeletons: what each target makes of the program.
    """

    component: Component
    program: Program
    tensors: Mapping[str, TensorRef]
    weights: Mapping[str, torch.Tensor]
    ranges: Mapping[str, Range]
    feeds: Arrays
    outputs: Arrays
    skeletons: Mapping[str, Any]

    def planted(self, count: int) -> Iterator[ScalePlan]:
        """Random illnesses that fp16 can store; the largest activations are log-uniform, one from each equal part of PEAKS."""
        statistics = weight_statistics(self.program, self.weights.__getitem__)
        lowest, highest = PEAKS
        for number in range(count):
            generator = random.Random(f"{self.component.name} {number} of {count}")
            peak = 2 ** (lowest + (highest - lowest) * (number + generator.random()) / count)
            yield plant(self.program, self.ranges, generator.getrandbits(32), largest_peak=peak, weights=statistics)

    def write(self, plan: ScalePlan, target_name: str, output: Path) -> Path:
        """The model that the plan makes of it, as fp16 conversion writes it; returns the graph."""
        target = find_target(target_name)
        job = Job(
            component=self.component,
            program=self.program,
            skeleton=self.skeletons[target_name],
            tensors=self.tensors,
            plan=plan,
            examined=False,
            precision="fp16",
            storage=storages(self.program, "fp16", None),
            execution="f16",
            device=target.device,
            io="f32",
        )
        with staged(output, {}) as stage:
            graph = target.engine.write(stage, job)
        return output / graph

    def in_float32(self, plan: ScalePlan, observe: Observer | None = None) -> Arrays:
        """The outputs with the plan; equal to `outputs` if it follows the rules."""
        inputs = {name: torch.from_numpy(value) for name, value in self.feeds.items()}
        scaled = scaled_weights(self.weights.__getitem__, plan)
        outputs = execute(apply_to_program(self.program, plan), scaled, inputs, observe)
        return {name: output.numpy() for name, output in outputs.items()}

    def in_torch_half(self, plan: ScalePlan) -> Arrays:
        """The outputs of torch's own half arithmetic, as float32. Time embeddings begin in float32, as in diffusers."""
        program = apply_to_program(self.program, plan)
        precise = program.ancestors(TRIGONOMETRIC)
        sized = "aten.sym_size.int"  # which reads no numbers
        kept = {ref.name for op in program.ops if op.name in precise and op.target != sized for ref in op.refs()}
        scaled = scaled_weights(self.weights.__getitem__, plan)
        inputs = {
            name: torch.from_numpy(value).half() if value.dtype.kind == "f" and name not in kept else torch.from_numpy(value)
            for name, value in self.feeds.items()
        }
        narrowed = tuple(op if op.name in precise else _cast_to_half(op) for op in program.ops)
        outputs = execute(replace(program, ops=narrowed), lambda name: scaled(name).half(), inputs)
        return {name: output.float().numpy() for name, output in outputs.items()}

    def emulated(self, graph: Path, mode: Mode) -> Outcome:
        """What emulation makes of a planted model's graph."""
        return self.judge(emulate(graph, self.feeds, mode))

    def judge(self, outputs: Arrays) -> Outcome:
        """The outputs of a planted model beside those of the healthy one in float32."""
        differences = {name: compare(expected, outputs[name]) for name, expected in self.outputs.items()}
        finite = all(difference.nonfinite_actual == 0 for difference in differences.values())
        return Outcome(finite, {name: difference.psnr_db for name, difference in differences.items()})


def _cast_to_half(op: Op) -> Op:
    """The operation, converting to float16 if it converts to float32."""

    def narrow(item: Any) -> Any:
        return Symbol("dtype:float16") if item == Symbol("dtype:float32") else item

    kwargs = {name: substitute(value, narrow) for name, value in op.kwargs.items()}
    return replace(op, args=tuple(substitute(op.args, narrow)), kwargs=kwargs)


@pytest.fixture(scope="module")
def healthy(cache_folder: Path, jobs_of: Callable[[Path], dict[str, Job]]) -> Callable[[str], Healthy]:
    """healthy(component): lowered and measured once."""
    jobs = jobs_of(make_demo_model(cache_folder, healthy=True))

    @cache
    def of(name: str) -> Healthy:
        component, program, tensors = jobs[name].component, jobs[name].program, jobs[name].tensors
        skeletons = {target: find_target(target).engine.lower(program) for target in TARGETS}
        weights = {key: load(tensor) for key, tensor in tensors.items()}
        inputs = {key: torch.from_numpy(value) for key, value in _feeds(component).items()}
        ranges = activation_ranges(program, weights.__getitem__, [inputs])
        model = Healthy(component, program, tensors, weights, ranges, _feeds(component), {}, skeletons)
        return replace(model, outputs=model.in_float32(ScalePlan()))

    return of


def _feeds(component: Component) -> Arrays:
    """Several samples as one batch where outputs are small: the PSNR of few numbers hangs on the order of summation."""
    samples = [sdxl.sample_inputs(component, seed, LATENT_SIDE) for seed in range(SAMPLES[component.name])]
    feeds = {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    if "timestep" in feeds:  # one for the whole batch
        feeds["timestep"] = samples[0]["timestep"].astype(np.float32)
    return feeds


def check_agreement(
    model: Healthy, count: int, target: str, folder: Path, real: Callable[[ScalePlan, Path], Arrays]
) -> dict[str, float]:
    """Of models planted at random, the same overflow in emulation and in reality: of some, not of all. Else both are as exact.

    Returns what was found, for the record.
    """
    overflows, gaps = 0, []
    for number, plan in enumerate(model.planted(count)):
        graph = model.write(plan, target, folder / str(number))
        each, truth = model.emulated(graph, "each"), model.judge(real(plan, graph))
        what = f"model {number}, up to {max(op.absmax_after for op in plan.ops):.6g}: {each}, in reality {truth}"
        assert each.finite == truth.finite, what
        if truth.finite:
            assert model.emulated(graph, "fused").finite, what
            gap = max(abs(psnr_db - truth.psnr_db[name]) for name, psnr_db in each.psnr_db.items())
            assert gap <= PSNR_GAP_DB, what
            gaps.append(gap)
        else:
            overflows += 1
            assert model.emulated(graph, "f32").finite, "what does not round cannot tell"
    assert 0.1 * count <= overflows <= 0.9 * count
    return {"models": count, "overflowed": overflows, "largest_psnr_gap_db": max(gaps)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("component", "count"), CASES)
def test_emulation_and_torch_half_agree_on_what_overflows(
    healthy: Callable[[str], Healthy],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    component: str,
    count: int,
    target: str,
) -> None:
    model = healthy(component)
    found = check_agreement(model, count, target, tmp_path, lambda plan, _: model.in_torch_half(plan))
    for name, value in found.items():
        record_property(name, value)


@pytest.mark.gpu
@pytest.mark.parametrize(("component", "count"), CASES)
def test_emulation_and_a_graphics_card_agree_on_what_overflows(
    healthy: Callable[[str], Healthy], tmp_path: Path, component: str, count: int
) -> None:
    model = healthy(component)

    def on_cuda(_: ScalePlan, graph: Path) -> Arrays:
        entry = ComponentEntry(graph.name, "fp16", "f16")
        artifact = Artifact(graph.parent, "onnx-cuda", "sdxl", {component: entry}, {})
        session = open_session(artifact, component, "CUDA")
        assert session.precision == "f16"
        return session.run(model.feeds)

    check_agreement(model, count, "onnx-cuda", tmp_path, on_cuda)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_an_emulation_with_another_limit_is_caught(
    healthy: Callable[[str], Healthy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    def rounding(values: Sequence[ov.Output]) -> list[ov.Output]:
        scaled = convert_pairs([ops.divide(value, np.float32(factor)).output(0) for value in values])
        return [ops.multiply(value, np.float32(factor)).output(0) for value in scaled]

    monkeypatch.setattr("vaefix.validate.emulate.openvino.working_rounding", lambda: rounding)
    model, late = healthy("vae_encoder"), factor > 1
    with pytest.raises(AssertionError, match=rf"finite={late}, .* in reality Outcome\(finite={not late}"):
        check_agreement(model, MANY["vae_encoder"], "openvino-gpu", tmp_path, lambda plan, _: model.in_torch_half(plan))


@pytest.mark.parametrize(("exponent", "finite"), [(8, True), (16, False)])
@pytest.mark.parametrize("target", TARGETS)
def test_attention_scores_may_leave_the_range_of_fp16_but_not_what_they_are_computed_from(
    healthy: Callable[[str], Healthy], tmp_path: Path, target: str, exponent: int, finite: bool
) -> None:
    model = healthy("text_encoder_2")
    projections = [name for name in model.weights if ".q_proj." in name or ".k_proj." in name]
    plan = ScalePlan(parameters=dict.fromkeys(projections, exponent))  # breaks the rules: another function
    values: dict[str, torch.Tensor] = {}
    model.in_float32(plan, lambda op, output: values.update({op.name: output}))
    attention = next(op for op in model.program.ops if op.target == "aten.scaled_dot_product_attention.default")
    query, key = (values[ref.name] for ref in attention.args[:2])
    assert float((query @ key.transpose(-1, -2)).abs().max()) * attention.kwargs["scale"] > FP16_MAX
    assert (float(torch.maximum(query.abs().max(), key.abs().max())) < FP16_MAX) == finite
    graph = model.write(plan, target, tmp_path / "model")
    assert model.judge(model.in_torch_half(plan)).finite == finite
    assert model.emulated(graph, "each").finite == finite
