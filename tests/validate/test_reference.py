"""reference.py and inputs.py: the user's model, untouched, on inputs like those of a pipeline."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from vaefix.convert.checkpoint import Checkpoint
from vaefix.runtime.errors import CheckpointError
from vaefix.validate.inputs import PictureSize, sample_inputs
from vaefix.validate.reference import component_outputs, narrow_weights

SIZE = PictureSize(height=64, width=96)
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def checkpoint(demo_model: Path) -> Checkpoint:
    return Checkpoint.open(demo_model)


# ------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("component", COMPONENTS)
def test_inputs_depend_on_the_seed_alone(checkpoint: Checkpoint, component: str) -> None:
    first, again, other = (sample_inputs(checkpoint, component, seed, SIZE) for seed in (3, 3, 4))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_latents_have_unit_variance_before_the_division_by_the_scaling_factor(checkpoint: Checkpoint) -> None:
    latents = sample_inputs(checkpoint, "vae_decoder", 0, PictureSize(512, 512))["latent_sample"]
    assert latents.shape == (1, 4, 64, 64)
    assert latents.std() * 0.13025 == pytest.approx(1, rel=0.05)


def test_pictures_are_within_their_range_and_not_square(checkpoint: Checkpoint) -> None:
    picture = sample_inputs(checkpoint, "vae_encoder", 0, SIZE)["sample"]
    assert picture.shape == (1, 3, 64, 96)
    assert 0.5 < np.abs(picture).max() <= 1


def test_tokens_are_those_of_a_sentence(checkpoint: Checkpoint) -> None:
    ids = sample_inputs(checkpoint, "text_encoder", 0, SIZE)["input_ids"]
    config = checkpoint.config("text_encoder")
    assert ids.shape == (1, config["max_position_embeddings"])
    assert ids.min() >= 0
    assert ids.max() < config["vocab_size"]
    assert len(np.unique(ids)) > 5


# ---------------------------------------------------------------------------------------------------------- reference


def test_the_decoder_is_the_one_of_diffusers_in_float32(checkpoint: Checkpoint, demo_model: Path) -> None:
    feeds = sample_inputs(checkpoint, "vae_decoder", 0, SIZE)
    outputs = component_outputs(checkpoint, "vae_decoder", [feeds, feeds], "fp32")
    vae = AutoencoderKL.from_pretrained(demo_model / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        expected = vae.decode(torch.from_numpy(feeds["latent_sample"])).sample.numpy()
    np.testing.assert_array_equal(outputs.untouched["sample"], np.stack([expected, expected]))


def test_storing_fp16_weights_as_fp16_loses_nothing(checkpoint: Checkpoint) -> None:
    feeds = sample_inputs(checkpoint, "unet", 0, SIZE)
    outputs = component_outputs(checkpoint, "unet", [feeds], "fp16")
    assert outputs.stored is outputs.untouched


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrowing_rounds_to_the_bits_of_the_type_without_its_range(precision: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(50, 50)
    expected = layer.weight.detach().to(dtype).float()
    in_range = expected.abs() > 2.0**-14  # below, fp16 itself has fewer bits
    assert narrow_weights(layer, precision)
    assert torch.equal(layer.weight.detach()[in_range], expected[in_range])
    assert not narrow_weights(layer, precision), "rounding twice must not change anything"
    with torch.no_grad():
        layer.weight.mul_(2.0**30)
    assert not narrow_weights(layer, precision)
    assert layer.weight.isfinite().all()


@pytest.mark.parametrize("component", ["vae_encoder", "vae_decoder"])
def test_a_vae_without_quant_convs_is_narrowed_too(demo_model: Path, tmp_path: Path, component: str) -> None:
    folder = Path(shutil.copytree(demo_model, tmp_path / "model"))
    config = AutoencoderKL.load_config(folder / "vae")
    vae = AutoencoderKL.from_config({**config, "use_quant_conv": False, "use_post_quant_conv": False})
    vae.save_pretrained(folder / "vae")
    checkpoint = Checkpoint.open(folder)
    outputs = component_outputs(checkpoint, component, [sample_inputs(checkpoint, component, 0, SIZE)], "fp16")
    assert all(not np.array_equal(outputs.stored[name], value) for name, value in outputs.untouched.items())


def test_fp32_storage_narrows_nothing() -> None:
    layer = torch.nn.Linear(5, 5)
    before = layer.weight.detach().clone()
    assert not narrow_weights(layer, "fp32")
    assert torch.equal(layer.weight, before)


def test_a_weight_that_is_missing_is_named_rather_than_random(demo_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_model, tmp_path / "model"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight is missing"):
        component_outputs(checkpoint, "unet", [sample_inputs(checkpoint, "unet", 0, SIZE)], "fp32")


def test_weights_of_a_variant_are_found(demo_model: Path, tmp_path: Path, checkpoint: Checkpoint) -> None:
    folder = Path(shutil.copytree(demo_model, tmp_path / "model"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    feeds = [sample_inputs(checkpoint, "vae_decoder", 0, SIZE)]
    expected = component_outputs(checkpoint, "vae_decoder", feeds, "fp32").untouched["sample"]
    actual = component_outputs(Checkpoint.open(folder), "vae_decoder", feeds, "fp32").untouched["sample"]
    np.testing.assert_array_equal(actual, expected)


def test_the_repair_is_not_even_imported() -> None:
    code = "import sys, vaefix.validate.reference as r; print([m for m in sys.modules if 'vaefix.convert' in m])"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "vaefix.convert.checkpoint" in printed
    assert "repair" not in printed
