"""Weights that imitate trained ones: what their statistics are, and what they leave as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import write_sdxl
from vaefix.convert.synthetic_weights import random_tensor

SHAPE = (1024, 512)


def weights(
    component: str = "unet", key: str = "mid_block.attentions.0.proj_in.weight", *, seed: int = 0, trained_like: bool = True
) -> np.ndarray:
    return random_tensor(component, key, SHAPE, seed=seed, healthy=False, trained_like=trained_like).astype(np.float64)


def rms(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.sqrt(np.square(values).mean(axis=axis))


def test_rows_differ_in_size_as_those_of_trained_layers_do() -> None:
    assert 0.45 < np.log(rms(weights(), axis=1)).std() < 0.55
    assert np.log(rms(weights(trained_like=False), axis=1)).std() < 0.05


def test_a_few_input_channels_are_much_larger() -> None:
    columns = np.sort(rms(weights(), axis=0))
    assert columns[-2] / np.median(columns) > 2.5
    assert columns[-3] / np.median(columns) < 1.5
    assert columns[-1] / np.median(columns) < 6


def test_values_within_a_row_have_outliers() -> None:
    def reach(values: np.ndarray) -> float:
        return float(np.median(np.abs(values).max(axis=1) / rms(values, axis=1)))

    assert reach(weights()) > 4 > 2 > reach(weights(trained_like=False))


def test_the_sizes_of_activations_stay() -> None:
    ratio = rms(weights()) / rms(weights(trained_like=False))
    assert 0.97 < ratio < 1.03


@pytest.mark.parametrize(
    ("component", "key"), [("vae", "decoder.mid_block.attentions.0.to_q.weight"), ("unet", "conv_in.bias")]
)
def test_the_vae_and_what_is_no_matrix_stay_as_they_are(component: str, key: str) -> None:
    shape = SHAPE if component == "vae" else (320,)
    first, second = (random_tensor(component, key, shape, seed=0, healthy=False, trained_like=flag) for flag in (True, False))
    assert np.array_equal(first, second)


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    assert np.array_equal(weights(), weights())
    assert not np.array_equal(weights(), weights(seed=1))


def test_a_picture_is_drawn_with_such_weights(tmp_path: Path) -> None:
    write_sdxl(tmp_path, DEMO_SIZE, trained_like=True)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    seen: dict[str, torch.Tensor] = {}

    def keep(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        seen.setdefault("sample", arguments[0].flatten())
        seen.setdefault("predicted", output[0].flatten())

    pipeline.unet.register_forward_hook(keep)
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 2, "width": 64, "height": 64, "output_type": "np"}
    (picture,) = pipeline("a cat", generator=generator, **settings).images
    assert np.isfinite(picture).all()
    assert picture.std() > 0.05, "no constant colour"
    agreement = torch.corrcoef(torch.stack([seen["sample"], seen["predicted"]]))[0, 1]
    assert 0.5 < agreement < 0.99, "it predicts noise, and adds to what it sees"
