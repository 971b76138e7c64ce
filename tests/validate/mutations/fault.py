"""A planted fault, and the patient: a copy of an artifact that may be damaged in ways its hashes do not give away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vaefix.runtime.artifact import Artifact
from vaefix.validate.validate import ValidateOptions

from ..stored import reseal, stored_weight
from .graphs import IR, OnnxGraph

OPENVINO, ONNX = "OpenVINO fp16", "ONNX fp16"
OPENVINO_F32, ONNX_F32 = "OpenVINO fp32", "ONNX fp32"
GENERATION = "generation"
"""Component of what only a whole generation shows."""
FIRST_OUTPUT = {
    "text_encoder": "last_hidden_state",
    "text_encoder_2": "text_embeds",
    "unet": "out_sample",
    "vae_encoder": "latent_parameters",
    "vae_decoder": "sample",
}


@dataclass
class Patient:
    """What a fault is planted in.

    artifact: the copy.  options: of the validation that follows; a fault may exchange them.
    monkeypatch: for faults in the runtime.  folder: an empty one.
    model: writes the demo model anew: model(seed=of its weights).
    convert: makes an artifact like this one of a part of it: convert(model, component, repair=...).
    """

    artifact: Artifact
    options: ValidateOptions
    monkeypatch: pytest.MonkeyPatch
    folder: Path
    model: Callable[..., Path]
    convert: Callable[..., Artifact]

    def change_weight(self, component: str, parameter: str, change: Callable[[np.ndarray], None]) -> None:
        """Change a stored weight in place; it must not be the same afterwards."""
        weight = stored_weight(self.artifact, component, parameter)
        before = weight.copy()
        change(weight)
        assert not np.array_equal(before, weight), "nothing was changed"
        weight.flush()
        reseal(self.artifact)

    def change_graph(self, component: str, change: Callable[[Any], None]) -> None:
        """Change a graph, see graphs.py."""
        path = self.artifact.folder / self.artifact.component(component).model
        graph = IR(path) if path.suffix == ".xml" else OnnxGraph(path)
        change(graph)
        graph.save()
        reseal(self.artifact)

    def change_weights_file(self, component: str, change: Callable[[np.ndarray], None]) -> None:
        """Change all of a component's stored weights, given as bytes."""
        data = np.memmap(weights_file(self.artifact, component), mode="r+")
        change(data)
        data.flush()
        reseal(self.artifact)

    def replace_weights(self, component: str, other: Artifact) -> None:
        """By those of another artifact, of the same size."""
        here, there = (weights_file(artifact, component) for artifact in (self.artifact, other))
        assert here.stat().st_size == there.stat().st_size
        assert here.read_bytes() != there.read_bytes(), "nothing was changed"
        shutil.copy(there, here)
        reseal(self.artifact)

    def replace_component(self, component: str, other: Artifact) -> None:
        """By that of another artifact."""
        shutil.rmtree(self.artifact.folder / component)
        shutil.copytree(other.folder / component, self.artifact.folder / component)
        kept = {name: entry for name, entry in self.artifact.files.items() if not name.startswith(f"{component}/")}
        taken = {name: entry for name, entry in other.files.items() if name.startswith(f"{component}/")}
        components = {**self.artifact.components, component: other.component(component)}
        reseal(replace(self.artifact, components=components, files={**kept, **taken}))


def weights_file(artifact: Artifact, component: str) -> Path:
    """Where the weights of a component are."""
    graph = artifact.folder / artifact.component(component).model
    return graph.with_suffix(".bin") if graph.suffix == ".xml" else graph.with_name("model.onnx_data")


Plant = Callable[[Patient], None]


@dataclass(frozen=True)
class Fault:
    """One planted fault and what must catch it.

    name: unique, for a reader.  base: the artifact that is damaged.
    component: the one that is damaged, and the only one that may fail; GENERATION where only a picture shows it.
    caught: kind and name of the first output that fails, `parity sample`.
    layer: the one that must be named as the first to differ, where it is looked for.
    drawn: the first output of a generation that fails too, where one is made.
    emulate: `fp16` where only that shows it.
    where: it is planted, if not in the artifact.
    """

    name: str
    base: str
    component: str
    plant: Plant = field(repr=False)
    caught: str
    layer: str | None = None
    drawn: str | None = None
    emulate: str | None = None
    where: str = ""

    @property
    def id(self) -> str:
        """For pytest."""
        return f"{self.name}, {self.component}, {self.base}".replace(" ", "-")
