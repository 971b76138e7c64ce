"""cli.py: the exit code is the verdict; the result is on stdout, everything else on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.command import run
from vaefix.validate.cli import app

QUICK = ("--components", "vae_decoder", "--seeds", "1")


def vaefix_validate(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        run(app, [str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_faithful_artifact_exits_0_with_a_table(
    demo_artifact_fp16: Artifact, demo_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vaefix_validate(demo_artifact_fp16.folder, "--reference", demo_model, *QUICK, "--emulate", "fp16") == 0
    output = capsys.readouterr().out
    assert [kind for kind in ("config", "parity", "emulated") if kind in output] == ["config", "parity", "emulated"]
    assert "generation" not in output
    assert "passed: " in output


def test_a_damaged_artifact_exits_1_and_says_what_failed(
    copied: Artifact,
    demo_model: Path,
    edit_weight: Callable[[str, str, Callable[[np.ndarray], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plant_nan(weight: np.ndarray) -> None:
        weight.flat[0] = np.nan

    edit_weight("vae_decoder", "decoder.conv_out.bias", plant_nan)
    assert vaefix_validate(copied.folder, "--reference", demo_model, *QUICK) == 1
    output = capsys.readouterr().out
    assert "failed: vae_decoder parity sample" in output
    assert "not finite" in output
    assert "NOT PASSED" in output


def test_json_on_stdout_and_in_the_report_are_the_same(
    demo_artifact_fp32: Artifact, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "out.json"
    arguments = (demo_artifact_fp32.folder, "--reference", demo_model, *QUICK, "--json", "--report", report)
    assert vaefix_validate(*arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(report.read_text())
    assert printed["passed"] is True
    assert {entry["component"] for entry in printed["comparisons"]} == {"vae_decoder"}


def test_without_reference_an_artifact_of_another_model_exits_3_with_the_remedy(
    copied: Artifact, cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads(copied.manifest())
    assert manifest["sources"]
    other = Artifact(copied.folder, copied.target, copied.family, copied.components, copied.files, {"x": "0" * 64})
    (copied.folder / "vaefix.json").write_bytes(other.manifest())
    assert vaefix_validate(copied.folder, "--cache", cache_folder, *QUICK) == 3
    assert "--reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0"), "no seeds"),
        (("--emulate", "fp8"), "fp8"),
        (("--components", "unet_2"), "unet_2"),
        (("--components", ""), "no component"),
        (("--width", "50"), "multiples of 8"),
    ],
)
def test_a_request_that_makes_no_sense_exits_2(
    demo_artifact_fp32: Artifact,
    demo_model: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert vaefix_validate(demo_artifact_fp32.folder, "--reference", demo_model, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_a_report_that_cannot_be_written_exits_3(
    demo_artifact_fp32: Artifact, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "missing" / "out.json"
    assert vaefix_validate(demo_artifact_fp32.folder, "--reference", demo_model, *QUICK, "--report", report) == 3
    assert str(report) in capsys.readouterr().err


@pytest.mark.slow
def test_every_prompt_of_a_file_is_drawn(
    demo_artifact_fp32: Artifact, demo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n")
    arguments = (*QUICK, "--generation", "--steps", 1, "--prompts", file, "--json")
    assert vaefix_validate(demo_artifact_fp32.folder, "--reference", demo_model, *arguments) == 0
    outputs = [entry["output"] for entry in json.loads(capsys.readouterr().out)["comparisons"]]
    assert [output for output in outputs if "picture" in output] == ["picture, prompt 1, seed 0", "picture, prompt 2, seed 0"]


@pytest.mark.parametrize("data", [b"", b" \n\n", b"\xff\xfe", None])
def test_a_file_without_prompts_exits_3(
    data: bytes | None, demo_artifact_fp32: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    if data is not None:
        file.write_bytes(data)
    assert vaefix_validate(demo_artifact_fp32.folder, "--prompts", file) == 3
    assert "prompts.txt" in capsys.readouterr().err


def test_a_reference_is_saved_and_loaded(demo_artifact_fp32: Artifact, demo_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "reference.safetensors"
    assert vaefix_validate(demo_artifact_fp32.folder, "--reference", demo_model, *QUICK, "--save-reference", file) == 0
    assert vaefix_validate(demo_artifact_fp32.folder, *QUICK, "--load-reference", file) == 0
    assert vaefix_validate(demo_artifact_fp32.folder, *QUICK, "--height", 96, "--load-reference", file) == 3


def test_help_needs_neither_torch_nor_openvino() -> None:
    code = (
        "import sys\nfrom vaefix.validate.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'openvino', 'diffusers') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines()[-1] == "[]"
