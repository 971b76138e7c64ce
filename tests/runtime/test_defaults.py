"""A config that leaves keys out means what the library means: read from its source, without importing it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import diffusers
import pytest
import transformers

from vaefix.runtime.defaults import completed
from vaefix.runtime.needs import Picture, native_picture, step, vae_factor

CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "vae_decoder": diffusers.AutoencoderKL,
    "vae_encoder": diffusers.AutoencoderKL,
}


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_diffusers(name: str) -> None:
    parameters = list(inspect.signature(CLASSES[name].__init__).parameters.values())[1:]
    expected = {item.name: list(item.default) if isinstance(item.default, tuple) else item.default for item in parameters}
    assert completed({}, name) == expected


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_defaults_are_those_of_transformers(name: str) -> None:
    expected, found = transformers.CLIPTextConfig(), completed({}, name)
    assert {"vocab_size", "intermediate_size", "hidden_act", "eos_token_id", "max_position_embeddings"} <= found.keys()
    assert found == {key: getattr(expected, key) for key in found}


def test_what_the_config_says_is_kept() -> None:
    config = {"scaling_factor": 0.5, "sample_size": None, "own": [1]}
    assert config.items() <= completed(config, "vae").items()
    assert completed(config, "scheduler") == config


def test_nothing_is_imported_for_them() -> None:
    code = (
        "import sys; from vaefix.runtime.defaults import completed; "
        "[completed({}, name) for name in ('unet', 'vae', 'text_encoder')]; "
        "print({'torch', 'diffusers', 'transformers'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("unet", "levels", "expected"),
    [
        ({"sample_size": 128}, 4, Picture(1024, 1024, factor=8)),
        ({"sample_size": [96, 64]}, 4, Picture(768, 512, factor=8)),
        ({"sample_size": None}, 4, Picture(1024, 1024, factor=8)),
        ({}, 3, Picture(512, 512, factor=4)),
        ({"sample_size": 16}, 5, Picture(256, 256, factor=16)),
        ({"sample_size": 16}, 1, Picture(16, 16, factor=1)),
    ],
)
def test_own_size_of_a_model_is_read_from_its_configs(unet: dict, levels: int, expected: Picture) -> None:
    vae = completed({"block_out_channels": [8] * levels}, "vae")
    assert native_picture(completed(unet, "unet"), vae) == expected
    assert vae_factor(vae) == expected.factor
    assert step(expected.factor) == max(8, expected.factor)
