"""The demo model captured once, converted once for each engine in fp32, and what its programs compute in PyTorch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.execute import execute, load
from vaefix.convert.families import Component, sdxl
from vaefix.convert.program import Program
from vaefix.convert.sample import take_sample
from vaefix.convert.targets import Job, find_target
from vaefix.convert.verify import SIDE, verify
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ParityError

Feeds = Mapping[str, np.ndarray]


@pytest.fixture(scope="session")
def jobs(jobs_of: Callable[[Path], dict[str, Job]], demo_model: Path) -> dict[str, Job]:
    """What an fp32 conversion of the demo model does, component by component."""
    return jobs_of(demo_model)


@pytest.fixture(scope="session")
def components(jobs: dict[str, Job]) -> dict[str, Component]:
    """The demo model's components by name."""
    return {name: job.component for name, job in jobs.items()}


@pytest.fixture(scope="session")
def programs(jobs: dict[str, Job]) -> dict[str, Program]:
    """What each computes."""
    return {name: job.program for name, job in jobs.items()}


@pytest.fixture(scope="session")
def converted(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """converted(target): the demo model for it in fp32. Read only: copy it before changing it."""
    made: dict[str, Artifact] = {}

    def of(target: str) -> Artifact:
        if target not in made:
            output = tmp_path_factory.mktemp("artifact") / target
            made[target] = convert(ConvertOptions(output, demo_model, target, {"*": "fp32"}, cache=cache_folder))
        return made[target]

    return of


def _inputs_of(component: Component, batch: int, height: int, width: int, tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for item in component.inputs:
        if item.dtype == "int64":
            high = 1000 if item.name == "timestep" else component.config["vocab_size"]
            count = 1 if item.name == "timestep" else batch
            feeds[item.name] = random.integers(0, high, (count, tokens)[: len(item.shape)])
            continue
        dynamic = iter((batch, height, width) if len(item.shape) == 4 else (batch, tokens))
        shape = [next(dynamic) if size is None else size for size in item.shape]
        feeds[item.name] = random.standard_normal(shape, dtype=np.float32)
    return feeds


@pytest.fixture(scope="session")
def inputs_of() -> Callable[..., dict[str, np.ndarray]]:
    """inputs_of(component, batch, height, width, tokens): of any shape; what a user may ask for, not what was traced."""
    return _inputs_of


@pytest.fixture(scope="session")
def reference(jobs: dict[str, Job]) -> Callable[[str, Feeds], dict[str, np.ndarray]]:
    """reference(component, feeds): what PyTorch computes with the checkpoint's weights."""

    def compute(name: str, feeds: Feeds) -> dict[str, np.ndarray]:
        tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}
        outputs = execute(jobs[name].program, lambda parameter: load(jobs[name].tensors[parameter]), tensors)
        return {key: tensor.numpy() for key, tensor in outputs.items()}

    return compute


@pytest.fixture
def refused(
    converted: Callable[[str], Artifact], jobs: dict[str, Job], tmp_path: Path
) -> Callable[[str, Callable[[Path], None]], None]:
    """refused(target, fault): verification passes the decoder as written, and refuses it once `fault` was at its folder."""

    def check(target: str, fault: Callable[[Path], None]) -> None:
        folder = tmp_path / "vae_decoder"
        shutil.copytree(converted(target).folder / "vae_decoder", folder)
        job = jobs["vae_decoder"]
        arguments = (find_target(target), job, tmp_path, take_sample(job, sdxl.sample_inputs(job.component, 0, SIDE)))
        assert verify(*arguments)["outputs"] == "equal"
        fault(folder)
        with pytest.raises(ParityError, match="decoder"):
            verify(*arguments)

    return check
