"""metrics.py: numbers that can be checked by hand, and NaN that never looks like agreement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaefix.runtime.errors import InputError
from vaefix.validate.metrics import compare


def test_a_constant_offset_gives_the_textbook_numbers() -> None:
    difference = compare(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, 1.1, 2.1, 3.1]))
    assert difference.count == 4
    assert difference.peak == 3.0
    assert difference.max_abs == pytest.approx(0.1)
    assert difference.rms == pytest.approx(0.1)
    assert difference.relative == pytest.approx(0.1 / math.sqrt(14 / 4))
    assert difference.psnr_db == pytest.approx(20 * math.log10(3 / 0.1))


def test_the_opposite_has_cosine_minus_one_and_orthogonal_has_zero() -> None:
    assert compare(np.array([1.0, -2.0]), np.array([-1.0, 2.0])).cosine == pytest.approx(-1)
    assert compare(np.array([1.0, 0.0]), np.array([0.0, 5.0])).cosine == pytest.approx(0)


@pytest.mark.parametrize("values", [[0.0, 0.0], [3.0, 3.0], [1.0, -7.5]], ids=["zero", "constant", "varied"])
def test_identical_arrays_agree_perfectly(values: list[float]) -> None:
    difference = compare(np.array(values, np.float32), np.array(values, np.float32))
    assert (difference.max_abs, difference.rms, difference.relative) == (0, 0, 0)
    assert difference.psnr_db == math.inf
    assert difference.cosine == 1


def test_a_constant_reference_that_is_missed_has_no_good_number() -> None:
    difference = compare(np.zeros(3), np.ones(3))
    assert difference.relative == math.inf
    assert difference.psnr_db == -math.inf
    assert math.isnan(difference.cosine)


@given(
    where=st.integers(0, 23),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    in_reference=st.booleans(),
)
def test_one_nonfinite_value_anywhere_is_counted_and_spoils_every_number(where: int, value: float, in_reference: bool) -> None:
    good = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    bad = good.copy()
    bad.flat[where] = value
    difference = compare(bad, good) if in_reference else compare(good, bad)
    assert (difference.nonfinite_reference, difference.nonfinite_actual) == ((1, 0) if in_reference else (0, 1))
    numbers = (difference.max_abs, difference.rms, difference.relative, difference.psnr_db, difference.cosine)
    assert all(math.isnan(number) for number in numbers)


def test_nonfinite_in_both_at_the_same_place_is_not_agreement() -> None:
    values = np.array([1.0, math.inf])
    difference = compare(values, values)
    assert (difference.nonfinite_reference, difference.nonfinite_actual) == (1, 1)
    assert math.isnan(difference.max_abs)


def test_narrow_types_do_not_overflow_while_comparing() -> None:
    assert compare(np.array([60000], np.float16), np.array([-60000], np.float16)).max_abs == 120000
    assert compare(np.array([0], np.uint8), np.array([255], np.uint8)).max_abs == 255


@pytest.mark.parametrize(("left", "right"), [((2, 3), (3, 2)), ((1, 3), (3,)), ((4,), ())])
def test_shapes_must_be_equal_not_merely_broadcastable(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="out_sample: shape") as caught:
        compare(np.ones(left), np.ones(right), source="out_sample")
    assert caught.value.exit_code == 3


def test_comparing_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)))
