"""How far the weights that an ONNX artifact stores are from the model's; decoded by the packages onnx and ml_dtypes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from vaefix.convert.checkpoint import Checkpoint, TensorRef

_CHANNELS = 64


@dataclass(frozen=True)
class WeightError:
    """Of the weights of Linear and Conv that are stored in the precision's own types.

    Measured in at most 64 output channels of each, evenly spread; a tensor counts as much as it has weights.
    relative: root mean square of the errors over that of the weights.  largest: an error, over its channel's largest weight.
    """

    relative: float
    largest: float


def weight_error(model: Path, artifact: Path, component: str) -> WeightError:
    """Of one component of an artifact made from `model`; none whose exponents a repair has moved."""
    tensors = Checkpoint.open(model).tensors("vae" if component.startswith("vae") else component)
    squares = errors = largest = 0.0
    for name, stored in _decoded(artifact / component):
        tensor = tensors[name] if name in tensors else tensors[f"text_model.{name}"]
        channels = np.linspace(0, len(stored) - 1, min(len(stored), _CHANNELS)).astype(int)
        original = _original(tensor)[channels].astype(np.float64)
        error = np.abs(stored[channels] - original)
        squares += float(np.square(original).mean()) * tensor.count
        errors += float(np.square(error).mean()) * tensor.count
        peaks = np.abs(original).max(axis=1)
        shares = np.divide(error.max(axis=1), peaks, out=error.max(axis=1), where=peaks > 0)
        largest = float(np.maximum(largest, shares.max()))  # NaN stays NaN
    return WeightError(math.sqrt(errors / squares), largest)


def _decoded(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and values [output channels, inputs] of each weight that is dequantized, or else of each that there is."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    coded = [node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"]
    for name in coded or [name for name, tensor in stored.items() if len(tensor.dims) > 1 and name.endswith(".weight")]:
        if name in tables:
            continue
        values = onnx.numpy_helper.to_array(stored[name], str(folder)).astype(np.float32)
        values = values.T if values.ndim == 2 else values.reshape(len(values), -1)  # matrices are stored transposed
        if name in coded:
            scales = onnx.numpy_helper.to_array(stored[f"{name}/scale"], str(folder)).astype(np.float32)
            scales = scales.T if scales.ndim == 2 else scales[:, None]  # one for each group of inputs, or of them all
            values = values * scales.repeat(values.shape[1] // scales.shape[1], axis=1)
        yield name, values


def _original(tensor: TensorRef) -> NDArray[np.float16]:
    """The float16 values [output channels, inputs], mapped."""
    shape = (tensor.shape[0], math.prod(tensor.shape[1:]))
    return np.memmap(tensor.file, "<f2", "r", tensor.offset, shape)
