"""Decoding and encoding a large picture in overlapping tiles, so that the memory it takes does not grow with the picture.

Tiles overlap by a quarter and are blended there, as in diffusers. What the network computes over the whole picture (group
norms, the attention in its middle) it computes over each tile, so tiles differ a little where they meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

OVERLAP = 1 / 4
"""Of a tile's side, at least."""


def decode_in_tiles(decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, tile: int) -> torch.Tensor:
    """The pictures of latents, decoded tile by tile.

    decode: float32 [B, C, h, w] -> float32 [B, 3, h * scale, w * scale], for a whole `scale`.
    latents: float32 [B, C, H, W].  tile: the side of a tile in latent pixels, at least 2. Where the latents are no larger, they
    are decoded at once.
    """
    return _in_tiles(decode, latents, tile, 1)


def encode_in_tiles(
    encode: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor, tile: int, factor: int
) -> torch.Tensor:
    """What pictures are encoded to, tile by tile.

    encode: float32 [B, 3, h * factor, w * factor] -> float32 [B, C, h, w].
    pictures: float32 [B, 3, H * factor, W * factor].  tile: as in `decode_in_tiles`.
    """
    return _in_tiles(encode, pictures, tile, factor)


def _in_tiles(run: Callable[[torch.Tensor], torch.Tensor], whole: torch.Tensor, tile: int, unit: int) -> torch.Tensor:
    """unit: what a latent pixel is in pixels of `whole`."""
    height, width = (side // unit for side in whole.shape[-2:])
    if max(height, width) <= tile:
        return run(whole)
    rows, columns = starts(height, tile), starts(width, tile)
    high, wide = min(height, tile), min(width, tile)
    canvas = torch.empty(0)
    for index, (top, left) in enumerate(product(range(len(rows)), range(len(columns)))):
        up, side = unit * rows[top], unit * columns[left]
        part = run(whole[..., up : up + unit * high, side : side + unit * wide])
        scale = part.shape[-1] // wide
        if index == 0:
            canvas = part.new_zeros((*part.shape[:2], height * scale, width * scale))
            weights = [_weights(places, size, scale) for places, size in ((rows, high), (columns, wide))]
        down, across = (torch.from_numpy(own[at]).to(part.device) for own, at in zip(weights, (top, left), strict=True))
        y, x = rows[top] * scale, columns[left] * scale
        canvas[..., y : y + high * scale, x : x + wide * scale] += part * down[:, None] * across
    return canvas


def starts(size: int, tile: int) -> list[int]:
    """Where tiles begin along a side, evenly spread, the last one ending where the side does."""
    if size <= tile:
        return [0]
    count = math.ceil((size - tile) / (tile - math.ceil(tile * OVERLAP))) + 1
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]


def _weights(places: Sequence[int], tile: int, scale: int) -> list[NDArray[np.float32]]:
    """float32 [tile * scale] for each tile along a side, rising and falling at its ends; those of all tiles add up to 1."""
    length, ramp = tile * scale, tile * OVERLAP * scale
    steps = np.arange(length) + 0.5
    shape = np.minimum(1, np.minimum(steps, length - steps) / ramp)
    total = np.zeros((places[-1] + tile) * scale)
    for place in places:
        total[place * scale :][:length] += shape
    return [(shape / total[place * scale :][:length]).astype(np.float32) for place in places]
