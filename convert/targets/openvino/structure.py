"""Reload a written IR and hold it against the program: trust by reading back what a user's engine will read."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vaefix.runtime.errors import ParityError

from ...precision import BITS, SCALE
from .weights import SHAPE, STORED

if TYPE_CHECKING:
    from ...program import Parameter
    from .. import Job


@dataclass(frozen=True)
class _Layer:
    """One layer of the graph; the numbers are those of a `Const`: elements, and bytes of the .bin."""

    name: str
    kind: str
    element_type: str
    count: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Part:
    """What the `Const` of a weight, or of a part of one, must be."""

    element_type: str
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return -(-self.count * {**BITS, "i64": 64}[self.element_type] // 8)


def check_graph(folder: Path, job: Job) -> None:
    """Check that every parameter has exactly one weight of its size and type inside the .bin, and none overlap.

    Raises ParityError naming the first weight or input that is not as the program has it.
    """
    graph = folder / "openvino_model.xml"
    layers = list(_layers(graph))
    wanted = {name: part for parameter in job.program.parameters.values() for name, part in _parts(job, parameter).items()}
    constants = [layer for layer in layers if layer.kind == "Const" and layer.name not in wanted]
    weights = [layer for layer in layers if layer.kind == "Const" and layer.name in wanted]
    _check_weights(graph, weights, wanted)
    start = max((layer.end for layer in constants), default=0)  # the graph's own constants lie in front of all weights
    _check_places(graph, weights, start, (folder / "openvino_model.bin").stat().st_size)
    inputs = [layer.name for layer in layers if layer.kind == "Parameter"]
    outputs = {layer.name.removeprefix("result/") for layer in layers if layer.kind == "Result"}
    if inputs != [item.name for item in job.component.inputs] or outputs != {*job.component.outputs}:
        raise ParityError(f"inputs {inputs} and outputs {sorted(outputs)} are not the component's", source=graph)


def _parts(job: Job, parameter: Parameter) -> dict[str, _Part]:
    """By the name of its `Const`, every part of a weight."""
    stored, count = job.storage[parameter.name], math.prod(parameter.shape)
    name = parameter.name if stored.element_type == "f32" else parameter.name + STORED
    parts = {name: _Part(stored.element_type, count)}
    if stored.is_quantized:
        parts[parameter.name + SCALE] = _Part(stored.scale_type, parameter.shape[0] * stored.groups(parameter.shape))
    if stored.group is not None:
        parts[parameter.name + SHAPE] = _Part("i64", len(parameter.shape))
    return parts


def _layers(graph: Path) -> Iterator[_Layer]:
    for _, element in ElementTree.iterparse(graph):
        if element.tag != "layer":
            continue
        found = element.find("data")
        data = {} if found is None else found.attrib
        shape = [int(size) for size in data.get("shape", "").replace("?", "-1").split(",") if size.strip()]
        begin, size = int(data.get("offset", 0)), int(data.get("size", 0))
        name, kind, element_type = element.get("name", ""), element.get("type", ""), data.get("element_type", "")
        yield _Layer(name, kind, element_type, math.prod(shape), begin, begin + size)
        element.clear()


def _check_weights(graph: Path, weights: list[_Layer], wanted: Mapping[str, _Part]) -> None:
    seen = set()
    for layer in weights:
        name, part = layer.name, wanted[layer.name]
        if name in seen:
            raise ParityError(f"weight {name} occurs twice", source=graph)
        seen.add(name)
        size = layer.end - layer.begin
        if (layer.element_type, layer.count, size) != (part.element_type, part.count, part.size):
            found = f"{layer.count} elements of {layer.element_type} in {size} bytes"
            raise ParityError(f"weight {name} is {found}, expected {part.count} of {part.element_type}", source=graph)
    if missing := sorted(wanted.keys() - seen):
        raise ParityError(f"weight {missing[0]} is not in the graph", source=graph)


def _check_places(graph: Path, weights: list[_Layer], start: int, size: int) -> None:
    end = start
    for layer in sorted(weights, key=lambda layer: layer.begin):
        if layer.begin < end or layer.end > size:
            place = f"bytes {layer.begin} to {layer.end} of {size}"
            raise ParityError(f"weight {layer.name} lies at {place}, over another one or the end", source=graph)
        end = layer.end
