"""Draw with the converted demo model, and decode once as a 16-bit GPU would, with the repair and without it."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vaefix.convert.cache import default_cache
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import demo_model
from vaefix.runtime.pipeline import load_pipeline
from vaefix.validate.emulate import emulate
from vaefix.validate.metrics import compare

PROMPT = "a lighthouse in the snow, at dawn"
MINIMUM_PSNR_DB = 50.0
ENLARGED = 3
LABEL_HEIGHT = 32


def main(output: Path) -> int:
    """Exit code 0 if the unrepaired decode is lost and the repaired one is the reference's picture."""
    pipeline = load_pipeline(output / "model")
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    latents = pipeline(PROMPT, num_inference_steps=20, generator=generator, output_type="latent").images
    latents /= pipeline.vae.config.scaling_factor
    pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample)[0].save(output / "picture.png")

    feeds = {"latent_sample": latents.numpy()}
    vae = AutoencoderKL.from_pretrained(demo_model(default_cache()) / "vae", torch_dtype=torch.float32)
    unrepaired = ConvertOptions(output / "unrepaired", components=("vae_decoder",), repair="never", force=True)
    decoded = {
        "PyTorch, fp32": vae.decode(latents).sample.numpy(force=True),
        "fp16, unrepaired": decode_as_fp16(convert(unrepaired).folder, feeds),
        "fp16, repaired": decode_as_fp16(output / "model", feeds),
    }
    side_by_side(decoded).save(output / "before-after.png")
    before, after = (compare(decoded["PyTorch, fp32"], decoded[name]) for name in ("fp16, unrepaired", "fp16, repaired"))
    print("the VAE decoder in emulated fp16, against PyTorch fp32:")
    print(f"  before the repair: {before.nonfinite_actual} of {before.count} values are not finite")
    print(f"  after the repair:  {after.nonfinite_actual} are not finite, PSNR {after.psnr_db:.1f} dB")
    print(f"pictures: {output / 'picture.png'}, {output / 'before-after.png'}")
    return 0 if before.nonfinite_actual == before.count and after.psnr_db >= MINIMUM_PSNR_DB else 1


def decode_as_fp16(artifact: Path, feeds: dict[str, NDArray]) -> NDArray:
    """The decoder's output as a GPU computes it in 16 bits: float32 [1, 3, H, W]."""
    return emulate(artifact / "vae_decoder" / "openvino_model.xml", feeds)["sample"]


def side_by_side(decoded: dict[str, NDArray]) -> Image.Image:
    """One panel per decode, enlarged, its name above it; what is not finite is black, as on a screen."""
    height, width = (size * ENLARGED for size in next(iter(decoded.values())).shape[2:])
    sheet = Image.new("RGB", (width * len(decoded), height + LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, sample) in enumerate(decoded.items()):
        pixels = np.nan_to_num(sample[0] / 2 + 0.5, posinf=0, neginf=0).clip(0, 1).transpose(1, 2, 0)
        panel = Image.fromarray((pixels * 255).round().astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        sheet.paste(panel, (column * width, LABEL_HEIGHT))
        draw.text((column * width + 8, 6), label, "black", ImageFont.load_default(18))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder that holds the converted model as `model`")
    raise SystemExit(main(parser.parse_args().output))
