"""Storage precisions against torch, bit by bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vaefix.convert import checkpoint
from vaefix.convert.checkpoint import TensorRef, read_header
from vaefix.convert.execute import load
from vaefix.convert.precision import ELEMENT_TYPES, Storage, encode
from vaefix.runtime.errors import CheckpointError

ALL_16_BITS = np.arange(1 << 16, dtype=np.uint16)


def stored(tensor: torch.Tensor, folder: Path) -> TensorRef:
    save_file({"w": tensor.contiguous()}, folder / "w.safetensors")
    return read_header(folder / "w.safetensors")["w"]


def encoded(tensor: TensorRef, exponent: int, precision: str) -> bytes:
    ((_, pieces),) = encode(tensor, exponent, Storage(ELEMENT_TYPES[precision]))
    return b"".join(bytes(piece) for piece in pieces)


def finite_patterns(dtype: torch.dtype) -> torch.Tensor:
    """Every finite value of a 16-bit type."""
    values = torch.from_numpy(ALL_16_BITS.view(np.int16).copy()).view(dtype)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_value_decodes_as_torch_decodes_it(tmp_path: Path, dtype: torch.dtype) -> None:
    values = finite_patterns(dtype)
    loaded = load(stored(values, tmp_path))
    assert torch.equal(loaded.view(torch.int32), values.float().view(torch.int32))


@pytest.mark.parametrize("exponent", [-20, -3, 0, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_encoding_rounds_as_torch_rounds(tmp_path: Path, dtype: torch.dtype, exponent: int) -> None:
    torch.manual_seed(0)
    halves = finite_patterns(torch.float16).float()
    between = (halves[:-1] + halves[1:]) / 2  # ties, and through the subnormals
    values = torch.cat([halves, between, torch.randn(5000) * 1e-3]).clamp(-2000, 2000).to(dtype)
    for precision, wanted in (("fp16", torch.float16), ("fp32", torch.float32)):
        expected = (values.double() * 2.0**exponent).to(torch.float32).to(wanted)
        assert encoded(stored(values, tmp_path), exponent, precision) == expected.numpy().tobytes()


def test_fp16_passes_byte_for_byte(tmp_path: Path) -> None:
    values = finite_patterns(torch.float16)
    assert encoded(stored(values, tmp_path), 0, "fp16") == values.numpy().tobytes()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 300), size=st.sampled_from([8, 16, 64]))
def test_chunks_of_any_size_give_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, count: int, size: int) -> None:
    torch.manual_seed(count)
    values = torch.randn(count)
    tensor = stored(values, tmp_path_factory.mktemp("chunks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.TensorRef.chunks, "__defaults__", (size,))
        assert encoded(tensor, 1, "fp16") == (values * 2).half().numpy().tobytes()
        assert torch.equal(load(tensor), values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_nonfinite_weight_is_refused_by_name(tmp_path: Path, dtype: torch.dtype, bad: float, precision: str) -> None:
    values = torch.zeros(1000, dtype=dtype)
    values[-1] = bad
    tensor = stored(values, tmp_path)
    for use in (lambda: encoded(tensor, 0, precision), lambda: load(tensor)):
        with pytest.raises(CheckpointError, match="tensor w holds NaN or Inf"):
            use()


@pytest.mark.parametrize(("value", "exponent"), [(65520.0, 0), (-70000.0, 0), (40000.0, 1)])
def test_value_beyond_fp16_is_refused_and_the_largest_is_not(tmp_path: Path, value: float, exponent: int) -> None:
    with pytest.raises(CheckpointError, match="tensor w reaches"):
        encoded(stored(torch.tensor([0.0, value]), tmp_path), exponent, "fp16")
    assert encoded(stored(torch.tensor([65519.0]), tmp_path), 0, "fp16") == torch.tensor([65504.0]).half().numpy().tobytes()


def test_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    tensor = stored(torch.zeros(1000), tmp_path)
    tensor.file.write_bytes(tensor.file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="ends inside tensor w"):
        encoded(tensor, 0, "fp16")
