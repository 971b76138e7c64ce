"""ONNX Runtime on a real card: the same function in f32, finite in repaired f16, and nothing leaves the card on the way.

They need a card of NVIDIA and onnxruntime-gpu: `pytest -m gpu tests/runtime/backends/test_onnx_cuda.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import DeviceError
from vaefix.runtime.pipeline import load_pipeline
from vaefix.runtime.session import EngineOptions, Session, open_session

pytestmark = pytest.mark.gpu

Assertion = Callable[[object, object, float], None]
Pipeline = diffusers.StableDiffusionXLPipeline
LIMIT = 1e-3


@pytest.fixture(scope="module")
def on_cpu(demo_artifact_onnx_cpu: Artifact) -> Session:
    return open_session(demo_artifact_onnx_cpu, "vae_decoder")


@pytest.fixture(scope="module", params=["onnx-cpu", "onnx-cuda"])
def f32_artifact(
    request: pytest.FixtureRequest, demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    output = tmp_path_factory.mktemp("artifact") / request.param
    return convert(ConvertOptions(output, demo_model, request.param, precision={"*": "fp32"}, cache=cache_folder))


def _feeds(batch: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    return {
        "latent_sample": np.random.default_rng(seed).standard_normal((batch, 4, 16, 16), dtype=np.float32) / np.float32(0.13)
    }


def _latents(pipeline: Pipeline, **arguments: object) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    final = pipeline(
        "a red cat",
        height=64,
        width=96,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **arguments,
    ).images
    return final.cpu()


def _psnr_db(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(20 * np.log10(np.ptp(expected) / np.sqrt(np.mean(np.square(actual.astype(np.float64) - expected)))))


def test_final_latents_agree_in_f32(f32_artifact: Artifact, reference: Pipeline, assert_within: Assertion) -> None:
    pipeline = load_pipeline(f32_artifact.folder, "CUDA")
    assert {module.session.precision for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {"f32"}
    for guidance in (1.0, 7.5):
        assert_within(_latents(pipeline, guidance_scale=guidance), _latents(reference, guidance_scale=guidance), LIMIT)


def test_latents_live_on_the_card_where_torch_sees_it(demo_artifact_onnx_cuda: Artifact) -> None:
    pipeline = load_pipeline(demo_artifact_onnx_cuda.folder, "CUDA")
    seen = []

    def watch(_: Pipeline, step: int, timestep: torch.Tensor, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(str(values["latents"].device))
        return {}

    _latents(pipeline, callback_on_step_end=watch)
    assert seen == ["cuda:0" if torch.cuda.is_available() else "cpu"] * 5


def test_components_on_different_devices_work_together(
    f32_artifact: Artifact, reference: Pipeline, assert_within: Assertion
) -> None:
    for device in ({"unet": "CUDA"}, {"*": "CUDA", "unet": "CPU"}):
        assert_within(_latents(load_pipeline(f32_artifact.folder, device)), _latents(reference), LIMIT)


def test_the_repaired_decoder_is_finite_and_close_in_f16(demo_artifact_onnx_cuda: Artifact, on_cpu: Session) -> None:
    session = open_session(demo_artifact_onnx_cuda, "vae_decoder", "CUDA")
    assert (session.device, session.precision) == ("CUDA", "f16")
    for batch in (1, 2):
        actual, expected = session.run(_feeds(batch))["sample"], on_cpu.run(_feeds(batch))["sample"]
        assert np.isfinite(actual).all()
        assert _psnr_db(actual, expected) >= 60
        assert _psnr_db(session.run(_feeds(batch, seed=1))["sample"], expected) < 60


def test_the_decoder_without_its_repair_is_not_finite(demo_model: Path, cache_folder: Path, tmp_path: Path) -> None:
    options = ConvertOptions(
        tmp_path / "sick",
        demo_model,
        "onnx-cuda",
        precision={"*": "fp16"},
        components=("vae_decoder",),
        repair="never",
        cache=cache_folder,
    )
    sample = open_session(convert(options), "vae_decoder", "CUDA").run(_feeds())["sample"]
    assert np.isnan(sample).any()


def test_bf16_is_finite_and_closer_than_another_picture(demo_artifact_onnx_bf16: Artifact, on_cpu: Session) -> None:
    session = open_session(demo_artifact_onnx_bf16, "vae_decoder", "CUDA")
    assert session.precision == "bf16"
    assert _psnr_db(session.run(_feeds())["sample"], on_cpu.run(_feeds())["sample"]) >= 35


def test_cuda_graphs_give_the_same_latents(demo_artifact_onnx_cuda: Artifact) -> None:
    plain = load_pipeline(demo_artifact_onnx_cuda.folder, "CUDA")
    recorded = load_pipeline(demo_artifact_onnx_cuda.folder, "CUDA", options=EngineOptions(cuda_graphs=True))
    for guidance in (7.5, 1.0, 7.5):  # two shapes, and back
        expected = _latents(plain, guidance_scale=guidance)
        assert (_latents(recorded, guidance_scale=guidance) - expected).abs().max() <= LIMIT * expected.abs().max()


def test_a_card_that_is_not_there_is_refused(demo_artifact_onnx_cuda: Artifact) -> None:
    with pytest.raises(DeviceError, match="vae_decoder: CUDA:9 cannot be used: it is not there .there: CUDA:0"):
        open_session(demo_artifact_onnx_cuda, "vae_decoder", "CUDA:9")
    with pytest.warns(UserWarning, match="runs on the CPU"):
        session = open_session(demo_artifact_onnx_cuda, "vae_decoder", "CUDA:9", EngineOptions(allow_fallback=True))
    assert session.device == "CPU"
