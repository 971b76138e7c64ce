"""Weights read where they lie in a file mapped read-only, so that they take no memory of the process's own.

ONNX Runtime maps initializers so that it could write to them, which the system counts as private memory, and makes copies
besides. Given as inputs, it reads them in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

_BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.INT4: 4,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E5M2: 8,
}


@dataclass(frozen=True)
class MappedWeight:
    """A weight of a mapped file. element_type: of ONNX.  address: in the mapping, which lives as long as this."""

    name: str
    element_type: int
    shape: tuple[int, ...]
    address: int
    _file: np.ndarray = field(repr=False)

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """As an input of the next run."""
        binding.bind_input(self.name, "cpu", 0, self.element_type, list(self.shape), self.address)


def weights_as_inputs(model: onnx.ModelProto, folder: Path) -> tuple[MappedWeight, ...]:
    """Turn the external initializers of a model into inputs, in place, and map what they are.

    folder: of the files. Raises ValueError for a weight that does not lie in its file, OSError for a file that is not there.
    """
    weights = tuple(_mapped(model.graph.initializer, folder))
    names = {weight.name for weight in weights}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.input.extend(helper.make_tensor_value_info(one.name, one.element_type, one.shape) for one in weights)
    return weights


def _mapped(initializers: Iterator[TensorProto], folder: Path) -> Iterator[MappedWeight]:
    files: dict[str, np.ndarray] = {}
    for tensor in initializers:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        name, offset = Path(place.get("location", "")).name, int(place.get("offset", 0))
        if name not in files:
            files[name] = np.memmap(folder / name, np.uint8, mode="r")
        size = -(-math.prod(tensor.dims) * _BITS.get(tensor.data_type, 64) // 8)
        known = tensor.data_type in _BITS and int(place.get("length", size)) == size
        if not (known and 0 <= offset <= len(files[name]) - size):
            raise ValueError(f"external data of {tensor.name}: not {size} bytes at {offset} of {name}")
        address = files[name].ctypes.data + offset
        yield MappedWeight(tensor.name, tensor.data_type, tuple(tensor.dims), address, files[name])
