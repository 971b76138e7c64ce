"""budgets.py: every budget accepts equality and refuses what a wrong conversion produces."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from vaefix.validate.budgets import SMALL_PARAMETERS, Budget, component_budget, generation_budget
from vaefix.validate.metrics import Difference, compare, compare_pictures

ALL = {
    "parity": component_budget("parity", SMALL_PARAMETERS, "fp16"),
    "parity of a large network": component_budget("parity", SMALL_PARAMETERS + 1, "fp16"),
    "generation": generation_budget("parity", SMALL_PARAMETERS, "fp16"),
    "generation of a large network": generation_budget("parity", SMALL_PARAMETERS + 1, "fp16"),
    **{f"storage in {precision}": component_budget("storage", 1, precision) for precision in ("fp16", "bf16")},
    **{f"emulated {precision}": component_budget("emulated", 1, precision) for precision in ("fp16", "bf16")},
    **{f"hardware in {precision}": component_budget("hardware", 1, precision) for precision in ("fp32", "fp16", "bf16")},
    **{
        f"generation, {kind} in {precision}": generation_budget(kind, 1, precision)
        for kind in ("storage", "emulated", "hardware")
        for precision in ("fp16", "bf16")
    },
    "generation, hardware in fp32": generation_budget("hardware", 1, "fp32"),
}
REFERENCE = np.random.default_rng(0).standard_normal((1, 4, 16, 24)).astype(np.float32)


@pytest.mark.parametrize("budget", ALL.values(), ids=ALL.keys())
def test_equality_is_within_every_budget(budget: Budget) -> None:
    assert budget.evidence
    assert budget.failures(compare(REFERENCE, REFERENCE)) == ()


@pytest.mark.parametrize("budget", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values * 1.02,
        lambda values: values[:, [1, 0, 2, 3]],
        lambda values: values.swapaxes(2, 3).reshape(values.shape),
        lambda values: values + 0.1,
        lambda values: values * 0,
        lambda values: -values,
        lambda values: np.where(values > 3, np.nan, values),
        lambda values: np.where(values > 3, np.inf, values),
    ],
    ids=["2% scale", "swapped channels", "transposed", "offset", "all zero", "negated", "NaN", "inf"],
)
def test_what_a_wrong_conversion_produces_is_within_no_budget(
    budget: Budget, damage: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert budget.failures(compare(REFERENCE, damage(REFERENCE)))


@pytest.mark.parametrize("budget", ALL.values(), ids=ALL.keys())
def test_a_number_that_is_nan_fails_even_when_every_value_was_finite(budget: Budget) -> None:
    difference = Difference(
        0, 0, count=4, peak=1.0, **dict.fromkeys(("max_abs", "rms", "relative", "psnr_db", "cosine"), math.nan)
    )
    assert budget.failures(difference)


def test_a_peak_that_is_nan_does_not_switch_the_limit_off() -> None:
    difference = Difference(0, 0, count=4, peak=math.nan, max_abs=1.0, rms=1.0, relative=0.0, psnr_db=99.0, cosine=1.0)
    assert Budget(evidence="", max_abs=1e-3).failures(difference)


def test_the_largest_error_is_measured_in_units_of_the_peak() -> None:
    budget = Budget(evidence="", max_abs=1e-3)
    assert budget.failures(compare(np.array([1.0, 0.0]), np.array([1.0, 0.002])))
    assert not budget.failures(compare(np.array([10.0, 0.0]), np.array([10.0, 0.002])))


def test_a_picture_that_looks_different_is_within_no_budget_for_pictures() -> None:
    budget = Budget(evidence="", ssim=0.99)
    flat = np.full((1, 16, 16, 3), 0.5)
    assert not budget.failures(compare_pictures(flat, flat))
    (failure,) = budget.failures(compare_pictures(flat, flat + 0.02 * np.indices((16, 16)).sum(0)[None, :, :, None] % 2))
    assert failure.startswith("SSIM 0.")
    assert not budget.failures(compare(flat, 1 - flat)), "what is no picture has no SSIM"


def test_failures_name_the_limit_and_the_value() -> None:
    (failure,) = Budget(evidence="", psnr_db=60).failures(compare(np.array([0.0, 1.0]), np.array([0.0, 0.9])))
    assert "23.0 dB" in failure
    assert "60.0 dB" in failure
