"""Requests that cannot be met: one message that names the option or the file, its exit code, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaefix.convert.cli import app as convert_app
from vaefix.convert.convert import ConvertOptions
from vaefix.convert.request import Request
from vaefix.runtime.cli import app as run_app
from vaefix.validate.cli import app as validate_app

from .conftest import TARGETS, Folder
from .test_artifacts import seal

Arguments = list[object]
CONVERSIONS: dict[str, tuple[int, Arguments, str]] = {
    "an unknown precision": (2, ["--precision", "fp12"], "--precision"),
    "an unknown precision of one": (2, ["--precision", "unet=int3"], "--precision"),
    "a precision of an unknown component": (2, ["--precision", "vae_coder=fp32"], "--precision"),
    "two precisions": (2, ["--precision", "fp16", "--precision", "fp32"], "--precision"),
    "two precisions of one": (2, ["--precision", "unet=fp16", "--precision", "unet=fp32"], "--precision"),
    "auto without a budget": (2, ["--precision", "auto"], "--budget"),
    "a budget without auto": (2, ["--budget", "4GB"], "--budget"),
    "a budget that is none": (2, ["--precision", "auto", "--budget", "much"], "--budget"),
    "a budget of nothing": (2, ["--precision", "auto", "--budget", "0GB"], "--budget"),
    "too small a budget": (4, ["--precision", "auto", "--budget", "1MB"], "--budget"),
    "an unknown component": (2, ["--components", "unet,vae_coder"], "--components"),
    "no component": (2, ["--components", ""], "--components"),
    "an unknown repair": (2, ["--repair", "sometimes"], "--repair"),
    "an unknown verification": (2, ["--verify", "no"], "--verify"),
    "unknown inputs and outputs": (2, ["--io", "int8"], "--io"),
    "an empty name for the model": (2, ["--model", ""], "--model"),
    "a revision of a folder": (2, ["--revision", "main"], "--revision"),
    "a precision of what is left out": (
        2,
        ["--components", "unet", "--precision", "vae=fp32"],
        "--precision: .*given for vae,",
    ),
    "a cache that is the output": (2, ["-o", "out", "--cache", "out"], "--cache: it lies in the output"),
    "a cache in the output": (2, ["-o", "out", "--cache", "out/a/b"], "--cache: it lies in the output"),
    "a cache in the stage": (2, ["-o", "out", "--cache", "out.partial/a"], "--cache: it lies in the output"),
    "an unknown variant": (3, ["--variant", "bf16"], "--variant"),
    "a calibration that is not there": (3, ["--calibration", "nowhere.npy", "--components", "vae_decoder"], "nowhere.npy"),
}
MODELS: dict[str, Callable[[Path], object]] = {
    "not there": lambda folder: folder / "nowhere" / "at" / "all",
    "a file": lambda folder: folder / "model.safetensors",
    "an empty folder": lambda folder: folder / "empty",
    "a link that leads nowhere": lambda folder: folder / "gone",
}
PICTURES: dict[str, tuple[int, Arguments, str]] = {
    "a memory that is none": (2, ["--memory", "some"], "--memory"),
    "too little memory": (4, ["--memory", "10MB"], "too little"),
    "an option without a value": (2, ["--engine-option", "NUM_STREAMS"], "--engine-option"),
    "an unknown picture format": (2, ["-o", "cat.txt"], "cat.txt"),
    "a folder that is not there": (3, ["-o", "nowhere/cat.png"], "cat.png"),
}
COMPARISONS: dict[str, tuple[int, Arguments, str]] = {
    "no seeds": (2, ["--seeds", 0], "--seeds"),
    "no steps": (2, ["--steps", 0], "--steps"),
    "an odd width": (2, ["--width", 33], "--width"),
    "an unknown emulation": (2, ["--emulate", "fp8"], "--emulate"),
    "an unknown component": (2, ["--components", "vae_coder"], "--components"),
    "prompts that are not there": (3, ["--prompts", "nowhere.txt"], "nowhere.txt"),
    "pictures of a component": (2, ["--components", "unet", "--lpips"], "--lpips"),
    "a reference that is not there": (3, ["--reference", "nowhere/at/all"], "nowhere/at/all"),
    "a saved reference that is none": (3, ["--load-reference", __file__], "test_requests.py"),
    "two references": (2, ["--load-reference", __file__, "--reference", "x"], "--load-reference"),
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CONVERSIONS)
def test_a_conversion_that_cannot_be_made(
    case: str, target: str, demo_model: Path, cache_folder: Path, refused: Callable[..., str]
) -> None:
    code, arguments, named = CONVERSIONS[case]
    given = ["--model", demo_model, "--cache", cache_folder, "--target", target]
    assert re.search(named, message := refused(convert_app, *given, *arguments, code=code)), message
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("inside", ["cache", "unet/cache", "new/cache"])
def test_a_cache_in_the_model_is_never_made(inside: str, model: Folder, refused: Callable[..., str]) -> None:
    before = model.state()
    message = refused(convert_app, "--model", model.path, "--cache", model.path / inside)
    assert f"{model.path / inside}: the cache lies in the model" in message
    assert model.state() == before


def test_a_precision_of_both_halves_may_be_for_one(demo_model: Path, cache_folder: Path) -> None:
    options = ConvertOptions("out", demo_model, precision={"vae": "fp32", "*": "fp16"}, components="vae_decoder")
    assert Request.of(replace(options, cache=cache_folder)).precision == {"vae_decoder": "fp32"}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_none(case: str, tmp_path: Path, cache_folder: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    model = MODELS[case](tmp_path)
    assert str(model) in refused(convert_app, "--model", model, "--cache", cache_folder, "-o", "out")
    assert list(Path.cwd().iterdir()) == []


def test_a_target_that_is_none(demo_model: Path, cache_folder: Path, refused: Callable[..., str]) -> None:
    given = ["--model", demo_model, "--cache", cache_folder, "--target", "openvino-abacus"]
    assert "--target" in refused(convert_app, *given, code=2)


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_that_cannot_be_drawn(case: str, artifact: Folder, refused: Callable[..., str]) -> None:
    code, arguments, named = PICTURES[case]
    assert named in refused(run_app, artifact.path, "--prompt", "a cat", "-o", "cat.png", *arguments, code=code)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("target", "code", "named"), [("openvino-cpu", 2, "--memory"), ("onnx-cpu", 3, "AUTO")])
def test_memory_on_a_device_that_is_not_known_before(
    target: str, code: int, named: str, artifacts: dict[str, Path], refused: Callable[..., str]
) -> None:
    arguments = ["--prompt", "a cat", "-o", "cat.png", "--memory", "4GB", "--device", "AUTO"]
    assert named in refused(run_app, artifacts[target], *arguments, code=code)


@pytest.mark.parametrize("case", COMPARISONS)
def test_a_comparison_that_cannot_be_made(
    case: str, artifacts: dict[str, Path], cache_folder: Path, refused: Callable[..., str]
) -> None:
    code, arguments, named = COMPARISONS[case]
    assert named in refused(validate_app, artifacts["onnx-cpu"], "--cache", cache_folder, *arguments, code=code)
    assert list(Path.cwd().iterdir()) == []


def _halve_weights(folder: Folder, component: str) -> None:
    file = folder.path / component / "model.onnx_data"
    weights = np.fromfile(file, np.float32)
    weights[len(weights) // 2 :] /= 2
    folder.write(f"{component}/model.onnx_data", weights.tobytes())
    seal(folder)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_a_process_ends_with_its_code(
    code: int, artifacts: dict[str, Path], demo_model: Path, model: Folder, cache_folder: Path, tmp_path: Path
) -> None:
    convert = ["vaefix.convert.cli", "--model", model.path, "--cache", cache_folder, "--target", "onnx-cpu"]
    spoilt = Folder(tmp_path / "artifact")
    arguments: dict[int, Arguments] = {
        0: [*convert, "--dry-run", "--json"],
        1: ["vaefix.validate.cli", spoilt.path, "--reference", demo_model, "--components", "text_encoder", "--json"],
        2: [*convert, "--precision", "fp99"],
        3: convert,
        4: [*convert, "--precision", "auto", "--budget", "1MB"],
    }
    if code == 1:
        shutil.copytree(artifacts["onnx-cpu"], spoilt.path, copy_function=os.link)
        _halve_weights(spoilt, "text_encoder")
    if code == 3:
        model.write("unet/config.json", "[" * 200_000)
    command = [sys.executable, "-m", *map(str, arguments[code])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    if code in (0, 1):
        assert json.loads(result.stdout)
    else:
        assert f"\n{result.stderr}".count("\nerror: ") == 1
        assert result.stdout == ""
    assert list(Path.cwd().iterdir()) == []
