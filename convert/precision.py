"""How weights are stored: a tensor of the checkpoint -> the bytes of the artifact, a few megabytes at a time.

A precision names how most of a component's weights are stored; which of them are left in 16 bits is for `policy.py`.
Non-finite weights are refused here, where every weight passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vaefix.runtime.errors import CheckpointError

from .checkpoint import CHUNK, DTYPE_BYTES, TensorRef
from .loss import Tally
from .quantize import Codes, numbers, packed, quantized

ELEMENT_TYPES = {
    "fp32": "f32",
    "fp16": "f16",
    "bf16": "bf16",
    "int8": "i8",
    "int4": "i4",
    "fp8_e4m3": "f8e4m3",
    "fp8_e5m2": "f8e5m2",
}
"""Precision -> the element type of most weights."""
QUANTIZED = ("int8", "int4", "fp8_e4m3", "fp8_e5m2")
"""The precisions in which most weights are codes and scales."""
BITS = {"f32": 32, "f16": 16, "bf16": 16, "i8": 8, "i4": 4, "f8e4m3": 8, "f8e5m2": 8}
FLOAT16_MAX = 65504.0
CODES, SCALE = "", "/scale"
"""Suffixes of a weight's parts; one that is not quantised is all CODES."""
PRECISIONS = {element_type: precision for precision, element_type in ELEMENT_TYPES.items()}
"""Element type -> the precision that is named after it."""
_UNCHANGED = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_TILE = 64
_INFINITY = {"F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}  # bytes, bit pattern
_OTHERWISE = "convert this component with --repair always, or with --precision COMPONENT=fp32"


@dataclass(frozen=True)
class Storage:
    """How one weight is stored.

    element_type: `f32`, `f16`, `bf16` as it is; `i8`, `i4`, `f8e4m3`, `f8e5m2` as codes with scales.
    group: so many inputs in a row share a scale; None: all inputs of an output channel.
    scale_type: of the scales. A repair multiplies them by powers of two, which in `f16` could round: then it is `f32`,
        and a scale that float16's range would spoil keeps its digits, see `quantize.py`.
    """

    element_type: str
    group: int | None = None
    scale_type: str = "f16"

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored as codes and scales."""
        return self.element_type not in _UNCHANGED

    def groups(self, shape: tuple[int, ...]) -> int:
        """How many scales each output channel has."""
        return 1 if self.group is None else math.prod(shape[1:]) // self.group

    def parts(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Suffix -> bytes of each part of such a weight, in the order in which `encode` gives them."""
        codes = -(-math.prod(shape) * BITS[self.element_type] // 8)
        if not self.is_quantized:
            return {CODES: codes}
        return {CODES: codes, SCALE: shape[0] * self.groups(shape) * BITS[self.scale_type] // 8}


def is_exact(tensor: TensorRef, exponent: int, storage: Storage) -> bool:
    """Whether every weight times 2**exponent is stored as it is, whatever it is."""
    wide = storage.element_type == "f32"
    return wide or (exponent == 0 and not storage.is_quantized and tensor.dtype == _UNCHANGED[storage.element_type])


def encode(
    tensor: TensorRef, exponent: int, storage: Storage, *, transposed: bool = False, tally: Tally | None = None
) -> Iterator[tuple[str, Iterable[memoryview]]]:
    """Suffix and bytes of each part of the tensor times 2**exponent, little-endian, to be read one after the other.

    transposed: a matrix, rows and columns exchanged.  tally: takes what is lost.
    Floating point is rounded to nearest even; a tensor that is already in that type and is not scaled passes byte for byte.
    Codes are those of `quantize.py`.
    Raises CheckpointError naming the tensor if it holds NaN or Inf, or exceeds what its storage can hold.
    """
    if storage.is_quantized:
        codes, factors = _quantized(tensor, exponent, storage, tally)
        scales = np.ldexp(factors, exponent).astype(f"<f{BITS[storage.scale_type] // 8}")
        if transposed:
            codes, scales = np.ascontiguousarray(codes.T), np.ascontiguousarray(scales.T)
        yield CODES, [(packed(codes) if storage.element_type == "i4" else codes).data.cast("B")]
        yield SCALE, [scales.data.cast("B")]
        return
    pieces = _rounded_pieces(tensor, exponent, storage, tally)
    if transposed:
        pieces = _transposed(pieces, (tensor.shape[0], tensor.shape[1]), BITS[storage.element_type] // 8)
    yield CODES, pieces


def _quantized(
    tensor: TensorRef, exponent: int, storage: Storage, tally: Tally | None
) -> tuple[Codes, npt.NDArray[np.float32]]:
    """Codes [N, K] and scales [N, groups]; K counts all inputs of an output channel. In float32 a few rows at a time."""
    channels, inputs = tensor.shape[0], math.prod(tensor.shape[1:])
    codes = np.empty((channels, inputs), np.uint8)
    scales = np.empty((channels, storage.groups(tensor.shape)), np.float32)
    row = inputs * DTYPE_BYTES[tensor.dtype]
    first = 0
    for chunk in tensor.chunks(max(1, CHUNK // row) * row):
        rows = _to_float32(chunk, tensor.dtype).reshape(-1, inputs)
        some = slice(first, first + len(rows))
        _refuse_channels(tensor, first, rows, "holds NaN or Inf", "the checkpoint is damaged")
        with np.errstate(over="ignore"):  # an engine makes numbers of the codes in 16 bits
            largest = np.ldexp(np.abs(rows).max(axis=1), exponent).astype(np.float16)
        _refuse_channels(tensor, first, largest, "is beyond what fp16 can hold", _OTHERWISE)
        groups = rows.reshape(len(rows) * scales.shape[1], -1)
        found, factors = quantized(groups, storage.element_type, wide=storage.scale_type == "f32")
        codes[some], scales[some] = found.reshape(rows.shape), factors.reshape(len(rows), -1)
        if tally is not None:
            tally.add(tensor.name, groups, numbers(found, storage.element_type) * factors[:, None])
        first += len(rows)
    return codes, scales


def _refuse_channels(tensor: TensorRef, first: int, rows: npt.NDArray, reason: str, remedy: str) -> None:
    good = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not good.all():
        channel = first + int(np.argmin(good))
        raise CheckpointError(f"tensor {tensor.name}: channel {channel} {reason}", source=tensor.file, remedy=remedy)


def _rounded_pieces(tensor: TensorRef, exponent: int, storage: Storage, tally: Tally | None) -> Iterator[memoryview]:
    element_type, exact = storage.element_type, is_exact(tensor, exponent, storage)
    unchanged = exponent == 0 and tensor.dtype == _UNCHANGED[element_type]
    for chunk in tensor.chunks():
        refuse_nonfinite(tensor, chunk)
        if unchanged:
            yield chunk
            continue
        scaled = np.ldexp(_to_float32(chunk, tensor.dtype), exponent)
        stored, finite = _rounded(scaled, element_type)
        if not finite:
            reason = f"tensor {tensor.name} reaches {np.abs(scaled).max():.6g}, beyond what {PRECISIONS[element_type]} can hold"
            raise CheckpointError(reason, source=tensor.file, remedy=_OTHERWISE)
        if tally is not None and not exact:
            tally.add(tensor.name, scaled, _to_float32(stored.data.cast("B"), _UNCHANGED[element_type]))
        yield stored.data.cast("B")


def _transposed(pieces: Iterable[memoryview], shape: tuple[int, int], width: int) -> Iterator[memoryview]:
    """A matrix with rows and columns exchanged, in pieces; it is in memory once. width: bytes of an element."""
    rows, columns = shape
    word = np.dtype(f"<u{width}")
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


def _rounded(values: npt.NDArray[np.float32], element_type: str) -> tuple[npt.NDArray, bool]:
    """The values in the element type's own bits, to nearest even, and whether all are finite."""
    if element_type == "bf16":
        bits = values.view(np.uint32)
        stored = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2")
        return stored, bool((stored & 0x7F80 != 0x7F80).all())
    with np.errstate(over="ignore"):
        stored = values.astype("<f4" if element_type == "f32" else "<f2")
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
