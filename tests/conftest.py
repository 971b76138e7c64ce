"""The demo model and its artifacts, made once for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import demo_model as make_demo_model
from vaefix.runtime.artifact import Artifact


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model and the skeletons of this test run, shared by its processes."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def demo_model(cache_folder: Path) -> Path:
    """The folder of the demo model, in diffusers layout."""
    return make_demo_model(cache_folder)


@pytest.fixture(scope="session")
def demo_artifact_fp32(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model for the CPU in fp32. Read only: copy it before changing it."""
    output = tmp_path_factory.mktemp("artifact") / "demo-fp32"
    return convert(ConvertOptions(output, model=demo_model, target="openvino-cpu", precision={"*": "fp32"}, cache=cache_folder))


@pytest.fixture(scope="session")
def demo_artifact_fp16(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model for the GPU in fp16, its VAE repaired. Read only: copy it before changing it."""
    output = tmp_path_factory.mktemp("artifact") / "demo-fp16"
    return convert(ConvertOptions(output, model=demo_model, target="openvino-gpu", precision={"*": "fp16"}, cache=cache_folder))


@pytest.fixture(scope="session")
def demo_artifact_onnx_cpu(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model for ONNX Runtime on the CPU in fp32. Read only: copy it before changing it."""
    output = tmp_path_factory.mktemp("artifact") / "demo-onnx-cpu"
    return convert(ConvertOptions(output, model=demo_model, target="onnx-cpu", precision={"*": "fp32"}, cache=cache_folder))


@pytest.fixture(scope="session")
def demo_artifact_onnx_cuda(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model for ONNX Runtime on CUDA in fp16, its VAE repaired. Read only: copy it before changing it."""
    output = tmp_path_factory.mktemp("artifact") / "demo-onnx-cuda"
    return convert(ConvertOptions(output, model=demo_model, target="onnx-cuda", precision={"*": "fp16"}, cache=cache_folder))


@pytest.fixture(scope="session")
def demo_artifact_onnx_bf16(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model for ONNX Runtime on CUDA in bf16. Read only: copy it before changing it."""
    output = tmp_path_factory.mktemp("artifact") / "demo-onnx-bf16"
    return convert(ConvertOptions(output, model=demo_model, target="onnx-cuda", precision={"*": "bf16"}, cache=cache_folder))
