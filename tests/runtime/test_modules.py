"""Each component beside its original in PyTorch, fp32; and what the modules refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError, PictureError, RequestError
from vaefix.runtime.modules import UNet, Vae
from vaefix.runtime.session import open_session

LIMIT = 2e-5
Assertion = Callable[[object, object, float], None]
Pipeline = diffusers.StableDiffusionXLPipeline


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _unet_inputs(batch: int = 2, height: int = 8, width: int = 12) -> dict[str, object]:
    size = torch.tensor([[8.0 * height, 8.0 * width, 0, 0, 8.0 * height, 8.0 * width]])
    return {
        "sample": _random(batch, 4, height, width),
        "encoder_hidden_states": _random(batch, 77, 96, seed=1),
        "added_cond_kwargs": {"text_embeds": _random(batch, 64, seed=2), "time_ids": size.repeat(batch, 1)},
        "return_dict": False,
    }


class _Fixed:
    """A session that answers every run with the same array."""

    inputs, outputs, device, tensor_device = ("latent_sample",), ("sample",), "GPU", "cpu"

    def __init__(self, sample: np.ndarray, precision: str = "f16") -> None:
        self.sample, self.precision = sample, precision

    def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sample": torch.from_numpy(self.sample)}


def _no_encoder() -> None:
    raise AssertionError("the encoder was opened")


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("batch", [1, 3])
def test_text_encoder_agrees_in_every_output(
    name: str, batch: int, reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    ids = torch.randint(0, 2000, (batch, 77), generator=torch.Generator().manual_seed(batch))
    expected = getattr(reference, name)(ids, output_hidden_states=True)
    actual = getattr(converted, name)(ids, output_hidden_states=True)
    assert list(actual) == list(expected)
    assert len(actual.hidden_states) == len(expected.hidden_states)
    assert_within(actual[0], expected[0], LIMIT)
    assert_within(actual[1], expected[1], LIMIT)
    for mine, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert_within(mine, theirs, LIMIT)


@pytest.mark.parametrize("timestep", [999, 1, 123.456, torch.tensor(0.25), torch.tensor([3.3, 3.3])], ids=str)
def test_unet_agrees_at_whole_and_fractional_timesteps(
    timestep: object, reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    inputs = _unet_inputs()
    assert_within(converted.unet(timestep=timestep, **inputs)[0], reference.unet(timestep=timestep, **inputs)[0], LIMIT)


def test_pictures_of_one_batch_may_be_at_different_timesteps_where_the_graph_takes_them(
    reference: Pipeline, openvino_pipeline: Pipeline, onnx_pipeline: Pipeline, assert_within: Assertion
) -> None:
    inputs, timestep = _unet_inputs(), torch.tensor([3.3, 900.25])
    expected = reference.unet(timestep=timestep, **inputs)[0]
    assert_within(openvino_pipeline.unet(timestep=timestep, **inputs)[0], expected, LIMIT)
    with pytest.raises(RequestError, match=r"timestep has the shape \[2\], the graph takes one number"):
        onnx_pipeline.unet(timestep=timestep, **inputs)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 12, 4), (1, 9, 13), (1, 2, 2)])
def test_unet_agrees_at_every_size(
    batch: int, height: int, width: int, reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    inputs = _unet_inputs(batch, height, width)
    assert_within(converted.unet(timestep=7.5, **inputs)[0], reference.unet(timestep=7.5, **inputs)[0], LIMIT)


@pytest.mark.parametrize("timestep", [500.5, torch.tensor([3.3, 900.25])], ids=["one for all", "one each"])
def test_a_split_unet_computes_one_sample_at_a_time(
    timestep: object, reference: Pipeline, demo_artifact_onnx_cpu: Artifact, assert_within: Assertion
) -> None:
    session, seen = open_session(demo_artifact_onnx_cpu, "unet"), []

    class Watched:
        tensor_device = session.tensor_device

        def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            seen.append({len(tensor) for tensor in feeds.values()})
            return session.run_tensors(feeds)

    unet = UNet(demo_artifact_onnx_cpu.config("unet"), Watched(), split=True)
    inputs = _unet_inputs()
    assert_within(unet(timestep=timestep, **inputs)[0], reference.unet(timestep=timestep, **inputs)[0], LIMIT)
    assert seen == [{1}, {1}]
    unet(timestep=1, **_unet_inputs(batch=1))
    assert len(seen) == 3


def test_limit_sees_a_truncated_timestep(reference: Pipeline, converted: Pipeline, assert_within: Assertion) -> None:
    inputs = _unet_inputs()
    expected = reference.unet(timestep=123.456, **inputs)[0]
    with pytest.raises(AssertionError):
        assert_within(converted.unet(timestep=123, **inputs)[0], expected, LIMIT)


@pytest.mark.parametrize("weight", ["conv_in.bias", "mid_block.resnets.0.conv1.weight"])
def test_limit_sees_one_weight_off_by_two_percent(
    weight: str,
    demo_artifact_fp32: Artifact,
    copied: Path,
    reseal: Callable[[], None],
    edit_weight: Callable[..., None],
    reference: Pipeline,
    assert_within: Assertion,
) -> None:
    inputs = _unet_inputs()
    expected = reference.unet(timestep=500, **inputs)[0]
    edit_weight("unet", weight, lambda values: values * np.float32(1.02))
    reseal()
    altered = Artifact.load(copied, verify=True)
    unet = UNet(altered.config("unet"), open_session(altered, "unet"))
    with pytest.raises(AssertionError):
        assert_within(unet(timestep=500, **inputs)[0], expected, LIMIT)


def test_unet_returns_an_output_object_or_a_tuple(converted: Pipeline) -> None:
    inputs = _unet_inputs(batch=1)
    plain = converted.unet(timestep=1, **inputs)
    named = converted.unet(timestep=1, **{**inputs, "return_dict": True})
    assert isinstance(plain, tuple)
    assert torch.equal(named.sample, plain[0])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("cross_attention_kwargs", {"scale": 0.5}),
        ("timestep_cond", torch.zeros(1, 256)),
        ("mid_block_additional_residual", torch.zeros(1)),
    ],
)
def test_unet_refuses_what_its_graph_would_ignore(argument: str, value: object, converted: Pipeline) -> None:
    with pytest.raises(RequestError, match=argument):
        converted.unet(timestep=1, **_unet_inputs(batch=1), **{argument: value})


def test_unet_refuses_image_embeddings(converted: Pipeline) -> None:
    inputs = _unet_inputs(batch=1)
    inputs["added_cond_kwargs"] = {**inputs["added_cond_kwargs"], "image_embeds": [torch.zeros(1, 4)]}
    with pytest.raises(RequestError, match="image_embeds"):
        converted.unet(timestep=1, **inputs)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 8, 12), (1, 9, 13)])
def test_vae_decoder_agrees(
    batch: int, height: int, width: int, reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    latents = _random(batch, 4, height, width) / 0.13025
    assert_within(converted.vae.decode(latents).sample, reference.vae.decode(latents).sample, LIMIT)
    assert_within(converted.vae.decode(latents, return_dict=False)[0], reference.vae.decode(latents).sample, LIMIT)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (3, 64, 96)])
def test_vae_encoder_agrees(
    batch: int, height: int, width: int, reference: Pipeline, converted: Pipeline, assert_within: Assertion
) -> None:
    pixels = _random(batch, 3, height, width).clamp(-1, 1)
    expected, actual = reference.vae.encode(pixels).latent_dist, converted.vae.encode(pixels).latent_dist
    assert_within(actual.parameters, expected.parameters, LIMIT)
    assert_within(actual.sample(torch.Generator().manual_seed(5)), expected.sample(torch.Generator().manual_seed(5)), 2 * LIMIT)


def test_modules_take_other_floating_types_and_compute_in_float32(converted: Pipeline) -> None:
    inputs = _unet_inputs(batch=1)
    expected = converted.unet(timestep=1, **inputs)[0]
    actual = converted.unet(timestep=1, **{**inputs, "sample": inputs["sample"].double()})[0]
    assert converted.unet.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_config_has_the_defaults_that_the_file_leaves_out(reference: Pipeline, converted: Pipeline) -> None:
    for name in ("unet", "vae"):
        expected, actual = getattr(reference, name).config, getattr(converted, name).config
        assert {key: actual[key] for key in expected if not key.startswith("_")} == {
            key: value for key, value in expected.items() if not key.startswith("_")
        }
    assert converted.text_encoder_2.config.projection_dim == reference.text_encoder_2.config.projection_dim


def test_an_encoder_is_opened_once_and_only_by_encode(demo_artifact_fp32: Artifact) -> None:
    opened = []

    def open_encoder() -> object:
        opened.append("vae_encoder")
        return open_session(demo_artifact_fp32, "vae_encoder")

    vae = Vae(demo_artifact_fp32.config("vae_decoder"), open_session(demo_artifact_fp32, "vae_decoder"), open_encoder)
    vae.decode(_random(1, 4, 8, 8))
    assert opened == []
    vae.encode(_random(1, 3, 64, 64))
    vae.encode(_random(1, 3, 64, 64))
    assert opened == ["vae_encoder"]


def test_encode_without_an_encoder_names_it(demo_artifact_fp32: Artifact, copied: Path, reseal: Callable[..., None]) -> None:
    reseal(components={name: entry for name, entry in demo_artifact_fp32.components.items() if name != "vae_encoder"})
    artifact = Artifact.load(copied)
    vae = Vae(artifact.config("vae_decoder"), _Fixed(np.zeros(1)), lambda: open_session(artifact, "vae_encoder"))
    with pytest.raises(ArtifactError, match="vae_encoder"):
        vae.encode(_random(1, 3, 64, 64))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -7.0])
@pytest.mark.parametrize("precision", ["f16", "f32"])
def test_a_decode_that_is_no_picture_never_leaves_the_vae(value: float, precision: str) -> None:
    decoder = _Fixed(np.full((1, 3, 64, 64), value, dtype=np.float32), precision)
    vae = Vae({"block_out_channels": [16, 32, 64, 64]}, decoder, _no_encoder)
    with pytest.raises(PictureError) as caught:
        vae.decode(_random(1, 4, 8, 8))
    assert caught.value.source == f"vae_decoder in {precision} on GPU"
    assert caught.value.remedy is not None
    assert ("vae_decoder=CPU" in caught.value.remedy) == (precision == "f16")


def test_latents_that_are_not_finite_are_not_blamed_on_the_vae() -> None:
    vae = Vae({"block_out_channels": [16, 32, 64, 64]}, _Fixed(_random(1, 3, 64, 64).numpy()), _no_encoder)
    latents = _random(1, 4, 8, 8)
    vae.decode(latents)
    latents[0, 0, 0, 0] = torch.inf
    with pytest.raises(PictureError, match="before the decode: 0 NaN and 1 Inf") as caught:
        vae.decode(latents)
    assert caught.value.source == "latents"


def test_tensors_go_where_the_session_wants_them_and_come_back_to_where_they_were() -> None:
    """`meta` stands for a card: nothing can be computed there, but where a tensor is can be seen."""

    class Elsewhere(_Fixed):
        tensor_device = "meta"

        def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            assert {(tensor.device.type, tensor.dtype) for tensor in feeds.values()} == {("meta", torch.float32)}
            return super().run_tensors(feeds)

    config = {"block_out_channels": [16, 32, 64, 64]}
    alone = Vae(config, Elsewhere(_random(1, 3, 64, 64).numpy()), _no_encoder)
    assert alone.device == torch.device("meta")
    among_others = Vae(config, Elsewhere(_random(1, 3, 64, 64).numpy()), _no_encoder, "cpu")
    assert among_others.device == torch.device("cpu")
    for module in (alone, among_others):
        assert module.decode(_random(1, 4, 8, 8).double()).sample.device == torch.device("cpu")
    unet_inputs = _unet_inputs()
    seen = {}

    class Unet(Elsewhere):
        def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            seen.update(feeds)
            return {"out_sample": feeds["sample"]}

    unet_inputs["sample"] = unet_inputs["sample"].to("meta")
    prediction = UNet({}, Unet(np.zeros(1)))(timestep=3, **unet_inputs)[0]
    assert prediction.device == torch.device("meta")
    assert {tensor.device.type for tensor in seen.values()} == {"meta"}


def test_a_session_is_given_the_very_tensors_that_are_as_it_wants_them(
    onnx_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings of the last step are known again by their identity and need no second upload."""
    given = {}
    monkeypatch.setattr(
        type(onnx_pipeline.unet.session), "run_tensors", lambda _, feeds: given.update(feeds) or {"out_sample": feeds["sample"]}
    )
    inputs = _unet_inputs()
    onnx_pipeline.unet(timestep=1, **inputs)
    assert given["encoder_hidden_states"] is inputs["encoder_hidden_states"]
    assert all(given[name] is tensor for name, tensor in inputs["added_cond_kwargs"].items())
