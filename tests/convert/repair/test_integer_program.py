"""The wrapper around HiGHS: optima that can be checked by hand, or by trying everything."""

from __future__ import annotations

import itertools

import pytest

from vaefix.convert.repair.integer_program import IntegerProgram


def test_integers_are_not_rounded_fractions() -> None:
    program = IntegerProgram()
    x, y = program.variable(0, 10), program.variable(0, 10)
    program.constrain([(2, x), (2, y)], lower=3)
    assert program.minimise({x: 1.0, y: 1.1}) == [2.0, 0.0]


def test_continuous_variables_may_be_fractions() -> None:
    program = IntegerProgram()
    x = program.variable(0, 10, integral=False)
    program.constrain([(2, x)], lower=3)
    assert program.minimise({x: 1.0}) == [1.5]


@pytest.mark.parametrize(("centre", "expected"), [(3, 3), (-9, -5), (9, 5), (0.4, 0)])
def test_distance_is_minimised_within_the_bounds(centre: float, expected: float) -> None:
    program = IntegerProgram()
    x = program.variable(-5, 5)
    found = program.minimise({program.distance(x, centre): 1.0})
    assert found is not None
    assert found[x] == expected


def test_contradiction_has_no_solution() -> None:
    program = IntegerProgram()
    x = program.variable(0, 10)
    program.constrain([(2, x)], 3, 3)
    assert program.minimise({x: 1.0}) is None


def test_no_constraint_at_all() -> None:
    program = IntegerProgram()
    x = program.variable(-4, 9)
    assert program.minimise({x: -1.0}) == [9.0]


def test_optimum_is_that_of_exhaustive_search() -> None:
    program = IntegerProgram()
    variables = [program.variable(-4, 4) for _ in range(4)]
    program.constrain([(1, variables[0]), (-1, variables[1]), (-1, variables[2])], 0, 0)
    program.constrain([(2, variables[2]), (1, variables[3])], 1, 1)
    wishes = (4, -3, 1, 2)
    found = program.minimise({program.distance(x, wish): 1.0 for x, wish in zip(variables, wishes, strict=True)})
    assert found is not None
    best = min(
        sum(abs(value - wish) for value, wish in zip(values, wishes, strict=True))
        for values in itertools.product(range(-4, 5), repeat=4)
        if values[0] == values[1] + values[2] and 2 * values[2] + values[3] == 1
    )
    assert sum(abs(found[x] - wish) for x, wish in zip(variables, wishes, strict=True)) == best
