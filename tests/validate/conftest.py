"""A copy of an fp16 artifact that a test may damage in a way that its hashes do not give away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from vaefix.runtime.artifact import MANIFEST, Artifact, FileEntry, sha256_of

Change = Callable[[np.ndarray], None]


def reseal(artifact: Artifact) -> None:
    """Write a manifest that fits the files as they are now."""
    files = {
        name: FileEntry((artifact.folder / name).stat().st_size, sha256_of(artifact.folder / name)) for name in artifact.files
    }
    (artifact.folder / MANIFEST).write_bytes(replace(artifact, files=files).manifest())


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """A copy of the artifact for OpenVINO, or of the one whose fixture is the parameter."""
    original: Artifact = request.getfixturevalue(getattr(request, "param", "demo_artifact_fp16"))
    return replace(original, folder=Path(shutil.copytree(original.folder, tmp_path / "copied")))


@pytest.fixture
def edit_weight(copied: Artifact) -> Callable[[str, str, Change], None]:
    """edit_weight(component, parameter, change): change one stored weight of the copy in place."""

    def edit(component: str, parameter: str, change: Change) -> None:
        graph = copied.folder / copied.component(component).model
        data, offset, shape = (_in_ir if graph.suffix == ".xml" else _in_onnx)(graph, parameter)
        weight = np.memmap(data, dtype=np.float16, mode="r+", offset=offset, shape=shape)
        before = weight.copy()
        change(weight)
        assert not np.array_equal(before, weight), "nothing was changed"
        weight.flush()
        reseal(copied)

    return edit


def _in_ir(graph: Path, parameter: str) -> tuple[Path, int, tuple[int, ...]]:
    """File, offset and shape of a weight in fp16."""
    constant = ElementTree.parse(graph).find(f".//layer[@name='{parameter}/stored']/data")
    assert constant is not None, f"no weight {parameter}"
    assert constant.attrib["element_type"] == "f16"
    shape = tuple(int(size) for size in constant.attrib["shape"].split(","))
    return graph.with_suffix(".bin"), int(constant.attrib["offset"]), shape


def _in_onnx(graph: Path, parameter: str) -> tuple[Path, int, tuple[int, ...]]:
    weights = {weight.name: weight for weight in onnx.load(graph, load_external_data=False).graph.initializer}
    weight = weights[parameter]
    assert weight.data_type == onnx.TensorProto.FLOAT16
    place = {entry.key: entry.value for entry in weight.external_data}
    return graph.parent / place["location"], int(place["offset"]), tuple(weight.dims)


@pytest.fixture
def edit_text(copied: Artifact) -> Callable[[str, str, str], None]:
    """edit_text(file, old, new): change a file of the copy."""

    def edit(file: str, old: str, new: str) -> None:
        path = copied.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        reseal(copied)

    return edit
