"""Seeded random weights for an SDXL, one tensor at a time: bounded and uniform, or with the statistics of trained ones.

Both keep activations at the scale that a trained model has. The uniform ones are the easiest that a quantiser can meet: a row
fills its range evenly, and all rows have the same range. Those of trained networks are not like that. `trained_like` imitates

- Gaussian values within a row (an output channel), in place of evenly spread ones,
- rows of different sizes: log-normal with a sigma of 0.5, so that one row in twelve is more than twice the median,
- outliers: one value in a thousand is four times as large,
- outlier input channels: one column in 256, and at least one, is three to five times as large, as in the feed-forward layers
  of transformers.

They are synthetic: each distribution has the usual shape, its numbers are chosen, not fitted to a published model. What they
cannot show is what quantisation does to a picture. The VAE stays uniform: the inflation of its streams needs bounded tails.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np
from numpy.typing import NDArray

ENCODER_INFLATION = 8  # exponents of two; the largest inflated weight stays below 65504
DECODER_INFLATION = 13

# How much larger a layer's output is than its input (rms); the first pattern that matches wins.
# SiLU of a normalised tensor has an rms of 0.6, a picture of about 0.5, a latent of 1 / 0.13 = 7.7.
_GAINS = tuple(
    (re.compile(pattern), gain)
    for pattern, gain in {
        r"^vae/post_quant_conv": 4.0,
        r"^vae/encoder\.conv_in": 512.0,
        r"^vae/encoder\..*\.conv2": 160.0,
        r"^vae/encoder\..*\.to_out\.0": 96.0,
        r"^vae/decoder\.conv_in": 8.0,
        r"^vae/decoder\..*\.conv2": 40.0,
        r"^vae/decoder\..*\.to_out\.0": 24.0,
        r"^vae/decoder\.conv_out": 0.6,
        r"^unet/.*\.attn2\.to_out\.0": 3.0,
        r"^unet/.*\.(conv2|to_out\.0|net\.2)": 0.3,
        r"^unet/conv_out": 0.3,
        r"^text.*token_embedding": 0.5,
        r"^text.*position_embedding": 0.1,
        r"": 1.0,
    }.items()
)
_CARRIERS = ("unet/conv_in.weight", "unet/up_blocks.2.resnets.2.conv_shortcut.weight", "unet/conv_out.weight")
_STREAM_WRITERS = re.compile(r"\.(conv_in|conv2|to_out\.0)\.(weight|bias)$")
_STREAM_BIASES = re.compile(r"\.(conv_shortcut|(up|down)samplers\.0\.conv)\.bias$")

_ROW_SIGMA = 0.5
_OUTLIER, _ONE_IN = 4.0, 1000
_WIDE_COLUMN, _COLUMN_ONE_IN = (3.0, 5.0), 256


def random_tensor(component: str, key: str, shape: tuple[int, ...], *, seed: int, healthy: bool, trained_like: bool) -> NDArray:
    """float16, little-endian: the weights of one parameter, by its name in the checkpoint; for `healthy` see `ensure_sdxl`.

    Seeded by its own name, so that it does not depend on the order of the tensors.
    """
    name = f"{component}/{key}"
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    if len(shape) > 1:
        gain = next(gain for pattern, gain in _GAINS if pattern.search(name))
        fan_in = 1 if "embedding" in name.rsplit(".", 2)[-2] else math.prod(shape[1:])
        if trained_like and component != "vae":
            values = _trained_like(generator, shape)
            values *= gain / math.sqrt(fan_in)
        else:
            values = _centred(generator, shape)
            values *= gain * math.sqrt(12 / fan_in)
        if name in _CARRIERS:
            _carry(values)
    else:
        values = _centred(generator, shape)
        if "norm" in name:
            values *= 0.2
            values += 1.0 if name.endswith("weight") else 0.0
    halves = values.astype("<f2")
    if component == "vae" and not healthy:
        halves *= np.float16(2.0 ** _inflation(key))  # after the rounding: both twins hold the same digits
    return halves


def _centred(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Uniform in -0.5..0.5, since bounded tails leave the inflated weights inside the range of fp16."""
    values = generator.random(shape, dtype=np.float32)
    values -= 0.5
    return values


def _trained_like(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A matrix or a kernel [out, in, ...] of rms 1 but for the few outliers, as the module's docstring says."""
    values = generator.standard_normal(shape, dtype=np.float32)
    rows = np.exp(_ROW_SIGMA * generator.standard_normal(shape[0], dtype=np.float32))
    columns = np.ones(shape[1], np.float32)
    wide = math.ceil(shape[1] / _COLUMN_ONE_IN)
    columns[generator.integers(0, shape[1], wide)] = generator.uniform(*_WIDE_COLUMN, wide)
    rest = (1,) * (len(shape) - 2)
    values *= _unit(rows).reshape(-1, 1, *rest)
    values *= _unit(columns).reshape(1, -1, *rest)
    values.reshape(-1)[generator.integers(0, values.size, values.size // _ONE_IN)] *= _OUTLIER
    return values


def _unit(factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """With an rms of 1."""
    return factors / np.sqrt(np.square(factors).mean())


def _carry(kernel: NDArray[np.float32]) -> None:
    """Add a path by which the UNet sees its input at its output, as one that predicts noise does.

    Without it the latents of a generation end ten times too large. The four latent channels travel through the wide
    layers in copies of both signs, because SiLU(x) - SiLU(-x) = x.
    """
    out, into = kernel.shape[:2]
    centre = kernel[..., kernel.shape[2] // 2, kernel.shape[3] // 2]
    copies = np.tile(np.vstack([np.eye(4), -np.eye(4)]), (max(out, into) // 8, 1))
    if into == 4:
        centre += copies
    elif out == 4:
        centre += copies.T * (8 / into)
    else:
        centre[:, -out:] += 3 * np.eye(out)  # the last input channels of the last resnet are the skip from conv_in


def _inflation(key: str) -> int:
    if not (_STREAM_WRITERS.search(key) or _STREAM_BIASES.search(key)):
        return 0
    return ENCODER_INFLATION if key.startswith("encoder.") else DECODER_INFLATION
