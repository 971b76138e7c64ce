"""In a session that prefers little memory, weights stay in their file: the same results, and nothing is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.backends import onnx as backend
from vaefix.runtime.backends.onnx.mapped import weights_as_inputs
from vaefix.runtime.errors import ArtifactError
from vaefix.runtime.heap import return_freed
from vaefix.runtime.session import EngineOptions, Session, open_session

LOW = EngineOptions(low_memory=True)
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
WIDTH, LAYERS = 1024, 12


def _feeds(session: Session) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {
        "latent_sample": (2, 4, 8, 12),
        "sample": (2, 4, 8, 12) if "timestep" in session.inputs else (1, 3, 64, 96),
        "timestep": (1,),
        "encoder_hidden_states": (2, 77, 96),
        "text_embeds": (2, 64),
        "time_ids": (2, 6),
    }
    ids = {"input_ids": random.integers(0, 1000, (2, 77))}
    return {name: ids.get(name, random.standard_normal(shapes.get(name, ()), np.float32)) for name in session.inputs}


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("artifact", ["demo_artifact_onnx_cpu", "demo_artifact_onnx_cuda", "demo_artifact_onnx_bf16"])
def test_results_are_those_of_the_ordinary_session(artifact: str, name: str, request: pytest.FixtureRequest) -> None:
    ordinary, low = (
        open_session(request.getfixturevalue(artifact), name, "CPU", options) for options in (EngineOptions(), LOW)
    )
    assert (low.inputs, low.outputs, low.precision) == (ordinary.inputs, ordinary.outputs, ordinary.precision)
    feeds = _feeds(ordinary)
    found = low.run(feeds)
    for output, expected in ordinary.run(feeds).items():
        assert np.abs(found[output] - expected).max() <= 2e-6 * np.abs(expected).max(), output


@pytest.fixture(scope="module", params=["f16", "bf16", "f8e4m3", "i8", "i4"])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve square matrices one after the other, 48 MiB as float32, stored in fewer bits."""
    kinds = {
        "f16": (np.float16, TensorProto.FLOAT16),
        "bf16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
        "f8e4m3": (ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FN),
        "i8": (np.int8, TensorProto.INT8),
        "i4": (np.uint8, TensorProto.INT4),  # two in a byte
    }
    dtype, element = kinds[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    graph = helper.make_graph([], "stack", *([helper.make_tensor_value_info(name, 1, [1, WIDTH])] for name in "xy"))
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 / 64), "scale"))
    random, value = np.random.default_rng(0), "x"
    with (folder / "weights").open("wb") as file:
        for layer in range(LAYERS):
            name = f"w{layer}"
            shape = (WIDTH, WIDTH // 2 if request.param == "i4" else WIDTH)
            codes = random.integers(-7, 8, shape) if request.param == "i8" else random.standard_normal(shape)
            weight = random.integers(0, 256, shape, np.uint8) if request.param == "i4" else codes.astype(dtype)
            tensor = TensorProto(name=name, data_type=element, dims=(WIDTH, WIDTH), data_location=TensorProto.EXTERNAL)
            for key, entry in (("location", "weights"), ("offset", file.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            graph.initializer.append(tensor)
            file.write(weight.tobytes())
            widen = helper.make_node("Cast", [name], [f"{name}/f32"], to=TensorProto.FLOAT)
            if request.param in ("f8e4m3", "i8", "i4"):
                widen = helper.make_node("DequantizeLinear", [name, "scale"], [f"{name}/f32"])
            graph.node.append(widen)
            graph.node.append(helper.make_node("MatMul", [value, f"{name}/f32"], [f"m{layer}"]))
            graph.node.append(helper.make_node("Mul", [f"m{layer}", "scale"], [f"v{layer}"]))
            value = f"v{layer}"
    graph.node[-1].output[0] = "y"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def _private() -> int:
    """Bytes of the process that no file holds, in memory now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _grown(stack: Path, options: EngineOptions, execution: str) -> tuple[int, np.ndarray]:
    return_freed()  # else what earlier sessions have freed is taken again, and not counted
    before = _private()
    session = backend.open_session(stack, "unet", device="CPU", execution=execution, options=options)
    result = session.run({"x": np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]})["y"]
    return _private() - before, result


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as on Linux")
def test_weights_stay_in_their_file(stack: Path) -> None:
    matrix, all_of_them = 4 * WIDTH**2, 4 * WIDTH**2 * LAYERS
    grown, result = _grown(stack, LOW, "f32")
    assert grown <= 4 * matrix, "one in float32 at a time, and some of the heap"
    assert np.ptp(result) > 0
    if "Cast" in {node.op_type for node in onnx.load(stack, load_external_data=False).graph.node}:
        assert _grown(stack, EngineOptions(), "f32")[0] >= 0.9 * all_of_them, "otherwise the above shows nothing"
    else:
        grown, again = _grown(stack, EngineOptions(), "f32")
        assert grown <= 4 * matrix, "codes stay in the file in every session"
        assert np.array_equal(again, result)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory is read as on Linux")
def test_weights_are_mapped_so_that_nobody_can_write_them(stack: Path) -> None:
    session = backend.open_session(stack, "unet", device="CPU", execution="f32", options=LOW)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    modes = {line[1] for line in maps if line[-1] == str(stack.parent / "weights")}
    assert modes
    assert modes <= {"r--s", "r--p"}
    assert session.inputs == ("x",)


@pytest.fixture
def original(demo_artifact_onnx_cpu: Artifact) -> Artifact:
    return demo_artifact_onnx_cpu


@pytest.mark.parametrize("kept", [None, 0, 10_000, -1])
def test_weights_that_are_missing_or_short_are_named(kept: int | None, copied: Path, original: Artifact) -> None:
    path = copied / "vae_decoder" / "model.onnx_data"
    data = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(data[:kept])
    with pytest.raises(ArtifactError, match="vae_decoder/model.onnx: unreadable graph .*\n  remedy: convert"):
        open_session(replace(original, folder=copied), "vae_decoder", "CPU", LOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.dims.append(2),
        lambda tensor: setattr(tensor.external_data[1], "value", "1000000000"),
        lambda tensor: setattr(tensor.external_data[1], "value", "-4096"),
        lambda tensor: setattr(tensor.external_data[1], "value", "x"),
        lambda tensor: setattr(tensor, "data_type", TensorProto.COMPLEX64),
        lambda tensor: setattr(tensor.external_data[0], "key", "place"),
    ],
)
def test_a_weight_that_does_not_lie_in_its_file_is_refused(
    change: Callable[[TensorProto], object], copied: Path, original: Artifact
) -> None:
    path = copied / "vae_decoder" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(next(tensor for tensor in model.graph.initializer if tensor.external_data))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="vae_decoder/model.onnx: unreadable graph"):
        open_session(replace(original, folder=copied), "vae_decoder", "CPU", LOW)


def test_only_what_lies_in_files_becomes_an_input(stack: Path) -> None:
    model = onnx.load(stack, load_external_data=False)
    weights = weights_as_inputs(model, stack.parent)
    assert [weight.name for weight in weights] == [f"w{layer}" for layer in range(LAYERS)]
    assert [tensor.name for tensor in model.graph.initializer] == ["scale"]
    assert [item.name for item in model.graph.input] == ["x", *(weight.name for weight in weights)]
