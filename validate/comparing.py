"""Comparisons of outputs: the numbers, the limits they are held to, and what could not be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from vaefix.runtime.errors import PictureError, VaefixError
from vaefix.runtime.session import EngineOptions, Session

from .budgets import EXACT, HANDED_ON, Budget, Kind
from .metrics import Difference, compare
from .reference import Expected, Outputs
from .verdict import Comparison

Budgets = Callable[[Kind], Budget]
Announce = Callable[[str], None]
Measures = Mapping[str, Callable[..., Difference]]

_IDENTICAL = "every output equals the reference's in every bit, as no two engines' do: was it compared with itself?"
_CONSTANT = "the reference is one constant, so that being equal proves nothing"
_AS_TENSORS: Measures = {}
IN_F32 = EngineOptions(in_f32=True)
"""For what is compared as the graph in f32."""


def compared_in_f32(
    component: str, expected: Expected, outputs: Outputs, budget: Budgets, measures: Measures = _AS_TENSORS
) -> list[Comparison]:
    """Parity with the reference whose weights are rounded as they are stored, and what the rounding costs.

    measures: by output, where it is not `compare` that measures it.
    """
    parity = compared(component, "parity", (expected.stored, outputs), budget("parity"), measures)
    if all(item.difference is not None and item.difference.max_abs == 0 for item in parity):
        parity = [replace(item, failures=(*item.failures, _IDENTICAL)) for item in parity]
    if expected.stored is expected.untouched:
        return parity
    return [*parity, *compared(component, "storage", (expected.untouched, outputs), budget("storage"), measures)]


def compared(
    component: str, kind: Kind, pair: tuple[Outputs, Outputs], budget: Budget, measures: Measures = _AS_TENSORS
) -> list[Comparison]:
    """One comparison per output. pair: the reference's outputs and the artifact's.  measures: as in `compared_in_f32`."""
    reference, actual = pair
    comparisons = []
    for output in dict.fromkeys([*reference, *actual]):
        limits = EXACT if output in HANDED_ON else budget
        result = Comparison(component, kind, output, budget=limits)
        if output not in reference or output not in actual:
            who = "artifact" if output in reference else "reference"
            comparisons.append(replace(result, obstacle=f"the {who} has no such output"))
            continue
        try:
            difference = measures.get(output, compare)(reference[output], actual[output], source=output)
        except VaefixError as error:
            comparisons.append(replace(result, obstacle=str(error)))
            continue
        failures, obstacle = limits.failures(difference), None
        if difference.nonfinite_reference:
            obstacle = f"the reference itself has {difference.nonfinite_reference} values that are not finite"
        elif not failures and difference.count > 1 and not np.ptp(reference[output]):
            obstacle = _CONSTANT
        comparisons.append(replace(result, difference=difference, failures=failures, obstacle=obstacle))
    return comparisons


def elsewhere(session: Session, asked: str) -> tuple[str, ...]:
    """A warning where another device runs it than the one that was named: `AUTO` may choose the CPU."""
    if session.device.startswith(asked.upper()):
        return ()
    return (f"{asked} ran it on {session.device} in {session.precision}",)


def attempt(component: str, kind: Kind, make: Callable[[], list[Comparison]]) -> list[Comparison]:
    """Comparisons, or the one that says why there are none."""
    try:
        return make()
    except PictureError as error:
        return [Comparison(component, kind, "picture", failures=(str(error),))]
    except VaefixError as error:
        return [Comparison(component, kind, obstacle=str(error))]
