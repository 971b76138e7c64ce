"""What PyTorch makes of storing a weight and reading it back: a second implementation, to hold the written bytes against.

Nothing is shared with `quantize.py` but the rules that its first lines state.
"""

from __future__ import annotations

import torch

from .precision import Storage

_FLOATS = {"f16": torch.float16, "bf16": torch.bfloat16}
_LARGEST = {"i8": 127.0, "i4": 8.0, "f8e4m3": 448.0, "f8e5m2": 448.0}
SMALLEST_NORMAL = 2.0**-14  # of float16
_DOUBTFUL_SCALE, _LARGEST_SCALE = 2.0**-20, 65504.0  # between them float16 is within a sixteenth
_FLOAT8 = {"f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}


def rounded(weight: torch.Tensor, storage: Storage, exponent: int = 0) -> torch.Tensor:
    """A float32 weight as it is after being stored times 2**exponent and divided by that again: float32, the same shape.

    Codes do not depend on the exponent, which goes into their scales.
    """
    if storage.element_type == "f32":
        return weight
    if storage.is_quantized:
        rows = weight.reshape(-1, storage.group or weight[0].numel())
        return _dequantized(rows, storage.element_type, wide=storage.scale_type == "f32").reshape(weight.shape)
    if exponent:
        return (weight * 2.0**exponent).to(_FLOATS[storage.element_type]).float() * 2.0**-exponent
    narrow = weight.to(_FLOATS[storage.element_type])
    del weight  # of a table of tokens, two copies are half a GiB
    return narrow.float()


def range_loss(weight: torch.Tensor, storage: Storage) -> torch.Tensor:
    """What float16's range takes from a float32 weight, and a repair can save, as an error of the same shape.

    Of numbers, where they are subnormal; of codes, where the scale would have to be `wide`. bf16 and f32 lose nothing so.
    """
    if storage.is_quantized:
        rows = weight.reshape(-1, storage.group or weight[0].numel())
        scale = rows.abs().amax(dim=1) / _LARGEST[storage.element_type]
        if not ((scale > _LARGEST_SCALE) | ((scale > 0) & (scale < _DOUBTFUL_SCALE))).any():
            return torch.zeros_like(weight)
        narrow, wide = (_dequantized(rows, storage.element_type, wide=wide) for wide in (False, True))
        return (narrow - wide).reshape(weight.shape)
    if storage.element_type != "f16":
        return torch.zeros_like(weight)
    return torch.where(weight.abs() < SMALLEST_NORMAL, weight.half().float() - weight, 0.0)


def _dequantized(rows: torch.Tensor, element_type: str, *, wide: bool) -> torch.Tensor:
    largest, where = rows.abs().max(dim=1, keepdim=True)
    scale = _up(largest / _LARGEST[element_type], wide=wide)
    if element_type == "i4":
        scale = torch.where(rows.gather(1, where) > 0, -scale, scale)
    scale = torch.where(largest == 0, 1.0, scale)
    if element_type in _FLOAT8:
        return (rows / scale).clamp(-448, 448).to(_FLOAT8[element_type]).float() * scale
    lowest, highest = (-127, 127) if element_type == "i8" else (-8, 7)
    return (rows / scale).round().clamp(lowest, highest) * scale


def _up(scale: torch.Tensor, *, wide: bool) -> torch.Tensor:
    """The next number that float16 has, not zero, as float32; if it is `wide`, and that were too far, the next of 11 digits."""
    half = scale.half()
    larger = (half.view(torch.int16) + 1).view(torch.float16)
    found = torch.where(half.float() < scale, larger, half).clamp(min=2.0**-24).float()
    if not wide:
        return found
    mantissa, exponent = torch.frexp(scale)
    return torch.where(found > scale * (1 + 1 / 16), torch.ldexp((mantissa * 2.0**11).ceil(), exponent - 11), found)
