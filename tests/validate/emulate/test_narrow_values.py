"""Which values a graph itself computes in 16 bits, on both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError
from vaefix.validate.emulate import computed_in_16_bits


@pytest.mark.parametrize("fixture", ["demo_artifact_fp32", "demo_artifact_fp16", "demo_artifact_onnx_cpu"])
def test_weights_in_16_bits_are_no_values(fixture: str, request: pytest.FixtureRequest) -> None:
    """An IR leaves it to the device what it computes in; its weights are widened by Converts."""
    artifact: Artifact = request.getfixturevalue(fixture)
    for entry in artifact.components.values():
        assert computed_in_16_bits(artifact.folder / entry.model) == ()


def test_a_graph_for_a_16_bit_gpu_computes_in_16_bits(demo_artifact_onnx_cuda: Artifact) -> None:
    entry = demo_artifact_onnx_cuda.component("text_encoder")
    names = computed_in_16_bits(demo_artifact_onnx_cuda.folder / entry.model)
    assert any(name.startswith("text_model.encoder.layers.0.self_attn.q_proj/") for name in names)


@pytest.mark.parametrize("narrow", ["f16", "bf16"])
def test_a_conversion_inside_an_ir_is_named(tmp_path: Path, narrow: str) -> None:
    x = ops.parameter([4], np.float32)
    rounded = ops.convert(ops.relu(x), narrow)
    rounded.set_friendly_name("layer/rounded")
    ov.save_model(ov.Model([ops.convert(rounded, "f32")], [x]), tmp_path / "graph.xml", compress_to_fp16=False)
    assert "layer/rounded" in computed_in_16_bits(tmp_path / "graph.xml")


@pytest.mark.parametrize("name", ["graph.xml", "graph.onnx"])
def test_an_unreadable_graph_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=name):
        computed_in_16_bits(tmp_path / name)
