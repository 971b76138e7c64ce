"""The engine computes in the precision that was asked for, on the device that was asked for, or says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.backends import openvino as backend
from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError
from vaefix.runtime.session import Session, open_session

COMPONENTS = {
    "text_encoder": (("input_ids",), ("last_hidden_state", "pooler_output", *(f"hidden_states.{n}" for n in range(3)))),
    "text_encoder_2": (("input_ids",), ("text_embeds", "last_hidden_state", *(f"hidden_states.{n}" for n in range(4)))),
    "unet": (("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"), ("out_sample",)),
    "vae_encoder": (("sample",), ("latent_parameters",)),
    "vae_decoder": (("latent_sample",), ("sample",)),
}


class _Machine:
    """A machine with these devices."""

    def __init__(self, *devices: str) -> None:
        self.available_devices = list(devices)


@pytest.fixture(scope="module")
def decoder(demo_artifact_fp32: Artifact) -> Session:
    return open_session(demo_artifact_fp32, "vae_decoder")


def _latents(batch: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 4, height, width), dtype=np.float32)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_has_its_names_in_order_and_computes_in_f32_on_a_cpu(name: str, demo_artifact_fp16: Artifact) -> None:
    session = open_session(demo_artifact_fp16, name)
    assert (session.inputs, session.outputs) == COMPONENTS[name]
    assert (session.device, session.precision) == ("CPU", "f32")


def test_auto_settles_on_a_device_and_reads_its_precision_back(demo_artifact_fp32: Artifact) -> None:
    session = open_session(demo_artifact_fp32, "vae_decoder", "AUTO")
    assert session.device in ov.Core().available_devices
    assert session.precision == "f32"


def test_an_ignored_precision_is_an_error(demo_artifact_fp32: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_executes", lambda compiled, device: (device, "bf16"))
    with pytest.raises(DeviceError, match="vae_decoder: CPU computes in bf16, f32 was asked for"):
        open_session(demo_artifact_fp32, "vae_decoder")


@pytest.mark.parametrize(
    ("device", "execution", "precision"),
    [("CPU", "f16", "f32"), ("CPU", "f32", "f32"), ("GPU", "f16", "f16"), ("GPU.1", "f32", "f32"), ("NPU", "f16", "f16")],
)
def test_sixteen_bits_are_asked_of_accelerators_only(device: str, execution: str, precision: str) -> None:
    settings = backend._settings(_Machine("CPU", "GPU.0", "GPU.1", "NPU"), device, execution, None)
    assert settings == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}


def test_auto_gives_each_device_its_own_precision_and_never_changes_device_between_steps() -> None:
    settings = backend._settings(_Machine("CPU", "GPU.0", "GPU.1"), "AUTO", "f16", None)
    hints = {name: properties["INFERENCE_PRECISION_HINT"] for name, properties in settings["DEVICE_PROPERTIES"].items()}
    assert hints == {"CPU": "f32", "GPU.0": "f16", "GPU.1": "f16"}
    assert settings["ENABLE_STARTUP_FALLBACK"] is False


@pytest.mark.parametrize(
    ("devices", "known", "unknown"),
    [
        (("CPU",), ("CPU", "cpu", "AUTO", "auto"), ("GPU", "GPU.0", "NPU", "CUDA", "")),
        (("CPU", "GPU"), ("GPU", "gpu", "GPU.0"), ("GPU.1", "NPU", "GPU.0.0")),
        (("CPU", "GPU.0", "GPU.1", "NPU"), ("GPU", "GPU.0", "GPU.1", "NPU"), ("GPU.2", "GPU.", "AUTO:GPU")),
    ],
)
def test_only_devices_of_this_machine_are_accepted(
    devices: tuple[str, ...], known: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    machine = _Machine(*devices)
    for name in known:
        assert backend._known(machine, name, "unet") == name.upper()
    for name in unknown:
        with pytest.raises(DeviceError, match=r"is not there \(there: CPU"):
            backend._known(machine, name, "unet")


def test_timestep_is_a_float_and_its_fraction_counts(demo_artifact_fp32: Artifact) -> None:
    unet = open_session(demo_artifact_fp32, "unet")
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


@pytest.mark.parametrize("names", [(), ("sample",), ("latent_sample", "timestep")])
def test_feeds_must_be_exactly_the_inputs(names: tuple[str, ...], decoder: Session) -> None:
    with pytest.raises(RequestError, match="vae_decoder: fed .*\n  remedy: feed exactly latent_sample$"):
        decoder.run(dict.fromkeys(names, _latents()))


def test_a_shape_that_the_graph_cannot_take_is_named(decoder: Session) -> None:
    with pytest.raises(DeviceError, match=r"vae_decoder: CPU failed on latent_sample \[1, 5, 8, 8\]"):
        decoder.run({"latent_sample": np.zeros((1, 5, 8, 8), np.float32)})


@pytest.mark.parametrize("text", ["", "<net", "not a graph"])
def test_a_damaged_graph_is_named(text: str, copied: Path, reseal: Callable[[], None]) -> None:
    (copied / "unet" / "openvino_model.xml").write_text(text)
    reseal()
    with pytest.raises(ArtifactError, match="unet/openvino_model.xml: unreadable graph"):
        open_session(Artifact.load(copied, verify=True), "unet")


def test_compiled_graphs_are_kept_in_the_cache_and_used_again(demo_artifact_fp32: Artifact, tmp_path: Path) -> None:
    first = open_session(demo_artifact_fp32, "vae_decoder", cache=tmp_path / "graphs")
    kept = sorted((tmp_path / "graphs").iterdir())
    assert kept
    again = open_session(demo_artifact_fp32, "vae_decoder", cache=tmp_path / "graphs")
    assert sorted((tmp_path / "graphs").iterdir()) == kept
    assert again.precision == "f32"
    feeds = {"latent_sample": _latents()}
    assert np.array_equal(first.run(feeds)["sample"], again.run(feeds)["sample"])


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMPONENTS)
def test_sixteen_bit_components_compute_in_f16_on_a_gpu(name: str, demo_artifact_fp16: Artifact) -> None:
    session = open_session(demo_artifact_fp16, name, "GPU")
    assert (session.device, session.precision) == ("GPU", "f16")


@pytest.mark.gpu
def test_repaired_decoder_is_finite_and_close_on_a_gpu(demo_artifact_fp16: Artifact, decoder: Session) -> None:
    feeds = {"latent_sample": _latents(1, 16, 16) / np.float32(0.13025)}
    expected = decoder.run(feeds)["sample"]
    actual = open_session(demo_artifact_fp16, "vae_decoder", "GPU").run(feeds)["sample"]
    assert np.isfinite(actual).all()
    assert np.sqrt(np.mean((actual - expected) ** 2)) <= 0.01 * np.sqrt(np.mean(expected**2))
