"""Codes and scales against ml_dtypes, OpenVINO, ONNX and PyTorch, bit by bit, and what they cost."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from openvino import opset13 as ops
from safetensors.torch import save_file

from vaefix.convert import precision
from vaefix.convert.checkpoint import TensorRef, read_header
from vaefix.convert.precision import CODES, SCALE, Storage, encode
from vaefix.convert.quantize import FORMATS, packed, quantized
from vaefix.convert.rounding import rounded
from vaefix.runtime.errors import CheckpointError

FLOAT8 = {"f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2}
ELEMENT_TYPES = (*FLOAT8, "i8", "i4")


def stored(tensor: torch.Tensor, folder: Path) -> TensorRef:
    save_file({"w": tensor.contiguous()}, folder / "w.safetensors")
    return read_header(folder / "w.safetensors")["w"]


def parts(tensor: TensorRef, storage: Storage, exponent: int = 0, *, transposed: bool = False) -> dict[str, bytes]:
    found = encode(tensor, exponent, storage, transposed=transposed)
    return {suffix: b"".join(bytes(piece) for piece in pieces) for suffix, pieces in found}


def read_back(tensor: TensorRef, storage: Storage) -> NDArray[np.float32]:
    """codes * scale as ml_dtypes, or two's complement, reads the bytes."""
    found = parts(tensor, storage)
    scales = np.frombuffer(found[SCALE], np.float16).astype(np.float32)
    if storage.element_type in FLOAT8:
        codes = np.frombuffer(found[CODES], FLOAT8[storage.element_type]).astype(np.float32)
    elif storage.element_type == "i4":
        codes = unpacked(np.frombuffer(found[CODES], np.uint8))[: tensor.count]
    else:
        codes = np.frombuffer(found[CODES], np.int8).astype(np.float32)
    return (codes.reshape(len(scales), -1) * scales[:, None]).reshape(tensor.shape)


def unpacked(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    halves = np.stack([data & 15, data >> 4], axis=1).ravel().astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.float32)


def weights(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Rows of very different scales, with tails."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator).exp()
    return (torch.randn(shape, generator=generator) * rows * 0.02).half()


@pytest.mark.parametrize("element_type", FLOAT8)
def test_every_finite_code_is_the_code_of_its_value(element_type: str) -> None:
    dtype = FLOAT8[element_type]
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(dtype).astype(np.float32)
    finite = np.isfinite(values)
    assert finite.sum() == (254 if element_type == "f8e4m3" else 248)
    np.testing.assert_array_equal(FORMATS[element_type].encode(values[finite]), codes[finite])


@pytest.mark.parametrize("element_type", FLOAT8)
def test_ties_go_to_even_and_what_is_between_to_the_nearest(element_type: str) -> None:
    dtype = FLOAT8[element_type]
    values = np.unique(np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64))
    values = values[np.isfinite(values)]
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)  # exact: one bit more
    near = np.concatenate([np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)])
    for given_values in (middles, near):
        expected = given_values.astype(dtype).view(np.uint8)
        np.testing.assert_array_equal(FORMATS[element_type].encode(given_values) & 0x7F, expected & 0x7F)
        signs = FORMATS[element_type].encode(given_values[given_values != 0]) >> 7
        np.testing.assert_array_equal(signs, given_values[given_values != 0] < 0)


@pytest.mark.parametrize("element_type", FLOAT8)
def test_random_values_of_every_magnitude_get_the_codes_of_ml_dtypes(element_type: str) -> None:
    random = np.random.default_rng(0)
    values = (random.standard_normal(200_000) * np.exp2(random.uniform(-24, 8, 200_000))).astype(np.float32)
    largest = float(ml_dtypes.finfo(FLOAT8[element_type]).max)
    expected = values.clip(-largest, largest).astype(FLOAT8[element_type]).view(np.uint8)
    np.testing.assert_array_equal(FORMATS[element_type].encode(values), expected)


@pytest.mark.parametrize(("element_type", "largest"), [("f8e4m3", 0x7E), ("f8e5m2", 0x7B)])
def test_what_is_too_large_saturates_and_is_no_nan(element_type: str, largest: int) -> None:
    huge = np.array([448.0001, 57345, 1e30, np.inf], np.float32)
    huge = huge if element_type == "f8e4m3" else huge[1:]
    np.testing.assert_array_equal(FORMATS[element_type].encode(huge), largest)
    np.testing.assert_array_equal(FORMATS[element_type].encode(-huge), largest | 0x80)


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
@pytest.mark.parametrize("shape", [(24, 64), (8, 3, 3, 3), (5, 7)])
def test_what_is_stored_is_what_pytorch_rounds_to(tmp_path: Path, element_type: str, shape: tuple[int, ...]) -> None:
    values = weights(shape)
    group = 16 if element_type == "i4" and shape[1] % 16 == 0 else None
    storage = Storage(element_type, group)
    found = read_back(stored(values, tmp_path), storage)
    np.testing.assert_array_equal(found, rounded(values.float(), storage).numpy())


@settings(max_examples=60, deadline=None)
@given(
    element_type=st.sampled_from(ELEMENT_TYPES),
    rows=st.lists(st.lists(st.floats(-60000, 60000, width=16), min_size=4, max_size=4), min_size=1, max_size=6),
)
def test_no_weight_is_further_off_than_half_a_step(element_type: str, rows: list[list[float]]) -> None:
    values = np.array(rows, np.float32)
    codes, scales = quantized(values, element_type)
    wide = np.abs(scales.astype(np.float32))[:, None]
    if element_type in FLOAT8:
        found = codes.view(FLOAT8[element_type]).astype(np.float32) * scales.astype(np.float32)[:, None]
        mantissa, smallest = (3, 2.0**-9) if element_type == "f8e4m3" else (2, 2.0**-16)
        step = np.maximum(np.abs(values) * 2.0**-mantissa, wide * smallest)
    else:
        signed = codes.view(np.int8).astype(np.float32)
        found, step = signed * scales.astype(np.float32)[:, None], wide
        step = step * np.where((element_type == "i4") & (found / wide * np.sign(scales)[:, None] == 7), 2, 1)  # 8 becomes 7
    assert (np.abs(found - values) <= step * 0.5001).all()


def test_an_all_zero_channel_is_exactly_zero_with_scale_one(tmp_path: Path) -> None:
    values = weights((4, 32))
    values[2] = 0
    for element_type in ELEMENT_TYPES:
        tensor = stored(values, tmp_path)
        scales = np.frombuffer(parts(tensor, Storage(element_type))[SCALE], np.float16)
        assert scales[2] == 1
        assert not read_back(tensor, Storage(element_type))[2].any()


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_channel_that_is_not_finite_is_refused_by_name(tmp_path: Path, element_type: str, bad: float) -> None:
    values = weights((300, 4000))  # more than one piece
    values[257, 5] = bad
    with pytest.raises(CheckpointError, match="tensor w: channel 257 holds NaN or Inf"):
        parts(stored(values, tmp_path), Storage(element_type))


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
def test_a_channel_beyond_fp16_is_refused_by_name_unless_a_repair_brings_it_back(tmp_path: Path, element_type: str) -> None:
    """A GPU multiplies codes and scales in 16 bits: it would make infinity of them."""
    values = weights((3, 32)).float()
    values[1, 0] = 70_000
    tensor = stored(values, tmp_path)
    with pytest.raises(CheckpointError, match="tensor w: channel 1 is beyond what fp16 can hold"):
        parts(tensor, Storage(element_type))
    assert parts(tensor, Storage(element_type, scale_type="f32"), -1)


def test_the_number_of_largest_magnitude_uses_the_sixteenth_code() -> None:
    rows = np.array([[8, 1, -7, 0], [-8, 1, 7, 0]], np.float32)
    codes, scales = quantized(rows, "i4")
    np.testing.assert_array_equal(scales, [-1, 1])
    np.testing.assert_array_equal(codes.view(np.int8) * scales[:, None], rows)


def test_four_bits_are_packed_as_openvino_and_onnx_read_them() -> None:
    codes = np.array([-8, 7, 1, -1, 3, 0, -5], np.int8)
    data = packed(codes.view(np.uint8))
    assert data.size == 4
    constant = ov.op.Constant(ov.Type.i4, ov.Shape([8]), np.append(codes, 0).tolist())
    np.testing.assert_array_equal(constant.data.view(np.uint8), data)
    model = ov.Model([ops.convert(constant, "f32")], [], "codes")
    np.testing.assert_array_equal(ov.Core().compile_model(model, "CPU")([])[0][:7], codes)
    tensor = TensorProto(data_type=TensorProto.INT4, dims=[7], raw_data=data.tobytes())
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
def test_a_transposed_matrix_has_its_codes_and_scales_exchanged(tmp_path: Path, element_type: str) -> None:
    tensor = stored(weights((6, 32)), tmp_path)
    storage = Storage(element_type, 16 if element_type == "i4" else None)
    plain, flipped = parts(tensor, storage), parts(tensor, storage, transposed=True)
    scales = np.frombuffer(plain[SCALE], np.float16).reshape(6, -1)
    np.testing.assert_array_equal(np.frombuffer(flipped[SCALE], np.float16).reshape(-1, 6), scales.T)
    codes = [np.frombuffer(found[CODES], np.uint8) for found in (plain, flipped)]
    rows, columns = map(unpacked, codes) if element_type == "i4" else codes
    np.testing.assert_array_equal(columns.reshape(32, 6), rows.reshape(6, 32).T)


@pytest.mark.parametrize("exponent", [-20, 7])
def test_a_repair_changes_scales_by_its_power_of_two_and_no_code(tmp_path: Path, exponent: int) -> None:
    tensor = stored(weights((6, 32)), tmp_path)
    plain = parts(tensor, Storage("i8", scale_type="f32"))
    scaled = parts(tensor, Storage("i8", scale_type="f32"), exponent)
    assert scaled[CODES] == plain[CODES]
    expected = np.frombuffer(plain[SCALE], np.float32) * np.float32(2.0**exponent)
    np.testing.assert_array_equal(np.frombuffer(scaled[SCALE], np.float32), expected)


@pytest.mark.parametrize("element_type", ELEMENT_TYPES)
def test_pieces_of_any_size_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element_type: str) -> None:
    tensor = stored(weights((37, 48)), tmp_path)
    whole = parts(tensor, Storage(element_type))
    monkeypatch.setattr(precision, "CHUNK", 3 * 48 * 2 + 1)
    assert parts(tensor, Storage(element_type)) == whole
    assert {suffix: len(data) for suffix, data in whole.items()} == Storage(element_type).parts(tensor.shape)


@pytest.mark.parametrize("spread", [0.05, 0.005, 0.001])
def test_scaled_e4m3_loses_less_than_unscaled_on_every_tensor(tmp_path: Path, spread: float) -> None:
    values = (torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * spread).float()
    exact = values.numpy()
    unscaled = exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)

    def error(found: NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))

    scaled = error(read_back(stored(values, tmp_path), Storage("f8e4m3")))
    assert scaled < 0.03
    assert scaled < error(unscaled)


@pytest.mark.slow
def test_four_bits_lose_no_more_than_nncf_without_data() -> None:
    import nncf

    exact = weights((128, 256)).float().numpy()
    parameter = ops.parameter([1, 256], np.float32)
    model = ov.Model([ops.matmul(parameter, ops.constant(exact), False, True)], [parameter], "linear")
    mode = nncf.CompressWeightsMode.INT4_SYM
    compressed = nncf.compress_weights(model, mode=mode, group_size=64, all_layers=True, ratio=1.0)
    (product,) = (node for node in compressed.get_ops() if node.get_type_name() == "MatMul")
    weight = ov.Model([ops.result(product.input_value(1))], [], "weight")
    theirs = ov.Core().compile_model(weight, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
    ours = rounded(torch.from_numpy(exact), Storage("i4", 64)).numpy()
    assert np.square(ours - exact).mean() <= 1.01 * np.square(theirs - exact).mean()
