"""A loaded ONNX graph, fed and read by address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch

from ...errors import DeviceError, RequestError, ResourceError, VaefixError, is_out_of_memory
from .engine import FAILURES, cause_of
from .mapped import MappedWeight
from .memory import EngineMemory, Port, TorchMemory, size_in

MOST_GRAPHS = 8
"""So many shapes are recorded: each keeps its buffers on the card, and no graph can be given back."""
_NO_GRAPH = -1  # ONNX Runtime's word for a run that is neither recorded nor replayed
_Shapes = tuple[torch.Size, ...]


@dataclass(frozen=True)
class _Bound:
    """Buffers and the addresses bound to the graph; options: of a recorded CUDA graph, whose addresses never change."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions | None = None


@dataclass(frozen=True)
class OnnxSession:
    """A loaded graph; implements `Session`. Inputs and outputs are bound by address: the engine copies nothing."""

    device: str
    precision: str
    _component: str
    _inputs: tuple[Port, ...] = field(repr=False)
    _outputs: tuple[Port, ...] = field(repr=False)
    _engine: onnxruntime.InferenceSession = field(repr=False)
    _memory: TorchMemory | EngineMemory = field(repr=False)
    _cuda_graphs: bool = False
    _weights: Sequence[MappedWeight] = field(default=(), repr=False)
    _recorded: dict[_Shapes, _Bound] = field(default_factory=dict, repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names, in the order of the graph."""
        return tuple(port.name for port in self._inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names, in the order of the graph."""
        return tuple(port.name for port in self._outputs)

    @property
    def tensor_device(self) -> str:
        """The card itself where torch sees it."""
        return self._memory.tensor_device

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute every output; see `Session.run`."""
        tensors = {name: torch.from_numpy(np.require(value, requirements=["C", "W"])) for name, value in feeds.items()}
        return {name: tensor.cpu().numpy() for name, tensor in self.run_tensors(tensors).items()}

    def run_tensors(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute every output; see `Session.run_tensors`. Inputs of any type and layout are taken."""
        if feeds.keys() != set(self.inputs):
            reason = f"fed {', '.join(sorted(feeds)) or 'nothing'}"
            raise RequestError(reason, source=self._component, remedy=f"feed exactly {', '.join(self.inputs)}")
        tensors = [_fitted(port, feeds[port.name], self._component) for port in self._inputs]
        shapes = tuple(tensor.shape for tensor in tensors)
        try:
            bound = self._static(tensors, shapes) if self._cuda_graphs else self._direct(tensors)
            self._memory.ready()
            self._engine.run_with_iobinding(bound.binding, bound.options)
        except FAILURES as error:
            raise self._failure(error, shapes) from error
        if self._cuda_graphs and len(self._recorded) < MOST_GRAPHS:
            self._recorded[shapes] = bound
        outputs = zip(self.outputs, bound.outputs, strict=True)
        return {name: self._memory.give(buffer, copy=self._cuda_graphs) for name, buffer in outputs}

    def _direct(self, tensors: Sequence[torch.Tensor], options: onnxruntime.RunOptions | None = None) -> _Bound:
        return self._bound([self._memory.take(*pair) for pair in zip(self._inputs, tensors, strict=True)], tensors, options)

    def _static(self, tensors: Sequence[torch.Tensor], shapes: _Shapes) -> _Bound:
        """The engine records a graph in the first run under a new id and replays it in those that follow."""
        bound = self._recorded.get(shapes)
        if bound is None:
            if len(self._recorded) == MOST_GRAPHS:
                return self._direct(tensors, _graph_options(_NO_GRAPH))
            inputs = [self._memory.empty(port, shape) for port, shape in zip(self._inputs, shapes, strict=True)]
            bound = self._bound(inputs, tensors, _graph_options(len(self._recorded) + 1))
        for port, buffer, tensor in zip(self._inputs, bound.inputs, tensors, strict=True):
            self._memory.fill(port, buffer, tensor)
        return bound

    def _bound(
        self, inputs: Sequence[Any], tensors: Sequence[torch.Tensor], options: onnxruntime.RunOptions | None = None
    ) -> _Bound:
        """Bind the input buffers, shaped as the tensors, and new output buffers."""
        binding, axes = self._engine.io_binding(), dict[str, int]()
        for weight in self._weights:
            weight.bind(binding)
        for port, buffer, tensor in zip(self._inputs, inputs, tensors, strict=True):
            if tensor.ndim != len(port.sizes):
                raise ValueError(f"{port.name} has {len(port.sizes)} dimensions, not {tensor.ndim}")
            for name, size in zip(port.sizes, tensor.shape, strict=True):
                if isinstance(name, str):
                    axes.setdefault(name, size)
            binding.bind_input(port.name, *self._memory.place, port.element_type, list(tensor.shape), buffer.data_ptr())
        outputs = []
        for port in self._outputs:
            shape = [size_in(axes, size) for size in port.sizes]
            outputs.append(self._memory.empty(port, shape))
            binding.bind_output(port.name, *self._memory.place, port.element_type, shape, outputs[-1].data_ptr())
        return _Bound(inputs, outputs, binding, options)

    def _failure(self, error: Exception, shapes: _Shapes) -> VaefixError:
        given = ", ".join(f"{port.name} {list(shape)}" for port, shape in zip(self._inputs, shapes, strict=True))
        if is_out_of_memory(error):
            reason = f"{self.device} has not the memory for {given}: {cause_of(error)}"
            elsewhere = "" if self.device == "CPU" else f", or run it on the CPU (--device {self._component}=CPU)"
            remedy = f"draw smaller or fewer pictures{elsewhere}"
            return ResourceError(reason, source=self._component, remedy=remedy)
        reason = f"{self.device} failed on {given}: {cause_of(error)}"
        return DeviceError(reason, source=self._component, remedy="check the shapes, or use another device")


def _graph_options(identifier: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(identifier))
    return options


def _fitted(port: Port, tensor: torch.Tensor, component: str) -> torch.Tensor:
    """Equal numbers for a whole batch as the one number that some graphs take (`timestep`)."""
    if port.sizes or not tensor.ndim:
        return tensor
    if tensor.numel() != 1 and tensor.unique().numel() != 1:
        reason = f"{port.name} has the shape {list(tensor.shape)}, the graph takes one number for the whole batch"
        raise RequestError(reason, source=component, remedy="feed one number, or one picture at a time")
    return tensor.flatten()[0]
