"""A loaded artifact is a real diffusers pipeline: the same latents as the original in PyTorch, whatever is asked of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError, DeviceError, PictureError, RequestError
from vaefix.runtime.pipeline import load_pipeline
from vaefix.runtime.session import open_session

LIMIT = 1e-3
STEPS = 5
Assertion = Callable[[object, object, float], None]
Pipeline = diffusers.StableDiffusionXLPipeline
Latents = Callable[..., Any]

KARRAS = {"use_karras_sigmas": True}
V_PREDICTION = {"prediction_type": "v_prediction"}
SCHEDULERS = {
    "EulerDiscreteScheduler": {},
    "EulerDiscreteScheduler, Karras": KARRAS,
    "EulerDiscreteScheduler, Karras, v": {**KARRAS, **V_PREDICTION},
    "EulerAncestralDiscreteScheduler, v": V_PREDICTION,
    "HeunDiscreteScheduler, Karras": KARRAS,
    "PNDMScheduler": {},
    "LMSDiscreteScheduler, Karras, v": {**KARRAS, **V_PREDICTION},
    "DPMSolverMultistepScheduler, Karras, v": {**KARRAS, **V_PREDICTION},
    "UniPCMultistepScheduler": {},
    "DDIMScheduler, trailing, zero terminal SNR, v": {
        **V_PREDICTION,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    },
}


@pytest.fixture(scope="module")
def latents(model_scheduler: dict[str, Any]) -> Latents:
    """latents(pipeline, scheduler, **arguments): the final latents of a short generation; see `_generate`."""

    def generate(pipeline: Pipeline, scheduler: str = "EulerDiscreteScheduler, Karras", **arguments: Any) -> Any:
        cls = getattr(diffusers, scheduler.partition(",")[0])
        pipeline.scheduler = cls.from_config({**model_scheduler, **SCHEDULERS[scheduler]})
        return _generate(pipeline, **{"output_type": "latent", **arguments})

    return generate


def _generate(pipeline: Pipeline, **arguments: Any) -> Any:
    """Five steps with 64x96 pixels, guidance 7.5 and one seed per picture, unless told otherwise."""
    arguments = {"prompt": "a red cat", "height": 64, "width": 96, "guidance_scale": 7.5, **arguments}
    prompts = [arguments["prompt"]] if isinstance(arguments["prompt"], str) else arguments["prompt"]
    count = len(prompts) * arguments.get("num_images_per_prompt", 1)
    arguments.setdefault("generator", [torch.Generator().manual_seed(seed) for seed in range(count)])
    return pipeline(num_inference_steps=STEPS, **arguments).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_final_latents_agree_with_every_scheduler(
    latents: Latents, scheduler: str, reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    assert_within(latents(converted, scheduler), latents(reference, scheduler), LIMIT)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("prompts", [["a red cat"], ["a red cat", "the sky at night", "two dogs"]], ids=["one", "three"])
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler, Karras", "EulerDiscreteScheduler, Karras, v"])
def test_final_latents_agree_with_and_without_guidance_alone_and_in_a_batch(
    latents: Latents,
    guidance: float,
    prompts: list[str],
    scheduler: str,
    reference: Pipeline,
    converted: Pipeline,
    assert_within: Assertion,
) -> None:
    arguments = {"prompt": prompts, "guidance_scale": guidance}
    actual, expected = (latents(pipeline, scheduler, **arguments) for pipeline in (converted, reference))
    assert expected.shape == (len(prompts), 4, 8, 12)
    assert_within(actual, expected, LIMIT)


@pytest.mark.parametrize(
    "arguments",
    [
        {"negative_prompt": "a blurred picture"},
        {"prompt_2": "an oil painting", "negative_prompt": "grey", "negative_prompt_2": "dull"},
        {"num_images_per_prompt": 3},
        {"clip_skip": 1},
        {"guidance_rescale": 0.7},
        {"denoising_end": 0.6},
        {"original_size": (640, 480), "crops_coords_top_left": (8, 16), "target_size": (320, 240)},
        {"height": 72, "width": 104},
        {"prompt": "a very long prompt about many things " * 20},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_final_latents_agree_with_every_argument(
    latents: Latents, arguments: dict[str, Any], reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    expected = latents(reference, **arguments)
    assert_within(latents(converted, **arguments), expected, LIMIT)


def test_pictures_agree(latents: Latents, reference: Pipeline, converted: Pipeline, assert_within: Assertion) -> None:
    actual, expected = (latents(pipeline, output_type="np") for pipeline in (converted, reference))
    assert actual.shape == (1, 64, 96, 3)
    assert_within(actual, expected, LIMIT)


def test_pictures_from_a_picture_agree(
    model_scheduler: dict[str, Any], reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    image = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(3))
    results = []
    for pipeline in (converted, reference):
        parts = {**pipeline.components, "scheduler": diffusers.DDIMScheduler.from_config(model_scheduler)}
        painter = diffusers.StableDiffusionXLImg2ImgPipeline(**parts)
        painter.set_progress_bar_config(disable=True)
        arguments = {"image": image, "strength": 0.8, "num_inference_steps": STEPS, "output_type": "latent"}
        results.append(painter("a red cat", generator=torch.Generator().manual_seed(0), **arguments).images)
    assert_within(*results, LIMIT)


def test_limit_sees_truncated_timesteps(
    latents: Latents, reference: Pipeline, converted: Pipeline, assert_within: Assertion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fractional timesteps of Karras sigmas, cut to whole numbers as optimum does."""
    run = converted.unet.forward
    monkeypatch.setattr(
        converted.unet, "forward", lambda sample, timestep, **others: run(sample, torch.floor(timestep), **others)
    )
    expected = latents(reference)
    assert not bool((reference.scheduler.timesteps == reference.scheduler.timesteps.round()).all())
    with pytest.raises(AssertionError):
        assert_within(latents(converted), expected, LIMIT)


@pytest.mark.parametrize("difference", [{"guidance_scale": 7.4}, {"prompt": "a red cap"}, {"target_size": (64, 64)}])
def test_limit_sees_another_request(
    latents: Latents, difference: dict[str, Any], reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    expected = latents(reference)
    with pytest.raises(AssertionError):
        assert_within(latents(converted, **difference), expected, LIMIT)


def test_seeds_reproduce_bit_by_bit(latents: Latents, converted: Pipeline) -> None:
    first, again = latents(converted, output_type="np"), latents(converted, output_type="np")
    other = latents(converted, output_type="np", generator=torch.Generator().manual_seed(99))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_a_picture_does_not_depend_on_its_batch(latents: Latents, converted: Pipeline, assert_within: Assertion) -> None:
    batch = latents(converted, num_images_per_prompt=3)
    alone = latents(converted, generator=torch.Generator().manual_seed(2))
    assert_within(batch[2:], alone, LIMIT)


def test_callbacks_see_every_step_and_can_change_and_stop_it(latents: Latents, converted: Pipeline) -> None:
    seen = []

    def watch(pipeline: Pipeline, step: int, timestep: torch.Tensor, values: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, float(timestep), tuple(values["latents"].shape)))
        pipeline._interrupt = step == 2
        return {"latents": torch.zeros_like(values["latents"])} if step == 2 else {}

    final = latents(converted, callback_on_step_end=watch)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[1][1] != int(seen[1][1])
    assert {shape for _, _, shape in seen} == {(1, 4, 8, 12)}
    assert not final.any()


def test_the_pipeline_lives_where_the_unet_wants_its_tensors(
    demo_artifact_onnx_cpu: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the text encoders and the VAE elsewhere. `meta` stands for a card."""

    def opened(artifact: Artifact, name: str, *arguments: Any) -> Any:
        session = open_session(artifact, name, *arguments)
        return SimpleNamespace(tensor_device="meta") if name == "unet" else session

    monkeypatch.setattr("vaefix.runtime.pipeline.open_session", opened)
    pipeline = load_pipeline(demo_artifact_onnx_cpu.folder)
    assert pipeline._execution_device == pipeline.device == torch.device("meta")
    assert {pipeline.text_encoder.device, pipeline.text_encoder_2.device, pipeline.vae.device} == {pipeline.device}


def test_native_size_is_the_model_s(converted: Pipeline, reference: Pipeline) -> None:
    assert converted.default_sample_size == reference.default_sample_size == 16
    assert converted.vae_scale_factor == reference.vae_scale_factor == 8


@pytest.mark.parametrize(
    ("artifact", "device"),
    [pytest.param("demo_artifact_fp16", "AUTO", marks=pytest.mark.slow), ("demo_artifact_onnx_cuda", "CPU")],
)
def test_sixteen_bit_artifact_draws_the_same_pictures(
    artifact: str,
    device: str,
    latents: Latents,
    request: pytest.FixtureRequest,
    reference: Pipeline,
    assert_within: Assertion,
) -> None:
    """Its weights were 16 bits in the checkpoint already, and the repair moves them by powers of two only."""
    pipeline = load_pipeline(request.getfixturevalue(artifact).folder, device)
    pipeline.set_progress_bar_config(disable=True)
    assert_within(latents(pipeline, output_type="np"), latents(reference, output_type="np"), LIMIT)


def test_components_report_what_is_being_loaded(demo_artifact_fp32: Artifact) -> None:
    loaded: list[str] = []
    load_pipeline(demo_artifact_fp32.folder, {"*": "CPU", "unet": "AUTO"}, on_load=loaded.append)
    assert loaded == ["text_encoder", "text_encoder_2", "unet", "vae_decoder"]


def test_an_artifact_without_an_encoder_still_draws(
    demo_artifact_fp32: Artifact, copied: Path, reseal: Callable[..., None]
) -> None:
    reseal(components={name: entry for name, entry in demo_artifact_fp32.components.items() if name != "vae_encoder"})
    pipeline = load_pipeline(copied)
    pipeline.set_progress_bar_config(disable=True)
    assert np.ptp(_generate(pipeline, output_type="np")) > 0.1


def test_missing_components_are_all_named(demo_artifact_fp32: Artifact, copied: Path, reseal: Callable[..., None]) -> None:
    reseal(components={"unet": demo_artifact_fp32.components["unet"]})
    with pytest.raises(ArtifactError, match="takes text_encoder, text_encoder_2, vae_decoder") as caught:
        load_pipeline(copied)
    assert "--components" in str(caught.value.remedy)


def test_a_flipped_byte_stops_a_verified_load(copied: Path) -> None:
    path = copied / "text_encoder" / "openvino_model.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="text_encoder/openvino_model.bin: .*sha256"):
        load_pipeline(copied, verify=True)


@pytest.mark.parametrize("device", ["GPU.9", {"*": "CPU", "unet": "GPU.9"}])
def test_a_missing_device_is_refused(device: str | dict[str, str], demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(DeviceError, match=r"GPU.9 is not there"):
        load_pipeline(demo_artifact_fp32.folder, device)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("scheduler", ["diffusers", "KarrasDiffusionSchedulers"]),
        ("scheduler", ["my_package", "os"]),
        ("scheduler", ["diffusers", "../EulerDiscreteScheduler"]),
        ("scheduler", "EulerDiscreteScheduler"),
        ("scheduler", None),
        ("_class_name", "StableDiffusionPipeline"),
    ],
)
def test_an_index_that_names_anything_else_is_refused(
    entry: str, value: object, copied: Path, reseal: Callable[..., None]
) -> None:
    path = copied / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), entry: value}))
    reseal()
    with pytest.raises((ArtifactError, RequestError)) as caught:
        load_pipeline(copied)
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    ("weight", "value", "reason"),
    [("decoder.conv_out.weight", np.nan, "is not finite"), ("decoder.conv_out.weight", 0.0, "one constant colour")],
)
def test_a_picture_that_is_none_is_never_returned(
    weight: str,
    value: float,
    reason: str,
    copied: Path,
    reseal: Callable[..., None],
    edit_weight: Callable[..., None],
) -> None:
    edit_weight("vae_decoder", weight, lambda _: value)
    reseal()
    pipeline = load_pipeline(copied)
    pipeline.set_progress_bar_config(disable=True)
    assert torch.isfinite(_generate(pipeline, output_type="latent")).all()
    for output_type in ("pil", "np", "pt"):
        with pytest.raises(PictureError, match=reason):
            _generate(pipeline, output_type=output_type)
