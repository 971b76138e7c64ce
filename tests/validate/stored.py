"""What an artifact's files hold, to be damaged in ways that their hashes do not give away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx

from vaefix.runtime.artifact import MANIFEST, Artifact, FileEntry, sha256_of

_IR_TYPES = {"f16": np.float16, "f32": np.float32}
_ONNX_TYPES = {onnx.TensorProto.FLOAT16: np.float16, onnx.TensorProto.FLOAT: np.float32}


def reseal(artifact: Artifact) -> None:
    """Write a manifest that fits the files as they are now."""
    files = {
        name: FileEntry((artifact.folder / name).stat().st_size, sha256_of(artifact.folder / name)) for name in artifact.files
    }
    (artifact.folder / MANIFEST).write_bytes(replace(artifact, files=files).manifest())


def stored_weight(artifact: Artifact, component: str, parameter: str) -> np.memmap:
    """A weight in fp16 or fp32 as it lies in its file; writing to it changes the file."""
    graph = artifact.folder / artifact.component(component).model
    data, dtype, offset, shape = (_in_ir if graph.suffix == ".xml" else _in_onnx)(graph, parameter)
    return np.memmap(data, dtype=dtype, mode="r+", offset=offset, shape=shape)


def _in_ir(graph: Path, parameter: str) -> tuple[Path, type, int, tuple[int, ...]]:
    """File, type, offset and shape of a weight; one in fp32 needs no conversion, so that it bears the name itself."""
    layers = ElementTree.parse(graph).findall(".//layer[@type='Const']")
    (constant,) = [layer.find("data") for layer in layers if layer.get("name") in (parameter, f"{parameter}/stored")]
    assert constant is not None, f"no weight {parameter}"
    shape = tuple(int(size) for size in constant.attrib["shape"].split(","))
    return graph.with_suffix(".bin"), _IR_TYPES[constant.attrib["element_type"]], int(constant.attrib["offset"]), shape


def _in_onnx(graph: Path, parameter: str) -> tuple[Path, type, int, tuple[int, ...]]:
    weights = {weight.name: weight for weight in onnx.load(graph, load_external_data=False).graph.initializer}
    weight = weights[parameter]
    place = {entry.key: entry.value for entry in weight.external_data}
    return graph.parent / place["location"], _ONNX_TYPES[weight.data_type], int(place["offset"]), tuple(weight.dims)
