"""A component of an artifact, loaded on a device: arrays in by name, arrays out by name."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import backends
from .arguments import fit_fields
from .artifact import Artifact
from .cuda import require_build
from .errors import ArtifactError, DeviceError, RequestError, ResourceError, UsageError, VaefixWarning
from .files import file_above
from .install import not_installed
from .vocabulary import ALL, GROUPS, of_component, unknown_components

if TYPE_CHECKING:
    import numpy as np
    import torch

Device = str | Mapping[str, str]
"""`"GPU"`, or by component, `vae` for both its halves and `*` for the others: `{"*": "GPU", "vae": "CPU"}`; without `*`
they run on CPU."""


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
    settings: by component, `vae` for both its halves, `*` for all, in the engine's own words: OpenVINO properties, options of
        ONNX Runtime's CUDA provider. They win over what vaefix sets. Beside components on CUDA, `*` and `cuda_graphs` leave one
        on the CPU alone.
    """

    cache: Path | None = None
    allow_fallback: bool = False
    cuda_graphs: bool = False
    low_memory: bool = False
    in_f32: bool = False
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fit_fields(self)

    def settings_of(self, component: str) -> dict[str, str]:
        """The settings of one component; its own win over those of `vae`, and these over those of `*`."""
        groups = [group for group, members in GROUPS.items() if component in members]
        return {key: value for name in (ALL, *groups, component) for key, value in self.settings.get(name, {}).items()}


@dataclass(frozen=True)
class _Engine:
    """What an engine runs: its graphs, its `devices` by a regular expression and as they are shown, and a target for them."""

    graphs: str
    devices: str
    shown: str
    target: str


_ENGINES = {
    "openvino": _Engine("OpenVINO graph", r"CPU|(GPU|NPU)(\.\d+)?|AUTO(:.*)?", "CPU, GPU, NPU or AUTO", "openvino-gpu"),
    "onnx": _Engine("ONNX graph", r"CPU|CUDA(:\d+)?", "CPU or CUDA", "onnx-cuda"),
}


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
    options = _meant_for(component, device, options)
    device = _device_of(artifact, component, device)
    if not options.allow_fallback:
        _require_own_device(artifact, component, device)  # before an engine is loaded
    backend = _backend(artifact, device)
    model = artifact.folder / entry.model

    def opened(device: str, options: EngineOptions) -> Session:
        _require_own_device(artifact, component, device)
        _require_own_options(artifact, component, device, options)
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


def check_devices(artifact: Artifact, components: Iterable[str], device: Device) -> None:
    """What `open_session` would say of a device, as far as it is known without torch.

    Raises UsageError for a device of an unknown component, DeviceError for a device of another engine, or of none.
    """
    for component in components:
        _require_own_device(artifact, component, _device_of(artifact, component, device))
    if any(_is_cuda(_device_of(artifact, component, device)) for component in components):
        require_build("--device")
    if artifact.target.startswith("openvino"):  # the other engine needs torch
        for name in {_device_of(artifact, component, device) for component in components} - {"CPU", "AUTO"}:
            _backend(artifact, name).require_device(name, "--device")


def check_options(artifact: Artifact, components: Iterable[str], device: Device, options: EngineOptions) -> None:
    """What `open_session` would say of the options, as far as it is known without torch. Of devices see `check_devices`.

    Raises UsageError for a setting of a component that the artifact does not have, RequestError for what its engine does not
    have on the device, and for a cache that is no folder.
    """
    _require_components(artifact, options.settings, "a setting")
    if options.cache is not None and (file := file_above(options.cache / "graph")) is not None:
        raise RequestError(f"{file} is not a folder", source="--cache", remedy="choose another")
    engine, tried = _engine(artifact), set()
    for component in components:
        own, name = _meant_for(component, device, options), _device_of(artifact, component, device)
        if not re.fullmatch(_ENGINES[engine].devices, name.upper()):
            continue  # an error of the device, or where that is allowed the CPU takes its place, without these
        _require_own_options(artifact, component, name, own)
        settings = own.settings_of(component)
        if engine == "openvino" and settings and not options.allow_fallback and (name, *settings.items()) not in tried:
            tried.add((name, *settings.items()))
            _backend(artifact, name).require_settings(name, settings, component)


def _meant_for(component: str, device: Device, options: EngineOptions) -> EngineOptions:
    """Where some components run on CUDA, what is said of all is meant for those alone."""
    there = [device] if isinstance(device, str) else device.values()
    if not any(map(_is_cuda, there)) or _is_cuda(device_of(device, component)):
        return options
    own = {name: settings for name, settings in options.settings.items() if name != ALL}
    return replace(options, cuda_graphs=False, settings=own)


def _require_own_options(artifact: Artifact, component: str, device: str, options: EngineOptions) -> None:
    """Raises RequestError for what the engine does not have on this device."""
    if _engine(artifact) == "openvino":
        if options.cuda_graphs:
            raise RequestError("OpenVINO has no CUDA graphs", source=component, remedy="leave --cuda-graphs out")
        return
    if options.cache is not None:
        reason = "ONNX Runtime keeps no compiled graphs"
        raise RequestError(reason, source=component, remedy="leave --cache out, or convert the model to OpenVINO")
    if device.upper() == "CPU" and (options.cuda_graphs or options.settings_of(component)):
        reason = "CUDA graphs and engine options are for CUDA, this runs on the CPU"
        raise RequestError(reason, source=component, remedy="leave them out, or choose the device CUDA")


def _require_own_device(artifact: Artifact, component: str, device: str) -> None:
    engine = _engine(artifact)
    if re.fullmatch(_ENGINES[engine].devices, device.upper()):
        return
    shown = _ENGINES[engine].shown
    others = (other for other in _ENGINES.values() if re.fullmatch(other.devices, device.upper()))
    if (other := next(others, None)) is None:
        raise DeviceError(f"device {device} is not there", source=component, remedy=f"choose {shown}")
    reason = f"device {device} runs no {_ENGINES[engine].graphs}, and the artifact is made for {artifact.target}"
    remedy = f"choose {shown}, or convert the model with --target {other.target}"
    raise DeviceError(reason, source=component, remedy=remedy)


def _engine(artifact: Artifact) -> str:
    """The engine that the artifact is made for. Raises ArtifactError where there is no such backend."""
    engine = artifact.target.partition("-")[0]
    there = sorted(module.name for module in pkgutil.iter_modules(backends.__path__))
    if engine not in there:
        raise ArtifactError(
            f"made for {artifact.target}, this vaefix runs: {', '.join(there)}",
            source=artifact.folder,
            remedy="convert the model for one of these, or update vaefix",
        )
    return engine


def _backend(artifact: Artifact, device: str) -> Any:
    engine = _engine(artifact)
    try:
        return importlib.import_module(f"{backends.__name__}.{engine}")
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        if not package.startswith(engine):  # openvino, onnx and onnxruntime
            raise
        raise not_installed(package, "cuda" if _is_cuda(device) else engine) from None


def _is_cuda(device: str) -> bool:
    return device.upper().startswith("CUDA")


def device_of(device: Device, component: str) -> str:
    """Where a component runs."""
    return device if isinstance(device, str) else of_component(device, component) or "CPU"


def _device_of(artifact: Artifact, component: str, device: Device) -> str:
    if not isinstance(device, str):
        _require_components(artifact, device, "a device")
    return device_of(device, component)


def _require_components(artifact: Artifact, named: Iterable[str], what: str) -> None:
    if unknown := unknown_components(named, artifact.components):
        raise UsageError(
            f"{what} is given for {', '.join(unknown)}, which the artifact does not have",
            source=artifact.folder,
            remedy=f"its components are {', '.join(sorted(artifact.components))}; * stands for all others",
        )
