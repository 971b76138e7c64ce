"""The VAE at its real size: converted in fp16, equal to PyTorch at fp32, finite in emulated fp16."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import write_sdxl
from vaefix.runtime.session import open_session
from vaefix.validate.emulate import EmulatedSession
from vaefix.validate.metrics import compare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with the VAE of SDXL's own size."""
    folder = tmp_path_factory.mktemp("full") / "model"
    size = replace(DEMO_SIZE, vae_channels=(128, 256, 512, 512), norm_groups=32, unet_channels=(32, 64, 64), sample_size=128)
    write_sdxl(folder, size)
    return folder


def test_decoder_draws_512_pixels(model: Path, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((1, 4, 64, 64), dtype=np.float32) / np.float32(0.13025)
    with torch.no_grad():
        vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32)
        expected = vae.decode(torch.from_numpy(latents)).sample.numpy()
        assert not vae.half().decode(torch.from_numpy(latents[:, :, :4, :4]).half()).sample.isfinite().any()
        del vae
    for target, precision in (("openvino-cpu", "fp32"), ("openvino-gpu", "fp16")):
        options = ConvertOptions(tmp_path / precision, model, target, {"*": precision}, components=("vae_decoder",))
        artifact = convert(replace(options, cache=tmp_path / "cache"))
        session = open_session(artifact, "vae_decoder")
        assert session.precision == "f32"
        difference = compare(expected, session.run({"latent_sample": latents})["sample"])
        print(f"{precision}: max abs {difference.max_abs:.2e}, PSNR {difference.psnr_db:.1f} dB")  # noqa: T201
        assert difference.nonfinite_actual == 0
        assert difference.max_abs <= 1e-3
        del session
    emulated = EmulatedSession(tmp_path / "fp16" / "vae_decoder" / "openvino_model.xml")
    difference = compare(expected, emulated.run({"latent_sample": latents})["sample"])
    print(f"emulated fp16: {difference.nonfinite_actual} not finite, PSNR {difference.psnr_db:.1f} dB")  # noqa: T201
    assert difference.nonfinite_actual == 0
    assert difference.psnr_db >= 60
