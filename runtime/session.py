"""A component of an artifact, loaded on a device: arrays in by name, arrays out by name."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import backends
from .artifact import Artifact
from .errors import ArtifactError, DeviceError, ResourceError, UsageError, VaefixWarning
from .install import not_installed

if TYPE_CHECKING:
    import torch

Device = str | Mapping[str, str]
"""`"GPU"`, or by component with `*` for the others: `{"*": "GPU", "vae_decoder": "CPU"}`; without `*` they run on CPU."""


@dataclass(frozen=True)
class EngineOptions:
    """How engines are asked to run.

    cache: a folder in which the engine may keep compiled graphs, so that the next start is faster (OpenVINO).
    allow_fallback: a component that its device cannot run runs on the CPU, with a warning; otherwise that is an error.
    cuda_graphs: record the kernels of a run once for every shape and replay them.
    low_memory: prefer little memory to speed. ONNX Runtime on a CPU leaves weights in the mapped file as they are stored, and
        widens each while it is used; OpenVINO with a `cache` maps the compiled weights from there.
    in_f32: compute in float32 whatever a component was made for, on a device that can choose: OpenVINO on a CPU. For
        comparisons.
    settings: by component, `*` for all, in the engine's own words: OpenVINO properties, options of ONNX Runtime's CUDA
        provider. They win over what vaefix sets. Beside components on CUDA, `*` and `cuda_graphs` leave one on the CPU alone.
    """

    cache: Path | None = None
    allow_fallback: bool = False
    cuda_graphs: bool = False
    low_memory: bool = False
    in_f32: bool = False
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def settings_of(self, component: str) -> dict[str, str]:
        """The settings of one component; its own win over those of `*`."""
        return {**self.settings.get("*", {}), **self.settings.get(component, {})}


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
        """Where it runs: `CPU`, `GPU.1`, `CUDA:1`."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in, as the engine reports it: `f32`, `f16`."""
        ...

    @property
    def tensor_device(self) -> str:
        """Where `run_tensors` wants its inputs and leaves its outputs, in the words of torch: `cpu`, `cuda:0`."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output. `feeds` holds exactly the inputs; the arrays returned belong to the caller.

        Raises RequestError when the names differ from `inputs`, DeviceError when the engine fails.
        """
        ...

    def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As `run`, with tensors on `tensor_device`; what is floating point is float32."""
        ...


_DEFAULTS = EngineOptions()


def open_session(artifact: Artifact, component: str, device: Device = "CPU", options: EngineOptions = _DEFAULTS) -> Session:
    """Load a component with the engine of the artifact's target: `openvino-gpu` is read by `backends/openvino.py`.

    Raises ArtifactError when the component is not there or damaged, UsageError when `device` or `options` name an
    unknown component or setting, or ask for CUDA graphs where there are none, DeviceError when the device or the engine
    is not there or cannot compute in the precision asked for, ResourceError when its memory is full.
    """
    entry = artifact.component(component)
    _require_components(artifact, options.settings, "a setting")
    there = [device] if isinstance(device, str) else device.values()
    device = _device_of(artifact, component, device)
    if any(map(_is_cuda, there)) and not _is_cuda(device):  # what is said of all is meant for the cards
        own = {name: settings for name, settings in options.settings.items() if name == component}
        options = replace(options, cuda_graphs=False, settings=own)
    backend = _backend(artifact, device)
    model = artifact.folder / entry.model

    def opened(device: str, options: EngineOptions) -> Session:
        session: Session = backend.open_session(model, component, device=device, execution=entry.execution, options=options)
        return session

    try:
        return opened(device, options)
    except (DeviceError, ResourceError) as error:
        if not options.allow_fallback or device.upper() == "CPU":
            raise
        without = ", without CUDA graphs and engine options" if options.cuda_graphs or options.settings_of(component) else ""
        warnings.warn(f"{component} runs on the CPU{without}: {error.reason}", VaefixWarning, stacklevel=2)
        return opened("CPU", replace(options, cuda_graphs=False, settings={}))


def _backend(artifact: Artifact, device: str) -> Any:
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
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        if not package.startswith(engine):  # openvino, onnx and onnxruntime
            raise
        raise not_installed(package, "cuda" if _is_cuda(device) else engine) from None


def _is_cuda(device: str) -> bool:
    return device.upper().startswith("CUDA")


def _device_of(artifact: Artifact, component: str, device: Device) -> str:
    if isinstance(device, str):
        return device
    _require_components(artifact, device, "a device")
    return device.get(component, device.get("*", "CPU"))


def _require_components(artifact: Artifact, named: Iterable[str], what: str) -> None:
    if unknown := sorted(set(named) - artifact.components.keys() - {"*"}):
        raise UsageError(
            f"{what} is given for {', '.join(unknown)}, which the artifact does not have",
            source=artifact.folder,
            remedy=f"its components are {', '.join(sorted(artifact.components))}; * stands for all others",
        )
