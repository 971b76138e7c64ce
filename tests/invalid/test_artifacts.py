"""Artifacts, and references, that are spoilt but sealed: refused by name, by whoever reads them, before anything is drawn."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaefix.runtime.artifact import MANIFEST
from vaefix.runtime.cli import app as run_app
from vaefix.validate.cli import app as validate_app

from .conftest import Folder
from .test_models import CASES, DEEP, INDEX, SCHEDULER, TEXT, UNET, component_of

DECODER = "vae_decoder/config.json"
MERGES = "tokenizer/merges.txt"
Case = tuple[str, Callable[[Folder], object], str]


def entry(file: str, reason: str, **values: Any) -> Case:
    return file, lambda artifact: artifact.change(file, values), reason


def raw(file: str, data: bytes, reason: str) -> Case:
    return file, lambda artifact: artifact.write(file, data), reason


SPOILT: dict[str, Case] = {
    "a config nested deep": raw(UNET, DEEP, "nested too deep"),
    "a config in Latin-1": raw(TEXT, '{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "an empty config": raw(DECODER, b"", "not valid JSON"),
    "NaN": raw(UNET, b'{"norm_eps": NaN}', "NaN or Infinity"),
    "a scaling factor of 0": entry(DECODER, "scaling_factor is '0'", scaling_factor=0),
    "a UNet for inpainting": entry(UNET, "inpainting", in_channels=9),
    "a size that is a text": entry(UNET, "sample_size", sample_size="16"),
    "the text encoder of another model": entry(TEXT, "text encoders give|hidden_size", hidden_size=768),
    "an index nested deep": raw(INDEX, DEEP, "nested too deep"),
    "an index without a scheduler": entry(INDEX, "unreadable", scheduler=None),
    "a scheduler of another kind": entry(INDEX, "cannot draw", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
    "an unknown schedule": entry(SCHEDULER, "cannot draw.*sine", beta_schedule="sine"),
    "a scheduler nested deep": raw(SCHEDULER, DEEP, "nested too deep"),
    "an empty vocabulary": raw("tokenizer/vocab.json", b"{}", "no tokenizer"),
    "a tokenizer's config nested deep": raw("tokenizer_2/tokenizer_config.json", DEEP, "no tokenizer|nested too deep"),
}
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "components in a list": lambda body: body.update(components=[]),
    "an unknown field": lambda body: body.update(colour="red"),
    "a text for the version": lambda body: body.update(format_version="1"),
    "no files": lambda body: body.pop("files"),
    "an unknown precision": lambda body: body["components"]["unet"].update(precision="fp3"),
    "an unknown execution": lambda body: body["components"]["unet"].update(execution="f8"),
    "an unknown target": lambda body: body.update(target="abacus-gpu"),
    "a component without a graph": lambda body: body["components"]["unet"].pop("model"),
    "a component outside": lambda body: body["components"].update({"../unet": body["components"]["unet"]}),
}


def seal(artifact: Folder, change: Callable[[dict[str, Any]], object] = lambda body: body) -> None:
    """A manifest that fits the files as they are, changed, and sealed nevertheless."""
    body = artifact.read(MANIFEST)
    del body["sha256"]
    for name in body["files"]:
        data = (artifact.path / name).read_bytes()
        body["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(body)
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    artifact.write(MANIFEST, json.dumps(body))


@pytest.fixture
def draw(refused: Callable[..., str], artifact: Folder, tmp_path: Path) -> Callable[[], str]:
    return lambda: refused(run_app, artifact.path, "--prompt", "a cat", "--steps", 1, "-o", tmp_path / "cat.png")


@pytest.mark.parametrize("case", SPOILT)
def test_nothing_is_drawn_with_a_spoilt_artifact(case: str, artifact: Folder, draw: Callable[[], str], tmp_path: Path) -> None:
    _, spoil, reason = SPOILT[case]
    spoil(artifact)
    seal(artifact)
    before = artifact.state()
    assert re.search(reason, message := draw()), message
    assert str(artifact.path) in message
    assert artifact.state() == before
    assert not (tmp_path / "cat.png").exists()


@pytest.mark.parametrize("case", MANIFESTS)
def test_nothing_is_drawn_with_a_manifest_of_another_make(case: str, artifact: Folder, draw: Callable[[], str]) -> None:
    seal(artifact, MANIFESTS[case])
    message = draw()
    assert "altered" not in message
    assert str(artifact.path) in message


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", DEEP, b'{"format_version": 1}'])
def test_nothing_is_drawn_without_a_manifest(data: bytes, artifact: Folder, draw: Callable[[], str]) -> None:
    artifact.write(MANIFEST, data)
    assert str(artifact.path / MANIFEST) in draw()


def test_links_of_an_artifact_that_lead_nowhere_are_named(artifact: Folder, draw: Callable[[], str]) -> None:
    artifact.link(MERGES, "../blobs/gone")
    assert str(artifact.path / MERGES) in draw()


@pytest.mark.parametrize("file", [MANIFEST, MERGES, UNET])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(file: str, artifact: Folder, draw: Callable[[], str]) -> None:
    artifact.pipe(file)
    assert re.search("not a file", message := draw()), message
    assert str(artifact.path / file) in message


@pytest.mark.parametrize("case", ["a UNet for inpainting", "an empty config", "a config nested deep", "a scaling factor of 0"])
def test_a_spoilt_artifact_is_not_compared(
    case: str, artifact: Folder, demo_model: Path, cache_folder: Path, refused: Callable[..., str]
) -> None:
    _, spoil, _ = SPOILT[case]
    spoil(artifact)
    seal(artifact)
    refused(validate_app, artifact.path, "--reference", demo_model, "--cache", cache_folder)


REFERENCES = [
    *("an index nested deep", "a component of three", "a scaling factor of 0", "a UNet for inpainting", "a config in Latin-1"),
    *("an unknown block", "an unknown activation of a text encoder", "a number for a list", "endless layers of a UNet"),
    *("weights that are a folder", "weights that lead nowhere", "a header nested deep"),
    *("a scheduler of another kind", "an unknown prediction", "an empty vocabulary", "no merges", "a tokenizer without end"),
]


@pytest.mark.parametrize("case", REFERENCES)
def test_nothing_is_compared_with_a_spoilt_reference(
    case: str, model: Folder, artifacts: dict[str, Path], cache_folder: Path, refused: Callable[..., str]
) -> None:
    file, spoil, _ = CASES[case]
    spoil(model)
    artifact = artifacts["onnx-cpu"]
    before = model.state()
    asked = ["--components", component_of(file), *(["--generation"] if file == SCHEDULER else [])]
    message = refused(validate_app, artifact, "--reference", model.path, "--cache", cache_folder, *asked)
    assert str(model.path) in message or component_of(file) in message
    assert model.state() == before
