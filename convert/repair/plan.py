"""The result of a repair: which weights and literals move by which power of two, and what that does to the ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vaefix.runtime.errors import InputError

from ..program import Op, Program
from .rules import Constraints, constraints, rule_of


@dataclass(frozen=True)
class Range:
    """What a value reached in float32: `absmax` over its finite elements, and how many were `nonfinite`.

    Elements of float32's lowest value count as neither: they are how attention masks write minus infinity.
    """

    absmax: float
    nonfinite: int = 0


@dataclass(frozen=True)
class WeightStatistics:
    """Largest magnitude and root mean square of a parameter, and its number of dimensions.

    lost: what float16's range takes of it when it is stored, relative to its root mean square.
    """

    absmax: float
    rms: float
    rank: int
    lost: float = 0.0


@dataclass(frozen=True)
class ScaledOp:
    """One measured operation: its output is carried as 2**exponent times what it was."""

    name: str
    path: str
    absmax_before: float
    exponent: int
    absmax_after: float


@dataclass(frozen=True)
class ScalePlan:
    """Powers of two that leave the float32 function bit-identical and bring its values into a 16-bit range.

    parameters: parameter name -> k, the weight is stored as w * 2**k. Zeros are omitted.
    literals: operation name -> k, the number in it (an eps) is multiplied by 2**k. Zeros are omitted.
    ops: every measured operation of a plan that is not empty, in execution order.
    keep_fp32: operations that no plan brings into range, and those that read them; they must execute in float32.
    below_floor: scaled parameter -> its RMS, where that is so small that a 16-bit weight loses precision.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    literals: dict[str, int] = field(default_factory=dict)
    ops: tuple[ScaledOp, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    below_floor: dict[str, float] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the component is left byte for byte as it is and executes in 16 bits throughout."""
        return not (self.parameters or self.literals or self.keep_fp32)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `ScalePlan.from_json` is its inverse."""
        return asdict(self) | {"ops": [asdict(op) for op in self.ops], "keep_fp32": list(self.keep_fp32)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScalePlan:
        """The plan that `to_json` wrote."""
        return cls(**{**data, "ops": tuple(ScaledOp(**op) for op in data["ops"]), "keep_fp32": tuple(data["keep_fp32"])})


def plan_from_exponents(program: Program, exponents: Mapping[str, int], ranges: Mapping[str, Range]) -> ScalePlan:
    """The plan that gives every value its exponent. Raises ValueError if the exponents break a rule.

    exponents: value name -> exponent; absent names have exponent 0.
    """
    rules = constraints(program)
    _check(rules, exponents)
    parameters = {parameter.name: exponents.get(value, 0) for value, parameter in program.parameters.items()}
    literals = {name: literal.factor * exponents.get(literal.value, 0) for name, literal in rules.literals.items()}
    return ScalePlan(
        parameters={name: exponent for name, exponent in parameters.items() if exponent},
        literals={name: exponent for name, exponent in literals.items() if exponent},
        ops=tuple(_scaled(op, ranges[op.name], exponents.get(op.name, 0)) for op in program.ops if op.name in ranges),
    )


def apply_to_program(program: Program, plan: ScalePlan) -> Program:
    """The program with its literals scaled; weights are scaled by whoever reads them (times 2**k is exact in float32).

    Raises InputError if the plan names a parameter or a literal that this program does not have.
    """
    parameters = {parameter.name for parameter in program.parameters.values()}
    foreign = (plan.literals.keys() - {op.name for op in program.ops}) | (plan.parameters.keys() - parameters)
    if foreign:
        raise _foreign(min(foreign))
    return replace(program, ops=tuple(_apply(op, plan.literals.get(op.name, 0)) for op in program.ops))


def _check(rules: Constraints, exponents: Mapping[str, int]) -> None:
    for name in rules.fixed:
        if exponents.get(name, 0):
            raise ValueError(f"{name} must have exponent 0, not {exponents[name]}")
    for equation in rules.equations:
        if sum(coefficient * exponents.get(name, 0) for name, coefficient in equation.items()):
            raise ValueError(f"the exponents { {name: exponents.get(name, 0) for name in equation} } break {equation}")


def _scaled(op: Op, measured: Range, exponent: int) -> ScaledOp:
    return ScaledOp(op.name, op.path, measured.absmax, exponent, math.ldexp(measured.absmax, exponent))


def _apply(op: Op, exponent: int) -> Op:
    if not exponent:
        return op
    _, literal = rule_of(op)
    if literal is None:
        raise _foreign(op.name)
    number = math.ldexp(literal.number, exponent)
    if literal.position >= len(op.args):
        return replace(op, kwargs={**op.kwargs, literal.keyword: number})
    return replace(op, args=(*op.args[: literal.position], number, *op.args[literal.position + 1 :]))


def _foreign(name: str) -> InputError:
    return InputError(
        f"the scale plan moves {name!r}, which this program cannot scale",
        source="repair.json",
        remedy="repair again: the plan belongs to another model or another version of its graph",
    )
