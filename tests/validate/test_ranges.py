"""ranges.py: what layers reach, and the layer where a run goes wrong, by its PyTorch name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as ops

from vaefix.convert.checkpoint import Checkpoint
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError, InputError
from vaefix.validate.emulate import EmulatedSession, Mode
from vaefix.validate.inputs import PictureSize, sample_inputs
from vaefix.validate.ranges import (
    FP16_MAX,
    LayerRange,
    first_parting,
    headroom,
    recorded,
    relative_error,
    scaled_layers,
    unscaled,
)
from vaefix.validate.reference import component_ranges

Ranges = tuple[LayerRange, ...]
slow = pytest.mark.slow
SOME = ["vae_decoder", *(pytest.param(name, marks=slow) for name in ("text_encoder", "text_encoder_2", "vae_encoder", "unet"))]
ARTIFACTS = ("demo_artifact_fp16", "demo_artifact_onnx_cuda")
Reference = Callable[[str], Ranges]
Feeds = dict[str, np.ndarray]
FeedsOf = Callable[[str], Feeds]
Measured = Callable[..., tuple[Ranges, dict[str, np.ndarray]]]
SIZE = PictureSize(height=64, width=96)
IN_F32, IN_FP16 = 1e-4, 1e-2
FLAT = LayerRange("a", 4, 0, 2.0, 0.0, (1.0, -2.0))


def ranges_of(artifact: Artifact, component: str, feeds: Feeds) -> Ranges:
    """As measured in the artifact in f32, without the repair's scale."""
    graph = artifact.folder / artifact.component(component).model
    session = EmulatedSession(graph, "f32", ranges=True)
    session.run(feeds)
    return unscaled(session.ranges, scaled_layers(graph.parent))


@pytest.fixture(scope="module")
def feeds_of(demo_model: Path) -> FeedsOf:
    return cache(lambda component: sample_inputs(Checkpoint.open(demo_model), component, 0, SIZE))


@pytest.fixture(scope="module")
def reference(demo_model: Path, feeds_of: FeedsOf) -> Reference:
    """reference(component): of the untouched model, its weights as the fp16 artifacts store them."""
    return cache(lambda component: component_ranges(Checkpoint.open(demo_model), component, feeds_of(component), "fp16"))


@pytest.fixture(scope="module")
def measured(artifact_of: Callable[[str], Artifact], feeds_of: FeedsOf) -> Measured:
    """measured(artifact, component, mode): the ranges as the healthy artifact has them, and its outputs; computed once."""

    @cache
    def run(artifact: str, component: str, mode: Mode = "f32") -> tuple[Ranges, dict[str, np.ndarray]]:
        made = artifact_of(artifact)
        session = EmulatedSession(made.folder / made.component(component).model, mode, ranges=True)
        outputs = session.run(feeds_of(component))
        return session.ranges, outputs

    return run


@pytest.fixture(scope="module")
def artifact_of(demo_artifact_fp16: Artifact, demo_artifact_onnx_cuda: Artifact) -> Callable[[str], Artifact]:
    return dict(zip(ARTIFACTS, (demo_artifact_fp16, demo_artifact_onnx_cuda), strict=True)).__getitem__


# ------------------------------------------------------------------------------------------------- healthy artifacts


@pytest.mark.parametrize("artifact", ARTIFACTS)
@pytest.mark.parametrize("component", SOME)
def test_every_layer_of_a_healthy_artifact_is_the_references(
    artifact: str, component: str, measured: Measured, reference: Reference, artifact_of: Callable[[str], Artifact]
) -> None:
    expected = {item.layer: item for item in reference(component)}
    found = unscaled(measured(artifact, component)[0], scaled_layers(artifact_of(artifact).folder / component))
    errors = {item.layer: relative_error(expected[item.layer], item) for item in found if item.layer in expected}
    missing = {name for name in expected.keys() - errors if not name.endswith((".attn1", ".attn2"))}
    assert not missing  # attn1 and attn2 divide by 1 what to_out made, which no graph keeps
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("artifact", ARTIFACTS)
@pytest.mark.parametrize("mode", ["each", "fused"])
@pytest.mark.parametrize("component", SOME)
def test_in_emulated_fp16_no_layer_parts_either(
    artifact: str,
    component: str,
    mode: Mode,
    measured: Measured,
    reference: Reference,
    artifact_of: Callable[[str], Artifact],
) -> None:
    found = unscaled(measured(artifact, component, mode)[0], scaled_layers(artifact_of(artifact).folder / component))
    assert first_parting(reference(component), found, IN_FP16) is None
    assert first_parting(reference(component), found, IN_F32) is not None, "nothing was rounded"


@pytest.mark.parametrize("artifact", [pytest.param("demo_artifact_fp32", marks=slow), "demo_artifact_onnx_cpu"])
def test_an_artifact_in_fp32_is_measured_too(
    request: pytest.FixtureRequest, artifact: str, reference: Reference, feeds_of: FeedsOf
) -> None:
    found = ranges_of(request.getfixturevalue(artifact), "vae_decoder", feeds_of("vae_decoder"))
    assert first_parting(reference("vae_decoder"), found, IN_F32) is None
    assert headroom(found) < 1  # it was not repaired


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_measuring_changes_no_output(
    artifact: str, measured: Measured, feeds_of: FeedsOf, artifact_of: Callable[[str], Artifact]
) -> None:
    made = artifact_of(artifact)
    session = EmulatedSession(made.folder / made.component("vae_decoder").model)
    plain, (_, outputs) = session.run(feeds_of("vae_decoder")), measured(artifact, "vae_decoder", "each")
    assert plain.keys() == outputs.keys()
    for name, value in plain.items():
        assert np.linalg.norm(value - outputs[name]) <= 5e-3 * np.linalg.norm(value)
    assert not session.ranges


@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_what_the_repair_scaled_is_known_exactly(
    artifact: str, measured: Measured, reference: Reference, artifact_of: Callable[[str], Artifact]
) -> None:
    folder = artifact_of(artifact).folder
    exponents = scaled_layers(folder / "vae_decoder")
    assert exponents["decoder.conv_in"] < 0
    assert exponents["decoder.mid_block.resnets.0"] == exponents["decoder.conv_in"]  # the residual stream
    assert not scaled_layers(folder / "unet")
    found, _ = measured(artifact, "vae_decoder")
    expected = {item.layer: item.absmax for item in reference("vae_decoder")}
    for item in found:
        assert item.absmax == pytest.approx(expected[item.layer] * 2.0 ** exponents[item.layer], rel=1e-5)
    assert headroom(found) > 8 > 1 > headroom(reference("vae_decoder"))
    # Without it, the first layer that was scaled is taken for a fault.
    assert first_parting(reference("vae_decoder"), found, IN_FP16) == "decoder.conv_in"


# ------------------------------------------------------------------------------------------------------------- faults


def swap_channels(weight: np.ndarray) -> None:
    weight[[0, 1]] = weight[[1, 0]]


def transpose(weight: np.ndarray) -> None:
    weight[:] = weight.swapaxes(-1, -2).copy()


def drop(weight: np.ndarray) -> None:
    weight[:] = 0


def scale(weight: np.ndarray) -> None:
    weight *= np.float16(1.02)


def spoil(weight: np.ndarray) -> None:
    weight.flat[0] = np.nan


FAULTS = [
    ("vae_decoder", "decoder.up_blocks.1.resnets.0.conv1.weight", swap_channels),
    ("vae_decoder", "decoder.mid_block.attentions.0.to_q.weight", transpose),
    ("vae_decoder", "decoder.up_blocks.2.upsamplers.0.conv.weight", transpose),
    ("vae_decoder", "decoder.conv_in.bias", drop),
    ("vae_decoder", "decoder.up_blocks.3.resnets.1.norm2.weight", scale),
    ("vae_encoder", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight", spoil),
    ("vae_encoder", "encoder.mid_block.attentions.0.group_norm.bias", drop),
    ("text_encoder", "text_model.encoder.layers.1.self_attn.k_proj.weight", scale),
    ("text_encoder", "text_model.encoder.layers.0.layer_norm2.weight", spoil),
    ("text_encoder", "text_model.embeddings.position_embedding.weight", swap_channels),
]


@pytest.mark.parametrize(
    ("copied", "component", "weight", "fault"),
    [
        pytest.param(artifact, *fault, marks=slow if (number + turn) % 2 else ())
        for turn, artifact in enumerate(ARTIFACTS)
        for number, fault in enumerate(FAULTS)
    ],
    indirect=["copied"],
)
def test_a_fault_shows_in_the_layer_where_it_is(
    copied: Artifact,
    edit_weight: Callable,
    reference: Reference,
    feeds_of: FeedsOf,
    component: str,
    weight: str,
    fault: Callable,
) -> None:
    edit_weight(component, weight, fault)
    found = ranges_of(copied, component, feeds_of(component))
    assert first_parting(reference(component), found, IN_F32) == weight.rpartition(".")[0]


def test_a_wrong_eps_shows_in_its_layer(copied: Artifact, edit_text: Callable, reference: Reference, feeds_of: FeedsOf) -> None:
    layer = "decoder.up_blocks.3.resnets.2.norm2"
    ir = (copied.folder / "vae_decoder/openvino_model.xml").read_text(encoding="utf-8")
    data = ir[ir.index(f'name="{layer}/') :].partition("<data ")[2].partition("/>")[0]
    start = ir.index(data, ir.index(f'name="{layer}/'))
    before = ir[start - 400 : start] + data
    epsilon = data.partition('epsilon="')[2].partition('"')[0]
    edit_text("vae_decoder/openvino_model.xml", before, before.replace(epsilon, repr(1e3 * float(epsilon))))
    found = ranges_of(copied, "vae_decoder", feeds_of("vae_decoder"))
    assert first_parting(reference("vae_decoder"), found, IN_F32) == layer


@pytest.mark.parametrize("copied", ["demo_artifact_onnx_cuda"], indirect=True)
def test_a_wrong_eps_shows_in_its_layer_of_an_onnx_graph(copied: Artifact, reference: Reference, feeds_of: FeedsOf) -> None:
    layer, path = "decoder.up_blocks.3.resnets.2.norm2", copied.folder / "vae_decoder/model.onnx"
    model = onnx.load(path, load_external_data=False)
    (epsilon,) = (
        attribute
        for node in model.graph.node
        if node.name.startswith(f"{layer}/")
        for attribute in node.attribute
        if attribute.name == "epsilon"
    )
    epsilon.f *= 1e3
    onnx.save(model, path)
    found = ranges_of(copied, "vae_decoder", feeds_of("vae_decoder"))
    assert first_parting(reference("vae_decoder"), found, IN_F32) == layer


@pytest.mark.parametrize("copied", [pytest.param(ARTIFACTS[0], marks=slow), ARTIFACTS[1]], indirect=True)
def test_an_overflow_is_named_where_it_is_born(
    copied: Artifact, edit_weight: Callable, reference: Reference, feeds_of: FeedsOf
) -> None:
    def inflate(weight: np.ndarray) -> None:
        weight *= np.float16(64)

    edit_weight("vae_decoder", "decoder.conv_in.weight", inflate)
    graph = copied.folder / copied.component("vae_decoder").model
    in_f32, in_fp16 = (EmulatedSession(graph, mode, ranges=True) for mode in ("f32", "each"))
    for session in (in_f32, in_fp16):
        session.run(feeds_of("vae_decoder"))
    first = next(item for item in in_fp16.ranges if item.nonfinite)
    assert first.layer == "decoder.conv_in"
    assert first.absmax == math.inf
    assert 0 < first.nonfinite < first.count
    assert first_parting(in_f32.ranges, in_fp16.ranges, IN_FP16) == "decoder.conv_in"
    assert in_fp16.ranges[-1].nonfinite == in_fp16.ranges[-1].count
    assert headroom(in_fp16.ranges) == 0 < headroom(in_f32.ranges) < 1


# ------------------------------------------------------------------------------------------------- what is measured


class Layer(torch.nn.Module):
    """Adds its bias, which is zero: what goes in comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Module()
        self.layer.bias = torch.nn.Parameter(torch.zeros(1))
        self.layer.forward = lambda x: x + self.layer.bias  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * 2


def in_onnx(path: Path, rank: int) -> Path:
    nodes = [
        helper.make_node("Add", ["x", "layer.bias"], ["h"], "layer/add/Add"),
        helper.make_node("Mul", ["h", "two"], ["y"], "mul/Mul"),
    ]
    weights = [numpy_helper.from_array(np.float32([number]), name) for name, number in (("layer.bias", 0), ("two", 2))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in "xy"]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path / "model.onnx")
    return path / "model.onnx"


def in_ir(path: Path, rank: int) -> Path:
    x, bias = ops.parameter([-1] * rank, np.float32), ops.constant(np.zeros([1] * rank, np.float32))
    added = ops.add(x, bias)
    bias.set_friendly_name("layer.bias")
    added.set_friendly_name("layer/add")
    result = ops.multiply(added, np.float32(2))
    x.output(0).get_tensor().set_names({"x"})
    result.output(0).get_tensor().set_names({"y"})
    ov.save_model(ov.Model([result], [x]), path / "model.xml", compress_to_fp16=False)
    return path / "model.xml"


@pytest.mark.parametrize("write", [in_onnx, in_ir])
@pytest.mark.parametrize("shape", [(2, 5), (1, 20, 7), (2, 3, 40, 6)])
@pytest.mark.parametrize("wrong", [(), (np.nan,), (np.inf, -np.inf, np.nan)])
def test_a_graph_measures_what_pytorch_measures(tmp_path: Path, write: Callable, shape: tuple, wrong: tuple) -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal(shape) * 2.0 ** random.integers(-20, 12, shape)).astype(np.float32)
    values[values < -100] = 0
    values.flat[: len(wrong)] = wrong
    model = Layer()
    with recorded(model) as expected, torch.inference_mode():
        model(torch.from_numpy(values))
    session = EmulatedSession(write(tmp_path, len(shape)), "f32", ranges=True)
    session.run({"x": values})
    ((one,), (other,)) = expected, session.ranges
    np.testing.assert_allclose(other.sketch, one.sketch, rtol=1e-4, atol=1e-3)
    assert replace(other, sketch=()) == replace(one, sketch=())
    assert one.nonfinite == len(wrong)
    assert one.absmax == (np.inf if wrong else np.abs(values).max())
    size = np.abs(values[..., ::16, :])
    assert one.subnormal == pytest.approx(((size > 0) & (size < 2.0**-14)).mean())


def test_the_sketch_estimates_the_relative_error() -> None:
    random = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        values = torch.from_numpy(random.standard_normal((1, 8, 20, 30), dtype=np.float32)) + 1
        error = torch.from_numpy(random.standard_normal((1, 8, 20, 30), dtype=np.float32))
        model = Layer()
        with recorded(model) as ranges:
            for x in (values, values + 1e-3 * error):
                model(x)
        one, other = (replace(item, absmax=1.0) for item in ranges)
        ratios.append(relative_error(one, other) / float(1e-3 * error.norm() / values.norm()))
    assert 0.8 < np.median(ratios) < 1.25
    assert max(ratios) < 4
    assert min(ratios) > 0.25


@pytest.mark.parametrize(
    "change",
    [lambda x: x.mT, lambda x: x.flip(1), lambda x: x.flip(2), lambda x: x.roll(1, 3), lambda x: x + 0.01, lambda x: -x],
    ids=["transposed", "channels", "upside down", "shifted", "bias", "sign"],
)
def test_every_rearrangement_shows_in_the_sketch(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 4, 16, 16), dtype=np.float32))
    model = Layer()
    with recorded(model) as ranges:
        for x in (values, change(values)):
            model(x)
    assert relative_error(*(replace(item, absmax=1.0) for item in ranges)) > 2e-3


def test_hooks_are_gone_afterwards() -> None:
    model = Layer()
    with recorded(model) as ranges:
        model(torch.ones(1, 3))
    model(torch.ones(1, 3))
    assert len(ranges) == 1


# ---------------------------------------------------------------------------------------------------- the comparison


def test_headroom_is_measured_against_the_largest_layer() -> None:
    assert headroom([FLAT, replace(FLAT, absmax=4.0)]) == FP16_MAX / 4
    assert headroom([replace(FLAT, absmax=math.inf)]) == 0
    assert headroom([replace(FLAT, absmax=0.0)]) == math.inf


@pytest.mark.parametrize(
    "fault",
    [
        {"nonfinite": 1, "absmax": math.inf, "sketch": (math.nan, math.nan)},
        {"sketch": (1.0, -1.9)},
        {"sketch": (math.nan, -2.0)},
        {"absmax": 2.1},
        {"count": 8},
    ],
)
def test_the_first_layer_that_differs_is_named(fault: dict) -> None:
    reference = [replace(FLAT, layer=name) for name in "abcd"]
    actual = [reference[0], replace(reference[2], **fault), replace(reference[1], **fault), reference[3]]
    assert first_parting(reference, actual, 1e-3) == "b"
    assert first_parting(reference, reference, 0) is None
    assert first_parting(reference, [replace(FLAT, layer="other", count=9), *reference], 0) is None


def test_where_the_reference_is_not_finite_either_nothing_parts() -> None:
    ill = replace(FLAT, nonfinite=1, absmax=math.inf, sketch=(math.nan, math.nan))
    assert first_parting([ill], [ill], 1e-3) is None


def test_runs_without_a_common_layer_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="no layer in common"):
        first_parting([FLAT], [replace(FLAT, layer="b")], 1e-3)
    with pytest.raises(InputError, match="no layer was measured"):
        headroom([])


def test_unscaling_is_exact_and_leaves_other_layers_alone() -> None:
    (scaled, same) = unscaled([replace(FLAT, layer="a"), replace(FLAT, layer="b")], {"a": -12, "c": 3})
    assert (scaled.absmax, scaled.sketch) == (2.0 * 4096, (4096.0, -8192.0))
    assert same == replace(FLAT, layer="b")


@pytest.mark.parametrize("text", ["junk", "{}", '{"ops": 1}', '{"ops": [{"path": "a"}]}'])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "repair.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"repair\.json"):
        scaled_layers(tmp_path)
