"""What is lost is added up rightly, and what float16's range takes is told apart from what its digits take."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vaefix.convert.checkpoint import TensorRef, read_header
from vaefix.convert.loss import Tally, TensorLoss, overall, relative, two_digits, worst
from vaefix.convert.precision import Storage, encode, is_exact
from vaefix.convert.quantize import FORMATS, numbers, quantized
from vaefix.convert.repair.ranges import statistics
from vaefix.convert.rounding import range_loss, rounded

TYPES = ("f16", "bf16", "i8", "i4", "f8e4m3", "f8e5m2")


def ref(tmp_path: Path, weight: torch.Tensor) -> TensorRef:
    save_file({"w": weight}, tmp_path / "w.safetensors")
    return read_header(tmp_path / "w.safetensors")["w"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def storage(element_type: str, scale_type: str = "f16") -> Storage:
    return Storage(element_type, 16 if element_type == "i4" else None, scale_type)


@pytest.mark.parametrize("exponent", [0, -12, 5])
@pytest.mark.parametrize("element_type", TYPES)
def test_the_tally_of_what_is_written_is_what_pytorch_loses(tmp_path: Path, element_type: str, exponent: int) -> None:
    weight, how, tally = random(96, 8192), storage(element_type, "f32"), Tally()  # more than one piece
    for _, pieces in encode(ref(tmp_path, weight), exponent, how, tally=tally):
        assert sum(len(piece) for piece in pieces)
    expected = relative(rounded(weight, how, exponent).numpy(), weight.numpy())
    (loss,) = tally.losses().values()
    assert loss.relative == pytest.approx(expected, rel=1e-5)
    assert loss.count == weight.numel()
    assert loss.relative > 0


def test_what_is_stored_as_it_is_loses_nothing_and_is_not_added_up(tmp_path: Path) -> None:
    tally, tensor = Tally(), ref(tmp_path, random(64, 64).half())
    for element_type in ("f16", "f32"):
        for exponent in (0, 3) if element_type == "f32" else (0,):
            assert is_exact(tensor, exponent, Storage(element_type))
            for _, pieces in encode(tensor, exponent, Storage(element_type), tally=tally):
                list(pieces)
    assert not tally.losses()
    assert not is_exact(tensor, 3, Storage("f16"))
    assert not is_exact(tensor, 0, Storage("bf16"))
    assert not is_exact(tensor, 0, Storage("i8"))


def test_overall_counts_weights_and_not_their_size() -> None:
    losses = {"large": TensorLoss(1e12, 0.0, 30), "small": TensorLoss(1e-12, 1e-14, 10)}
    assert overall(losses, 40) == pytest.approx(0.1 * math.sqrt(1 / 4))
    assert worst(losses) == "small"
    assert worst({"large": losses["large"]}) is None
    assert worst({}) is None
    assert two_digits(0.0123456) == 0.012


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_output_that_is_not_finite_is_lost_altogether(value: float) -> None:
    assert relative(np.float32([1, value]), np.float32([1, 1])) == math.inf
    assert relative(np.float32([1, 1]), np.float32([0, 0])) == math.inf
    assert relative(np.float32([0, 0]), np.float32([0, 0])) == 0


@pytest.mark.parametrize("exponent", [-40, -20, -16, 0, 26])
@pytest.mark.parametrize("element_type", ["i8", "i4", "f8e4m3", "f8e5m2"])
def test_wide_scales_do_not_care_how_large_the_weights_are(element_type: str, exponent: int) -> None:
    rows = random(32, 64).numpy()
    codes, scales = quantized(np.ldexp(rows, exponent), element_type, wide=True)
    error = relative(np.ldexp(numbers(codes, element_type) * scales[:, None], -exponent), rows)
    plain = relative(
        numbers(*(quantized(rows, element_type)[0], element_type)) * quantized(rows, element_type)[1][:, None], rows
    )
    assert error <= 1.1 * plain
    twin = rounded(torch.from_numpy(np.ldexp(rows, exponent)), Storage(element_type, scale_type="f32")).numpy()
    np.testing.assert_array_equal(twin, numbers(codes, element_type) * scales[:, None])


@pytest.mark.parametrize("element_type", ["i8", "i4", "f8e4m3", "f8e5m2"])
def test_wide_scales_of_ordinary_weights_are_those_of_float16(element_type: str) -> None:
    rows = np.ldexp(random(64, 64).numpy(), -np.arange(64)[:, None] % 8)
    for narrow, wide in zip(quantized(rows, element_type), quantized(rows, element_type, wide=True), strict=True):
        np.testing.assert_array_equal(narrow, wide)
    assert (quantized(rows, element_type)[1].astype(np.float16) == quantized(rows, element_type)[1]).all()


@pytest.mark.parametrize("element_type", FORMATS)
def test_numbers_of_codes_are_encoded_as_these_codes(element_type: str) -> None:
    form = FORMATS[element_type]
    codes = np.unique(form.encode(np.linspace(-form.largest, form.largest, 20001, dtype=np.float32)))
    np.testing.assert_array_equal(form.encode(numbers(codes, element_type)), codes)


@pytest.mark.parametrize("element_type", TYPES)
def test_float16s_range_takes_nothing_from_ordinary_weights(element_type: str) -> None:
    found = statistics(random(256, 1024), storage(element_type))
    assert found.lost <= 2.0**-19
    if element_type == "bf16":
        assert statistics(random(256, 1024) * 2.0**-40, storage(element_type)).lost == 0


@pytest.mark.parametrize(("element_type", "exponent"), [("f16", -10), ("f16", -30), ("i8", -14), ("i4", -18), ("f8e4m3", -12)])
def test_float16s_range_takes_more_from_smaller_weights(element_type: str, exponent: int) -> None:
    weight = random(256, 1024) * 2.0**exponent
    found = statistics(weight, storage(element_type))
    assert found.lost > 2.0**-17
    assert found.lost == pytest.approx(relative((weight + range_loss(weight, storage(element_type))).numpy(), weight.numpy()))
