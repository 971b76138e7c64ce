"""How far two tensors are apart, in float64, non-finite values first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vaefix.runtime.errors import InputError


@dataclass(frozen=True)
class Difference:
    """What separates an actual tensor from its reference. Where any value is not finite, every number below is NaN.

    nonfinite_reference, nonfinite_actual: how many values are NaN or infinite.
    count: how many values were compared.
    peak: the largest absolute value of the reference.
    max_abs: the largest absolute error.
    rms: the root mean square error.
    relative: `rms` divided by the root mean square of the reference.
    psnr_db: 20 log10(range of the reference / `rms`); inf for identical tensors.
    cosine: of the angle between the two, as vectors; NaN where exactly one of them is all zero.
    """

    nonfinite_reference: int
    nonfinite_actual: int
    count: int
    peak: float
    max_abs: float
    rms: float
    relative: float
    psnr_db: float
    cosine: float


def compare(reference: ArrayLike, actual: ArrayLike, *, source: str | None = None) -> Difference:
    """Compare two tensors of the same shape, any real dtype.

    source: what they are, for the error message.
    Raises InputError when the shapes differ or there is nothing to compare.
    """
    expected, found = np.asarray(reference), np.asarray(actual)
    if expected.shape != found.shape:
        reason = f"shape {list(found.shape)}, the reference has {list(expected.shape)}"
        raise InputError(reason, source=source, remedy="compare an artifact with the model it was made from")
    if not expected.size:
        raise InputError(f"nothing to compare: shape {list(expected.shape)}", source=source)
    expected, found = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    in_reference, in_actual = (int(np.count_nonzero(~np.isfinite(values))) for values in (expected, found))
    if in_reference or in_actual:
        nan = math.nan
        return Difference(in_reference, in_actual, expected.size, nan, nan, nan, nan, nan, nan)
    errors = found - expected
    rms = _rms(errors)
    return Difference(
        nonfinite_reference=0,
        nonfinite_actual=0,
        count=expected.size,
        peak=float(np.abs(expected).max()),
        max_abs=float(np.abs(errors).max()),
        rms=rms,
        relative=_ratio(rms, _rms(expected)),
        psnr_db=_decibels(float(np.ptp(expected)), rms),
        cosine=_cosine(expected, found),
    )


def _rms(values: np.ndarray) -> float:
    return math.sqrt(np.square(values).mean())


def _ratio(numerator: float, denominator: float) -> float:
    if denominator:
        return numerator / denominator
    return math.inf if numerator else 0.0


def _decibels(signal: float, error: float) -> float:
    if not error:
        return math.inf
    return 20 * math.log10(signal / error) if signal else -math.inf


def _cosine(expected: np.ndarray, found: np.ndarray) -> float:
    if np.array_equal(expected, found):
        return 1.0
    lengths = float(np.linalg.norm(expected)) * float(np.linalg.norm(found))
    return float(expected @ found) / lengths if lengths else math.nan
