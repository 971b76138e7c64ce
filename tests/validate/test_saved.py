"""saved.py: a saved reference answers as the model did, and nothing that it was not asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError, RequestError, ResourceError
from vaefix.validate.validate import ValidateOptions, validate
from vaefix.validate.verdict import Verdict

NAMES = ("text_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def saved(
    demo_artifact_onnx_bf16: Artifact, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ValidateOptions, Verdict]:
    """The options that load what a validation has saved, and its verdict."""
    file = tmp_path_factory.mktemp("saved") / "reference.safetensors"
    options = ValidateOptions(demo_artifact_onnx_bf16.folder, demo_model, components=NAMES, steps=2, save_reference=file)
    verdict = validate(options)
    return replace(options, reference=None, save_reference=None, load_reference=file), verdict


def test_a_saved_reference_gives_the_same_verdict_without_the_model(saved: tuple[ValidateOptions, Verdict]) -> None:
    options, verdict = saved
    again = validate(options)
    assert set(again.comparisons) == set(verdict.comparisons)
    assert again.exit_code == 0
    assert {comparison.kind for comparison in again.comparisons} == {"config", "parity", "storage"}
    assert again.reference.startswith(str(options.load_reference))
    assert verdict.reference in again.reference


def test_one_altered_number_of_it_fails_its_component(saved: tuple[ValidateOptions, Verdict], tmp_path: Path) -> None:
    options, _ = saved
    tensors = load_file(options.load_reference)
    (name,) = [name for name in tensors if name.endswith("stored/pooler_output")]
    tensors[name][..., 0] += 0.01
    altered = tmp_path / "altered.safetensors"
    metadata = _metadata(options.load_reference)
    save_file(tensors, altered, metadata)
    verdict = validate(replace(options, load_reference=altered, generation=False))
    assert {comparison.component for comparison in verdict.comparisons if comparison.status == "failed"} == {"text_encoder"}
    assert {comparison.status for comparison in verdict.comparisons} == {"failed", "passed"}, "the layers were saved, too"


@pytest.mark.parametrize(
    "change",
    [{"seeds": (5,)}, *(pytest.param(change, marks=pytest.mark.slow) for change in ({"steps": 3}, {"prompts": ("another",)}))],
)
def test_what_it_was_not_asked_for_is_not_compared(saved: tuple[ValidateOptions, Verdict], change: dict[str, object]) -> None:
    verdict = validate(replace(saved[0], **change))
    assert verdict.exit_code == 3
    obstacles = [comparison.obstacle for comparison in verdict.comparisons if comparison.obstacle is not None]
    assert obstacles
    assert all("has nothing for" in obstacle and "--save-reference" in obstacle for obstacle in obstacles)


@pytest.mark.slow
def test_another_artifact_s_precision_is_not_compared(
    saved: tuple[ValidateOptions, Verdict], demo_artifact_fp32: Artifact
) -> None:
    verdict = validate(replace(saved[0], artifact=demo_artifact_fp32.folder))
    assert verdict.exit_code == 3
    assert any("text_encoder in fp32" in str(comparison.obstacle) for comparison in verdict.comparisons)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.write_bytes(b"junk"),
        lambda path: save_file({"x": np.zeros(1)}, path),
        lambda path: save_file({"x": np.zeros(1)}, path, {"format": "vaefix-reference-1"}),
        lambda path: save_file({"x": np.zeros(1)}, path, {"format": "vaefix-reference-1", "reference": "[]"}),
        lambda path: save_file({"x": np.zeros(1)}, path, {"format": "vaefix-reference-9", "reference": "{}"}),
    ],
)
def test_a_file_that_is_none_is_named(write: object, saved: tuple[ValidateOptions, Verdict], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write(path)  # type: ignore[operator]
    reason = "no saved reference" if path.exists() else "no such file"
    with pytest.raises(ModelError, match=rf"file\.safetensors: {reason}"):
        validate(replace(saved[0], load_reference=path))


def test_it_takes_the_place_of_a_model(saved: tuple[ValidateOptions, Verdict], demo_model: Path) -> None:
    with pytest.raises(RequestError, match="takes the place of the model"):
        validate(replace(saved[0], reference=demo_model))
    with pytest.raises(RequestError, match="takes the place of the model"):
        validate(replace(saved[0], variant="fp16"))


@pytest.mark.parametrize("place", ["none/file", "."])
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    saved: tuple[ValidateOptions, Verdict], demo_model: Path, tmp_path: Path, place: str
) -> None:
    options = replace(saved[0], reference=demo_model, load_reference=None, save_reference=tmp_path / place)
    with pytest.raises(RequestError, match="no file can be written there"):
        validate(options)


def test_a_full_disk_is_named_and_nothing_partial_is_left(
    saved: tuple[ValidateOptions, Verdict], demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_tensors: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("vaefix.validate.saved.save_file", fail)
    options = replace(saved[0], reference=demo_model, load_reference=None, save_reference=tmp_path / "reference.safetensors")
    with pytest.raises(ResourceError, match="no space left"):
        validate(replace(options, components=("vae_decoder",), generation=False, seeds=(0,)))
    assert [*tmp_path.iterdir()] == []


def _metadata(path: Path | None) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata
