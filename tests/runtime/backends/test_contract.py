"""What every engine's session does alike: names in order, free shapes, results of its own, and errors that name the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import DeviceError, RequestError
from vaefix.runtime.session import EngineOptions, Session, open_session

COMPONENTS = {
    "text_encoder": (("input_ids",), ("last_hidden_state", "pooler_output", *(f"hidden_states.{n}" for n in range(3)))),
    "text_encoder_2": (("input_ids",), ("text_embeds", "last_hidden_state", *(f"hidden_states.{n}" for n in range(4)))),
    "unet": (("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"), ("out_sample",)),
    "vae_encoder": (("sample",), ("latent_parameters",)),
    "vae_decoder": (("latent_sample",), ("sample",)),
}


@pytest.fixture(scope="module", params=["demo_artifact_fp32", "demo_artifact_onnx_cpu"], ids=["openvino", "onnx"])
def artifact(request: pytest.FixtureRequest) -> Artifact:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def decoder(artifact: Artifact) -> Session:
    return open_session(artifact, "vae_decoder")


def _latents(batch: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 4, height, width), dtype=np.float32)


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("sixteen_bits", ["demo_artifact_fp16", "demo_artifact_onnx_cuda", "demo_artifact_onnx_bf16"])
def test_every_component_has_its_names_in_order_and_computes_in_f32_on_a_cpu(
    name: str, sixteen_bits: str, request: pytest.FixtureRequest
) -> None:
    session = open_session(request.getfixturevalue(sixteen_bits), name)
    assert (session.inputs, session.outputs) == COMPONENTS[name]
    assert (session.device, session.precision, session.tensor_device) == ("CPU", "f32", "cpu")


def test_timestep_is_a_float_and_its_fraction_counts(artifact: Artifact) -> None:
    unet = open_session(artifact, "unet")
    feeds = {
        "sample": _latents(),
        "encoder_hidden_states": np.random.default_rng(1).standard_normal((1, 77, 96), dtype=np.float32),
        "text_embeds": np.zeros((1, 64), np.float32),
        "time_ids": np.zeros((1, 6), np.float32),
    }
    at = {step: unet.run({**feeds, "timestep": np.array([step], np.float32)})["out_sample"] for step in (7.0, 7.25, 8.0)}
    assert np.abs(at[7.25] - at[7.0]).max() > 1e-4
    assert np.abs(at[7.25] - at[8.0]).max() > 1e-4


def test_batch_and_size_are_free(decoder: Session) -> None:
    assert decoder.run({"latent_sample": _latents(3, 8, 12)})["sample"].shape == (3, 3, 64, 96)
    assert decoder.run({"latent_sample": _latents(1, 9, 5)})["sample"].shape == (1, 3, 72, 40)


def test_results_belong_to_the_caller_and_inputs_stay_as_they_were(decoder: Session) -> None:
    latents = _latents(2)
    untouched = latents.copy()
    first = decoder.run({"latent_sample": latents})["sample"]
    kept = first.copy()
    second = decoder.run({"latent_sample": _latents(2, seed=1)})["sample"]
    assert np.abs(first - second).max() > 0.1
    assert np.array_equal(first, kept)
    assert np.array_equal(latents, untouched)
    first[:] = 0


def test_strided_and_read_only_inputs_give_the_same_result(decoder: Session) -> None:
    latents = _latents(2, 8, 12)
    expected = decoder.run({"latent_sample": latents})["sample"]
    strided = np.asfortranarray(latents)
    assert not strided.flags.c_contiguous
    assert np.array_equal(decoder.run({"latent_sample": strided})["sample"], expected)
    latents.flags.writeable = False
    assert np.array_equal(decoder.run({"latent_sample": latents})["sample"], expected)


def test_tensors_give_the_same_result_as_arrays(decoder: Session) -> None:
    latents = torch.from_numpy(_latents(2, 8, 12)).requires_grad_()
    expected = decoder.run({"latent_sample": latents.detach().numpy()})["sample"]
    for same in (latents, latents.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)):
        sample = decoder.run_tensors({"latent_sample": same})["sample"]
        assert (sample.dtype, sample.device.type, sample.requires_grad) == (torch.float32, decoder.tensor_device, False)
        assert np.array_equal(sample.numpy(), expected)


@pytest.mark.parametrize("names", [(), ("sample",), ("latent_sample", "timestep")])
def test_feeds_must_be_exactly_the_inputs(names: tuple[str, ...], decoder: Session) -> None:
    with pytest.raises(RequestError, match="vae_decoder: fed .*\n  remedy: feed exactly latent_sample$"):
        decoder.run(dict.fromkeys(names, _latents()))


@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (4, 8, 8)])
def test_a_shape_that_the_graph_cannot_take_is_named(shape: tuple[int, ...], decoder: Session) -> None:
    with pytest.raises(DeviceError, match=r"vae_decoder: CPU failed on latent_sample \[.*4?, 8, 8\]"):
        decoder.run({"latent_sample": np.zeros(shape, np.float32)})
    assert decoder.run({"latent_sample": _latents()})["sample"].shape == (1, 3, 64, 64), "the session is still good"


def test_cuda_graphs_are_refused_where_there_are_none(artifact: Artifact) -> None:
    with pytest.raises(RequestError, match="unet: .*CUDA graphs"):
        open_session(artifact, "unet", "CPU", EngineOptions(cuda_graphs=True))
