"""Planted illnesses are found; healthy pictures, however dark or flat, are not refused."""

from __future__ import annotations

import numpy as np
import pytest

from vaefix.runtime.errors import PictureError
from vaefix.runtime.guard import MINIMUM_SPREAD, examine, require_latents, require_pictures, spread


def _pictures(count: int = 2, *, contrast: float = 1.0, brightness: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(-1, 1, (count, 3, 16, 24))
    return (brightness + contrast * noise).astype(np.float32)


def _check(pictures: np.ndarray) -> None:
    require_pictures(pictures, source="vae_decoder", remedy="decode it elsewhere")


@pytest.mark.parametrize(
    ("contrast", "brightness"),
    [(1.0, 0.0), (0.5, 0.5), (0.01, -0.98), (0.01, 0.98), (0.005, 0.0), (30.0, 0.0)],
    ids=["ordinary", "bright", "night", "snow", "fog", "over-saturated"],
)
def test_healthy_pictures_pass(contrast: float, brightness: float) -> None:
    pictures = _pictures(contrast=contrast, brightness=brightness)
    _check(pictures)
    assert spread(pictures[0]) >= MINIMUM_SPREAD


def test_one_coloured_gradient_is_a_picture() -> None:
    picture = np.full((1, 3, 16, 24), -1, dtype=np.float32)
    picture[0, 2] = np.linspace(-1, 0, 24)
    _check(picture)


def test_one_star_in_the_night_is_a_picture() -> None:
    picture = np.full((1, 3, 16, 24), -1, dtype=np.float32)
    picture[0, :, 5, 7] = 1
    _check(picture)


@pytest.mark.parametrize(("value", "counted"), [(np.nan, "1 NaN and 0 Inf"), (np.inf, "0 NaN and 1 Inf"), (-np.inf, "1 Inf")])
def test_a_single_value_that_is_not_finite_is_found_in_its_picture(value: float, counted: str) -> None:
    pictures = _pictures(3)
    pictures[1, 2, 15, 23] = value
    with pytest.raises(PictureError, match=f"picture 2 of 3 is not finite: .*{counted}"):
        _check(pictures)


@pytest.mark.parametrize("colour", [(-1, -1, -1), (0, 0, 0), (0.2, -0.4, 0.9)], ids=["black", "grey", "blue"])
def test_one_constant_colour_is_refused(colour: tuple[float, float, float]) -> None:
    pictures = _pictures(2)
    pictures[1] = np.array(colour, dtype=np.float32)[:, None, None]
    with pytest.raises(PictureError, match="picture 2 of 2 is one constant colour"):
        _check(pictures)


def test_noise_too_faint_for_eight_bits_is_a_constant_colour() -> None:
    with pytest.raises(PictureError, match="constant colour"):
        _check(_pictures(contrast=MINIMUM_SPREAD / 4))


@pytest.mark.parametrize("brightness", [-60.0, 60.0])
def test_values_that_all_lie_outside_the_visible_range_are_seen_as_one_colour(brightness: float) -> None:
    pictures = _pictures(contrast=20, brightness=brightness)
    assert np.ptp(pictures) > 30
    with pytest.raises(PictureError, match="constant colour"):
        _check(pictures)


def test_no_picture_at_all_is_refused() -> None:
    with pytest.raises(PictureError, match="nothing was decoded"):
        _check(np.empty((0, 3, 16, 24), dtype=np.float32))
    assert not examine(np.empty(0)).finite


def test_the_error_says_where_and_what_to_do() -> None:
    with pytest.raises(PictureError, match="vae_decoder: .*\n  remedy: decode it elsewhere") as caught:
        _check(np.full((1, 3, 16, 24), np.nan, dtype=np.float32))
    assert caught.value.exit_code == 1


def test_latents_are_judged_by_finiteness_alone() -> None:
    require_latents(np.zeros((1, 4, 8, 8), dtype=np.float32), remedy="")
    with pytest.raises(PictureError, match="2 NaN and 0 Inf among 4 values"):
        require_latents(np.array([1, np.nan, np.nan, 2], dtype=np.float32), remedy="")
