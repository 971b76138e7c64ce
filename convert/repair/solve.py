"""Choose the exponents: the smallest change that brings every value of a program into the range of float16.

An integer program over the exponents (see `rules`). Hard: no activation above `limit`, no weight above 65504. Then, in
this order, as little as possible of
  1. precision lost (10 for each bit by which a weight's RMS is below 2**-11 or an activation's absmax below 2**-2:
     a model pushed into float16's subnormals is finite but blurred) plus the sum of |e| over the parameters,
  2. the sum of |e| over the activations.

A repair is due where something is too large: an activation within a factor 4 of overflow, or a weight beyond float16. The
repair then aims four times lower, so that a repaired model is not due again. A healthy model whose weights happen to be
small is left alone; that they are too small is for `small.py` to find, and then weights are to be 8 times as large, and a
lost bit costs 1000: keeping precision comes before a small change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vaefix.runtime.errors import InputError

from ..precision import FLOAT16_MAX
from ..program import Program
from .integer_program import IntegerProgram
from .plan import Range, ScalePlan, WeightStatistics, plan_from_exponents
from .rules import Constraints, constraints

HEADROOM = 16.0
DUE = 4.0  # a repair is due above DUE times the limit it aims at
MAX_EXPONENT = 40
WEIGHT_FLOOR = 2.0**-11
WEIGHT_AIM = 2.0**-8  # the floor where small weights are what is wrong: 2**-20 of such a weight is lost to subnormals
ACTIVATION_FLOOR = 2.0**-2
LOST_BIT = 10.0
LOST_BIT_FIRST = 1000.0  # where small weights are what is wrong: the residual stream of a UNet moves a hundred parameters
_TOLERANCE = 1e-6


def solve(
    program: Program,
    ranges: Mapping[str, Range],
    weights: Mapping[str, WeightStatistics],
    limit: float = FLOAT16_MAX / HEADROOM,
    *,
    too_small: bool = False,
) -> ScalePlan:
    """The plan for a component; empty if it needs none. The same arguments give the same plan.

    ranges: operation name -> what it reached on calibration inputs in float32.
    weights: parameter name -> its statistics, for every parameter.
    limit: the largest activation a repaired component may have, infinite where none is computed in float16.
    too_small: float16 loses some of it at the small end, so that a repair is due, however large the rest is.
    Operations that no exponents bring below DUE * limit are listed in `keep_fp32`, as few as possible.
    Raises InputError if the component is not finite in float32, or a weight beyond float16 cannot be scaled.
    """
    _require_finite(program, ranges)
    too_large = any(reached.absmax > DUE * limit for reached in ranges.values())
    if not (too_large or too_small) and all(weight.absmax <= FLOAT16_MAX for weight in weights.values()):
        return ScalePlan()
    floor, lost_bit = (WEIGHT_AIM, LOST_BIT_FIRST) if too_small else (WEIGHT_FLOOR, LOST_BIT)
    problem = _Problem(program, constraints(program), ranges, weights, limit, floor, lost_bit)
    plan = plan_from_exponents(program, _exponents(problem), ranges)
    below_floor = {
        name: rms
        for name, exponent in plan.parameters.items()
        if weights[name].rank > 1 and 0 < (rms := math.ldexp(weights[name].rms, exponent)) < WEIGHT_FLOOR
    }
    return replace(plan, keep_fp32=_keep_fp32(program, plan, DUE * limit), below_floor=below_floor)


@dataclass(frozen=True)
class _Problem:
    program: Program
    rules: Constraints
    ranges: Mapping[str, Range]
    weights: Mapping[str, WeightStatistics]
    limit: float
    floor: float
    lost_bit: float

    def weight(self, value: str) -> WeightStatistics | None:
        """The statistics of a parameter, None for the output of an operation."""
        parameter = self.program.parameters.get(value)
        return None if parameter is None else self.weights[parameter.name]

    def upper(self, value: str) -> int:
        """The largest exponent at which this value is below its hard limit."""
        weight = self.weight(value)
        absmax = weight.absmax if weight else self.ranges.get(value, Range(0.0)).absmax
        limit = FLOAT16_MAX if weight else self.limit
        return MAX_EXPONENT if absmax == 0 or math.isinf(limit) else _clamp(math.floor(math.log2(limit / absmax)))

    def lowest(self, value: str) -> float | None:
        """The exponent below which this value loses precision, None if it does not matter."""
        weight = self.weight(value)
        if weight:
            return math.log2(self.floor / weight.rms) if weight.rank > 1 and weight.rms > 0 else None
        absmax = self.ranges.get(value, Range(0.0)).absmax
        return math.log2(ACTIVATION_FLOOR / absmax) if absmax > 0 else None


def _require_finite(program: Program, ranges: Mapping[str, Range]) -> None:
    """A mask may hold an infinity on the way; an output may not."""
    if any(ranges[value].nonfinite for _, value in program.outputs if value in ranges):
        op = next(op for op in program.ops if op.name in ranges and ranges[op.name].nonfinite)
        raise InputError(
            f"{ranges[op.name].nonfinite} values of the output of {op.target} are not finite in float32",
            source=op.path or op.name,
            remedy="check the weights and the calibration inputs: no repair makes this component finite",
        )


def _clamp(exponent: int) -> int:
    return max(-MAX_EXPONENT, min(exponent, MAX_EXPONENT))


def _exponents(problem: _Problem) -> dict[str, int]:
    """Value name -> exponent at the optimum; where there is none, with the fewest activations excused from the limit."""
    fixed = problem.rules.fixed
    stuck = [value for value in problem.program.parameters if value in fixed and problem.upper(value) < 0]
    if stuck:
        raise _unscalable(problem, stuck)
    bounds = {value: problem.upper(value) for value in problem.rules.values if value not in fixed}
    found = _optimum(problem, bounds)
    if found is None:
        relaxed = _with_fewest_excused(problem, bounds)
        found = None if relaxed is None else _optimum(problem, relaxed)
    if found is None:
        raise _unscalable(problem, [value for value in problem.program.parameters if problem.upper(value) < 0])
    return found


def _variables(problem: _Problem, upper: Mapping[str, int]) -> tuple[IntegerProgram, dict[str, int]]:
    """A program that holds the rules, with the variable of every value that is free to move."""
    integers = IntegerProgram()
    variables = {value: integers.variable(-MAX_EXPONENT, bound) for value, bound in upper.items()}
    for equation in problem.rules.equations:
        integers.constrain([(c, variables[value]) for value, c in equation.items()], 0, 0)
    return integers, variables


def _optimum(problem: _Problem, upper: Mapping[str, int]) -> dict[str, int] | None:
    """The cheapest exponents under these upper bounds, None if the rules cannot be met."""
    integers, variables = _variables(problem, upper)
    cost: dict[int, float] = {}
    activation_cost: dict[int, float] = {}
    for value, variable in variables.items():
        parameter = value in problem.program.parameters
        (cost if parameter else activation_cost)[integers.distance(variable)] = 1.0
        lowest = problem.lowest(value)
        if lowest is not None:
            lost_bits = integers.variable(0, math.inf, integral=False)
            integers.constrain([(1, variable), (1, lost_bits)], lower=lowest)
            cost[lost_bits] = problem.lost_bit
    first = integers.minimise(cost)
    if first is None:
        return None
    integers.constrain([(c, i) for i, c in cost.items()], upper=sum(c * first[i] for i, c in cost.items()) + _TOLERANCE)
    second = integers.minimise(activation_cost) or first
    return {value: int(second[variable]) for value, variable in variables.items()}


def _with_fewest_excused(problem: _Problem, bounds: Mapping[str, int]) -> dict[str, int] | None:
    """The upper bounds without those of the smallest set of activations that has to be excused, None if that is no help."""
    activations = [value for value in bounds if value not in problem.program.parameters]
    integers, variables = _variables(problem, {**bounds, **dict.fromkeys(activations, MAX_EXPONENT)})
    excuses = {value: integers.variable(0, 1) for value in activations}
    for value, excuse in excuses.items():
        slack = MAX_EXPONENT - bounds[value]
        integers.constrain([(1, variables[value]), (-slack, excuse)], upper=bounds[value])
    found = integers.minimise(dict.fromkeys(excuses.values(), 1.0))
    if found is None:
        return None
    return {**bounds, **{value: MAX_EXPONENT for value, excuse in excuses.items() if found[excuse]}}


def _keep_fp32(program: Program, plan: ScalePlan, largest: float) -> tuple[str, ...]:
    """The operations that write, or read, an activation which is still too large."""
    beyond = {op.name for op in plan.ops if op.absmax_after > largest}
    return tuple(op.name for op in program.ops if op.name in beyond or any(ref.name in beyond for ref in op.refs()))


def _unscalable(problem: _Problem, values: list[str]) -> InputError:
    names = [problem.program.parameters[value].name for value in values]
    absmax = {name: problem.weights[name].absmax for name in names}
    name = max(absmax, key=absmax.__getitem__)
    return InputError(
        f"absmax {absmax[name]:.6g} is beyond float16 and the operations around this weight leave no room to scale it",
        source=name,
        remedy="convert this component with --precision COMPONENT=fp32",
    )
