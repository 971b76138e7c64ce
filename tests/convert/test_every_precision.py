"""The precisions of 8 and 4 bits, from the checkpoint to what engines compute of the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import pytest

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.precision import QUANTIZED
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import RequestError
from vaefix.runtime.session import open_session
from vaefix.validate.inputs import PictureSize, sample_inputs
from vaefix.validate.metrics import Difference, compare
from vaefix.validate.reference import component_outputs

CODES = {"int8": "i8", "int4": "i4", "fp8_e4m3": "f8e4m3", "fp8_e5m2": "f8e5m2"}
SIZE = PictureSize(64, 96)

Make = Callable[..., Artifact]


@pytest.fixture(scope="module")
def made(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """made(target, precision, component): that component of the demo model, converted once. Read only."""
    known: dict[tuple[str, str, str], Artifact] = {}

    def make(target: str, precision: str, component: str) -> Artifact:
        key = (target, precision, component)
        if key not in known:
            output = tmp_path_factory.mktemp("artifact") / "-".join(key)
            options = ConvertOptions(output, demo_model, target, {"*": precision}, components=(component,), cache=cache_folder)
            known[key] = convert(options)
        return known[key]

    return make


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu", pytest.param("onnx-cuda", marks=pytest.mark.slow)])
def test_the_same_input_gives_the_same_bytes(
    made: Make, demo_model: Path, cache_folder: Path, tmp_path: Path, target: str, precision: str
) -> None:
    first = made(target, precision, "text_encoder")
    options = ConvertOptions(
        tmp_path / "again", demo_model, target, {"*": precision}, components=("text_encoder",), cache=cache_folder
    )
    assert convert(options).files == first.files


slow = pytest.mark.slow
SOME = ["int8", *(pytest.param(precision, marks=slow) for precision in QUANTIZED if precision != "int8")]


@pytest.mark.parametrize("precision", SOME)
def test_linear_and_conv_are_quantised_and_the_rest_stays_in_16_bits(made: Make, precision: str) -> None:
    weights = made("openvino-gpu", precision, "unet").component("unet").weights
    assert weights["other"].keys() == {"f16"}
    assert weights["conv"].keys() == {"f16", "i8" if precision == "int4" else CODES[precision]}
    assert weights["linear"].keys() == {"f16", CODES[precision]}
    assert all(kind["f16"] < 0.5 * sum(kind.values()) for kind in (weights["linear"], weights["conv"]))


def test_the_manifest_counts_the_weights_that_pytorch_counts(made: Make, demo_model: Path) -> None:
    weights = made("openvino-gpu", "int8", "unet").component("unet").weights
    expected = sum(tensor.count for tensor in Checkpoint.open(demo_model).tensors("unet").values())
    assert sum(count for kind in weights.values() for count in kind.values()) == expected


@slow
@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu"])
def test_8_bits_take_half_the_room_of_16_and_4_less(made: Make, target: str) -> None:
    def size(precision: str) -> int:
        files = made(target, precision, "unet").files
        return sum(entry.size for name, entry in files.items() if name.endswith((".bin", "_data")))

    sizes = {precision: size(precision) for precision in ("fp16", "int8", "int4")}
    # The demo model's time embeddings are a quarter of it, and each tensor begins on a page of its own for ONNX.
    assert sizes["int4"] < sizes["int8"] < (0.75 if target == "openvino-gpu" else 0.9) * sizes["fp16"]


def unet_error(artifact: Artifact, demo_model: Path) -> Difference:
    feeds = sample_inputs(Checkpoint.open(demo_model), "unet", 0, SIZE)
    expected = component_outputs(Checkpoint.open(demo_model), "unet", [feeds], "fp32").untouched["out_sample"][0]
    return compare(expected, open_session(artifact, "unet").run(feeds)["out_sample"])


@slow
@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu"])
def test_int8_keeps_40_db_and_more_than_fp8(made: Make, demo_model: Path, target: str) -> None:
    int8, fp8 = (unet_error(made(target, precision, "unet"), demo_model) for precision in ("int8", "fp8_e4m3"))
    assert np.isfinite(int8.psnr_db), "what rounds cannot be exact"
    assert int8.psnr_db >= 40
    assert int8.psnr_db > fp8.psnr_db


@slow
@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu"])
def test_fewer_bits_lose_more(made: Make, demo_model: Path, target: str) -> None:
    precisions = ("fp8_e4m3", "fp8_e5m2", "int4")
    fp8, e5m2, int4 = (unet_error(made(target, precision, "unet"), demo_model) for precision in precisions)
    assert fp8.psnr_db > e5m2.psnr_db
    assert fp8.psnr_db > int4.psnr_db


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_plain_engine_loads_it_and_computes_nearly_the_same(made: Make, demo_model: Path, precision: str) -> None:
    """With their own settings, engines round activations too, where weights are integers."""
    feeds = sample_inputs(Checkpoint.open(demo_model), "text_encoder", 0, SIZE)
    expected = component_outputs(Checkpoint.open(demo_model), "text_encoder", [feeds], precision).stored["last_hidden_state"][0]
    ir, graph = (
        artifact.folder / artifact.component("text_encoder").model
        for artifact in (made(target, precision, "text_encoder") for target in ("openvino-gpu", "onnx-cpu"))
    )
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    results = [
        ov.Core().compile_model(ir, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)["last_hidden_state"],
        session.run(["last_hidden_state"], feeds)[0],
    ]
    for result in results:
        assert compare(expected, result).relative < 2e-2


@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu"])
def test_activations_are_not_rounded_by_our_sessions(made: Make, demo_model: Path, target: str) -> None:
    feeds = sample_inputs(Checkpoint.open(demo_model), "text_encoder", 0, SIZE)
    for precision in ("int8", "int4"):
        reference = component_outputs(Checkpoint.open(demo_model), "text_encoder", [feeds], precision)
        result = open_session(made(target, precision, "text_encoder"), "text_encoder").run(feeds)
        assert compare(reference.stored["last_hidden_state"][0], result["last_hidden_state"]).relative < 1e-5


@pytest.mark.parametrize(("target", "precision"), [("openvino-gpu", "bf16"), ("onnx-cpu", "bf16"), ("onnx-cpu", "int7")])
def test_a_precision_that_the_target_lacks_is_refused_naming_those_it_has(
    tmp_path: Path, demo_model: Path, target: str, precision: str
) -> None:
    with pytest.raises(RequestError, match=f"{target} has no precision '{precision}'") as error:
        convert(ConvertOptions(tmp_path / "out", demo_model, target, {"*": precision}))
    assert "fp16" in str(error.value.remedy)
    assert not (tmp_path / "out").exists()
