"""How weights are stored: a tensor of the checkpoint -> the bytes of the artifact, a few megabytes at a time.

One encoder for each storage precision. Non-finite weights are refused here, where every weight passes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vaefix.runtime.errors import CheckpointError

from .checkpoint import TensorRef

ELEMENT_TYPES = {"fp32": "f32", "fp16": "f16"}
_STORED: dict[str, np.dtype] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
_UNCHANGED = {"fp32": "F32", "fp16": "F16"}
_MAX_EXPONENT = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}


def encode(tensor: TensorRef, exponent: int, precision: str) -> Iterator[memoryview]:
    """The tensor times 2**exponent in `precision` (`fp32`, `fp16`), little-endian, in pieces.

    Rounds to nearest even. A tensor that is already in that precision and is not scaled passes byte for byte.
    Raises CheckpointError naming the tensor if it holds NaN or Inf, or exceeds what `precision` can hold.
    """
    unchanged = exponent == 0 and tensor.dtype == _UNCHANGED[precision]
    for chunk in tensor.chunks():
        _refuse_nonfinite(tensor, chunk)
        if unchanged:
            yield chunk
            continue
        scaled = np.ldexp(to_float32(chunk, tensor.dtype), exponent)
        with np.errstate(over="ignore"):
            stored = scaled.astype(_STORED[precision])
        if not np.isfinite(stored).all():
            raise CheckpointError(
                f"tensor {tensor.name} reaches {np.abs(scaled).max():.6g}, beyond what {precision} can hold",
                source=tensor.file,
                remedy="convert this component with --repair always, or with --precision COMPONENT=fp32",
            )
        yield memoryview(stored.view(np.uint8))


def decode(tensor: TensorRef) -> npt.NDArray[np.float32]:
    """The whole tensor as float32, in its shape. Raises CheckpointError naming the tensor if it holds NaN or Inf."""
    result = np.empty(tensor.count, dtype=np.float32)
    position = 0
    for chunk in tensor.chunks():
        _refuse_nonfinite(tensor, chunk)
        values = to_float32(chunk, tensor.dtype)
        result[position : position + values.size] = values
        position += values.size
    return result.reshape(tensor.shape)


def to_float32(raw: memoryview, dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of a safetensors dtype (`F32`, `F16`, `BF16`) as float32; exact."""
    if dtype == "BF16":
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype="<f4" if dtype == "F32" else "<f2").astype(np.float32, copy=False)


def _refuse_nonfinite(tensor: TensorRef, chunk: memoryview) -> None:
    """NaN and Inf are the values whose exponent bits are all set."""
    word, mask = _MAX_EXPONENT[tensor.dtype]
    bits = np.frombuffer(chunk, dtype=word) & word(mask)
    if bits.size and bits.max() == mask:
        count = int(np.count_nonzero(bits == mask))
        raise CheckpointError(
            f"tensor {tensor.name} holds NaN or Inf ({count} values in one piece of {bits.size})",
            source=tensor.file,
            remedy="the checkpoint is damaged; get another copy",
        )
