"""Latent consistency models: the UNet is told the guidance (`timestep_cond`), and predicts once per step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import openvino_genai
import pytest
import torch

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import write_sdxl
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.modules import UNet
from vaefix.runtime.pipeline import Thrift, load_pipeline
from vaefix.validate.inputs import PictureSize
from vaefix.validate.validate import ValidateOptions, validate

LENGTH = 32
TARGETS = [pytest.param("openvino-cpu", marks=pytest.mark.slow), "onnx-cpu"]
Assertion = Callable[[object, object, float], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one, with the scheduler that such models are published with."""
    folder = tmp_path_factory.mktemp("lcm") / "model"
    write_sdxl(folder, replace(DEMO_SIZE, unet_depth=(1, 1, 1), guidance_embedding=LENGTH))
    for name, change in (
        ("model_index.json", {"scheduler": ["diffusers", "LCMScheduler"]}),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler", "original_inference_steps": 50}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | change))
    return folder


@pytest.fixture(scope="module")
def artifacts(model: Path, cache_folder: Path) -> Callable[[str], Artifact]:
    made: dict[str, Artifact] = {}

    def artifact(target: str) -> Artifact:
        if target not in made:
            options = ConvertOptions(model.with_name(target), model, target, {"*": "fp32"}, cache=cache_folder)
            made[target] = convert(options)
        return made[target]

    return artifact


@pytest.fixture(scope="module")
def original(model: Path) -> Any:
    return diffusers.StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float32)


def _latents(pipeline: Any, guidance: float, images: int = 2) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
    arguments = {"height": 64, "width": 96, "num_images_per_prompt": images, "generator": generators}
    latents: torch.Tensor = pipeline(
        "a red cat", num_inference_steps=3, guidance_scale=guidance, output_type="latent", **arguments
    ).images
    return latents


@pytest.mark.parametrize("target", TARGETS)
def test_it_draws_what_diffusers_draws(
    target: str, artifacts: Callable[[str], Artifact], original: Any, assert_within: Assertion
) -> None:
    artifact = artifacts(target)
    pipeline = load_pipeline(artifact.folder)
    assert type(pipeline.scheduler) is diffusers.LCMScheduler
    assert pipeline.unet.session.inputs[-1] == "timestep_cond"
    for guidance in (1.0, 8.0):
        assert_within(_latents(pipeline, guidance), _latents(original, guidance), 1e-3)
    split = load_pipeline(artifact.folder, thrift=Thrift(split_cfg=True))
    assert_within(_latents(split, 8.0), _latents(original, 8.0), 1e-3)
    assert (_latents(original, 1.0) - _latents(original, 8.0)).abs().max() > 1e-2, "else guidance plays no part"


@pytest.mark.parametrize("target", TARGETS)
def test_one_guidance_for_all_or_none_is_what_the_original_makes_of_it(
    target: str, artifacts: Callable[[str], Artifact], original: Any, assert_within: Assertion
) -> None:
    """GenAI tells a batch its guidance once."""
    unet = load_pipeline(artifacts(target).folder).unet
    random = torch.Generator().manual_seed(0)
    sample, hidden = torch.randn(2, 4, 8, 12, generator=random), torch.randn(2, 77, 96, generator=random)
    added = {"text_embeds": torch.randn(2, 64, generator=random), "time_ids": torch.full((2, 6), 64.0)}

    def predicted(model: Any, guidance: torch.Tensor | None) -> torch.Tensor:
        prediction: torch.Tensor = model(
            sample, 500, hidden, added_cond_kwargs=added, timestep_cond=guidance, return_dict=False
        )[0]
        return prediction

    with torch.no_grad():
        for guidance in (None, torch.ones(1, LENGTH), torch.randn(2, LENGTH, generator=random)):
            assert_within(predicted(unet, guidance), predicted(original.unet, guidance), 2e-5)
        assert (predicted(unet, None) - predicted(unet, torch.ones(1, LENGTH))).abs().max() > 1e-3


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_validated_and_guidance_that_is_ignored_is_found(
    target: str, artifacts: Callable[[str], Artifact], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = artifacts(target)
    options = ValidateOptions(artifact.folder, model, components=("unet",), size=PictureSize(64, 64), steps=2, seeds=(0,))
    verdict = validate(options)
    assert verdict.passed
    assert {"timestep_cond", "out_sample"} <= {item.output.partition(",")[0] for item in verdict.comparisons}
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *given, **told: forward(*given, **{**told, "timestep_cond": None}))
    ignored = validate(options)
    assert {item.output.partition(",")[0] for item in ignored.comparisons if item.status == "failed"} >= {
        "trajectory",
        "latents",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_optimum_and_genai_draw_it_too(artifacts: Callable[[str], Artifact], assert_within: Assertion) -> None:
    from optimum.intel import OVStableDiffusionXLPipeline

    folder = artifacts("openvino-cpu").folder
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    ours = load_pipeline(folder)
    optimum = OVStableDiffusionXLPipeline.from_pretrained(folder, device="CPU", ov_config=settings)
    assert_within(_latents(optimum, 8.0), _latents(ours, 8.0), 1e-3)
    genai = openvino_genai.Text2ImagePipeline(folder, "CPU", **settings)
    arguments = {"height": 96, "width": 96, "num_inference_steps": 3, "guidance_scale": 8.0}
    found = genai.generate("a red cat", generator=openvino_genai.TorchGenerator(7), **arguments).data[0].astype(int)
    expected = ours("a red cat", generator=torch.Generator().manual_seed(7), output_type="np", **arguments).images[0] * 255
    assert np.ptp(expected) > 100
    assert np.abs(found - expected).max() <= 2
