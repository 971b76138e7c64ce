"""openvino.py: exact fp16 rounding, proven by canaries, with the verdict of torch's own half precision."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from openvino import opset13 as ops

from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError
from vaefix.validate.emulate import EmulatedSession, Mode, emulate
from vaefix.validate.emulate.openvino import (
    Rounding,
    arithmetic,
    convert_pairs,
    round_to_fp16,
    survives_compiling,
    working_rounding,
)
from vaefix.validate.metrics import compare

ROUNDINGS = [convert_pairs, arithmetic]


def untouched(values: Sequence[ov.Output]) -> list[ov.Output]:
    return list(values)


def unmarked_pairs(values: Sequence[ov.Output]) -> list[ov.Output]:
    return [ops.convert(ops.convert(value, "f16"), "f32").output(0) for value in values]


def saturating_pairs(values: Sequence[ov.Output]) -> list[ov.Output]:
    return convert_pairs([ops.clamp(value, -65504.0, 65504.0).output(0) for value in values])


def coarser_pairs(values: Sequence[ov.Output]) -> list[ov.Output]:
    shifted = [ops.multiply(value, np.float32(1 + 2**-9)).output(0) for value in values]
    return convert_pairs(shifted)


def save(path: Path, results: Sequence[ov.Node], parameters: Sequence[ov.Node]) -> Path:
    """An IR whose inputs are x0, x1, ... and whose outputs are y0, y1, ..."""
    return save_model(ov.Model(list(results), list(parameters)), path)


def save_model(model: ov.Model, path: Path, *, fp16: bool = False) -> Path:
    for kind, ports in (("x", model.inputs), ("y", model.outputs)):
        for index, port in enumerate(ports):
            port.get_tensor().set_names({f"{kind}{index}"})
    ov.save_model(model, path, compress_to_fp16=fp16)
    return path


def run(path: Path, *values: np.ndarray, mode: Mode = "each") -> np.ndarray:
    with np.errstate(all="ignore"):
        return emulate(path, {f"x{index}": value for index, value in enumerate(values)}, mode)["y0"]


def half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- the rounding


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_canary_accepts_a_rounding_that_is_kept(rounding: Rounding) -> None:
    assert survives_compiling(rounding)


@pytest.mark.parametrize("rounding", [untouched, unmarked_pairs, saturating_pairs, coarser_pairs])
def test_the_canary_refuses_a_rounding_that_is_removed_or_wrong(rounding: Rounding) -> None:
    assert not survives_compiling(rounding)


def test_the_arithmetic_takes_over_where_the_pairs_are_removed() -> None:
    assert working_rounding((unmarked_pairs, arithmetic)) is arithmetic


def test_without_a_working_rounding_there_is_no_emulation() -> None:
    with pytest.raises(DeviceError, match="cannot be emulated"):
        working_rounding((untouched, unmarked_pairs))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_is_bit_exact_for_any_float32(rounding: Rounding) -> None:
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    in_range = (random.standard_normal(200_000) * 2.0 ** random.integers(-26, 17, 200_000)).astype(np.float32)
    halfway = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (halfway[1:] + halfway[:-1]) / 2
    values = np.concatenate([patterns, in_range, halfway, -halfway])
    values = np.where((np.abs(values) < 2.0**-126) & (values != 0), np.float32(0), values)  # CPUs may flush these
    parameter = ops.parameter([-1], np.float32)
    model = ov.Model(rounding([parameter.output(0)]), [parameter])
    actual = next(iter(ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(values).values()))
    np.testing.assert_array_equal(actual, half(values))


def test_every_step_of_a_chain_is_rounded(tmp_path: Path) -> None:
    """Elementwise chains are what a compiler likes to fuse, and with it the roundings in between."""
    x = ops.parameter([-1], np.float32)
    factors = [np.float32(value) for value in (3.3, 0.7, 1.9, -2.1)]
    chain = ops.sqrt(ops.add(ops.multiply(ops.multiply(x, factors[0]), factors[1]), factors[2]))
    path = save(tmp_path / "chain.xml", [ops.multiply(chain, factors[3])], [x])
    values = np.abs(np.random.default_rng(1).standard_normal(5000)).astype(np.float32) * 100
    a, b, c, d = (half(factor) for factor in factors)
    expected = half(half(np.sqrt(half(half(half(half(values) * a) * b) + c))) * d)
    np.testing.assert_array_equal(run(path, values), expected)


# ---------------------------------------------------------------------------------------------------- what is rounded


def test_inputs_and_constants_are_narrowed_and_constants_saturate(tmp_path: Path) -> None:
    x = ops.parameter([-1], np.float32)
    path = save(tmp_path / "add.xml", [ops.add(x, ops.constant(np.array([2049, 1e6, -np.inf], np.float32)))], [x])
    np.testing.assert_array_equal(run(path, np.zeros(3, np.float32)), [2048, 65504, -65504])
    np.testing.assert_array_equal(run(path, np.float32([2049, 0, 0]))[:1], [4096])


def test_an_integer_input_is_rounded_where_it_becomes_a_float(tmp_path: Path) -> None:
    x = ops.parameter([-1], np.int64)
    path = save(tmp_path / "timestep.xml", [ops.convert(x, "f32")], [x])
    np.testing.assert_array_equal(run(path, np.array([999, 2049])), [999, 2048])


def test_shape_arithmetic_keeps_full_precision(tmp_path: Path) -> None:
    x = ops.parameter([-1], np.float32)
    length = ops.convert(ops.shape_of(x), "f32")
    stop = ops.convert(ops.multiply(length, np.float32([0.5])), "i64")  # 2049, which fp16 would turn into 2048
    path = save(tmp_path / "slice.xml", [ops.slice(x, np.array([0]), stop, np.array([1]))], [x])
    assert run(path, np.ones(4098, np.float32)).shape == (2049,)


def test_a_graph_with_a_body_is_refused(tmp_path: Path) -> None:
    condition, x = ops.parameter([], bool), ops.parameter([-1], np.float32)
    branch = ops.parameter([-1], np.float32)
    then, other = (ov.Model([ops.multiply(branch, np.float32(2))], [branch]), ov.Model([ops.relu(branch)], [branch]))
    node = ops.if_op(condition)
    node.set_then_body(then)
    node.set_else_body(other)
    node.set_input(x.output(0), branch, branch)
    node.set_output(then.results[0], other.results[0])
    model = ov.Model([node], [condition, x])
    with pytest.raises(ArtifactError, match="If"):
        round_to_fp16(model, "each", convert_pairs, source="graph.xml")


# ------------------------------------------------------------------------------------------------------ fused kernels


def matmul(x: ov.Node, weight: float) -> ov.Node:
    return ops.matmul(x, ops.constant(np.full((1, 1), weight, np.float32)), False, False)


def test_a_bias_is_added_in_the_accumulator_of_a_fused_kernel(tmp_path: Path) -> None:
    x = ops.parameter([1, 1], np.float32)
    path = save(tmp_path / "bias.xml", [ops.add(matmul(x, 40000), np.float32([[-30000]]))], [x])
    two = np.float32([[2]])
    assert run(path, two, mode="each") == np.inf  # 80000 is written before the bias brings it down
    assert run(path, two, mode="fused") == half(np.float32(50000))


def test_an_activation_follows_in_the_same_kernel(tmp_path: Path) -> None:
    x = ops.parameter([1, 1], np.float32)
    path = save(tmp_path / "relu.xml", [ops.relu(ops.add(matmul(x, -40000), np.float32([[8]])))], [x])
    two = np.float32([[2]])
    assert run(path, two, mode="fused") == 0
    both = save(tmp_path / "two.xml", [ops.relu(matmul(x, 40000))], [x])
    assert run(both, two, mode="fused") == np.inf  # what the kernel writes is beyond fp16 all the same


def test_a_residual_add_takes_in_the_side_computed_last_only(tmp_path: Path) -> None:
    x = ops.parameter([1, 1], np.float32)
    two = np.float32([[2]])
    one_side = save(tmp_path / "one.xml", [ops.add(ops.multiply(x, np.float32([[-20000]])), matmul(x, 40000))], [x])
    assert run(one_side, two, mode="each") == np.inf
    assert run(one_side, two, mode="fused") == 40000
    both_sides = save(tmp_path / "both.xml", [ops.add(matmul(x, 40000), matmul(x, -40000))], [x])
    assert not np.isfinite(run(both_sides, two, mode="fused")).all()


def test_a_value_with_two_readers_is_written(tmp_path: Path) -> None:
    x = ops.parameter([1, 1], np.float32)
    product = matmul(x, 40000)
    results = [ops.add(product, np.float32([[-30000]])), ops.multiply(product, np.float32([[0.5]]))]
    path = save(tmp_path / "readers.xml", results, [x])
    assert run(path, np.float32([[2]]), mode="fused") == np.inf


def normalized(x: ov.Node, factor: float) -> ov.Node:
    """Of [1, 1, 1, 5]: -0.577 and 1.732 times the factor."""
    return ops.multiply(ops.mvn(x, np.array([1]), True, 1e-5, "INSIDE_SQRT"), np.full((1, 4), factor, np.float32))


def test_a_normalisation_with_its_scale_and_shift_is_one_operation(tmp_path: Path) -> None:
    x = ops.parameter([1, 4], np.float32)
    values = np.float32([[1, 1, 1, 5]])
    shifted = save(tmp_path / "norm.xml", [ops.add(normalized(x, 60000), np.float32([[0, 0, 0, -60000]]))], [x])
    np.testing.assert_allclose(run(shifted, values), [[-34640, -34640, -34640, 43923]], rtol=1e-3)
    added = save(tmp_path / "add.xml", [ops.add(normalized(x, 60000), ops.multiply(x, np.float32(-10000)))], [x])
    assert run(added, values)[0, 3] == np.inf  # 103923 is written before something computed brings it down


def test_an_activation_follows_a_scaled_normalisation_in_the_same_kernel(tmp_path: Path) -> None:
    x = ops.parameter([1, 4], np.float32)
    path = save(tmp_path / "relu.xml", [ops.relu(ops.multiply(normalized(x, -60000), np.float32([[0, 1, 1, 1]])))], [x])
    np.testing.assert_allclose(run(path, np.float32([[1, 1, 1, 5]]), mode="fused"), [[0, 34640, 34640, 0]], rtol=1e-3)


# ----------------------------------------------------------------------------- the verdict, against torch's own half


def make_decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        in_channels=4,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def inflate(decoder: Decoder, factor: float) -> None:
    """Multiply the residual stream: what writes into it, and the eps of what reads it."""
    resnets = [*decoder.mid_block.resnets, *itertools.chain(*(block.resnets for block in decoder.up_blocks))]
    attention = decoder.mid_block.attentions[0]
    upsamplers = [block.upsamplers[0].conv for block in decoder.up_blocks if block.upsamplers]
    shortcuts = [resnet.conv_shortcut for resnet in resnets if resnet.conv_shortcut is not None]
    with torch.no_grad():
        for layer in (decoder.conv_in, attention.to_out[0], *(resnet.conv2 for resnet in resnets)):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
        for layer in (*upsamplers, *shortcuts):
            layer.bias.mul_(factor)
    for norm in (attention.group_norm, decoder.conv_norm_out, *(resnet.norm1 for resnet in resnets)):
        norm.eps *= factor**2


def peak(decoder: Decoder, latents: torch.Tensor) -> float:
    """The largest value that any module puts out, residual sums included."""
    values: list[float] = []
    hooks = [m.register_forward_hook(lambda *args: values.append(float(args[-1].abs().max()))) for m in decoder.modules()]
    with torch.inference_mode():
        decoder(latents)
    for hook in hooks:
        hook.remove()
    return max(values)


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))


def write_ir(decoder: Decoder, latents: torch.Tensor, path: Path) -> Path:
    """The decoder as an IR with f16 weights."""
    with torch.no_grad():
        model = ov.convert_model(torch.jit.trace(decoder, latents, check_trace=False), example_input=latents)
    return save_model(model, path, fp16=True)


@dataclass(frozen=True)
class Case:
    """A decoder as an IR, and its outputs in torch."""

    path: Path
    in_float32: np.ndarray
    in_half: np.ndarray


@pytest.fixture(scope="module")
def make_case(tmp_path_factory: pytest.TempPathFactory, latents: torch.Tensor) -> Callable[[float], Case]:
    """make_case(factor): the seeded decoder with its residual stream inflated by `factor`."""

    @cache
    def make(factor: float) -> Case:
        decoder = make_decoder()
        inflate(decoder, factor)
        path = write_ir(decoder, latents, tmp_path_factory.mktemp("decoder") / "decoder.xml")
        with torch.inference_mode():
            in_float32 = decoder(latents).numpy()
            return Case(path, in_float32, decoder.half()(latents.half()).float().numpy())

    return make


def decode(path: Path, latents: torch.Tensor, mode: Mode = "each") -> np.ndarray:
    return EmulatedSession(path, mode).run({"x0": latents.numpy()})["y0"]


pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")


@pytest.mark.parametrize("mode", [pytest.param("each", marks=pytest.mark.slow), "fused"])
def test_a_healthy_decoder_is_finite_and_as_accurate_as_in_torch_half(
    make_case: Callable[[float], Case], latents: torch.Tensor, mode: Mode
) -> None:
    case = make_case(1.0)
    error = compare(case.in_float32, decode(case.path, latents, mode)).relative
    error_in_half = compare(case.in_float32, case.in_half).relative
    assert error_in_half / 3 < error < error_in_half * 1.5, "too accurate to have been rounded, or too coarse"


@pytest.mark.parametrize("mode", ["each", pytest.param("fused", marks=pytest.mark.slow)])
def test_an_inflated_decoder_is_nowhere_finite_as_in_torch_half(
    make_case: Callable[[float], Case], latents: torch.Tensor, mode: Mode
) -> None:
    case = make_case(2.0**18)
    np.testing.assert_array_equal(case.in_float32, make_case(1.0).in_float32)  # the same function, but for fp16
    assert not np.isfinite(case.in_half).any()
    assert not np.isfinite(decode(case.path, latents, mode)).any()


@pytest.mark.slow
@pytest.mark.parametrize("peak_in_fp16", [0.98, 1.02])
def test_the_verdict_at_the_border_is_that_of_torch_half(
    make_case: Callable[[float], Case], latents: torch.Tensor, peak_in_fp16: float
) -> None:
    decoder = make_decoder()
    inflate(decoder, 1000.0)  # beyond everything that is not the residual stream, so that the peak scales with it
    case = make_case(1000.0 * peak_in_fp16 * 65504 / peak(decoder, latents))
    assert np.isfinite(case.in_half).all() == (peak_in_fp16 < 1)
    assert np.isfinite(decode(case.path, latents)).all() == (peak_in_fp16 < 1)


def test_the_arithmetic_computes_what_the_pairs_compute(make_case: Callable[[float], Case], latents: torch.Tensor) -> None:
    path = make_case(1.0).path
    outputs = []
    for rounding in ROUNDINGS:
        core = ov.Core()
        model = core.read_model(path)
        round_to_fp16(model, "each", rounding, source=str(path))
        outputs.append(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([latents.numpy()])[0])
    assert compare(*outputs).relative < 1e-3  # the same roundings; the kernels around them sum in another order


# ---------------------------------------------------------------------------------------------------------- bad input


def test_an_unreadable_graph_is_an_artifact_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.xml"
    broken.write_text("<net")
    with pytest.raises(ArtifactError, match=r"broken\.xml"):
        EmulatedSession(broken)


def test_an_unknown_mode_is_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="each"):
        EmulatedSession(tmp_path / "any.xml", "some")  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    x = ops.parameter([1, 1], np.float32)
    path = save(tmp_path / "small.xml", [matmul(x, 2)], [x])
    with pytest.raises(DeviceError, match=r"x0 \[3, 5\]"):
        emulate(path, {"x0": np.ones((3, 5), np.float32)})


def test_what_the_graph_marks_as_precise_stays_in_f32(tmp_path: Path) -> None:
    """The sine of a time embedding: a product near 560 rounded to fp16 turns it by up to a quarter of a radian."""
    time = ops.parameter([-1], ov.Type.f32)
    model = ov.Model([ops.result(ops.sin(ops.multiply(time, np.float32(0.7))))], [time])
    plain, marked = tmp_path / "plain.xml", tmp_path / "marked.xml"
    for path in (plain, marked):
        ov.serialize(model, path)
    layer, mark = r'<layer [^>]*type="(?:Multiply|Sin)"[^>]*>\s*(?:<data [^>]*/>)?', '<attribute name="precise" version="0"/>'
    text, count = re.subn(layer, rf"\g<0><rt_info>{mark}</rt_info>", marked.read_text())
    assert count == 2
    marked.write_text(text)
    values = np.linspace(700, 999, 500, dtype=np.float32)
    exact = np.sin(values * np.float32(0.7))

    def error(path: Path) -> float:
        session = EmulatedSession(path)
        (output,) = session.run({session.inputs[0]: values}).values()
        return float(np.abs(output - exact).max())

    assert error(marked) <= 1e-3
    assert error(plain) >= 0.1
