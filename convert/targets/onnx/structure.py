"""Reload a written graph and hold it against the program: trust by reading back what a user's engine will read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from vaefix.runtime.errors import ParityError

from ...precision import BITS, SCALE
from .graph import TYPES

if TYPE_CHECKING:
    from ...program import Parameter
    from .. import Job


def check_graph(folder: Path, job: Job) -> None:
    """Check that the model is valid ONNX and has every parameter once, of its size and type, inside the data file.

    Raises ParityError naming the first weight or input that is not as the program has it.
    """
    path = folder / "model.onnx"
    try:
        onnx.checker.check_model(path)
        model = onnx.load(path, load_external_data=False)
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ParityError(f"not valid ONNX: {error}", source=path) from None
    weights = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    _check_weights(path, weights, job)
    _check_places(path, weights, (folder / "model.onnx_data").stat().st_size)
    inputs, outputs = ([item.name for item in items] for items in (model.graph.input, model.graph.output))
    if inputs != [item.name for item in job.component.inputs] or outputs != list(job.component.outputs):
        raise ParityError(f"inputs {inputs} and outputs {outputs} are not the component's", source=path)


def _parts(job: Job, parameter: Parameter) -> dict[str, tuple[str, set[tuple[int, ...]]]]:
    """Name of every part of a weight -> its element type, and the shapes that it may have."""
    stored, shape = job.storage[parameter.name], parameter.shape
    shapes = {shape, shape[::-1], *((*shape, *[1] * more) for more in range(1, 4))}  # of a bias, beside channels
    parts = {parameter.name: (stored.element_type, shapes)}
    if stored.is_quantized:
        scales = (shape[0], stored.groups(shape))
        parts[parameter.name + SCALE] = (stored.scale_type, {shape[:1]} if stored.group is None else {scales, scales[::-1]})
    return parts


def _check_weights(path: Path, weights: list[TensorProto], job: Job) -> None:
    wanted = {name: part for parameter in job.program.parameters.values() for name, part in _parts(job, parameter).items()}
    seen = set()
    for tensor in weights:
        name, shape, size = tensor.name, tuple(tensor.dims), int(_place(tensor)["length"])
        if name in seen:
            raise ParityError(f"weight {name} occurs twice", source=path)
        seen.add(name)
        element_type, shapes = wanted.get(name, ("", set()))
        if shape not in shapes:
            raise ParityError(f"weight {name} is {list(shape)}, expected one of {sorted(shapes)}", source=path)
        expected = -(-math.prod(shape) * BITS[element_type] // 8)
        if tensor.data_type != TYPES[element_type] or size != expected:
            found = f"{TensorProto.DataType.Name(tensor.data_type)} in {size} bytes"
            raise ParityError(f"weight {name} is {found}, expected {math.prod(shape)} of {element_type}", source=path)
    if missing := sorted(wanted.keys() - seen):
        raise ParityError(f"weight {missing[0]} is not in the graph", source=path)


def _check_places(path: Path, weights: list[TensorProto], size: int) -> None:
    end = 0
    for tensor in sorted(weights, key=lambda tensor: int(_place(tensor)["offset"])):
        place = _place(tensor)
        begin = int(place["offset"])
        if place["location"] != "model.onnx_data" or begin < end or begin + int(place["length"]) > size:
            reason = f"weight {tensor.name} lies at byte {begin} of {place['location']}, over another one or the end ({size})"
            raise ParityError(reason, source=path)
        end = begin + int(place["length"])


def _place(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
