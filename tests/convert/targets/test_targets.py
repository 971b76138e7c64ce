"""Every target's graphs compute what PyTorch computes, whole and in segments, at any shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov
import pytest

from vaefix.convert.families import Component
from vaefix.convert.targets.onnx import segments as onnx_segments
from vaefix.convert.targets.openvino import segments as openvino_segments
from vaefix.runtime.artifact import Artifact

TARGETS = ("openvino-cpu", "onnx-cpu", "onnx-cuda")
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
REPRESENTATIVES = [
    name if name in ("text_encoder", "vae_decoder") else pytest.param(name, marks=pytest.mark.slow) for name in COMPONENTS
]
LIMIT = 2e-5

Feeds = Mapping[str, np.ndarray]


def whole(graph: Path, feeds: Feeds) -> dict[str, np.ndarray]:
    """The graph's outputs in the order of the graph, run by its engine and nothing of ours."""
    if graph.suffix == ".xml":
        model = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert model.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32
        results = model(dict(feeds))
        return {output.get_any_name(): results[output] for output in model.outputs}
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    if "timestep" in feeds:
        feeds = {**feeds, "timestep": feeds["timestep"].astype(np.float32).reshape(())}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def in_segments(graph: Path, feeds: Feeds, segment_bytes: int) -> dict[str, np.ndarray]:
    engine = openvino_segments if graph.suffix == ".xml" else onnx_segments
    return engine.run_in_segments(graph, feeds, segment_bytes)


def assert_equal(found: Feeds, expected: Feeds) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape
        assert np.abs(found[name] - wanted).max() <= LIMIT * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(
    "shape", [(3, 9, 13, 5), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 8, 8, 77), (2, 12, 8, 1)))]
)
@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("target", TARGETS)
def test_graph_computes_what_pytorch_computes(
    converted: Callable[[str], Artifact],
    components: dict[str, Component],
    inputs_of: Callable[..., dict[str, np.ndarray]],
    reference: Callable[[str, Feeds], dict[str, np.ndarray]],
    target: str,
    name: str,
    shape: tuple[int, int, int, int],
) -> None:
    batch, height, width, tokens = shape
    scale = 8 if name == "vae_encoder" else 1
    feeds = inputs_of(components[name], batch, height * scale, width * scale, tokens)
    artifact = converted(target)
    found = whole(artifact.folder / artifact.component(name).model, feeds)
    assert tuple(found) == components[name].outputs
    assert_equal(found, reference(name, feeds))


@pytest.mark.parametrize("name", REPRESENTATIVES)
@pytest.mark.parametrize("target", TARGETS)
def test_segments_compute_what_the_whole_graph_computes(
    converted: Callable[[str], Artifact],
    components: dict[str, Component],
    inputs_of: Callable[..., dict[str, np.ndarray]],
    reference: Callable[[str, Feeds], dict[str, np.ndarray]],
    target: str,
    name: str,
) -> None:
    artifact = converted(target)
    feeds = inputs_of(components[name], 1, 16, 16, 7)
    expected = reference(name, feeds)
    for segment_bytes in (1 << 16, 1 << 20):
        assert_equal(in_segments(artifact.folder / artifact.component(name).model, feeds, segment_bytes), expected)
