"""The engine computes in the precision that was asked for, on the device that was asked for, or says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.backends import openvino as backend
from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError, ResourceError
from vaefix.runtime.session import EngineOptions, Session, open_session

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")


class _Machine:
    """A machine with these devices."""

    def __init__(self, *devices: str) -> None:
        self.available_devices = list(devices)


@pytest.fixture(scope="module")
def decoder(demo_artifact_fp32: Artifact) -> Session:
    return open_session(demo_artifact_fp32, "vae_decoder")


def _latents(batch: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 4, height, width), dtype=np.float32)


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
    [
        ("CPU", "f16", "f32"),
        ("CPU", "f32", "f32"),
        ("CPU", "bf16", "bf16"),
        ("GPU", "f16", "f16"),
        ("GPU.1", "f32", "f32"),
        ("NPU", "f16", "f16"),
    ],
)
def test_f16_is_asked_of_accelerators_only(device: str, execution: str, precision: str) -> None:
    settings = backend._settings(_Machine("CPU", "GPU.0", "GPU.1", "NPU"), device, execution, None)
    whole = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if device == "CPU" else {}
    assert settings == {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, **whole}


def _made_for_bf16(artifact: Artifact) -> Artifact:
    return replace(artifact, components={"vae_decoder": replace(artifact.components["vae_decoder"], execution="bf16")})


def test_a_cpu_computes_in_bf16_what_was_made_for_it(demo_artifact_fp32: Artifact, decoder: Session) -> None:
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    session = open_session(_made_for_bf16(demo_artifact_fp32), "vae_decoder")
    assert session.precision == "bf16"
    feeds = {"latent_sample": _latents()}
    error = session.run(feeds)["sample"] - decoder.run(feeds)["sample"]
    assert 1e-4 < np.abs(error).max() < 0.5
    assert (
        open_session(_made_for_bf16(demo_artifact_fp32), "vae_decoder", options=EngineOptions(in_f32=True)).precision == "f32"
    )


def test_a_cpu_without_bf16_names_what_to_convert_to(demo_artifact_fp32: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_executes", lambda compiled, device: (device, "f32"))
    with pytest.raises(DeviceError, match="vae_decoder: CPU computes in f32, bf16 was asked for") as caught:
        open_session(_made_for_bf16(demo_artifact_fp32), "vae_decoder")
    assert "--precision vae_decoder=fp16 or vae_decoder=fp32" in str(caught.value.remedy)


def test_want_of_memory_is_named(demo_artifact_fp32: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("Exception from src/plugins/x.cpp:7:\nstd::bad_alloc")

    session = open_session(demo_artifact_fp32, "vae_decoder")
    monkeypatch.setattr(ov.InferRequest, "infer", full)
    with pytest.raises(ResourceError, match=r"vae_decoder: CPU has not the memory for latent_sample \[1, 4, 8, 8\]"):
        session.run({"latent_sample": _latents()})
    monkeypatch.setattr(ov.Core, "compile_model", full)
    with pytest.raises(ResourceError, match="vae_decoder: CPU has not the memory for it"):
        open_session(demo_artifact_fp32, "vae_decoder")


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


def test_the_user_s_own_properties_reach_the_engine_and_win(demo_artifact_fp32: Artifact) -> None:
    options = EngineOptions(settings={"*": {"PERFORMANCE_HINT": "THROUGHPUT"}, "unet": {"NO_SUCH": "1"}})
    session = open_session(demo_artifact_fp32, "vae_decoder", options=options)
    compiled = session._request.get_compiled_model()
    assert compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT"
    unasked = open_session(demo_artifact_fp32, "vae_decoder")._request.get_compiled_model()
    assert unasked.get_property("PERFORMANCE_HINT") == "LATENCY"


def test_a_precision_of_the_user_s_own_is_what_must_be_computed_in(demo_artifact_fp32: Artifact) -> None:
    options = EngineOptions(settings={"vae_decoder": {"INFERENCE_PRECISION_HINT": "f64"}})
    with pytest.raises(RequestError, match="INFERENCE_PRECISION_HINT=f64"):
        open_session(demo_artifact_fp32, "vae_decoder", options=options)
    options = EngineOptions(settings={"vae_decoder": {"INFERENCE_PRECISION_HINT": "f32"}})
    assert open_session(demo_artifact_fp32, "vae_decoder", options=options).precision == "f32"


def test_a_property_that_the_engine_does_not_know_is_named(demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(RequestError, match="unet: CPU cannot compile it: .*NO_SUCH.*with NO_SUCH=1"):
        open_session(demo_artifact_fp32, "unet", options=EngineOptions(settings={"*": {"NO_SUCH": "1"}}))


@pytest.mark.parametrize("text", ["", "<net", "not a graph"])
def test_a_damaged_graph_is_named(text: str, copied: Path, reseal: Callable[[], None]) -> None:
    (copied / "unet" / "openvino_model.xml").write_text(text)
    reseal()
    with pytest.raises(ArtifactError, match="unet/openvino_model.xml: unreadable graph"):
        open_session(Artifact.load(copied, verify=True), "unet")


def test_compiled_graphs_are_kept_in_the_cache_and_used_again(demo_artifact_fp32: Artifact, tmp_path: Path) -> None:
    first = open_session(demo_artifact_fp32, "vae_decoder", options=EngineOptions(cache=tmp_path / "graphs"))
    kept = sorted((tmp_path / "graphs").iterdir())
    assert kept
    again = open_session(demo_artifact_fp32, "vae_decoder", options=EngineOptions(cache=tmp_path / "graphs"))
    assert sorted((tmp_path / "graphs").iterdir()) == kept
    assert again.precision == "f32"
    feeds = {"latent_sample": _latents()}
    assert np.array_equal(first.run(feeds)["sample"], again.run(feeds)["sample"])


def test_little_memory_and_a_cache_map_the_compiled_weights(
    demo_artifact_fp32: Artifact, tmp_path: Path, decoder: Session
) -> None:
    sessions = [
        open_session(demo_artifact_fp32, "vae_decoder", options=EngineOptions(cache=tmp_path / str(low), low_memory=low))
        for low in (True, False)
    ]
    mapped = [session._request.get_compiled_model().get_property("LOADED_FROM_CACHE") for session in sessions]
    assert mapped == [True, False]
    feeds = {"latent_sample": _latents()}
    for session in sessions:
        assert np.array_equal(session.run(feeds)["sample"], decoder.run(feeds)["sample"])


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
