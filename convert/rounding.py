"""What PyTorch makes of storing a weight and reading it back: a second implementation, to hold the written bytes against.

Nothing is shared with `quantize.py` but the rules that its first lines state.
"""

from __future__ import annotations

import torch

from .precision import Storage

_FLOATS = {"f16": torch.float16, "bf16": torch.bfloat16}
_LARGEST = {"i8": 127.0, "i4": 8.0, "f8e4m3": 448.0, "f8e5m2": 448.0}
_FLOAT8 = {"f8e4m3": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2}


def rounded(weight: torch.Tensor, storage: Storage, exponent: int = 0) -> torch.Tensor:
    """A float32 weight as it is after being stored times 2**exponent and divided by that again: float32, the same shape.

    Codes do not depend on the exponent, which goes into their scales.
    """
    if storage.element_type == "f32":
        return weight
    if storage.is_quantized:
        return _dequantized(weight.reshape(-1, storage.group or weight[0].numel()), storage.element_type).reshape(weight.shape)
    if exponent:
        return (weight * 2.0**exponent).to(_FLOATS[storage.element_type]).float() * 2.0**-exponent
    narrow = weight.to(_FLOATS[storage.element_type])
    del weight  # of a table of tokens, two copies are half a GiB
    return narrow.float()


def _dequantized(rows: torch.Tensor, element_type: str) -> torch.Tensor:
    largest, where = rows.abs().max(dim=1, keepdim=True)
    scale = _up(largest / _LARGEST[element_type])
    if element_type == "i4":
        scale = torch.where(rows.gather(1, where) > 0, -scale, scale)
    scale = torch.where(largest == 0, 1.0, scale)
    if element_type in _FLOAT8:
        return (rows / scale).clamp(-448, 448).to(_FLOAT8[element_type]).float() * scale
    lowest, highest = (-127, 127) if element_type == "i8" else (-8, 7)
    return (rows / scale).round().clamp(lowest, highest) * scale


def _up(scale: torch.Tensor) -> torch.Tensor:
    """The next number that float16 has, not zero, as float32."""
    half = scale.half()
    larger = (half.view(torch.int16) + 1).view(torch.float16)
    return torch.where(half.float() < scale, larger, half).clamp(min=2.0**-24).float()
