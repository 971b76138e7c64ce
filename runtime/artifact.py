"""The artifact: a folder that OpenVINO and ONNX Runtime tools load, described and sealed by `vaefix.json`.

The manifest lists the size and sha256 of every other file in the folder and carries its own digest, so that any
flipped byte is found: in the manifest and in a file's size always, in a file's contents when `verify=True`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .defaults import completed
from .errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST = "vaefix.json"
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
    precision: how the weights are stored (`fp32`, `fp16`, `bf16`, `int8`, `int4`, `fp8_e4m3`, `fp8_e5m2`).
    execution: the engine precision it was made for (`f32`, `f16`, `bf16`).
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
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ArtifactError("no vaefix artifact here", source=path, remedy=_RECONVERT) from None
        except (ValueError, OSError) as error:
            raise ArtifactError(f"unreadable manifest ({error})", source=path, remedy=_RECONVERT) from None
        artifact = cls._from_manifest(folder, manifest)
        for name, entry in artifact.files.items():
            _check(folder / name, entry, verify=verify)
        return artifact

    @classmethod
    def _from_manifest(cls, folder: Path, manifest: Any) -> Artifact:
        path = folder / MANIFEST
        if not isinstance(manifest, dict):
            raise ArtifactError("the manifest is not a JSON object", source=path, remedy=_RECONVERT)
        version = manifest.get("format_version")
        if version != FORMAT_VERSION:
            remedy = "update vaefix" if isinstance(version, int) and version > FORMAT_VERSION else _RECONVERT
            raise ArtifactError(f"format version {version}, this vaefix reads {FORMAT_VERSION}", source=path, remedy=remedy)
        sealed = manifest.pop("sha256", None)
        if sealed != _seal(manifest):
            raise ArtifactError("the manifest was altered", source=path, remedy=_RECONVERT)
        return cls(
            folder=folder,
            target=manifest["target"],
            family=manifest["family"],
            components={name: ComponentEntry(**entry) for name, entry in manifest["components"].items()},
            files={name: FileEntry(**entry) for name, entry in manifest["files"].items()},
            sources=manifest["sources"],
            tools=manifest["tools"],
            parity=manifest["parity"],
            chosen=manifest.get("chosen", {}),
        )

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
        """The component's `config.json`, with the library's default for every key that it lacks."""
        config: dict[str, Any] = json.loads((self.folder / name / "config.json").read_text(encoding="utf-8"))
        return completed(config, name)


def sha256_of(path: Path) -> str:
    """The sha256 of a file as 64 hex digits, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path, size: int = 4 << 20) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(size))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


def _check(path: Path, entry: FileEntry, *, verify: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise ArtifactError("missing", source=path, remedy=_RECONVERT) from None
    if size != entry.size:
        raise ArtifactError(f"{size} bytes, the manifest says {entry.size}", source=path, remedy=_RECONVERT)
    if verify and sha256_of(path) != entry.sha256:
        raise ArtifactError("its contents were altered (sha256 differs)", source=path, remedy=_RECONVERT)


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
