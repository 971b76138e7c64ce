"""The artifact: a folder that OpenVINO and ONNX Runtime tools load, described and sealed by `vaefix.json`.

The manifest lists the size and sha256 of every other file in the folder and carries its own digest, so that any
flipped byte is found: in the manifest and in a file's size always, in a file's contents when `verify=True`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from .defaults import completed
from .documents import read_object
from .errors import ArtifactError
from .files import require_regular

FORMAT_VERSION = 1
MANIFEST = "vaefix.json"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4", "fp8_e4m3", "fp8_e5m2")
EXECUTIONS = ("f32", "f16", "bf16")
_RECONVERT = "convert the model again with vaefix-convert"


@dataclass(frozen=True)
class FileEntry:
    """One file of the artifact: `size` in bytes, `sha256` as 64 hex digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ComponentEntry:
    """One converted component.

    model: path of the graph inside the artifact, with forward slashes (`unet/openvino_model.xml`).
    precision: how the weights are stored (one of `PRECISIONS`).
    execution: the engine precision it was made for (one of `EXECUTIONS`).
    repaired: the exponents of `repair.json` beside the graph were applied.
    weights: how many are of a kind (`linear`, `conv`, `table`, `other`) and stored as an element type (`f16`, `i8`, ...).
    """

    model: str
    precision: str
    execution: str
    repaired: bool = False
    weights: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A loaded (or about to be written) artifact.

    target: `openvino-gpu`, `openvino-cpu`.  family: `sdxl`.
    components: by name (`unet`, `vae_decoder`, ...).  files: by path relative to `folder`, forward slashes.
    sources: content hash of every checkpoint file read.  tools: versions of the packages that made it.
    parity: what the conversion compared, and what it did not.
    chosen: component -> what `--precision auto` chose for it, and why; empty where it was not asked for.
    """

    folder: Path
    target: str
    family: str
    components: Mapping[str, ComponentEntry]
    files: Mapping[str, FileEntry]
    sources: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> Artifact:
        """Read the manifest and check every file's presence and size; with `verify`, every sha256 as well.

        Raises ArtifactError naming the file that is missing, short, altered or surplus in the manifest.
        """
        artifact = cls.read(folder)
        for fault in artifact.faults(verify=verify):
            raise fault
        return artifact

    @classmethod
    def read(cls, folder: str | Path) -> Artifact:
        """Read the manifest alone. Raises ArtifactError if it is missing, altered or of another format version."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not os.path.lexists(path):
            raise ArtifactError("no vaefix artifact here", source=path, remedy=_RECONVERT)
        return cls._from_manifest(folder, read_object(path, ArtifactError, remedy=_RECONVERT))

    @classmethod
    def _from_manifest(cls, folder: Path, manifest: dict[str, Any]) -> Artifact:
        path = folder / MANIFEST
        version = manifest.pop("format_version", None)
        if type(version) is not int or version != FORMAT_VERSION:
            remedy = "update vaefix" if isinstance(version, int) and version > FORMAT_VERSION else _RECONVERT
            raise ArtifactError(f"format version {version}, this vaefix reads {FORMAT_VERSION}", source=path, remedy=remedy)
        sealed = manifest.pop("sha256", None)
        if sealed != _seal({"format_version": version, **manifest}):
            raise ArtifactError("the manifest was altered", source=path, remedy=_RECONVERT)
        try:
            artifact = _typed(cls, {"folder": folder, **manifest}, "the manifest")
            components = {name: _component(entry, name) for name, entry in artifact.components.items()}
            files = {name: _file(entry, name) for name, entry in artifact.files.items()}
        except ValueError as error:
            raise ArtifactError(f"not a manifest: {error}", source=path, remedy=_RECONVERT) from None
        for name, component in components.items():
            if component.model not in files:
                reason = f"the graph of {name}, {component.model!r}, is not among the files"
                raise ArtifactError(reason, source=path, remedy=_RECONVERT)
        return replace(artifact, components=components, files=files)

    def faults(self, *, verify: bool, on_read: Callable[[int], None] = lambda _: None) -> Iterator[ArtifactError]:
        """Of every file that is missing, of another size or, with `verify`, altered. on_read: is told of bytes hashed."""
        for name, entry in self.files.items():
            path = self.folder / name
            try:
                size = path.stat().st_size
                require_regular(path)
                altered = size == entry.size and verify and sha256_of(path, on_read) != entry.sha256
            except OSError as error:
                reason = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error.strerror})"
                yield ArtifactError(reason, source=path, remedy=_RECONVERT)
                continue
            if size != entry.size:
                yield ArtifactError(f"{size} bytes, the manifest says {entry.size}", source=path, remedy=_RECONVERT)
            elif altered:
                yield ArtifactError("its contents were altered (sha256 differs)", source=path, remedy=_RECONVERT)

    def manifest(self) -> bytes:
        """The bytes of `vaefix.json`: sorted, sealed, the same for the same artifact."""
        body: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(self)}
        del body["folder"]
        body["sha256"] = _seal(body)
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    def component(self, name: str) -> ComponentEntry:
        """The entry of a component. Raises ArtifactError naming those that are there."""
        if name not in self.components:
            there = ", ".join(sorted(self.components)) or "none"
            raise ArtifactError(f"no component {name} (there: {there})", source=self.folder, remedy=_RECONVERT)
        return self.components[name]

    def config(self, name: str) -> dict[str, Any]:
        """The component's `config.json`, with the library's default for every key that it lacks.

        Raises ArtifactError if it is missing or damaged.
        """
        config = read_object(self.folder / name / "config.json", ArtifactError, remedy=_RECONVERT, finite=True)
        return completed(config, name)


def sha256_of(path: Path, on_read: Callable[[int], None] = lambda _: None) -> str:
    """The sha256 of a file as 64 hex digits, read in pieces of 4 MiB; on_read: is told the bytes of each."""
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
        on_read(len(piece))
    return digest.hexdigest()


def _pieces(path: Path, size: int = 4 << 20) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(size))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


_Read = TypeVar("_Read")
_JSON = {"Path": Path, "str": str, "int": int, "bool": bool}  # the types of fields, as written; all others are objects


def _typed(cls: type[_Read], data: Any, what: str) -> _Read:
    """The dataclass whose fields are in `data`, of their types. Raises ValueError naming one that is not."""
    if not isinstance(data, dict):
        raise ValueError(f"{what} is not an object")
    known = {field.name: _JSON.get(str(field.type), dict) for field in fields(cls)}  # type: ignore[arg-type]
    for name, value in data.items():
        if name not in known:
            raise ValueError(f"{what} has the unknown field {name!r}")
        if known[name] is not Path and type(value) is not known[name]:
            raise ValueError(f"{name} of {what} is {str(value)[:80]!r}")
    for own in fields(cls):  # type: ignore[arg-type]
        if own.name not in data and own.default is MISSING and own.default_factory is MISSING:
            raise ValueError(f"{what} lacks {own.name}")
    return cls(**data)


def _component(data: Any, name: str) -> ComponentEntry:
    entry = _typed(ComponentEntry, data, f"component {name!r}")
    if not _is_inside(name) or "/" in name:
        raise ValueError(f"the component {name!r} has the name of a path")
    for value, known in ((entry.precision, PRECISIONS), (entry.execution, EXECUTIONS)):
        if value not in known:
            raise ValueError(f"component {name!r} is in {value!r}, not in one of {', '.join(known)}")
    counts = [count for types in entry.weights.values() for count in (types.values() if isinstance(types, dict) else [None])]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"the weights of component {name!r} are not counted by kind and element type")
    return entry


def _file(data: Any, name: str) -> FileEntry:
    entry = _typed(FileEntry, data, f"file {name!r}")
    if not _is_inside(name):
        raise ValueError(f"the file {name!r} is outside of the artifact")
    return entry


def _is_inside(name: str) -> bool:
    return "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
