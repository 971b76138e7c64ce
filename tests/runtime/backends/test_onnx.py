"""ONNX Runtime computes what was asked where it was asked, or says so; its inputs and outputs are bound by address.

CUDA is played by fakes at the seams to the engine (`load_engine`, `_convolve`, `missing_library`), in its own words.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.backends import onnx as backend
from vaefix.runtime.backends.onnx.engine import cause_of
from vaefix.runtime.backends.onnx.memory import EngineMemory, TorchMemory, size_in
from vaefix.runtime.backends.onnx.session import MOST_GRAPHS, OnnxSession
from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError, ResourceError, VaefixError
from vaefix.runtime.session import EngineOptions, Session, open_session

Edit = Callable[[onnx.ModelProto], object]
HERE = ("cpu", 0)
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
NO_CARD = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static onnxruntime::"
    "CUDAExecutionProviderInfo FromProviderOptions(const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
    'provider_options_utils.h:187 Parse Failed to parse provider option "device_id": cuda_execution_provider_info.cc:71 '
    "operator() Invalid device ID: 9, must be between 0 (inclusive) and {count} (exclusive).\n"
)
NO_CUDNN = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is unavailable or disabled for CUDA Execution Provider: "
    "dlopen failed for libcudnn.so: libcudnn.so: cannot open shared object file: No such file or directory"
)
NO_OPTION = '[ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:182 Parse Unknown provider option: "use_tf33".\n'


@pytest.fixture
def original(demo_artifact_onnx_cpu: Artifact) -> Artifact:
    return demo_artifact_onnx_cpu


@pytest.fixture(scope="module")
def decoder(demo_artifact_onnx_cpu: Artifact) -> Session:
    return open_session(demo_artifact_onnx_cpu, "vae_decoder")


@pytest.fixture(scope="module")
def unet(demo_artifact_onnx_cpu: Artifact) -> Session:
    return open_session(demo_artifact_onnx_cpu, "unet")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose onnxruntime is built for CUDA and whose card computes; more is faked on top of it."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(backend, "missing_library", lambda: None)
    monkeypatch.setattr(backend, "_convolve", lambda ordinal: None)
    return monkeypatch


def _raises(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def _latents(batch: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn((batch, 4, height, width), generator=torch.Generator().manual_seed(seed))


def _unet_feeds() -> dict[str, torch.Tensor]:
    return {
        "sample": _latents(),
        "timestep": torch.tensor([7.25]),
        "encoder_hidden_states": torch.randn((1, 77, 96), generator=torch.Generator().manual_seed(1)),
        "text_embeds": torch.zeros(1, 64),
        "time_ids": torch.zeros(1, 6),
    }


def _decode(session: Session, latents: torch.Tensor) -> torch.Tensor:
    return session.run_tensors({"latent_sample": latents})["sample"]


# Sixteen bits on a CPU


@pytest.mark.parametrize(("artifact", "limit"), [("demo_artifact_onnx_cuda", 1e-4), ("demo_artifact_onnx_bf16", 0.1)])
def test_a_sixteen_bit_graph_computes_in_f32_on_a_cpu(
    artifact: str, limit: float, request: pytest.FixtureRequest, decoder: Session
) -> None:
    """The checkpoint's weights are f16: so stored they are the same, in bf16 they are rounded."""
    session = open_session(request.getfixturevalue(artifact), "vae_decoder")
    difference = (_decode(session, _latents()) - _decode(decoder, _latents())).abs().max()
    assert difference <= limit
    assert session.precision == "f32"


def test_an_overflow_of_sixteen_bits_does_not_happen_on_a_cpu(
    demo_model: Path, cache_folder: Path, tmp_path: Path, decoder: Session
) -> None:
    options = ConvertOptions(
        tmp_path / "sick", demo_model, "onnx-cuda", components=("vae_decoder",), repair="never", cache=cache_folder
    )
    session = open_session(convert(options), "vae_decoder")
    assert (_decode(session, _latents()) - _decode(decoder, _latents())).abs().max() <= 1e-4


def test_opening_and_running_writes_nothing(demo_artifact_onnx_cuda: Artifact) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in demo_artifact_onnx_cuda.folder.rglob("*")}

    before = files()
    _decode(open_session(demo_artifact_onnx_cuda, "vae_decoder"), _latents())
    assert files() == before


# Binding


@pytest.fixture(params=["torch's memory", "the engine's memory", "torch's, CUDA graphs", "the engine's, CUDA graphs"])
def bound(request: pytest.FixtureRequest, decoder: OnnxSession) -> OnnxSession:
    """Every way to bind, on the CPU. There a CUDA graph is an ordinary run, between the same fixed addresses."""
    memory = TorchMemory(HERE) if request.param.startswith("torch") else EngineMemory(HERE)
    return replace(decoder, _memory=memory, _cuda_graphs="graphs" in request.param, _recorded={})


def test_every_way_to_bind_gives_what_the_engine_gives(bound: OnnxSession) -> None:
    seen = []
    for seed, shape in enumerate([(1, 8, 8), (2, 8, 12), (1, 8, 8), (2, 8, 12), (1, 5, 9)]):
        latents = _latents(*shape, seed=seed)
        (expected,) = bound._engine.run(None, {"latent_sample": latents.numpy()})
        seen.append((_decode(bound, latents), expected))
    for actual, expected in seen:  # all at the end: no run may write into the results of an earlier one
        assert actual.dtype == torch.float32
        assert np.array_equal(actual.numpy(), expected)


def test_tensors_of_other_layouts_and_types_are_taken(bound: OnnxSession) -> None:
    latents = _latents(2, 8, 12).half().float()
    expected = _decode(bound, latents)
    transposed = latents.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    every_second = torch.stack([latents, torch.zeros_like(latents)], dim=-1)[..., 0]
    assert not transposed.is_contiguous()
    assert not every_second.is_contiguous()
    for same in (transposed, every_second, latents.half(), latents.double(), latents.clone().requires_grad_()):
        assert torch.equal(_decode(bound, same), expected)
    with torch.inference_mode():
        assert torch.equal(_decode(bound, latents.clone()), expected)


def test_a_tensor_changed_in_place_is_seen(bound: OnnxSession, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = onnxruntime.OrtValue.ortvalue_from_numpy
    # As to a card: without the copy the engine would read the tensor itself.
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", lambda array, *place: upload(array.copy(), *place))
    latents = _latents()
    first = _decode(bound, latents)
    latents.mul_(2)
    second = _decode(bound, latents)
    assert torch.equal(second, _decode(bound, latents.clone()))
    assert (second - first).abs().max() > 0.1
    with torch.inference_mode():  # where changes are not counted
        latents = latents.clone()
        _decode(bound, latents)
        latents.mul_(2)
        assert not torch.equal(_decode(bound, latents), second)


@pytest.fixture(scope="module")
def half_edges(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The decoder with inputs and outputs in fp16."""
    output, chosen = tmp_path_factory.mktemp("half") / "artifact", ("vae_decoder",)
    return convert(ConvertOptions(output, demo_model, "onnx-cpu", components=chosen, io="fp16", cache=cache_folder))


def test_half_edges_are_fed_and_read_in_float32(half_edges: Artifact, decoder: Session) -> None:
    """As on a card, where the graph is loaded as it is written."""
    path, latents = half_edges.folder / "vae_decoder" / "model.onnx", _latents()
    engine = backend.load_engine(path.read_bytes(), path.parent)
    ports = backend._ports(engine, path)
    assert ports[0][0].dtype == ports[1][0].dtype == torch.float16
    for memory in (TorchMemory(HERE), EngineMemory(HERE)):
        for graphs in (False, True):
            session = OnnxSession("CPU", "f16", "vae_decoder", *ports, engine, memory, graphs)
            sample = _decode(session, latents)
            assert sample.dtype == torch.float32
            assert 0 < (sample - _decode(decoder, latents)).abs().max() < 0.01
    assert session.run({"latent_sample": latents.numpy()})["sample"].dtype == np.float32


def test_half_edges_are_widened_on_a_cpu(half_edges: Artifact, decoder: Session) -> None:
    session = open_session(half_edges, "vae_decoder")
    assert (_decode(session, _latents()) - _decode(decoder, _latents())).abs().max() <= 2e-5


def test_what_did_not_change_is_not_uploaded_again(unet: OnnxSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session = replace(unet, _memory=EngineMemory(HERE))
    uploaded: list[tuple[int, ...]] = []
    upload = onnxruntime.OrtValue.ortvalue_from_numpy

    def counted(array: np.ndarray, *place: object) -> onnxruntime.OrtValue:
        uploaded.append(array.shape)
        return upload(array, *place)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", counted)
    feeds = _unet_feeds()
    for step in range(3):
        feeds = {**feeds, "sample": _latents(seed=step), "timestep": torch.tensor([100.0 * step])}
        actual = session.run_tensors(feeds)["out_sample"]
        assert torch.equal(actual, unet.run_tensors(feeds)["out_sample"])
    assert sorted(uploaded) == sorted([(1, 77, 96), (1, 64), (1, 6), *[(1, 4, 8, 8), ()] * 3])
    uploaded.clear()
    session.run_tensors({**feeds, "text_embeds": torch.zeros(1, 64)})
    assert uploaded == [(), (1, 64)], "an equal tensor is another one, and so is the number made of a timestep"


def test_a_cuda_graph_has_one_set_of_addresses_and_one_id_for_every_shape(
    decoder: OnnxSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[object, str]] = []
    run = onnxruntime.InferenceSession.run_with_iobinding

    def watched(engine: object, binding: object, options: onnxruntime.RunOptions) -> None:
        runs.append((binding, options.get_run_config_entry("gpu_graph_id")))
        run(engine, binding, options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", watched)
    session = replace(decoder, _cuda_graphs=True, _recorded={})
    for shape in [(1, 8, 8), (1, 8, 12), (1, 8, 8), (1, 8, 12)]:
        _decode(session, _latents(*shape))
    assert [identifier for _, identifier in runs] == ["1", "2", "1", "2"]
    assert runs[0][0] is runs[2][0] is not runs[1][0]
    assert runs[1][0] is runs[3][0]


def test_so_many_shapes_are_recorded_and_those_after_them_run_without_a_graph(
    decoder: OnnxSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifiers: list[str] = []
    run = onnxruntime.InferenceSession.run_with_iobinding

    def watched(engine: object, binding: object, options: onnxruntime.RunOptions) -> None:
        identifiers.append(options.get_run_config_entry("gpu_graph_id"))
        if len(identifiers) == 2:
            raise RuntimeError("it failed")
        run(engine, binding, options)

    expected = [_decode(decoder, _latents(1, 4, 4 + width)) for width in range(MOST_GRAPHS + 1)]
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", watched)
    session = replace(decoder, _cuda_graphs=True, _recorded={})
    _decode(session, _latents(1, 4, 4))
    with pytest.raises(DeviceError, match="it failed"):
        _decode(session, _latents(1, 4, 5))
    for width, sample in enumerate(expected):
        assert torch.equal(_decode(session, _latents(1, 4, 4 + width)), sample)
    assert identifiers == ["1", "2", "1", *map(str, range(2, MOST_GRAPHS + 1)), "-1"], "a failed run records nothing"


@pytest.mark.parametrize(
    "timestep", [torch.tensor(7.25), torch.tensor([7.25]), torch.tensor([7.25] * 3), torch.tensor([[7.25]])]
)
def test_a_number_for_the_whole_batch_may_come_in_any_shape(timestep: torch.Tensor, unet: Session) -> None:
    feeds = _unet_feeds()
    expected = unet.run_tensors(feeds)["out_sample"]
    assert torch.equal(unet.run_tensors({**feeds, "timestep": timestep})["out_sample"], expected)
    for wrong in (torch.tensor([7.25, 7.5]), torch.zeros(0)):
        with pytest.raises(RequestError, match="unet: timestep has the shape"):
            unet.run_tensors({**feeds, "timestep": wrong})


def test_whole_timesteps_are_taken_as_numbers(unet: Session) -> None:
    arrays = {name: tensor.numpy() for name, tensor in _unet_feeds().items()}
    whole = unet.run({**arrays, "timestep": np.array([7])})["out_sample"]
    assert np.array_equal(whole, unet.run({**arrays, "timestep": np.array([7.0], np.float32)})["out_sample"])


@pytest.mark.parametrize(
    ("size", "expected"), [(3, 3), ("height", 12), ("height * 8", 96), ("width / 8", 1), ("batch_size", 2), ("width * 10", 150)]
)
def test_sizes_follow_from_the_axes(size: int | str, expected: int) -> None:
    assert size_in({"batch_size": 2, "height": 12, "width": 15}, size) == expected


@pytest.mark.parametrize(
    "size", ["depth", "8 * height", "height*8", "height * width", "height * -8", "__import__('os')", None, ""]
)
def test_sizes_that_are_none_are_not_evaluated(size: str) -> None:
    with pytest.raises(KeyError):
        size_in({"height": 12, "width": 15}, size)


def test_an_engine_that_computes_another_size_is_an_error(decoder: OnnxSession) -> None:
    port = replace(decoder._outputs[0], sizes=("batch_size", 3, "latent_height * 4", "latent_width * 8"))
    with pytest.raises(DeviceError, match=r"vae_decoder: CPU failed on latent_sample \[1, 4, 8, 8\]: .*shape"):
        _decode(replace(decoder, _outputs=(port,)), _latents())


# Damaged artifacts


@pytest.fixture
def edit(copied: Path) -> Callable[[Edit], None]:
    """edit(change): alter the graph of the copy's decoder."""

    def apply(change: Edit) -> None:
        path = copied / "vae_decoder" / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    return apply


def _open_copy(copied: Path, original: Artifact) -> Session:
    return open_session(replace(original, folder=copied), "vae_decoder")


@pytest.mark.parametrize("data", [b"", b"<net", b"not a graph"])
@pytest.mark.parametrize("execution", ["f32", "f16"])
def test_a_damaged_graph_is_named(data: bytes, execution: str, copied: Path, original: Artifact) -> None:
    (copied / "vae_decoder" / "model.onnx").write_bytes(data)
    entry = replace(original.components["vae_decoder"], execution=execution)
    with pytest.raises(ArtifactError, match="vae_decoder/model.onnx: unreadable graph .*\n  remedy: convert"):
        _open_copy(copied, replace(original, components={"vae_decoder": entry}))


def test_a_missing_graph_is_named(copied: Path, original: Artifact) -> None:
    (copied / "vae_decoder" / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="vae_decoder/model.onnx: unreadable graph"):
        _open_copy(copied, original)


@pytest.mark.parametrize("kept", [None, 0, 10_000, -1])
def test_weights_that_are_missing_or_short_are_named(kept: int | None, copied: Path, original: Artifact) -> None:
    path = copied / "vae_decoder" / "model.onnx_data"
    data = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(data[:kept])
    with pytest.raises(ArtifactError, match="vae_decoder/model.onnx: unreadable graph .*[Ee]xternal.*\n  remedy: convert"):
        _open_copy(copied, original)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 99), "[Oo]pset 99"),
        (lambda model: setattr(model, "ir_version", 99), "IR version: 99"),
    ],
)
def test_a_graph_for_a_newer_engine_says_so(
    change: Edit, reason: str, edit: Callable[[Edit], None], copied: Path, original: Artifact
) -> None:
    edit(change)
    with pytest.raises(ArtifactError, match=f"does not know this graph: .*{reason}") as caught:
        _open_copy(copied, original)
    assert onnxruntime.__version__ in caught.value.reason
    assert "pip install -U onnxruntime" in str(caught.value.remedy)


def test_an_unknown_operation_is_named(edit: Callable[[Edit], None], copied: Path, original: Artifact) -> None:
    edit(lambda model: setattr(model.graph.node[0], "op_type", "Conjure"))
    with pytest.raises(ArtifactError, match="Conjure"):
        _open_copy(copied, original)


def test_an_output_without_a_named_size_is_named(edit: Callable[[Edit], None], copied: Path, original: Artifact) -> None:
    edit(lambda model: model.graph.output[0].type.tensor_type.shape.dim[2].Clear())
    edit(lambda model: model.graph.input[0].type.tensor_type.shape.dim[2].Clear())
    with pytest.raises(ArtifactError, match="output sample has the size 'None', which does not follow"):
        _open_copy(copied, original)


def test_an_output_of_a_type_that_nothing_reads_is_named(
    edit: Callable[[Edit], None], copied: Path, original: Artifact
) -> None:
    def as_double(model: onnx.ModelProto) -> None:
        name = model.graph.output[0].name
        model.graph.output[0].name = "wide"
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        model.graph.node.append(onnx.helper.make_node("Cast", [name], ["wide"], to=onnx.TensorProto.DOUBLE))

    edit(as_double)
    with pytest.raises(ArtifactError, match=r"wide is a tensor\(double\), which no pipeline"):
        _open_copy(copied, original)


def test_an_output_of_unknown_size_is_named(edit: Callable[[Edit], None], copied: Path, original: Artifact) -> None:
    edit(lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_param", "rows"))
    with pytest.raises(ArtifactError, match="output sample has the size 'rows', which does not follow"):
        _open_copy(copied, original)


# CUDA that is not there


@pytest.mark.parametrize("device", ["GPU", "NPU", "AUTO", "CUDA.1", "CUDA:", "CUDA:x", "cuda:-1", ""])
def test_devices_of_other_engines_are_refused(device: str, demo_artifact_onnx_cpu: Artifact) -> None:
    reason = "runs no ONNX graph" if device in ("GPU", "NPU", "AUTO") else "is not there"
    with pytest.raises(DeviceError, match=f"unet: device {device} {reason}"):
        open_session(demo_artifact_onnx_cpu, "unet", device)


def _refused(artifact: Artifact, device: str = "CUDA") -> DeviceError:
    """The error for this device, which must not come with ONNX Runtime's silent CPU; allowed, the CPU is taken."""
    with pytest.raises(DeviceError) as caught:
        open_session(artifact, "vae_decoder", device)
    with pytest.warns(UserWarning, match="^vae_decoder runs on the CPU") as warned:
        session = open_session(artifact, "vae_decoder", device, EngineOptions(allow_fallback=True, cuda_graphs=True))
    assert len(warned) == 1
    assert caught.value.reason in str(warned[0].message)
    assert (session.device, session.precision, session.tensor_device) == ("CPU", "f32", "cpu")
    assert torch.isfinite(_decode(session, _latents())).all()
    assert caught.value.source == "vae_decoder"
    return caught.value


def test_the_build_for_the_cpu_is_told_from_that_for_cuda(
    demo_artifact_onnx_cuda: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS[1:])
    error = _refused(demo_artifact_onnx_cuda)
    assert "build for the CPU" in error.reason
    assert error.remedy == (
        "for an NVIDIA card: pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'vaefix[cuda]'. "
        "Without one, choose the device CPU"
    )


def test_a_library_that_the_provider_needs_is_named(
    demo_artifact_onnx_cuda: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    (tmp_path / "libonnxruntime_providers_cuda.so").touch()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "state.so"))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load everything"), raising=False)
    monkeypatch.setattr(ctypes, "CDLL", _raises(OSError(needs)))
    error = _refused(demo_artifact_onnx_cuda)
    assert error.reason.endswith(needs)
    assert "onnxruntime-gpu[cuda,cudnn]" in str(error.remedy)
    assert capsys.readouterr().out == "", "standard output belongs to the caller"


def test_a_library_that_loads_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    path = tmp_path / "libonnxruntime_providers_cuda.so"
    path.touch()
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "state.so"))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("preloaded"), raising=False)
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    assert backend.missing_library() is None
    assert loaded == ["preloaded", str(path)]


@pytest.mark.parametrize(("count", "there"), [(0, "none"), (2, "CUDA:0, CUDA:1")])
def test_a_card_that_is_not_there_is_answered_with_those_that_are(
    count: int, there: str, demo_artifact_onnx_cuda: Artifact, card: pytest.MonkeyPatch
) -> None:
    card.setattr(backend, "_convolve", _raises(RuntimeError(NO_CARD.format(count=count))))
    assert f"CUDA:9 cannot be used: it is not there (there: {there})" in _refused(demo_artifact_onnx_cuda, "CUDA:9").reason


def test_what_only_the_first_run_shows_is_found_before_a_model_is_loaded(
    demo_artifact_onnx_cuda: Artifact, card: pytest.MonkeyPatch
) -> None:
    """cuDNN is loaded by the first convolution, long after ONNX Runtime has said that it uses CUDA."""
    card.setattr(backend, "_convolve", _raises(errors.NotImplemented(NO_CUDNN)))
    error = _refused(demo_artifact_onnx_cuda)
    assert error.reason.startswith("CUDA:0 cannot be used: cuDNN is unavailable")
    assert "libcudnn.so" in error.reason
    assert "onnxruntime-gpu[cuda,cudnn]" in str(error.remedy)


def test_the_convolution_that_is_tried_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CUDA", "CPUExecutionProvider")
    backend._convolve(0)


def test_an_engine_that_fell_back_in_silence_is_an_error(demo_artifact_onnx_cuda: Artifact, card: pytest.MonkeyPatch) -> None:
    create = backend.load_engine
    card.setattr(
        backend, "load_engine", lambda graph, folder, provider, *_, **__: create(graph, folder, "CPUExecutionProvider", {})
    )
    artifact = replace(
        demo_artifact_onnx_cuda,
        components={"vae_decoder": replace(demo_artifact_onnx_cuda.components["vae_decoder"], execution="f32")},
    )
    with pytest.raises(DeviceError, match="vae_decoder: ONNX Runtime fell back to the CPU"):
        open_session(artifact, "vae_decoder", "CUDA")


def _opening_fails(artifact: Artifact, card: pytest.MonkeyPatch, error: Exception) -> VaefixError:
    card.setattr(backend, "load_engine", _raises(error))
    with pytest.raises(VaefixError) as caught:
        open_session(artifact, "vae_decoder", "CUDA")
    return caught.value


def test_an_option_that_the_provider_does_not_know_is_the_user_s(
    demo_artifact_onnx_cuda: Artifact, card: pytest.MonkeyPatch
) -> None:
    error = _opening_fails(demo_artifact_onnx_cuda, card, RuntimeError(NO_OPTION))
    assert isinstance(error, RequestError)
    assert 'Unknown provider option: "use_tf33"' in error.reason


def test_a_card_that_cannot_hold_the_model_is_out_of_memory(
    demo_artifact_onnx_cuda: Artifact, card: pytest.MonkeyPatch
) -> None:
    full = errors.RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory")
    error = _opening_fails(demo_artifact_onnx_cuda, card, full)
    assert isinstance(error, ResourceError)
    assert error.reason == "CUDA has not the memory for it: Failed to allocate memory"
    assert "--device vae_decoder=CPU" in str(error.remedy)


@pytest.mark.parametrize(
    "full",
    [
        errors.RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for buffer of size 9"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_a_card_that_fills_up_while_it_runs_is_out_of_memory(
    decoder: OnnxSession, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", _raises(full))
    with pytest.raises(ResourceError, match=r"has not the memory for latent_sample \[1, 4, 8, 8\]") as caught:
        _decode(decoder, _latents())
    assert caught.value.exit_code == 4


# What is asked of CUDA


@pytest.mark.parametrize(("execution", "tf32"), [("f32", {"use_tf32": "0"}), ("f16", {}), ("bf16", {})])
@pytest.mark.parametrize(("ordinal", "card_id"), [(0, {}), (1, {"device_id": "1"})])
def test_f32_is_exact_and_memory_is_not_hoarded(
    execution: str, tf32: dict[str, str], ordinal: int, card_id: dict[str, str]
) -> None:
    thrift = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    assert backend._settings(ordinal, execution, EngineOptions(), "unet") == {**thrift, **tf32, **card_id}


def test_settings_of_the_user_s_own_win_and_cuda_graphs_are_for_who_asks() -> None:
    own = {"*": {"use_tf32": "1"}, "unet": {"gpu_mem_limit": "9"}}
    settings = backend._settings(0, "f32", EngineOptions(cuda_graphs=True, settings=own), "unet")
    assert settings["use_tf32"] == "1"
    assert settings["gpu_mem_limit"] == "9"
    assert settings["enable_cuda_graph"] == "1"


@pytest.mark.parametrize("key", ["device_id", "enable_cuda_graph", "user_compute_stream"])
def test_settings_that_the_binding_relies_on_are_refused(key: str, demo_artifact_onnx_cpu: Artifact) -> None:
    options = EngineOptions(settings={"*": {key: "1"}})
    with pytest.raises(RequestError, match=f"unet: vaefix itself sets {key}\n  remedy: .*--device"):
        open_session(demo_artifact_onnx_cpu, "unet", "CUDA", options)


def test_what_is_said_of_all_is_meant_for_the_cards(demo_artifact_onnx_cpu: Artifact) -> None:
    options = EngineOptions(cuda_graphs=True, settings={"*": {"use_tf32": "1"}})
    for device in ("CPU", {"vae_decoder": "CPU"}, {}):
        with pytest.raises(RequestError, match="vae_decoder: CUDA graphs and engine options are for CUDA"):
            open_session(demo_artifact_onnx_cpu, "vae_decoder", device, options)
    beside = {"*": "cuda:1", "vae_decoder": "CPU"}
    assert open_session(demo_artifact_onnx_cpu, "vae_decoder", beside, options).device == "CPU"
    named = EngineOptions(settings={"vae_decoder": {"use_tf32": "1"}})
    with pytest.raises(RequestError, match="vae_decoder: .*engine options are for CUDA"):
        open_session(demo_artifact_onnx_cpu, "vae_decoder", beside, named)


def test_a_folder_for_compiled_graphs_is_refused(demo_artifact_onnx_cpu: Artifact, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"keeps no compiled graphs\n  remedy: leave --cache out"):
        open_session(demo_artifact_onnx_cpu, "unet", options=EngineOptions(cache=tmp_path))


def test_settings_are_refused_on_a_cpu(demo_artifact_onnx_cpu: Artifact) -> None:
    options = EngineOptions(settings={"vae_decoder": {"use_tf32": "1"}})
    with pytest.raises(RequestError, match="vae_decoder: .*engine options are for CUDA"):
        open_session(demo_artifact_onnx_cpu, "vae_decoder", "CPU", options)
    assert open_session(demo_artifact_onnx_cpu, "vae_encoder", "CPU", options).device == "CPU"


@pytest.mark.parametrize(
    ("artifact", "execution", "disabled"),
    [("demo_artifact_onnx_cuda", "f16", ["QuickGeluFusion"]), ("demo_artifact_onnx_cpu", "f32", [])],
)
def test_the_graph_reaches_cuda_as_it_was_written(
    artifact: str, execution: str, disabled: list[str], request: pytest.FixtureRequest, card: pytest.MonkeyPatch
) -> None:
    """In its own precision, by the engine that is asked for, without the fusion that evaluates SiLU in f16."""
    given: list[object] = []

    class Engine:
        def get_providers(self) -> list[str]:
            return PROVIDERS

        def get_inputs(self) -> list[object]:
            return []

        get_outputs = get_inputs

    def create(*arguments: object, stored: bool) -> Engine:
        given.extend(arguments)
        assert not stored
        return Engine()

    card.setattr(backend, "load_engine", create)
    loaded = request.getfixturevalue(artifact)
    session = open_session(loaded, "unet", "cuda:1")
    graph, folder, provider, settings, fusions = given
    assert graph == (loaded.folder / "unet" / "model.onnx").read_bytes()
    assert (folder, provider, fusions) == (loaded.folder / "unet", "CUDAExecutionProvider", disabled)
    assert settings == backend._settings(1, execution, EngineOptions(), "unet")
    assert (session.device, session.precision) == ("CUDA:1", execution)


@pytest.mark.parametrize(("seen", "tensor_device"), [(True, "cuda:1"), (False, "cpu")])
def test_tensors_stay_on_the_card_where_torch_sees_it(seen: bool, tensor_device: str) -> None:
    memory = TorchMemory(("cuda", 1)) if seen else EngineMemory(("cuda", 1))
    assert memory.tensor_device == tensor_device
    assert memory.place == ("cuda", 1)


def test_the_cause_is_told_without_the_engine_s_source_lines() -> None:
    assert cause_of(RuntimeError(NO_OPTION)) == 'Parse Unknown provider option: "use_tf33".'
    assert cause_of(RuntimeError("/src/a.cc:7 void onnxruntime::f(int, A&&) Wrong (9) here")) == "Wrong (9) here"
    assert cause_of(ValueError("plain\n text")) == "plain text"
