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
STORED_BYTES = {precision: dtype.itemsize for precision, dtype in _STORED.items()}
_UNCHANGED = {"fp32": "F32", "fp16": "F16"}
_INFINITY = {"F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}  # bytes, bit pattern


def encode(tensor: TensorRef, exponent: int, precision: str) -> Iterator[memoryview]:
    """The tensor times 2**exponent in `precision` (`fp32`, `fp16`), little-endian, in pieces.

    Rounds to nearest even. A tensor that is already in that precision and is not scaled passes byte for byte.
    Raises CheckpointError naming the tensor if it holds NaN or Inf, or exceeds what `precision` can hold.
    """
    unchanged = exponent == 0 and tensor.dtype == _UNCHANGED[precision]
    for chunk in tensor.chunks():
        refuse_nonfinite(tensor, chunk)
        if unchanged:
            yield chunk
            continue
        scaled = np.ldexp(_to_float32(chunk, tensor.dtype), exponent)
        with np.errstate(over="ignore"):
            stored = scaled.astype(_STORED[precision])
        if not np.isfinite(stored).all():
            raise CheckpointError(
                f"tensor {tensor.name} reaches {np.abs(scaled).max():.6g}, beyond what {precision} can hold",
                source=tensor.file,
                remedy="convert this component with --repair always, or with --precision COMPONENT=fp32",
            )
        yield stored.data.cast("B")


def _to_float32(raw: memoryview, dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of a safetensors dtype (`F32`, `F16`, `BF16`) as float32; exact."""
    if dtype == "BF16":
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype="<f4" if dtype == "F32" else "<f2").astype(np.float32, copy=False)


def refuse_nonfinite(tensor: TensorRef, chunk: memoryview) -> None:
    """Raise CheckpointError naming the tensor if this piece of it holds NaN or Inf."""
    # Those are the largest bit patterns: of the positive numbers read as signed, of the negative as unsigned.
    word, infinity = _INFINITY[tensor.dtype]
    unsigned = np.frombuffer(chunk, dtype=f"<u{word}")
    sign = 1 << (8 * word - 1)
    if unsigned.size and (unsigned.max() >= infinity | sign or unsigned.view(f"<i{word}").max() >= infinity):
        count = int(np.count_nonzero(unsigned & (sign - 1) >= infinity))
        raise CheckpointError(
            f"tensor {tensor.name} holds NaN or Inf ({count} values in one piece of {unsigned.size})",
            source=tensor.file,
            remedy="the checkpoint is damaged; get another copy",
        )
