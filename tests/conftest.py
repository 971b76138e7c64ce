"""The demo model and its artifacts, made once for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import demo_model as make_demo_model
from vaefix.convert.request import Request
from vaefix.convert.targets import Job
from vaefix.runtime.artifact import Artifact


@pytest.fixture(autouse=True)
def _can_be_stopped() -> Iterator[None]:
    """An interrupted command takes no second Ctrl-C; here the next test goes on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


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
def jobs_of(cache_folder: Path) -> Callable[[Path], dict[str, Job]]:
    """jobs_of(model): what converting it to OpenVINO in fp32 does, component by component, captured once for all tests."""

    @cache
    def jobs(model: Path) -> dict[str, Job]:
        options = ConvertOptions(cache_folder.parent / "none", model, "openvino-cpu", {"*": "fp32"}, cache=cache_folder)
        return {job.component.name: job for job in Request.of(options).jobs()}

    return jobs


def _demo_artifact(target: str, precision: str) -> Callable[..., Artifact]:
    """The demo model for a target, its VAE repaired where that computes in fp16. Read only: copy it before changing it."""

    @pytest.fixture(scope="session")
    def artifact(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
        output = tmp_path_factory.mktemp("artifact") / f"{target}-{precision}"
        return convert(ConvertOptions(output, demo_model, target, {"*": precision}, cache=cache_folder))

    return artifact


demo_artifact_fp32 = _demo_artifact("openvino-cpu", "fp32")
demo_artifact_fp16 = _demo_artifact("openvino-gpu", "fp16")
demo_artifact_onnx_cpu = _demo_artifact("onnx-cpu", "fp32")
demo_artifact_onnx_cuda = _demo_artifact("onnx-cuda", "fp16")
demo_artifact_onnx_bf16 = _demo_artifact("onnx-cuda", "bf16")
