"""Reload a written IR and hold it against the program: trust by reading back what a user's engine will read."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vaefix.runtime.errors import ParityError

from ...precision import ELEMENT_TYPES
from .skeleton import ELEMENT_BYTES

if TYPE_CHECKING:
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

    @property
    def parameter(self) -> str:
        """The parameter's name, if it is a weight."""
        return self.name.removesuffix("/stored")


def check_graph(folder: Path, job: Job) -> None:
    """Check that every parameter has exactly one weight of its size and type inside the .bin, and none overlap.

    Raises ParityError naming the first weight or input that is not as the program has it.
    """
    graph = folder / "openvino_model.xml"
    layers = list(_layers(graph))
    wanted = {parameter.name: math.prod(parameter.shape) for parameter in job.program.parameters.values()}
    constants = [layer for layer in layers if layer.kind == "Const" and layer.parameter not in wanted]
    weights = [layer for layer in layers if layer.kind == "Const" and layer.parameter in wanted]
    _check_weights(graph, weights, wanted, ELEMENT_TYPES[job.precision])
    start = max((layer.end for layer in constants), default=0)  # the graph's own constants lie in front of all weights
    _check_places(graph, weights, start, (folder / "openvino_model.bin").stat().st_size)
    inputs = [layer.name for layer in layers if layer.kind == "Parameter"]
    outputs = {layer.name.removeprefix("result/") for layer in layers if layer.kind == "Result"}
    if inputs != [item.name for item in job.component.inputs] or outputs != {*job.component.outputs}:
        raise ParityError(f"inputs {inputs} and outputs {sorted(outputs)} are not the component's", source=graph)


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


def _check_weights(graph: Path, weights: list[_Layer], wanted: Mapping[str, int], element_type: str) -> None:
    seen = set()
    for layer in weights:
        name, count = layer.parameter, wanted[layer.parameter]
        if name in seen:
            raise ParityError(f"weight {name} occurs twice", source=graph)
        seen.add(name)
        size = layer.end - layer.begin
        if (layer.element_type, layer.count, size) != (element_type, count, count * ELEMENT_BYTES[element_type]):
            found = f"{layer.count} elements of {layer.element_type} in {size} bytes"
            raise ParityError(f"weight {name} is {found}, expected {count} of {element_type}", source=graph)
    if missing := sorted(wanted.keys() - seen):
        raise ParityError(f"weight {missing[0]} is not in the graph", source=graph)


def _check_places(graph: Path, weights: list[_Layer], start: int, size: int) -> None:
    end = start
    for layer in sorted(weights, key=lambda layer: layer.begin):
        if layer.begin < end or layer.end > size:
            place = f"bytes {layer.begin} to {layer.end} of {size}"
            raise ParityError(f"weight {layer.parameter} lies at {place}, over another one or the end", source=graph)
        end = layer.end
