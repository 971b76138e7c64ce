"""Reload a written IR and hold it against the program: trust by reading back what a user's engine will read."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING

from vaefix.runtime.errors import ParityError

from ...precision import ELEMENT_TYPES

if TYPE_CHECKING:
    from .. import Job

_BYTES = {"f32": 4, "f16": 2}


def check_graph(folder: Path, job: Job) -> None:
    """Check that every parameter has exactly one weight of its size and type inside the .bin, and none overlap.

    Raises ParityError naming the first weight or input that is not as the program has it.
    """
    graph, size = folder / "openvino_model.xml", (folder / "openvino_model.bin").stat().st_size
    wanted, element_type = {p.name: p.shape for p in job.program.parameters.values()}, ELEMENT_TYPES[job.precision]
    spans, inputs, outputs, seen, constants = [], [], [], set(), 0
    for _, layer in ElementTree.iterparse(graph):
        if layer.tag != "layer":
            continue
        name, kind, data = layer.get("name", ""), layer.get("type"), layer.find("data")
        if kind == "Const" and data is not None:
            offset, length = int(data.get("offset", -1)), int(data.get("size", -1))
            parameter = name.removesuffix("/stored")
            if parameter in wanted:
                _check_weight(graph, parameter, data, wanted[parameter], element_type, parameter in seen)
                seen.add(parameter)
                spans.append((offset, offset + length, name))
            else:  # the graph's own constants may share bytes, in front of all weights
                constants = max(constants, offset + length)
        elif kind == "Parameter":
            inputs.append(name)
        elif kind == "Result":
            outputs.append(name.removeprefix("result/"))
        layer.clear()
    if missing := sorted(wanted.keys() - seen):
        raise ParityError(f"weight {missing[0]} is not in the graph", source=graph)
    expected_inputs = [item.name for item in job.component.inputs]
    if inputs != expected_inputs or sorted(outputs) != sorted(job.component.outputs):
        raise ParityError(f"inputs {inputs} and outputs {outputs} are not the component's", source=graph)
    end = constants
    for begin, stop, name in sorted(spans):
        if begin < end or stop > size:
            raise ParityError(
                f"weight {name} lies at bytes {begin} to {stop} of {size}, over another one or the end", source=graph
            )
        end = stop


def _check_weight(
    graph: Path, name: str, data: ElementTree.Element, shape: tuple[int, ...], element_type: str, again: bool
) -> None:
    count = 1
    for size in shape:
        count *= size
    written = 1
    for part in filter(None, data.get("shape", "").split(",")):
        written *= int(part)
    if again:
        raise ParityError(f"weight {name} occurs twice", source=graph)
    if (
        data.get("element_type") != element_type
        or written != count
        or int(data.get("size", -1)) != count * _BYTES[element_type]
    ):
        raise ParityError(f"weight {name} is {data.attrib}, expected {element_type} of shape {list(shape)}", source=graph)
