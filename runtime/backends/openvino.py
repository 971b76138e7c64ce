"""OpenVINO IR on CPU, GPU, NPU or AUTO. The only importer of openvino in this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import opset13 as opset

from ..errors import ArtifactError, DeviceError, RequestError, ResourceError, is_out_of_memory
from ..heap import return_freed
from ..session import EngineOptions, Session

if TYPE_CHECKING:
    import torch

_PRECISION = "INFERENCE_PRECISION_HINT"
_WHOLE_ACTIVATIONS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""A CPU would round activations to 8 bits before they meet weights of 8 or 4: an error of 1%, for some speed."""
IN_F32 = {_PRECISION: "f32", **_WHOLE_ACTIVATIONS}
"""Settings with which a CPU computes in float32, whatever the weights are."""


@dataclass(frozen=True)
class OpenVINOSession:
    """A compiled graph and its one inference request; implements `Session`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    device: str
    precision: str
    tensor_device: str
    _component: str
    _request: ov.InferRequest = field(repr=False)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output; see `Session.run`. Inputs are read in place, outputs are copied out of the engine."""
        if feeds.keys() != set(self.inputs):
            reason = f"fed {', '.join(sorted(feeds)) or 'nothing'}"
            raise RequestError(reason, source=self._component, remedy=f"feed exactly {', '.join(self.inputs)}")
        try:
            results = self._request.infer(dict(feeds), share_inputs=True)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            if is_out_of_memory(error):
                raise _full(self.device, shapes, self._component, error) from error
            reason = f"{self.device} failed on {shapes}: {cause_of(error)}"
            raise DeviceError(reason, source=self._component, remedy="check the shapes, or use another device") from error
        return {name: results[index] for index, name in enumerate(self.outputs)}

    def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute every output; see `Session.run_tensors`. The engine's own devices are not torch's: all is on the CPU."""
        import torch

        outputs = self.run({name: tensor.detach().numpy() for name, tensor in feeds.items()})
        return {name: torch.from_numpy(value) for name, value in outputs.items()}


def open_session(model: Path, component: str, *, device: str, execution: str, options: EngineOptions) -> Session:
    """Read an IR and compile it for `device` (`CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO`).

    execution: `f32`, `f16` or `bf16`, the precision the graph was made for; a CPU computes in f32 what was made for f16, since
    that would silently become bf16 there.
    Raises ArtifactError for an unreadable IR, RequestError for unknown properties, DeviceError for a device that is not
    there or ignores the precision.
    """
    core = ov.Core()
    device = _known(core, device, component)
    if options.in_f32 and device == "CPU":
        execution = "f32"
    try:
        graph = core.read_model(model)
        _take_fractional_timesteps(graph)
    except RuntimeError as error:
        remedy = "convert the model again with vaefix-convert"
        raise ArtifactError(f"unreadable graph ({cause_of(error)})", source=model, remedy=remedy) from error
    own = options.settings_of(component)
    settings = {**_settings(core, device, execution, options.cache), **own}
    compiled = _compiled(core, graph, device, settings, own, component)
    if options.low_memory and options.cache and device == "CPU" and not compiled.get_property("LOADED_FROM_CACHE"):
        del compiled  # it holds what the folded constants are; read from the cache, they stay in the mapped file
        return_freed()
        compiled = _compiled(core, graph, device, settings, own, component)
    used, precision = _executes(compiled, device)
    wanted = own.get(_PRECISION, _wanted(used, execution))
    if precision != wanted:
        raise DeviceError(
            f"{used} computes in {precision}, {wanted} was asked for",
            source=component,
            remedy=f"run this component on another device, or convert it with --precision {component}=fp16 or {component}=fp32",
        )
    return OpenVINOSession(
        inputs=tuple(port.get_any_name() for port in graph.inputs),
        outputs=tuple(port.get_any_name() for port in graph.outputs),  # compiled, equal outputs swap their names
        device=used,
        precision=precision,
        tensor_device="cpu",
        _component=component,
        _request=compiled.create_infer_request(),
    )


def require_device(device: str, source: str) -> None:
    """Raises DeviceError for a device that is not there."""
    _known(ov.Core(), device, source)


def require_settings(device: str, settings: Mapping[str, str], component: str) -> None:
    """Raises RequestError for properties that the device does not know, or values that they do not take."""
    value = opset.parameter([1], ov.Type.f32)
    smallest = ov.Model([opset.result(value)], [value], "nothing")
    core, own = ov.Core(), {key: value for key, value in settings.items() if key != "CACHE_DIR"}  # nothing is kept of this
    _compiled(core, smallest, _known(core, device, component), own, own, component)


def _compiled(
    core: ov.Core, graph: ov.Model, device: str, settings: Mapping[str, Any], own: Mapping[str, str], component: str
) -> ov.CompiledModel:
    """own: those of the settings that the user chose, who is told which they are should it fail."""
    try:
        return core.compile_model(graph, device, settings)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise _full(device, "it", component, error) from error
        reason = f"{device} cannot compile it: {cause_of(error)}"
        if own:
            chosen = ", ".join(f"{key}={value}" for key, value in own.items())
            raise RequestError(f"{reason} (with {chosen})", source=component, remedy="correct or leave out these") from error
        remedy = f"run this component elsewhere ({', '.join(core.available_devices)})"
        raise DeviceError(reason, source=component, remedy=remedy) from error


def _known(core: ov.Core, device: str, component: str) -> str:
    name = device.upper()
    there = core.available_devices
    known = {"AUTO", *there, *(full.partition(".")[0] for full in there)}
    if name in known or name.removesuffix(".0") in there:
        return name
    raise DeviceError(
        f"device {device} is not there (there: {', '.join(there)})",
        source=component,
        remedy="choose one of these; a GPU or NPU shows up once its driver is installed",
    )


def _take_fractional_timesteps(graph: ov.Model) -> None:
    """Retype the UNet's `timestep` from i64 to f32. The graph turns it into f32 at once, so nothing else changes."""
    for parameter in graph.get_parameters():
        if "timestep" in parameter.output(0).get_names():
            parameter.set_element_type(ov.Type.f32)
            graph.validate_nodes_and_infer_types()


def _wanted(device: str, execution: str) -> str:
    return "f32" if device == "CPU" and execution != "bf16" else execution


def _computes(device: str, execution: str) -> dict[str, str]:
    return {_PRECISION: _wanted(device, execution), **(_WHOLE_ACTIVATIONS if device == "CPU" else {})}


def _settings(core: ov.Core, device: str, execution: str, cache: Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if cache is not None:
        settings["CACHE_DIR"] = str(cache)
    if device == "AUTO":
        # Without the fallback the first steps would run on the CPU while the GPU compiles, in another precision.
        settings["ENABLE_STARTUP_FALLBACK"] = False
        settings["DEVICE_PROPERTIES"] = {name: _computes(name, execution) for name in core.available_devices}
    else:
        settings |= _computes(device, execution)
    return settings


def _executes(compiled: ov.CompiledModel, device: str) -> tuple[str, str]:
    """The device that was chosen and the precision it reports."""
    if device != "AUTO":
        return device, compiled.get_property(_PRECISION).to_string()
    chosen = compiled.get_property("EXECUTION_DEVICES")[0]
    return chosen, compiled.get_property("DEVICE_PROPERTIES")[chosen][_PRECISION].to_string()


def _full(device: str, what: str, component: str, error: Exception) -> ResourceError:
    remedy = "draw smaller or fewer pictures, or convert this component to fewer bits (--precision)"
    return ResourceError(f"{device} has not the memory for {what}: {cause_of(error)}", source=component, remedy=remedy)


def cause_of(error: Exception) -> str:
    """The cause: OpenVINO puts the source locations it passed through first."""
    return str(error).strip().splitlines()[-1]
