"""metrics.py: numbers that can be checked by hand, and NaN that never looks like agreement."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaefix.runtime.errors import InputError, RequestError
from vaefix.validate.metrics import compare, compare_pictures, lpips, ssim


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


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3))


def test_a_picture_is_like_itself_and_unlike_noise_or_nothing() -> None:
    assert ssim(picture(), picture()) == pytest.approx(1)
    assert ssim(picture(), picture().astype(np.float32)) == pytest.approx(1)
    assert ssim(picture(), picture(seed=1)) < 0.1
    assert ssim(picture(), np.zeros_like(picture())) < 0.01


def test_structural_similarity_of_flat_pictures_is_that_of_their_luminance() -> None:
    """Without variance the index is (2 a b + c) / (a a + b b + c), c = 0.01 ** 2 (Wang et al. 2004, equation 6)."""
    bright, dark = np.full((16, 16, 3), 0.8), np.full((16, 16, 3), 0.4)
    assert ssim(bright, dark) == pytest.approx((2 * 0.32 + 1e-4) / (0.64 + 0.16 + 1e-4))


@pytest.mark.parametrize("change", [np.fliplr, np.flipud, lambda values: values[..., [0, 2, 1]], lambda values: 1 - values])
def test_what_an_eye_sees_lowers_the_similarity(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert ssim(picture(), change(picture())) < 0.9


@pytest.mark.parametrize("height", [1, 2, 3, 6, 7, 8])
@pytest.mark.parametrize("width", [1, 2, 40])
def test_a_picture_smaller_than_the_window_is_compared_too(height: int, width: int) -> None:
    values = picture(height, width)
    assert ssim(values, values) == pytest.approx(1)
    assert ssim(values, 1 - values) < 0.99


@pytest.mark.parametrize("measure", [ssim, lpips])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_picture_that_is_not_finite_is_like_nothing(
    measure: Callable[..., float], value: float, lpips_installed: list[object]
) -> None:
    broken = picture()
    broken[3, 4, 1] = value
    for pair in ((broken, picture()), (picture(), broken), (broken, broken)):
        assert math.isnan(measure(*pair))


@pytest.mark.parametrize("measure", [ssim, lpips])
@pytest.mark.parametrize(
    ("left", "right"), [((8, 8, 3), (8, 9, 3)), ((8, 8), (8, 8)), ((1, 8, 8, 3), (1, 8, 8, 3)), ((0, 8, 3), (0, 8, 3))]
)
def test_what_is_no_pair_of_pictures_is_an_error(
    measure: Callable[..., float], left: tuple[int, ...], right: tuple[int, ...], lpips_installed: list[object]
) -> None:
    with pytest.raises(InputError, match="two equal pictures"):
        measure(np.ones(left), np.ones(right))


@pytest.fixture
def lpips_installed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A stand-in for the package `lpips`, whose distance is the rms error; what it was called with."""
    calls: list[object] = []

    class Network:
        def __init__(self, *, net: str, verbose: bool) -> None:
            calls.append((net, verbose))

        def __call__(self, first: torch.Tensor, second: torch.Tensor, *, normalize: bool) -> torch.Tensor:
            calls.append((first.shape, first.dtype, normalize))
            return (first - second).square().mean().sqrt()

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Network))
    return calls


def test_the_perceptual_distance_gives_the_network_what_it_wants(lpips_installed: list[object]) -> None:
    assert lpips(picture(), picture()) == 0
    assert lpips_installed == [("alex", False), ((1, 3, 24, 32), torch.float32, True)]
    assert lpips(np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.5)) == pytest.approx(0.5)


def test_without_its_package_there_is_no_perceptual_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(RequestError, match="pip install lpips"):
        lpips(picture(), picture())


def test_without_its_weights_there_is_no_perceptual_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=fail))
    with pytest.raises(RequestError, match="no network"):
        lpips(picture(), picture())


def test_pictures_are_compared_as_tensors_and_by_the_eye(lpips_installed: list[object]) -> None:
    reference, actual = picture()[None], 1 - picture()[None]
    plain, seen = compare(reference, actual), compare_pictures(reference, actual)
    assert (plain.ssim, plain.lpips) == (None, None)
    assert seen == replace(plain, ssim=ssim(reference[0], actual[0]))
    assert compare_pictures(reference, actual, perceptual=True).lpips == pytest.approx(plain.rms)


def test_a_picture_that_is_not_finite_has_no_similarity() -> None:
    difference = compare_pictures(picture()[None], np.full_like(picture()[None], math.nan))
    assert difference.nonfinite_actual == picture().size
    assert difference.ssim is not None
    assert math.isnan(difference.ssim)
