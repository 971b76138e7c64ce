"""Artifacts in 8 and 4 bits: healthy ones pass on every engine, one wrong code or scale does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.precision import QUANTIZED
from vaefix.runtime.artifact import Artifact
from vaefix.validate.validate import ValidateOptions, validate
from vaefix.validate.verdict import Verdict

from .stored import reseal

LAYER = "text_model.encoder.layers.1.mlp.fc1"
Make = Callable[..., Artifact]


@pytest.fixture
def make(demo_model: Path, cache_folder: Path, tmp_path: Path) -> Make:
    """make(target, precision, *components): of the demo model."""

    def made(target: str, precision: str, *components: str) -> Artifact:
        options = ConvertOptions(
            tmp_path / "artifact", demo_model, target, {"*": precision}, components=components or None, cache=cache_folder
        )
        return convert(options)

    return made


def compared(artifact: Artifact, model: Path, **options: object) -> Verdict:
    given = {"generation": False, "seeds": (0,), **options}
    return validate(ValidateOptions(artifact.folder, model, **given))


def kinds(verdict: Verdict, component: str) -> set[str]:
    return {comparison.kind for comparison in verdict.comparisons if comparison.component == component}


@pytest.mark.parametrize("target", [pytest.param("openvino-gpu", marks=pytest.mark.slow), "onnx-cuda"])
def test_a_repaired_decoder_in_8_bits_passes_as_a_16_bit_gpu_runs_it(make: Make, demo_model: Path, target: str) -> None:
    artifact = make(target, "int8", "vae_decoder")
    assert artifact.component("vae_decoder").repaired
    verdict = compared(artifact, demo_model, emulate="fp16", ranges=True)
    assert verdict.exit_code == 0, verdict.comparisons
    assert kinds(verdict, "vae_decoder") >= {"parity", "storage", "emulated"}
    if target == "onnx-cuda":
        assert scale_types(artifact) == {onnx.TensorProto.FLOAT}, "what a repair has scaled may be subnormal in fp16"
    layers = {layer.layer for layer in verdict.ranges["vae_decoder"]["artifact"]}
    assert {"decoder.mid_block.resnets.0.conv1", "decoder.conv_out"} <= layers, "weights are not taken for layers"


def scale_types(artifact: Artifact) -> set[int]:
    """Of the scales as they are stored, where they are what DequantizeLinear reads."""
    graph = onnx.load(artifact.folder / "vae_decoder" / "model.onnx", load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {types[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cuda", "onnx-cpu"])
def test_a_whole_model_in_few_bits_passes(make: Make, demo_model: Path, target: str, precision: str) -> None:
    verdict = compared(make(target, precision), demo_model, generation=True, emulate=None if target == "onnx-cpu" else "fp16")
    assert verdict.exit_code == 0, [item for item in verdict.comparisons if item.status != "passed"]


@pytest.mark.parametrize(
    ("part", "dtype", "change"),
    [
        ("/scale", np.float16, lambda scales: np.multiply(scales, np.float16(1.02), out=scales)),
        ("/scale", np.float16, lambda scales: np.copyto(scales, np.roll(scales, 1))),
        ("", np.int8, lambda codes: np.copyto(codes, np.roll(codes, 1))),
        ("", np.int8, lambda codes: np.copyto(codes[:1], -codes[:1])),
    ],
    ids=["scales 2% too large", "scales of the neighbours", "codes shifted", "one code of another sign"],
)
def test_a_wrong_code_or_scale_is_caught_in_its_layer(
    make: Make, demo_model: Path, part: str, dtype: type, change: Callable[[np.ndarray], None]
) -> None:
    artifact = make("onnx-cpu", "int8", "text_encoder")
    assert compared(artifact, demo_model).exit_code == 0
    edit(artifact.folder / "text_encoder" / "model.onnx", f"{LAYER}.weight{part}", dtype, change)
    reseal(artifact)
    verdict = compared(artifact, demo_model)
    assert verdict.exit_code == 1
    failures = [reason for item in verdict.comparisons if item.kind == "parity" for reason in item.failures]
    assert any(LAYER in reason for reason in failures), failures


def edit(graph: Path, name: str, dtype: type, change: Callable[[np.ndarray], None]) -> None:
    (tensor,) = [item for item in onnx.load(graph, load_external_data=False).graph.initializer if item.name == name]
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = graph.with_name(place["location"])
    stored = np.memmap(data, dtype, "r+", int(place["offset"]), (int(place["length"]) // np.dtype(dtype).itemsize,))
    before = stored.copy()
    change(stored)
    assert not np.array_equal(before, stored), "nothing was changed"
    stored.flush()
