"""A component of an artifact, loaded on a device: arrays in by name, arrays out by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import backends
from .artifact import Artifact
from .errors import ArtifactError, DeviceError, RequestError

Device = str | Mapping[str, str]
"""`"GPU"`, or by component with `*` for the others: `{"*": "GPU", "vae_decoder": "CPU"}`; without `*` they run on CPU."""


class Session(Protocol):
    """One component, compiled by an engine for a device."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names, in the order of the graph."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names, in the order of the graph."""
        ...

    @property
    def device(self) -> str:
        """Where it runs: `CPU`, `GPU.1`."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in, as the engine reports it: `f32`, `f16`."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output. `feeds` holds exactly the inputs; the arrays returned belong to the caller.

        Raises RequestError when the names differ from `inputs`, DeviceError when the engine fails.
        """
        ...


def open_session(artifact: Artifact, component: str, device: Device = "CPU", *, cache: Path | None = None) -> Session:
    """Load a component with the engine of the artifact's target: `openvino-gpu` is read by `backends/openvino.py`.

    cache: a folder in which the engine may keep compiled graphs, so that the next start is faster.
    Raises ArtifactError when the component is not there or damaged, RequestError when `device` names an unknown
    component, DeviceError when the device or the engine is not there or cannot compute in the precision asked for.
    """
    entry = artifact.component(component)
    session: Session = _backend(artifact).open_session(
        artifact.folder / entry.model,
        component,
        device=_device_of(artifact, component, device),
        execution=entry.execution,
        cache=cache,
    )
    return session


def _backend(artifact: Artifact) -> Any:
    engine = artifact.target.partition("-")[0]
    there = sorted(module.name for module in pkgutil.iter_modules(backends.__path__))
    if engine not in there:
        raise ArtifactError(
            f"made for {artifact.target}, this vaefix runs: {', '.join(there)}",
            source=artifact.folder,
            remedy="convert the model for one of these, or update vaefix",
        )
    try:
        return importlib.import_module(f"{backends.__name__}.{engine}")
    except ModuleNotFoundError as error:
        if error.name != engine:
            raise
        raise DeviceError(f"{engine} is not installed", remedy=f"pip install 'vaefix[{engine}]'") from None


def _device_of(artifact: Artifact, component: str, device: Device) -> str:
    if isinstance(device, str):
        return device
    if unknown := sorted(device.keys() - artifact.components.keys() - {"*"}):
        raise RequestError(
            f"a device is given for {', '.join(unknown)}, which the artifact does not have",
            source=artifact.folder,
            remedy=f"its components are {', '.join(sorted(artifact.components))}; * stands for all others",
        )
    return device.get(component, device.get("*", "CPU"))
