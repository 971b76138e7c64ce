"""ONNX Runtime on CPU or CUDA. Nothing else in this package imports onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from ...cuda import cpu_build, missing_library
from ...errors import ArtifactError, DeviceError, RequestError, ResourceError, is_out_of_memory
from ...session import EngineOptions, Session
from ...widen import has_narrow_edges, widened
from .engine import CPU, CUDA, DAMAGED, FAILURES, cause_of, load_engine
from .mapped import MappedWeight, weights_as_inputs
from .memory import EngineMemory, Port, TorchMemory, size_in
from .session import OnnxSession

_DEVICE = re.compile(r"CPU|CUDA(?::(\d+))?")
_TYPES = {
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(int64)": (torch.int64, np.int64),
}
_OURS = frozenset({"device_id", "enable_cuda_graph", "user_compute_stream"})  # addresses and waiting depend on these
_RECONVERT = "convert the model again with vaefix-convert"
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]', and NVIDIA's driver"


def open_session(model: Path, component: str, *, device: str, execution: str, options: EngineOptions) -> Session:
    """Load an ONNX graph on `CPU`, `CUDA` or `CUDA:1`.

    execution: `f32`, `f16` or `bf16`, the precision the graph was made for; a CPU computes in f32 whatever it says, since
    it has no kernels for the others or hides their overflow.
    Raises ArtifactError for an unreadable graph, RequestError for settings that do not exist, DeviceError for a device
    that is not there, or that ONNX Runtime would replace by the CPU in silence, ResourceError for one that is full.
    """
    name = device.upper()
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise DeviceError(f"device {device} runs no ONNX graph", source=component, remedy="choose CPU, CUDA or CUDA:1")
    if name == "CPU":
        graph = _read(model, CPU, execution, low_memory=options.low_memory)
        engine = _loaded(graph, component, name, execution, {})
        ports = _ports(engine, model, graph.weights)
        return OnnxSession(name, "f32", component, *ports, engine, TorchMemory(("cpu", 0)), _weights=graph.weights)
    place = "cuda", int(match[1] or 0)
    settings = _settings(place[1], execution, options, component)
    _require_cuda(component, place[1])
    graph = _read(model, CUDA, execution)
    engine = _loaded(graph, component, name, execution, settings)
    if CUDA not in engine.get_providers():
        raise DeviceError("ONNX Runtime fell back to the CPU", source=component, remedy=_INSTALL)
    memory = TorchMemory(place) if torch.cuda.is_available() else EngineMemory(place)
    return OnnxSession(name, execution, component, *_ports(engine, model), engine, memory, options.cuda_graphs)


def _require_cuda(component: str, ordinal: int) -> None:
    """Say what is missing: ONNX Runtime would log some of it and use the CPU, and find the rest in the first run."""
    if CUDA not in onnxruntime.get_available_providers():
        raise cpu_build(component)
    if (missing := missing_library()) is not None:
        raise DeviceError(f"ONNX Runtime's CUDA provider does not load: {missing}", source=component, remedy=_INSTALL)
    try:
        _convolve(ordinal)
    except FAILURES as error:
        cause = cause_of(error)
        if count := re.search(r"Invalid device ID.* and (\d+) \(exclusive\)", cause):
            there = ", ".join(f"CUDA:{number}" for number in range(int(count[1]))) or "none"
            cause = f"it is not there (there: {there})"
        reason = f"CUDA:{ordinal} cannot be used: {cause}"
        raise DeviceError(reason, source=component, remedy=f"choose a device that is there; {_INSTALL}") from error


def _convolve(ordinal: int) -> None:
    """A convolution of one number: the first one loads cuDNN, and shows whether the driver knows the card."""
    port = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 1, 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "x"], ["y"])], "probe", port[:1], port[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    engine = load_engine(model.SerializeToString(), Path(), CUDA, _card(ordinal))
    engine.run(None, {"x": np.ones((1, 1, 1, 1), np.float32)})


def _settings(ordinal: int, execution: str, options: EngineOptions, component: str) -> dict[str, str]:
    own = options.settings_of(component)
    if taken := sorted(_OURS & own.keys()):
        remedy = "choose the card by --device CUDA:1, and replay graphs by --cuda-graphs"
        raise RequestError(f"vaefix itself sets {', '.join(taken)}", source=component, remedy=remedy)
    settings = {
        # Components share the card: an arena that grows to the next power of two keeps up to half of it unused.
        "arena_extend_strategy": "kSameAsRequested",
        # The default measures every algorithm at each new shape, in workspaces that can exceed the decode's own memory.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    if execution == "f32":
        settings["use_tf32"] = "0"  # by default f32 factors keep 10 bits, as few as f16
    if options.cuda_graphs:
        settings["enable_cuda_graph"] = "1"
    return {**_card(ordinal), **settings, **own}


def _card(ordinal: int) -> dict[str, str]:
    """Empty for the first: naming it makes ONNX Runtime warn of plugins that nobody asked for."""
    return {"device_id": str(ordinal)} if ordinal else {}


@dataclass(frozen=True)
class _Graph:
    """A graph as its provider is given it. weights: those that it takes as inputs.  stored: see `load_engine`."""

    file: Path
    provider: str
    data: bytes
    weights: tuple[MappedWeight, ...]
    stored: bool


def _read(model: Path, provider: str, execution: str, *, low_memory: bool = False) -> _Graph:
    """Raises ArtifactError for a graph that cannot be read."""
    try:
        data = model.read_bytes()
        graph = onnx.ModelProto.FromString(data)
        stored = low_memory or any(node.op_type == "DequantizeLinear" for node in graph.graph.node)
        if provider != CPU:
            return _Graph(model, provider, data, (), stored)
        if execution != "f32" or has_narrow_edges(graph):
            graph = widened(graph)
        weights = weights_as_inputs(graph, model.parent) if stored else ()
        return _Graph(model, provider, graph.SerializeToString(), weights, stored)
    except (OSError, ValueError, DecodeError) as error:
        raise _unreadable(model, error) from error


def _loaded(
    graph: _Graph, component: str, device: str, execution: str, settings: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    """Raises what `open_session` does of the graph and the settings."""
    provider, model = graph.provider, graph.file
    # SiLU and GELU would become QuickGelu, which CUDA evaluates in f16: ten times the rounding error.
    disabled = ["QuickGeluFusion"] if provider == CUDA and execution != "f32" else []
    try:
        return load_engine(graph.data, model.parent, provider, settings, disabled, stored=graph.stored)
    except FAILURES as error:
        cause = cause_of(error)
        if "provider option" in cause:
            remedy = "correct the engine option, or leave it out"
            raise RequestError(cause, source=component, remedy=remedy) from error
        if isinstance(error, errors.NotImplemented) or re.search("till opset|IR version", cause):
            remedy = "update ONNX Runtime (pip install -U onnxruntime, or onnxruntime-gpu)"
            reason = f"onnxruntime {onnxruntime.__version__} does not know this graph: {cause}"
            raise ArtifactError(reason, source=model, remedy=remedy) from error
        # External data, external initializer; an empty file is a model without an opset.
        if isinstance(error, DAMAGED) or re.search("[Ee]xternal|Missing opset", cause):
            raise _unreadable(model, error) from error
        if is_out_of_memory(error):
            remedy = f"run another component on the CPU, or this one (--device {component}=CPU)"
            raise ResourceError(f"{device} has not the memory for it: {cause}", source=component, remedy=remedy) from error
        remedy = "run this component on the CPU" if provider == CUDA else _RECONVERT
        raise DeviceError(f"{device} cannot load it: {cause}", source=component, remedy=remedy) from error


def _unreadable(model: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"unreadable graph ({cause_of(error)})", source=model, remedy=_RECONVERT)


def _ports(
    engine: onnxruntime.InferenceSession, model: Path, weights: Sequence[MappedWeight] = ()
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs. The size of every output must follow from those of the inputs, so that its buffer can be made."""
    names = {weight.name for weight in weights}
    items = [item for item in engine.get_inputs() if item.name not in names], engine.get_outputs()
    if foreign := [item for item in (*items[0], *items[1]) if item.type not in _TYPES]:
        reason = f"{foreign[0].name} is a {foreign[0].type}, which no pipeline feeds or reads"
        raise ArtifactError(reason, source=model, remedy=_RECONVERT)
    inputs, outputs = (tuple(Port(item.name, *_TYPES[item.type], tuple(item.shape)) for item in group) for group in items)
    axes = {size: 1 for port in inputs for size in port.sizes if isinstance(size, str)}
    for port in outputs:
        try:
            [size_in(axes, size) for size in port.sizes]
        except KeyError as error:
            reason = f"output {port.name} has the size {error}, which does not follow from the inputs"
            raise ArtifactError(reason, source=model, remedy=_RECONVERT) from None
    return inputs, outputs
