"""How far two tensors are apart, in float64, non-finite values first."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vaefix.runtime.errors import InputError, RequestError


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
    ssim, lpips: of pictures, see the functions; None for other tensors, or where it was not asked for.
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
    ssim: float | None = None
    lpips: float | None = None


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


def compare_pictures(
    reference: ArrayLike, actual: ArrayLike, *, source: str | None = None, perceptual: bool = False
) -> Difference:
    """Compare two pictures, [1, H, W, 3] in 0..1, as the eye does too. perceptual: also by LPIPS.

    Raises InputError as `compare` does, RequestError as `lpips` does.
    """
    difference = compare(reference, actual, source=source)
    pair = (np.asarray(reference)[0], np.asarray(actual)[0])
    return replace(difference, ssim=ssim(*pair), lpips=lpips(*pair) if perceptual else None)


def ssim(reference: ArrayLike, actual: ArrayLike) -> float:
    """Structural similarity of two pictures, [H, W, C] in 0..1, in float64: 1 for identical ones; NaN if not finite.

    The mean over windows of 7x7 pixels, or of the largest odd side that fits in a smaller picture.
    Raises InputError when the shapes differ, or are not those of a picture.
    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    IEEE Transactions on Image Processing 13 (2004); scikit-image's implementation.
    """
    from skimage.metrics import structural_similarity  # not at the top: half a second that only pictures need

    expected, found = _picture_pair(reference, actual)
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return math.nan
    side = min(7, *expected.shape[:2])
    window = side if side % 2 else side - 1
    # A window of one pixel has no sample covariance: only the luminance is compared.
    return float(
        structural_similarity(
            expected, found, win_size=window, channel_axis=2, data_range=1.0, use_sample_covariance=window > 1
        )
    )


def lpips(reference: ArrayLike, actual: ArrayLike) -> float:
    """Perceptual distance of two pictures, [H, W, 3] in 0..1: 0 for identical ones; NaN if not finite.

    The package `lpips` loads weights of its own, and fetches those of its AlexNet the first time.
    Raises InputError when the shapes differ, or are not those of a picture, RequestError where the package or its
    weights are not there.
    Source: Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual metric",
    CVPR 2018.
    """
    try:
        from lpips import LPIPS
    except ImportError:
        raise RequestError("the package lpips is not installed", source="--lpips", remedy="pip install lpips") from None
    import torch

    pair = _picture_pair(reference, actual)
    if not all(np.isfinite(picture).all() for picture in pair):
        return math.nan
    expected, found = (torch.from_numpy(picture).float().permute(2, 0, 1)[None] for picture in pair)
    try:
        network = LPIPS(net="alex", verbose=False)
    except (OSError, RuntimeError) as error:
        remedy = "run it once where it can fetch them"
        raise RequestError(f"has no weights ({error})", source="lpips", remedy=remedy) from None
    with torch.inference_mode():
        return float(network(expected, found, normalize=True))


def _picture_pair(reference: ArrayLike, actual: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as float64 [H, W, C]. Raises InputError."""
    expected, found = np.asarray(reference, np.float64), np.asarray(actual, np.float64)
    if expected.shape != found.shape or expected.ndim != 3 or not expected.size:
        reason = f"shapes {list(expected.shape)} and {list(found.shape)} are not those of two equal pictures"
        raise InputError(reason, source="picture", remedy="give two arrays [H, W, C] of one size")
    return expected, found


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
