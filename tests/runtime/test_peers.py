"""The artifact in the programs of others: optimum-intel and OpenVINO GenAI load it unchanged and draw the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import openvino_genai
import pytest
import torch

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.precision import QUANTIZED
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.pipeline import load_pipeline

Pipeline = diffusers.StableDiffusionXLPipeline
PROMPT = "a red cat under the sky"
F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.fixture
def euler(model_scheduler: dict[str, Any], openvino_pipeline: Pipeline) -> Pipeline:
    """Our pipeline with the model's own scheduler, whose timesteps are whole numbers: both peers cut fractions off."""
    openvino_pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(model_scheduler)
    return openvino_pipeline


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_optimum_computes_the_same_latents(
    precision: str,
    request: pytest.FixtureRequest,
    euler: Pipeline,
    assert_within: Callable[[object, object, float], None],
) -> None:
    from optimum.intel import OVStableDiffusionXLPipeline

    artifact: Artifact = request.getfixturevalue(f"demo_artifact_{precision}")
    peer = OVStableDiffusionXLPipeline.from_pretrained(artifact.folder, device="CPU", ov_config=F32)
    peer.set_progress_bar_config(disable=True)

    def latents(pipeline: Any, batch: int, guidance: float) -> torch.Tensor:
        return pipeline(
            [PROMPT] * batch,
            height=64,
            width=96,
            num_inference_steps=5,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(batch)],
            output_type="latent",
        ).images

    for batch, guidance in ((1, 1.0), (1, 7.5), (3, 7.5)):
        assert_within(latents(peer, batch, guidance), latents(euler, batch, guidance), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_optimum_loads_what_is_in_few_bits(
    precision: str, demo_model: Path, cache_folder: Path, tmp_path: Path, assert_within: Callable[[object, object, float], None]
) -> None:
    from optimum.intel import OVStableDiffusionXLPipeline

    artifact = convert(ConvertOptions(tmp_path / "sdxl", demo_model, precision={"*": precision}, cache=cache_folder))
    peer = OVStableDiffusionXLPipeline.from_pretrained(artifact.folder, device="CPU", ov_config=F32)
    drawn = []
    for pipeline in (peer, load_pipeline(artifact.folder)):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(pipeline(PROMPT, num_inference_steps=3, generator=generator, output_type="latent").images)
    assert_within(*drawn, 1e-3)


@pytest.mark.parametrize(
    ("precision", "guidance", "negative_prompt"),
    [
        *(pytest.param("fp32", guidance, None, marks=pytest.mark.slow) for guidance in (1.0, 7.5)),
        ("fp16", 7.5, "a blurred picture"),
    ],
)
def test_genai_draws_the_same_picture(
    precision: str, guidance: float, negative_prompt: str | None, request: pytest.FixtureRequest, euler: Pipeline
) -> None:
    """Square and with one prompt for both encoders, where GenAI means the same as diffusers. It cuts pixels to uint8."""
    artifact: Artifact = request.getfixturevalue(f"demo_artifact_{precision}")
    peer = openvino_genai.Text2ImagePipeline(artifact.folder, "CPU", **F32)
    arguments = {"height": 96, "width": 96, "num_inference_steps": 5, "guidance_scale": guidance}
    if negative_prompt is not None:
        arguments["negative_prompt"] = negative_prompt
    actual = peer.generate(PROMPT, generator=openvino_genai.TorchGenerator(7), **arguments).data[0].astype(int)
    expected = euler(PROMPT, generator=torch.Generator().manual_seed(7), output_type="np", **arguments).images[0] * 255
    assert actual.shape == expected.shape == (96, 96, 3)
    assert np.ptp(expected) > 100
    assert np.abs(actual - expected).max() <= 2
    other = euler(PROMPT, generator=torch.Generator().manual_seed(8), output_type="np", **arguments).images[0] * 255
    assert np.abs(actual - other).max() > 20, "another seed draws another picture, or this compares nothing"
