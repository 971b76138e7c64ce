"""The canary: known numbers that tell whether an engine keeps a rounding when it compiles a graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Among them 70000, which must become inf in fp16, and 65000, which must not; ties, subnormals, and bf16's overflow.
_NUMBERS = [70000, -70000, 65520, 65519, 65000, -65000, 3.4e38, 257, 259, 1 / 3, 2049, 6e-5, 1e-7, 2e-8, 0]


def survives(compute: Callable[[NDArray], NDArray], dtype: DTypeLike) -> bool:
    """Whether `compute`, compiled, rounds exactly as numpy does to `dtype`.

    compute: float32 [N] -> float32 [N]; doubles its input, rounds it, and divides it by 8. The factors bring most
    overflows back into range: a rounding that was optimised away ends finite.
    """
    values = np.array(_NUMBERS, np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(dtype).astype(np.float32) / 8
    return np.array_equal(compute(values / 2), expected)
