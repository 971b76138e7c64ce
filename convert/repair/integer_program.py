"""A small integer program: variables with bounds, linear constraints, one cost at a time. Solved by HiGHS through scipy."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the process's stdout clean: HiGHS prints a line of its own there whatever its options say."""
    libc = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    libc.fflush(None)
    stdout = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 1)
            yield
    finally:
        libc.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


Terms = Iterable[tuple[float, int]]


@dataclass
class IntegerProgram:
    """Built up by `variable` and `constrain`; `minimise` may be called any number of times."""

    _lower: list[float] = field(default_factory=list)
    _upper: list[float] = field(default_factory=list)
    _integral: list[int] = field(default_factory=list)
    _rows: list[list[tuple[float, int]]] = field(default_factory=list)
    _row_bounds: list[tuple[float, float]] = field(default_factory=list)

    def variable(self, lower: float, upper: float, *, integral: bool = True) -> int:
        """The index of a new variable with lower <= value <= upper."""
        self._lower.append(lower)
        self._upper.append(upper)
        self._integral.append(int(integral))
        return len(self._lower) - 1

    def distance(self, variable: int, centre: float = 0) -> int:
        """The index of a new variable that is at least |variable - centre|; where it has a cost, equal to it."""
        bound = self.variable(0, math.inf, integral=False)
        self.constrain([(1, bound), (-1, variable)], lower=-centre)
        self.constrain([(1, bound), (1, variable)], lower=centre)
        return bound

    def constrain(self, terms: Terms, lower: float = -math.inf, upper: float = math.inf) -> None:
        """Require lower <= sum of coefficient * variable <= upper."""
        self._rows.append(list(terms))
        self._row_bounds.append((lower, upper))

    def minimise(self, cost: Mapping[int, float]) -> list[float] | None:
        """The value of every variable at the least cost, integral ones rounded, or None if nothing satisfies them all."""
        if not self._lower:
            return []
        weights = np.zeros(len(self._lower))
        weights[list(cost)] = list(cost.values())
        with _silenced():
            result = milp(
                weights,
                constraints=self._constraints(),
                bounds=Bounds(np.array(self._lower), np.array(self._upper)),
                integrality=np.array(self._integral),
                options={"mip_rel_gap": 0.0},
            )
        if result.status == 2:  # infeasible
            return None
        if not result.success:
            raise RuntimeError(f"HiGHS: {result.message}")
        return [float(round(x)) if integral else float(x) for x, integral in zip(result.x, self._integral, strict=True)]

    def _constraints(self) -> list[LinearConstraint]:
        if not self._rows:
            return []
        entries = [(row, column, c) for row, terms in enumerate(self._rows) for c, column in terms]
        rows, columns, coefficients = zip(*entries, strict=True)
        shape = (len(self._rows), len(self._lower))
        lower, upper = zip(*self._row_bounds, strict=True)
        return [LinearConstraint(csr_array((coefficients, (rows, columns)), shape=shape), lower, upper)]
