"""The two pipelines that must agree, and the one way in which results are compared and artifacts are altered."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import diffusers
import numpy as np
import pytest
import torch

from vaefix.runtime.artifact import MANIFEST, Artifact, FileEntry, sha256_of
from vaefix.runtime.pipeline import load_pipeline


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and idle torch threads take the cores from the engine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def reference(demo_model: Path) -> diffusers.StableDiffusionXLPipeline:
    """The untouched model in PyTorch, fp32."""
    return _quiet(diffusers.StableDiffusionXLPipeline.from_pretrained(demo_model, torch_dtype=torch.float32))


@pytest.fixture(scope="session")
def openvino_pipeline(demo_artifact_fp32: Artifact) -> diffusers.StableDiffusionXLPipeline:
    """The same model as an fp32 artifact for OpenVINO on the CPU, computing in f32 as the engine says."""
    return _in_f32(demo_artifact_fp32)


@pytest.fixture(scope="session")
def onnx_pipeline(demo_artifact_onnx_cpu: Artifact) -> diffusers.StableDiffusionXLPipeline:
    """The same model as an fp32 artifact for ONNX Runtime on the CPU."""
    return _in_f32(demo_artifact_onnx_cpu)


@pytest.fixture(scope="session", params=["openvino", "onnx"])
def converted(request: pytest.FixtureRequest) -> diffusers.StableDiffusionXLPipeline:
    """The pipeline of each engine in turn: what holds of one holds of the other."""
    return request.getfixturevalue(f"{request.param}_pipeline")


@pytest.fixture(scope="session")
def model_scheduler(demo_model: Path) -> dict[str, Any]:
    """The scheduler config of the model: Euler, epsilon, whole timesteps."""
    return dict(diffusers.EulerDiscreteScheduler.load_config(demo_model, subfolder="scheduler"))


def _in_f32(artifact: Artifact) -> diffusers.StableDiffusionXLPipeline:
    pipeline = load_pipeline(artifact.folder, "CPU")
    modules = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae)
    assert [module.session.precision for module in modules] == ["f32"] * 4
    return _quiet(pipeline)


def _quiet(pipeline: diffusers.StableDiffusionXLPipeline) -> diffusers.StableDiffusionXLPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _assert_within(actual: object, expected: object, limit: float) -> None:
    found, wanted = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == wanted.shape
    assert found.size > 0, "nothing was compared"
    assert np.isfinite(found).all()
    assert np.isfinite(wanted).all()
    assert np.ptp(wanted) > 100 * limit, "too small or too flat for this limit to mean anything"
    assert np.abs(found - wanted).max() <= limit


@pytest.fixture(scope="session")
def assert_within() -> Callable[[object, object, float], None]:
    """assert_within(actual, expected, limit): the same shape, finite, and nowhere further apart than `limit`."""
    return _assert_within


@pytest.fixture
def original(demo_artifact_fp32: Artifact) -> Artifact:
    """The artifact that `copied` is a copy of."""
    return demo_artifact_fp32


@pytest.fixture
def copied(original: Artifact, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may alter."""
    return Path(shutil.copytree(original.folder, tmp_path / "copied"))


@pytest.fixture
def reseal(original: Artifact, copied: Path) -> Callable[..., None]:
    """reseal(**changes): give the copy a valid manifest of its files as they are now, with other fields changed."""

    def write(**changes: Any) -> None:
        files = {
            path.relative_to(copied).as_posix(): FileEntry(path.stat().st_size, sha256_of(path))
            for path in sorted(copied.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        artifact = replace(original, **{"folder": copied, "files": files, **changes})
        (copied / MANIFEST).write_bytes(artifact.manifest())

    return write


@pytest.fixture
def edit_weight(copied: Path) -> Callable[[str, str, Callable[[np.ndarray], object]], None]:
    """edit_weight(component, name, change): replace one float32 weight of the copy by what `change` makes of it."""

    def edit(component: str, name: str, change: Callable[[np.ndarray], object]) -> None:
        graph = ElementTree.parse(copied / component / "openvino_model.xml")
        constant = graph.find(f".//layer[@name='{name}']/data")
        assert constant is not None, f"no weight {name}"
        assert constant.attrib["element_type"] == "f32"
        weight = np.memmap(
            copied / component / "openvino_model.bin",
            dtype=np.float32,
            mode="r+",
            offset=int(constant.attrib["offset"]),
            shape=int(constant.attrib["size"]) // 4,
        )
        weight[:] = change(weight)
        weight.flush()

    return edit
