"""The ONNX artifact in optimum-onnx: loaded unchanged, in an environment of its own, it draws the same latents.

optimum-onnx 0.1.0 asks for another optimum and transformers than optimum-intel, so the test builds that environment.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.guard import require_pictures

pytestmark = pytest.mark.slow

PROMPT = "a red cat under the sky"
PACKAGES = ["optimum-onnx==0.1.0", "onnxruntime", "diffusers==0.39.0", "accelerate"]
PEER = f"""
import sys, numpy, torch
from optimum.onnxruntime import ORTStableDiffusionXLPipeline
pipeline = ORTStableDiffusionXLPipeline.from_pretrained(sys.argv[1], provider="CPUExecutionProvider")
generator = torch.Generator().manual_seed(0)
arguments = dict(height=64, width=96, num_inference_steps=5, guidance_scale=7.5, output_type=sys.argv[3])
numpy.save(sys.argv[2], numpy.asarray(pipeline({PROMPT!r}, generator=generator, **arguments).images))
"""


@pytest.fixture(scope="module")
def peer_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with optimum-onnx; the tested torch first, as scripts/environment.sh installs it."""
    folder = tmp_path_factory.mktemp("peer")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for packages in ([f"torch=={torch.__version__.partition('+')[0]}"], PACKAGES):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def draw(python: Path, artifact: Path, file: Path, kind: str) -> np.ndarray:
    """What the peer draws: `latent`, or a picture as `np` has it, [1, H, W, 3] in 0..1."""
    subprocess.run([python, "-c", PEER, artifact, file, kind], check=True)
    result: np.ndarray = np.load(file)
    return result


@pytest.mark.parametrize(("target", "precision"), [("onnx-cpu", "fp32"), ("onnx-cpu", "fp16"), ("onnx-cuda", "fp32")])
def test_optimum_computes_the_same_latents(
    peer_python: Path,
    demo_model: Path,
    cache_folder: Path,
    tmp_path: Path,
    assert_within: Callable[[object, object, float], None],
    target: str,
    precision: str,
) -> None:
    options = ConvertOptions(tmp_path / "artifact", demo_model, target, {"*": precision}, cache=cache_folder)
    latents = draw(peer_python, convert(options).folder, tmp_path / "latents.npy", "latent")
    reference = diffusers.StableDiffusionXLPipeline.from_pretrained(demo_model, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        PROMPT,
        height=64,
        width=96,
        num_inference_steps=5,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    assert_within(latents, expected, 1e-3)


def test_optimum_draws_with_inputs_and_outputs_in_fp16(
    peer_python: Path, demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    options = ConvertOptions(tmp_path / "artifact", demo_model, "onnx-cpu", io="fp16", cache=cache_folder)
    picture = draw(peer_python, convert(options).folder, tmp_path / "picture.npy", "np")
    require_pictures(np.moveaxis(picture, -1, 1), source="optimum", remedy="")
