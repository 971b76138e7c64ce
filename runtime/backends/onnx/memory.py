"""Buffers for inputs and outputs where ONNX Runtime computes, shared with torch where torch sees the same device."""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime
import torch

_AXIS = re.compile(r"(\w+)(?: ([*/]) (\d+))?")


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; sizes: numbers, names of axes, and for outputs such as `height * 8`."""

    name: str
    dtype: torch.dtype
    element_type: type
    sizes: tuple[int | str, ...]


def size_in(axes: Mapping[str, int], size: int | str) -> int:
    """`latent_height * 8` in numbers. Raises KeyError when the axes do not tell."""
    if isinstance(size, int):
        return size
    match = _AXIS.fullmatch(str(size))
    if match is None:
        raise KeyError(size)
    factor = int(match[3] or 1)
    return axes[match[1]] // factor if match[2] == "/" else axes[match[1]] * factor


@dataclass(frozen=True)
class TorchMemory:
    """Buffers are torch tensors: torch and the engine see the same device.

    place: the engine's words for it: `("cuda", 0)`.
    """

    place: tuple[str, int]

    @property
    def tensor_device(self) -> str:
        """See `Session.tensor_device`."""
        return "cpu" if self.place[0] == "cpu" else f"{self.place[0]}:{self.place[1]}"

    def take(self, port: Port, tensor: torch.Tensor) -> torch.Tensor:
        """A buffer of the tensor's values in the port's type, contiguous: the tensor itself where it is that already."""
        return tensor.to(self.tensor_device, port.dtype).contiguous()

    def empty(self, port: Port, shape: Sequence[int]) -> torch.Tensor:
        """A new buffer."""
        return torch.empty(tuple(shape), dtype=port.dtype, device=self.tensor_device)

    def fill(self, port: Port, buffer: torch.Tensor, tensor: torch.Tensor) -> None:  # noqa: ARG002 (it has the port's type)
        """Overwrite a buffer of `empty`."""
        buffer.copy_(tensor.detach())

    def give(self, buffer: torch.Tensor, *, copy: bool) -> torch.Tensor:
        """The buffer's values, float32 where they are floating point; copy: the buffer will be written again."""
        return buffer.to(torch.float32 if buffer.is_floating_point() else buffer.dtype, copy=copy)

    def ready(self) -> None:
        """Wait for torch: the engine computes on a stream of its own, which does not wait for torch's."""
        if self.tensor_device != "cpu":
            torch.cuda.current_stream(self.tensor_device).synchronize()


@dataclass(frozen=True)
class EngineMemory:
    """Buffers are the engine's, on a device that this torch cannot see; an input that did not change stays there.

    Otherwise as `TorchMemory`, with tensors on the CPU.
    """

    place: tuple[str, int]
    tensor_device: str = "cpu"
    _uploads: dict[str, tuple[weakref.ref[torch.Tensor], int, onnxruntime.OrtValue]] = field(default_factory=dict, repr=False)

    def take(self, port: Port, tensor: torch.Tensor) -> onnxruntime.OrtValue:
        """The buffer of the last call if it was made of the same tensor, unchanged since."""
        known = self._uploads.get(port.name)
        version = -1 if tensor.is_inference() else tensor._version  # an inference tensor does not say when it changes
        if known is not None and known[0]() is tensor and known[1] == version >= 0:
            return known[2]
        value = onnxruntime.OrtValue.ortvalue_from_numpy(_array(port, tensor), *self.place)
        self._uploads[port.name] = weakref.ref(tensor), version, value
        return value

    def empty(self, port: Port, shape: Sequence[int]) -> onnxruntime.OrtValue:
        """A new buffer."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), port.element_type, *self.place)

    def fill(self, port: Port, buffer: onnxruntime.OrtValue, tensor: torch.Tensor) -> None:
        """Overwrite a buffer of `empty`."""
        buffer.update_inplace(_array(port, tensor))

    def give(self, buffer: onnxruntime.OrtValue, *, copy: bool) -> torch.Tensor:  # noqa: ARG002 (it always is one)
        """The buffer's values on the CPU."""
        tensor = torch.from_numpy(np.array(buffer.numpy()))
        return tensor.float() if tensor.is_floating_point() else tensor

    def ready(self) -> None:
        """Nothing to wait for: the engine's own copies are complete when they return."""


def _array(port: Port, tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().to("cpu", port.dtype).contiguous().numpy()
    return array
