"""Tiles cover a picture, agree with the whole where they can, and meet without an edge where they cannot."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import PictureError
from vaefix.runtime.modules import Vae
from vaefix.runtime.session import open_session
from vaefix.runtime.tiles import OVERLAP, decode_in_tiles, encode_in_tiles, starts

SIZES = [(16, 16), (17, 16), (9, 40), (31, 23), (64, 8)]


def _upsampled(latents: torch.Tensor) -> torch.Tensor:
    """A decoder that sees no further than each latent pixel."""
    return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8.0)


def _ramp(height: int, width: int) -> torch.Tensor:
    down, across = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return torch.stack([torch.ones_like(down), down, across, down]).expand(2, 4, height, width)


@pytest.mark.parametrize("tile", [2, 3, 8, 16])
@pytest.mark.parametrize("size", range(1, 50, 3))
def test_tiles_cover_a_side_and_overlap_by_a_quarter(size: int, tile: int) -> None:
    places = starts(size, tile)
    assert (places[0], places[-1]) == (0, max(0, size - tile))
    assert all(tile * (1 - OVERLAP) >= after - before > 0 for before, after in itertools.pairwise(places))
    if size > tile:
        assert (len(places) - 1) * (tile - 1) < 2 * size, "no more of them than it takes"


@pytest.mark.parametrize("size", SIZES)
def test_what_every_tile_agrees_on_comes_out_unchanged(size: tuple[int, int]) -> None:
    """The weights of all tiles add up to one everywhere, and every tile is put where it belongs."""
    latents = _ramp(*size)
    whole = _upsampled(latents)
    for tile in (8, 12):
        assert (decode_in_tiles(_upsampled, latents, tile) - whole).abs().max() <= 1e-6
    assert (decode_in_tiles(lambda part: _upsampled(part) * 1.01, latents, 8) - whole).abs().max() > 1e-3


def test_tiles_that_disagree_meet_without_an_edge() -> None:
    count = itertools.count()
    picture = decode_in_tiles(lambda part: torch.full_like(_upsampled(part), next(count) % 2), torch.zeros(1, 4, 8, 24), 8)
    assert (float(picture.min()), float(picture.max())) == (0, 1)
    steps = picture.diff(dim=-1).abs()
    assert 0 < steps.max() <= 1.5 / (8 * 8 * OVERLAP), "a ramp as wide as they overlap"


def test_pictures_are_encoded_in_tiles_that_cover_them_too() -> None:
    """By an encoder that sees no further than what becomes a latent pixel; what is left over at the edge is left out."""
    pictures = torch.rand(2, 3, 8 * 11 + 3, 8 * 23, generator=torch.Generator().manual_seed(0))
    seen = []

    def encode(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[-2:])
        return torch.nn.functional.avg_pool2d(part, 8)

    tiled = encode_in_tiles(encode, pictures, 8, 8)
    assert set(seen) == {(64, 64)}
    assert (tiled - encode(pictures)).abs().max() <= 1e-6
    assert encode_in_tiles(encode, pictures, 23, 8).equal(encode(pictures))


def test_a_picture_no_larger_than_a_tile_is_decoded_whole() -> None:
    seen = []
    latents = torch.zeros(2, 4, 8, 5)
    decode_in_tiles(lambda part: seen.append(part) or _upsampled(part), latents, 8)
    assert len(seen) == 1
    assert seen[0] is latents


def _vae(artifact: Artifact, tile: int | None) -> Vae:
    return Vae(artifact.config("vae_decoder"), open_session(artifact, "vae_decoder"), lambda: None, tile=tile)


def test_tiles_of_a_real_decoder_look_like_the_whole(
    demo_artifact_onnx_cpu: Artifact, reference: diffusers.StableDiffusionXLPipeline, assert_within: Callable[..., None]
) -> None:
    """Group norms and the attention in its middle see only the tile; random weights make that worse than trained ones do."""
    random = torch.randn((2, 4, 6, 10), generator=torch.Generator().manual_seed(0))
    latents = torch.nn.functional.interpolate(random, size=(32, 48), mode="bilinear") / 0.13025
    with torch.no_grad():
        whole = reference.vae.decode(latents).sample
    tiled = _vae(demo_artifact_onnx_cpu, 24).decode(latents).sample
    assert tiled.shape == whole.shape
    difference = (tiled - whole).numpy()
    assert np.sqrt((difference**2).mean()) <= 0.25 * float(whole.std())
    edges = tiled.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    assert edges.max() <= 2 * whole.diff(dim=-1).abs().mean(dim=(0, 1, 2)).max()
    assert_within(_vae(demo_artifact_onnx_cpu, 48).decode(latents).sample, whole, 1e-4)


def test_one_tile_that_is_no_picture_stops_the_decode(demo_artifact_onnx_cpu: Artifact) -> None:
    vae = _vae(demo_artifact_onnx_cpu, 8)
    count, real = itertools.count(), vae.session

    def run_tensors(feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        factor = torch.nan if next(count) == 1 else 1
        return {name: value * factor for name, value in real.run_tensors(feeds).items()}

    vae.session = SimpleNamespace(run_tensors=run_tensors, tensor_device="cpu", precision="f32", device="CPU")
    with pytest.raises(PictureError, match="not finite"):
        vae.decode(torch.randn((1, 4, 8, 20), generator=torch.Generator().manual_seed(0)))
