"""Comparisons of outputs: the numbers, the limits they are held to, and what could not be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vaefix.runtime.errors import PictureError, VaefixError

from .budgets import Budget, Kind
from .metrics import compare
from .reference import Expected, Outputs
from .verdict import Comparison

Budgets = Callable[[Kind], Budget]


def compared_in_f32(component: str, expected: Expected, outputs: Outputs, budget: Budgets) -> list[Comparison]:
    """Parity with the reference whose weights are rounded as they are stored, and what the rounding costs."""
    comparisons = compared(component, "parity", (expected.stored, outputs), budget("parity"))
    if expected.stored is not expected.untouched:
        comparisons += compared(component, "storage", (expected.untouched, outputs), budget("storage"))
    return comparisons


def compared(component: str, kind: Kind, pair: tuple[Outputs, Outputs], budget: Budget) -> list[Comparison]:
    """One comparison per output. pair: the reference's outputs and the artifact's."""
    reference, actual = pair
    comparisons = []
    for output in dict.fromkeys([*reference, *actual]):
        result = Comparison(component, kind, output, budget=budget)
        if output not in reference or output not in actual:
            who = "artifact" if output in reference else "reference"
            comparisons.append(replace(result, obstacle=f"the {who} has no such output"))
            continue
        try:
            difference = compare(reference[output], actual[output], source=output)
        except VaefixError as error:
            comparisons.append(replace(result, obstacle=str(error)))
            continue
        count = difference.nonfinite_reference
        obstacle = f"the reference itself has {count} values that are not finite" if count else None
        failures = budget.failures(difference)
        comparisons.append(replace(result, difference=difference, failures=failures, obstacle=obstacle))
    return comparisons


def attempt(component: str, kind: Kind, make: Callable[[], list[Comparison]]) -> list[Comparison]:
    """Comparisons, or the one that says why there are none."""
    try:
        return make()
    except PictureError as error:
        return [Comparison(component, kind, "picture", failures=(str(error),))]
    except VaefixError as error:
        return [Comparison(component, kind, obstacle=str(error))]
