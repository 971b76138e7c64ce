"""Weights in 8 and 4 bits: rows of float32 -> codes, and one scale for each row or group of a row.

weight = code * scale. The scale is stored in float16, rounded up, so that no code leaves its format; the codes are the
nearest for the scale as stored, ties to even. A scale that float16 would put up by more than a sixteenth, since it is
among its last subnormal numbers or beyond them, is `wide` where it may be: it keeps float16's 11 digits, not its range.

Integers: -127..127 for a row's largest magnitude; in 4 bits the number of largest magnitude becomes -8, whatever its
sign (the scale takes that on), so that all sixteen codes are used: the rule of NNCF's INT4_SYM. 8-bit floating point:
E4M3 (no infinity) and E5M2 of the "OCP 8-bit Floating Point Specification (OFP8)", revision 1.0, 2023, both with the
largest magnitude at 448: E5M2 reaches further up, where nothing would be gained, and a scale may not be too small for
float16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]

_SMALLEST_SCALE = np.float16(2.0**-24)
_SPOILED = 1 + 1 / 16


@dataclass(frozen=True)
class Format:
    """How a number is stored. largest: what a row's largest magnitude is scaled to.

    encode: float32 ratios of weight to scale -> codes; int4: two's complement in the low half of each byte.
    numbers: of each of the 256 codes, float32.
    signed_scale: the number of largest magnitude becomes -largest, so that the scale has the other sign.
    """

    largest: float
    encode: Callable[[NDArray[np.float32]], Codes]
    numbers: NDArray[np.float32]
    signed_scale: bool = False


def quantized(rows: NDArray[np.float32], element_type: str, *, wide: bool = False) -> tuple[Codes, NDArray[np.float32]]:
    """Codes of the same shape, one to a byte, and the scale of each row.

    rows: float32 [N, K]; unless `wide`, at most 448 times what float16 can hold.
    element_type: `i8`, `i4`, `f8e4m3`, `f8e5m2`.  wide: scales may leave float16's range.
    A row of zeros is stored exactly, with scale 1.
    """
    form = FORMATS[element_type]
    size = np.abs(rows)
    largest = size.max(axis=1)
    scales = _rounded_up(largest / np.float32(form.largest), wide=wide)
    if form.signed_scale:
        extreme = np.take_along_axis(rows, size.argmax(axis=1)[:, None], axis=1)[:, 0]
        scales = np.where(extreme > 0, -scales, scales)
    scales[largest == 0] = 1
    return form.encode(rows / scales[:, None]), scales


def numbers(codes: Codes, element_type: str) -> NDArray[np.float32]:
    """What the codes stand for, without the scale."""
    return FORMATS[element_type].numbers[codes]


def packed(codes: Codes) -> Codes:
    """4-bit codes two to a byte, the first in the low half: the order of OpenVINO and ONNX."""
    flat = codes.ravel()
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    pairs: Codes = flat[::2] & np.uint8(0xF) | flat[1::2] << np.uint8(4)
    return pairs


def _rounded_up(scales: NDArray[np.float32], *, wide: bool) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        stored = scales.astype(np.float16)
    short = stored.astype(np.float32) < scales
    stored[short] = np.nextafter(stored[short], np.float16(np.inf))
    found = np.maximum(stored, _SMALLEST_SCALE).astype(np.float32)
    if wide:
        mantissa, exponent = np.frexp(scales)
        digits = np.ldexp(np.ceil(np.ldexp(mantissa, 11)), exponent - 11)
        found = np.where(found > scales * np.float32(_SPOILED), digits, found)
    return found


def _encode_integer(lowest: int, highest: int) -> Callable[[NDArray[np.float32]], Codes]:
    def encode(ratios: NDArray[np.float32]) -> Codes:
        return np.rint(ratios).clip(lowest, highest).astype(np.int8).view(np.uint8)

    return encode


def _encode_float8(mantissa: int, bias: int, largest: float) -> Callable[[NDArray[np.float32]], Codes]:
    """To the nearest number of `mantissa` bits and exponent bias `bias`; what is beyond `largest` becomes that."""
    dropped = 23 - mantissa
    smallest = np.float32(2.0 ** (1 - bias - mantissa))

    def encode(ratios: NDArray[np.float32]) -> Codes:
        values = ratios.clip(-largest, largest)
        bits = values.view(np.uint32)
        magnitude = bits & 0x7FFFFFFF
        even = (magnitude >> dropped) & 1
        normal = ((magnitude + ((1 << (dropped - 1)) - 1) + even) >> dropped) - ((127 - bias) << mantissa)
        # Below the smallest normal number the codes count multiples of the smallest one; the next binade follows of itself.
        subnormal = np.rint(np.abs(values) / smallest).astype(np.uint32)
        small = magnitude < ((128 - bias) << 23)
        return (np.where(small, subnormal, normal) | (bits >> 24) & 0x80).astype(np.uint8)

    return encode


def _float8_numbers(mantissa: int, bias: int) -> NDArray[np.float32]:
    """Codes that stand for no number are given one, too; `encode` makes none of them."""
    codes = np.arange(256)
    exponent, fraction = (codes & 0x7F) >> mantissa, codes & ((1 << mantissa) - 1)
    digits = np.where(exponent == 0, fraction, fraction + (1 << mantissa)).astype(np.float32)
    return np.ldexp(np.where(codes & 0x80, -digits, digits), np.maximum(exponent, 1) - bias - mantissa)


_INTEGERS = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
FORMATS = {
    "i8": Format(127, _encode_integer(-127, 127), _INTEGERS),
    "i4": Format(8, _encode_integer(-8, 7), _INTEGERS, signed_scale=True),
    "f8e4m3": Format(448, _encode_float8(mantissa=3, bias=7, largest=448), _float8_numbers(mantissa=3, bias=7)),
    "f8e5m2": Format(448, _encode_float8(mantissa=2, bias=15, largest=57344), _float8_numbers(mantissa=2, bias=15)),
}
