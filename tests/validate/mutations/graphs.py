"""Changes to the structure of a graph on disk, for an IR and for ONNX with the same words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
from onnx import helper, numpy_helper


class IR:
    """An OpenVINO graph. Operations go by their names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tree = ElementTree.parse(path)
        self._layers = {layer.attrib["name"]: layer for layer in self._tree.iterfind("layers/layer")}
        self._edges = self._tree.findall("edges/edge")

    def save(self) -> None:
        """Write it back."""
        self._tree.write(self._path)

    def set(self, name: str, **attributes: object) -> None:
        """Change attributes of an operation that it has already."""
        data = self._layers[name].find("data")
        assert data is not None
        assert attributes.keys() <= data.attrib.keys(), data.attrib
        data.attrib.update({key: str(value) for key, value in attributes.items()})

    def retype(self, name: str, kind: str) -> None:
        """Another operation on the first of its inputs."""
        layer = self._layers[name]
        layer.attrib.update(type=kind, version="opset1")
        ports = layer.findall("input/port")
        for port in ports[1:]:
            self._tree.getroot().find("edges").remove(self._edge(name, port.attrib["id"]))  # type: ignore[union-attr]
            layer.find("input").remove(port)  # type: ignore[union-attr]

    def feed(self, name: str, port: int, like: int) -> None:
        """At this port, let an operation read what it reads at port `like`."""
        source = self._edge(name, str(like))
        self._edge(name, str(port)).attrib.update({key: source.attrib[key] for key in ("from-layer", "from-port")})

    def bypass(self, name: str, port: int = 0) -> None:
        """Leave an operation out: who read it reads what it reads at this port."""
        source = self._edge(name, str(port))
        for edge in self._edges:
            if edge.attrib["from-layer"] == self._layers[name].attrib["id"]:
                edge.attrib.update({key: source.attrib[key] for key in ("from-layer", "from-port")})

    def _edge(self, name: str, port: str) -> ElementTree.Element:
        identifier = self._layers[name].attrib["id"]
        (edge,) = [edge for edge in self._edges if (edge.attrib["to-layer"], edge.attrib["to-port"]) == (identifier, port)]
        return edge


class OnnxGraph:
    """An ONNX graph, with the words of IR. Nodes go by their names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model = onnx.load(path, load_external_data=False)
        self._nodes = {node.name: node for node in self._model.graph.node}

    def save(self) -> None:
        """Write it back; the weights stay where they are."""
        onnx.save(self._model, self._path)

    def set(self, name: str, **attributes: Any) -> None:
        """Change attributes of a node that it has already."""
        node = self._nodes[name]
        kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
        assert len(kept) == len(node.attribute) - len(attributes)
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(key, value) for key, value in attributes.items())])

    def named(self, kind: str) -> list[str]:
        """The nodes of one kind."""
        return [name for name, node in self._nodes.items() if node.op_type == kind]

    def retype(self, name: str, kind: str) -> None:
        """Another operation on the same inputs."""
        self._nodes[name].op_type = kind

    def exchange(self, name: str, one: int, other: int, second: str | None = None) -> None:
        """Exchange what a node reads at two ports, or at one what `second` reads at another."""
        first, last = self._nodes[name].input, self._nodes[second or name].input
        first[one], last[other] = last[other], first[one]

    def bypass(self, name: str, port: int = 0) -> None:
        """Leave a node out: who read it reads what it reads at this port."""
        left_out = self._nodes[name]
        for node in self._model.graph.node:
            for index, value in enumerate(node.input):
                if value == left_out.output[0]:
                    node.input[index] = left_out.input[port]

    def follow(self, name: str, *chain: tuple[str, Sequence[np.generic], dict[str, Any]]) -> None:
        """Put nodes behind one: kind, further inputs that are constants, attributes."""
        node = self._nodes[name]
        result = node.output[0]
        value = node.output[0] = f"{result}/before"
        position = [*self._model.graph.node].index(node)
        for number, (kind, constants, attributes) in enumerate(chain):
            output = result if number == len(chain) - 1 else f"{result}/{number}"
            names = [f"{output}/{index}" for index in range(len(constants))]
            self._model.graph.initializer.extend(map(numpy_helper.from_array, map(np.asarray, constants), names))
            planted = helper.make_node(kind, [value, *names], [output], f"{name}/{kind}{number}", **attributes)
            self._model.graph.node.insert(position + 1 + number, planted)
            value = output
