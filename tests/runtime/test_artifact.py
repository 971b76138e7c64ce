"""The manifest finds every flipped byte, and an artifact of another make is refused with its remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vaefix.runtime.artifact import FORMAT_VERSION, MANIFEST, Artifact, ComponentEntry, FileEntry, sha256_of
from vaefix.runtime.errors import ArtifactError


@pytest.fixture
def small(tmp_path: Path) -> Artifact:
    """A sealed artifact of three little files."""
    folder = tmp_path / "small"
    contents = {
        "model_index.json": b"{}",
        "unet/config.json": b'{"sample_size": 16}',
        "unet/openvino_model.bin": bytes(range(256)),
    }
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    artifact = Artifact(
        folder=folder,
        target="openvino-gpu",
        family="sdxl",
        components={"unet": ComponentEntry("unet/openvino_model.xml", "fp16", "f16", repaired=True)},
        files={name: FileEntry(len(data), sha256_of(folder / name)) for name, data in contents.items()},
        sources={"unet/model.safetensors": "0" * 64},
        tools={"torch": "2.13.0"},
        parity={"unet": {"max_abs": 1e-6}},
    )
    (folder / MANIFEST).write_bytes(artifact.manifest())
    return artifact


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_was_written_is_read_back(small: Artifact) -> None:
    assert Artifact.load(small.folder, verify=True) == small
    assert Artifact.load(str(small.folder)) == small
    assert small.config("unet")["sample_size"] == 16
    assert small.component("unet").repaired


def test_manifest_depends_on_the_contents_alone(small: Artifact) -> None:
    shuffled = replace(small, folder=Path("elsewhere"), files=dict(reversed(small.files.items())))
    assert shuffled.manifest() == small.manifest()
    assert replace(small, target="openvino-cpu").manifest() != small.manifest()


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_byte_in_any_file_is_found_by_its_hash(small: Artifact, position: int) -> None:
    for name, entry in small.files.items():
        place = position if abs(position) < entry.size else entry.size // 2
        _flip(small.folder / name, place)
        with pytest.raises(ArtifactError, match="sha256 differs") as caught:
            Artifact.load(small.folder, verify=True)
        assert caught.value.source == str(small.folder / name)
        assert Artifact.load(small.folder) == small, "sizes alone do not show it, so that a start stays fast"
        _flip(small.folder / name, place)
    assert Artifact.load(small.folder, verify=True) == small


def test_a_flipped_byte_anywhere_in_the_manifest_is_found_without_hashing_files(small: Artifact) -> None:
    path = small.folder / MANIFEST
    missed = []
    for position in range(path.stat().st_size):
        _flip(path, position)
        try:
            if Artifact.load(small.folder) != small:
                missed.append(position)
        except ArtifactError as error:
            assert error.source is not None
            assert error.remedy is not None
        _flip(path, position)
    assert missed == []


@pytest.mark.parametrize("change", [b"", b"\x00", b"cut"])
def test_a_file_of_another_size_is_found_without_hashing(small: Artifact, change: bytes) -> None:
    path = small.folder / "unet/openvino_model.bin"
    path.write_bytes(path.read_bytes() + change if change != b"cut" else path.read_bytes()[:-1])
    if not change:
        assert Artifact.load(small.folder) == small
        return
    with pytest.raises(ArtifactError, match=f"{path.stat().st_size} bytes, the manifest says 256") as caught:
        Artifact.load(small.folder)
    assert caught.value.source == str(path)


def test_a_missing_file_is_named(small: Artifact) -> None:
    (small.folder / "unet/config.json").unlink()
    with pytest.raises(ArtifactError, match="missing") as caught:
        Artifact.load(small.folder)
    assert caught.value.source == str(small.folder / "unet/config.json")


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ArtifactError, match="no vaefix artifact here"):
        Artifact.load(tmp_path / folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\x00\xff", '{"format_version": null}', "{}"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError) as caught:
        Artifact.load(tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.source == str(tmp_path / MANIFEST)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(FORMAT_VERSION + 1, "update vaefix"), (0, "convert the model again"), ("1", "convert the model again")],
)
def test_another_format_version_is_refused_with_what_to_do(small: Artifact, version: object, remedy: str) -> None:
    path = small.folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version, "new_field": []}))
    with pytest.raises(ArtifactError, match=f"format version {version}.*reads {FORMAT_VERSION}") as caught:
        Artifact.load(small.folder)
    assert remedy in str(caught.value.remedy)


def test_a_component_that_is_not_there_is_answered_with_those_that_are(small: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"no component vae_decoder \(there: unet\)"):
        small.component("vae_decoder")


def test_every_file_of_a_conversion_is_listed_and_intact(demo_artifact_fp16: Artifact) -> None:
    folder = demo_artifact_fp16.folder
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*demo_artifact_fp16.files, MANIFEST}
    assert Artifact.load(folder, verify=True).files == demo_artifact_fp16.files


def test_a_flipped_byte_in_the_weights_of_a_conversion_is_named(copied: Path, reseal: Callable[[], None]) -> None:
    _flip(copied / "unet/openvino_model.bin", 12345)
    with pytest.raises(ArtifactError, match="unet/openvino_model.bin"):
        Artifact.load(copied, verify=True)
    reseal()
    assert Artifact.load(copied, verify=True).folder == copied
