"""PyTorch's type promotion: the one dtype in which an operation of several operands is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .program import Ref

_ORDER = ("bool", "int32", "int64", "float32")
_CATEGORY = {"bool": 0, "int32": 1, "int64": 1, "float32": 2}


def promoted(types: Mapping[str, tuple[str, int]], *operands: Any) -> str:
    """The dtype that PyTorch gives these operands: `bool`, `int32`, `int64`, `float32`.

    types: value name -> dtype and rank, see `Program.types`.  operands: `Ref`s and numbers.
    Tensors decide first, then tensors of rank 0, then numbers: what is weaker counts only where it is of a higher
    category (bool, integer, floating). Source: torch.result_type.
    """
    strengths: tuple[list[str], list[str], list[str]] = [], [], []
    for operand in operands:
        dtype, rank = types[operand.name] if isinstance(operand, Ref) else (_of_number(operand), None)
        is_number = rank is None or dtype == "int"  # a symbolic size is a number
        strengths[2 if is_number else 0 if rank else 1].append("int64" if dtype == "int" else dtype)
    result = "bool"
    for strength in reversed(strengths):
        own = max(strength, key=_ORDER.index, default="bool")
        if strength and _CATEGORY[own] >= _CATEGORY[result]:
            result = own
    return result


def _of_number(number: Any) -> str:
    return {bool: "bool", int: "int64", float: "float32"}[type(number)]
