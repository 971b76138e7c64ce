"""How weights are stored: a tensor of the checkpoint -> the bytes of the artifact, a few megabytes at a time.

One encoder for each storage precision. Non-finite weights are refused here, where every weight passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from vaefix.runtime.errors import CheckpointError

from .checkpoint import TensorRef

ELEMENT_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
STORED_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
_UNCHANGED = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
_TILE = 64
_INFINITY = {"F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}  # bytes, bit pattern


def encode(tensor: TensorRef, exponent: int, precision: str) -> Iterator[memoryview]:
    """The tensor times 2**exponent in `precision` (`fp32`, `fp16`, `bf16`), little-endian, in pieces.

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
        stored, finite = _rounded(scaled, precision)
        if not finite:
            raise CheckpointError(
                f"tensor {tensor.name} reaches {np.abs(scaled).max():.6g}, beyond what {precision} can hold",
                source=tensor.file,
                remedy="convert this component with --repair always, or with --precision COMPONENT=fp32",
            )
        yield stored.data.cast("B")


def transposed(pieces: Iterable[memoryview], shape: tuple[int, int], precision: str) -> Iterator[memoryview]:
    """An encoded matrix with rows and columns exchanged, in pieces; the matrix is in memory once."""
    rows, columns = shape
    word = np.dtype(f"<u{STORED_BYTES[precision]}")
    matrix = np.empty(rows * columns, word)
    position = 0
    for piece in pieces:
        values = np.frombuffer(piece, word)
        matrix[position : position + len(values)] = values
        position += len(values)
    matrix = matrix.reshape(shape)
    band = np.empty((min(_TILE, columns), rows), word)
    for left in range(0, columns, _TILE):
        part = band[: min(_TILE, columns - left)]
        for top in range(0, rows, _TILE):  # by tiles that fit in a core's cache
            part[:, top : top + _TILE] = matrix[top : top + _TILE, left : left + _TILE].T
        yield part.data.cast("B")


def _rounded(values: npt.NDArray[np.float32], precision: str) -> tuple[npt.NDArray, bool]:
    """The values in the precision's own bits, to nearest even, and whether all are finite."""
    if precision == "bf16":
        bits = values.view(np.uint32)
        stored = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2")
        return stored, bool((stored & 0x7F80 != 0x7F80).all())
    with np.errstate(over="ignore"):
        stored = values.astype("<f4" if precision == "fp32" else "<f2")
    return stored, bool(np.isfinite(stored).all())


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
