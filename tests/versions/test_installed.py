"""What scripts/versions runs in an environment of other versions than the tested ones: convert, draw, validate.

From the command line, as a user does, with the demo model; and the weights that the installed libraries write themselves.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.cli import app as convert_app
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.cli import app as run_app
from vaefix.runtime.command import run
from vaefix.runtime.versions import outside_known, package_versions
from vaefix.validate.cli import app as validate_app
from vaefix.validate.reference import component_outputs, component_ranges

pytestmark = pytest.mark.slow

TARGETS = {"openvino-gpu": "fp16", "openvino-cpu": "fp32", "onnx-cuda": "fp16", "onnx-cpu": "fp32"}


@pytest.fixture
def command(cache_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """command(app, *arguments): run it as from the command line; what it printed, on both streams."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))

    def call(app: typer.Typer, *arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            run(app, [str(argument) for argument in arguments])
        output = "".join(capfd.readouterr())
        assert caught.value.code == 0, output
        return output

    return call


def test_every_installed_version_is_one_that_is_known_to_work() -> None:
    assert {"torch", "diffusers", "transformers", "openvino", "onnxruntime"} <= package_versions().keys()
    assert outside_known() == []


@pytest.mark.parametrize("name", ["vaefix-convert", "vaefix-run", "vaefix-validate"])
def test_a_command_starts(name: str) -> None:
    started = subprocess.run([Path(sys.executable).with_name(name), "--help"], capture_output=True, text=True, check=True)
    assert "Usage: " in started.stdout
    assert started.stderr == ""


@pytest.mark.parametrize("target", TARGETS)
def test_the_demo_model_is_converted_drawn_and_proven(
    target: str, demo_model: Path, cache_folder: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    artifact, picture = tmp_path / target, tmp_path / "fox.png"
    output = command(convert_app, "--target", target, "--precision", TARGETS[target], "-o", artifact, "--cache", cache_folder)
    assert output.count("equal to PyTorch") == 5
    command(run_app, artifact, "--prompt", "a fox in the snow", "--steps", 2, "--device", "CPU", "-o", picture)
    assert np.ptp(np.asarray(Image.open(picture)).astype(int)) > 20
    emulation = ("--emulate", "fp16") if TARGETS[target] == "fp16" else ()
    verdict = command(validate_app, artifact, "--reference", demo_model, "--seeds", 1, *emulation)
    assert "passed: " in verdict
    assert "failed" not in verdict


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_are_known_under_the_names_of_every_transformers(
    prefix: str, demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    """Up to 5.5 `CLIPTextModel` saved its weights as `text_model.*`, as SDXL is published; since then without."""
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(demo_model, model)
    file = model / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({prefix + name.removeprefix("text_model."): weight for name, weight in weights.items()}, file, {"format": "pt"})
    options = ConvertOptions(
        tmp_path / "out", model, "openvino-cpu", {"*": "fp32"}, components=("text_encoder",), cache=cache_folder
    )
    graph = (tmp_path / "out" / convert(options).component("text_encoder").model).read_text()
    assert 'name="text_model.encoder.layers.1.mlp.fc2' in graph
    assert_reference(Checkpoint.open(model), Checkpoint.open(demo_model))


def test_text_encoders_saved_by_the_installed_transformers_are_converted(
    demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    import transformers

    model = tmp_path / "model"
    shutil.copytree(demo_model, model)
    for name, cls in (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")):
        encoder: Any = getattr(transformers, cls).from_pretrained(demo_model / name)
        (model / name / "model.safetensors").unlink()
        encoder.save_pretrained(model / name)
    encoders = ("text_encoder", "text_encoder_2")
    options = ConvertOptions(tmp_path / "out", model, "onnx-cpu", {"*": "fp32"}, components=encoders, cache=cache_folder)
    assert set(convert(options).components) == set(encoders)
    assert_reference(Checkpoint.open(model), Checkpoint.open(demo_model))


def assert_reference(model: Checkpoint, published: Checkpoint) -> None:
    """The validator's reference of `model` is that of the published weights, and names its layers as they are published."""
    feeds = {"input_ids": np.arange(20).reshape(2, 10)}
    found, expected = (component_outputs(one, "text_encoder", [feeds], "fp32").untouched for one in (model, published))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    layers = [layer.layer for layer in component_ranges(model, "text_encoder", feeds, "fp32")]
    assert "text_model.encoder.layers.1.mlp.fc2" in layers
    assert all(layer.startswith("text_model.") for layer in layers)
