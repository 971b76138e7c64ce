"""Make a healthy component ill the way a trained one is: the same float32 function, beyond the range of float16.

Random exponents wherever the rules allow. The cure is known to exist, so this is the repair's test and the demo's model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from ..precision import FLOAT16_MAX
from ..program import Program
from .integer_program import IntegerProgram
from .plan import Range, ScalePlan, WeightStatistics, plan_from_exponents
from .rules import EPS_FACTOR, constraints

_SMALLEST_PEAK = 2.0**-20  # far above float32's subnormals, nothing but subnormals in float16
_LARGEST_EXPONENT = 24
_FOREMOST = 1e6  # outweighs every other wish together


def plant(
    program: Program,
    ranges: Mapping[str, Range],
    seed: int,
    *,
    largest_peak: float | None = None,
    weights: Mapping[str, WeightStatistics] | None = None,
    literals: bool = True,
) -> ScalePlan:
    """A random plan that follows the rules: one activation at its worst, weights scaled up and down.

    ranges: of the healthy component, by operation name.
    largest_peak: the absmax that no activation exceeds; the worst one exceeds half of it, if the rules let it.
    Unless it is given, a power of two is drawn, from 2**17 to 2**23.
    weights: of the healthy component, by parameter name; given, every weight stays one that float16 can store.
    literals: False for an illness that a checkpoint can store: no eps is scaled and what a norm reads only grows,
    so that the function is the healthy one up to the eps, not bit-identical.
    The same arguments give the same plan.
    """
    generator = random.Random(seed)
    peak = 2.0 ** (23 - generator.randint(0, 6)) if largest_peak is None else largest_peak
    rules = constraints(program)
    held: dict[str, int] = {}
    if not literals:
        for literal in rules.literals.values():
            held[literal.value] = min(literal.factor, held.get(literal.value, EPS_FACTOR))
    free = [value for value in rules.values if value not in rules.fixed]
    measured = [value for value in free if value in ranges]
    worst = generator.choice(measured) if measured else None
    integers = IntegerProgram()
    variables, cost = {}, {}
    for value in free:
        if parameter := program.parameters.get(value):
            lowest, highest = _bounds((weights or {}).get(parameter.name), FLOAT16_MAX)
        else:
            lowest, highest = _bounds(ranges.get(value), peak)
        if value in held:  # beside a larger input an eps fades; any other number would be missed
            lowest, highest = 0, highest if held[value] == EPS_FACTOR else 0
        variables[value] = integers.variable(lowest, highest)
        # The heaviest wish decides where the rules tie values together, so every exponent is reached.
        wish = highest if value == worst else generator.randint(lowest, highest)
        weight = _FOREMOST if value == worst else 1 / (1e-3 + generator.random() ** 2)
        cost[integers.distance(variables[value], wish)] = weight
    for equation in rules.equations:
        integers.constrain([(c, variables[value]) for value, c in equation.items()], 0, 0)
    found = integers.minimise(cost)
    if found is None:  # cannot be: all zero follows every rule
        raise RuntimeError("no exponents follow the rules")
    plan = plan_from_exponents(program, {value: int(found[variable]) for value, variable in variables.items()}, ranges)
    return plan if literals else replace(plan, literals={})


def _bounds(reached: Range | WeightStatistics | None, peak: float) -> tuple[int, int]:
    """The exponents a value may get, 0 among them: symmetric unless it is known what the value reaches."""
    if reached is None or not reached.absmax:
        return -_LARGEST_EXPONENT, _LARGEST_EXPONENT
    lowest = math.ceil(math.log2(_SMALLEST_PEAK / reached.absmax))
    highest = math.floor(math.log2(peak / reached.absmax))
    return max(-_LARGEST_EXPONENT, min(lowest, 0)), max(highest, 0)
