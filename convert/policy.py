"""Which weights a precision quantises, and which stay in 16 bits.

In 8 and 4 bits are the weights of Linear and Conv, which are nearly all there are. What stays: norms and biases, tables
(an embedding takes a few rows of them), and what the family names: the first and the last layer, time and class
embeddings, shortcuts. docs/precision.md has the evidence. In 4 bits are Linear only, as a Conv has no inputs in a row that
could share a scale; it is in 8 bits, and so is a Linear that no group divides.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from .precision import ELEMENT_TYPES, Storage
from .program import Program, Ref

GROUPS = (64, 32, 16)
"""Of inputs that share a scale in 4 bits: the largest that divides the inputs."""
_KINDS = {
    "aten.linear.default": ("linear", ("input", "weight")),
    "aten.conv2d.default": ("conv", ("input", "weight")),
    "aten.embedding.default": ("table", ("weight",)),
}


def storages(program: Program, precision: str, kept: str | None, scale_type: str = "f16") -> dict[str, Storage]:
    """Parameter name -> how it is stored.

    kept: what is found in the names of the weights that stay in 16 bits, a regular expression.
    """
    kinds = weight_kinds(program)
    return {
        parameter.name: replace(
            storage_of(parameter.name, kinds[parameter.name], parameter.shape, precision, kept), scale_type=scale_type
        )
        for parameter in program.parameters.values()
    }


def storage_of(name: str, kind: str, shape: tuple[int, ...], precision: str, kept: str | None) -> Storage:
    """How one weight is stored. kind: one of `weight_kinds`."""
    stored = Storage(ELEMENT_TYPES[precision])
    if not stored.is_quantized:
        return stored
    if kind not in ("linear", "conv") or (kept is not None and re.search(kept, name)):
        return Storage("f16")
    if precision != "int4":
        return stored
    group = next((group for group in GROUPS if shape[1] % group == 0), None)
    return Storage("i8") if kind != "linear" or group is None else Storage("i4", group)


def weight_kinds(program: Program) -> dict[str, str]:
    """Parameter name -> `linear`, `conv`, `table` (of an embedding) or `other`, by the operation that reads it."""
    kinds = {parameter.name: "other" for parameter in program.parameters.values()}
    for op in program.ops:
        if op.target in _KINDS:
            kind, names = _KINDS[op.target]
            weight = op.arguments(*names)[-1]
            if isinstance(weight, Ref) and weight.name in program.parameters:
                kinds[program.parameters[weight.name].name] = kind
    return kinds


def weight_counts(program: Program, storage: Mapping[str, Storage]) -> dict[str, dict[str, int]]:
    """Kind -> element type -> how many weights are of that kind and stored so."""
    counts: dict[str, Counter[str]] = {}
    kinds = weight_kinds(program)
    for parameter in program.parameters.values():
        kind = counts.setdefault(kinds[parameter.name], Counter())
        kind[storage[parameter.name].element_type] += math.prod(parameter.shape)
    return {kind: dict(counter) for kind, counter in counts.items()}
