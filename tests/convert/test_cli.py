"""cli.py: what is not said has a default, and what is said twice is refused."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from vaefix.convert import cli
from vaefix.convert.cli import app
from vaefix.runtime import command
from vaefix.runtime.artifact import Artifact


def run(*arguments: object) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as caught:
        command.run(app, [str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("given", "encoder", "decoder", "name"),
    [
        ((), "fp16", "fp16", "demo-sdxl-v1-onnx-cpu-fp16"),
        (("--precision", "text_encoder=fp32"), "fp32", "fp16", "demo-sdxl-v1-onnx-cpu-mixed"),
        (("--precision", "fp32", "--precision", "vae_decoder=fp16"), "fp32", "fp16", "demo-sdxl-v1-onnx-cpu-mixed"),
    ],
)
def test_components_that_are_not_named_are_fp16_or_what_all_are(
    given: tuple[str, ...],
    encoder: str,
    decoder: str,
    name: str,
    demo_model: Path,
    cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = ["--model", demo_model, "--target", "onnx-cpu", "--components", "text_encoder,vae_decoder"]
    assert run(*chosen, *given, "--cache", cache_folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["output"] == name
    components = Artifact.load(tmp_path / name).components
    assert {key: entry.precision for key, entry in components.items()} == {"text_encoder": encoder, "vae_decoder": decoder}


@pytest.mark.parametrize(("values", "whose"), [(("fp16", "fp32"), "all components"), (("unet=fp16", "unet=bf16"), "unet")])
def test_two_precisions_for_one_thing_are_refused(
    values: tuple[str, str], whose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(word for value in values for word in ("--precision", value))) == 2
    assert f"two precisions for {whose}" in capsys.readouterr().err


def test_result_that_cannot_be_printed_says_where_the_artifact_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(text: str, *, err: bool = False) -> None:
        if not err:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    artifact = Artifact(tmp_path / "out", "openvino-gpu", "sdxl", components={}, files={})
    monkeypatch.setattr(cli, "convert", lambda *_: artifact)
    monkeypatch.setattr(cli.typer, "echo", full)
    for arguments in ((), ("--json",)):
        assert run("--output", tmp_path / "out", *arguments) == 4
        message = capsys.readouterr().err
        assert f"{tmp_path / 'out'}: the result cannot be printed (No space left on device), but the artifact is" in message


@pytest.mark.parametrize("given", [".", "..", "./", "../model", "unet/.."])
def test_default_output_of_a_model_that_is_the_current_folder_is_not_made_in_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "model" / ("unet" if given == ".." else ""))
    before = sorted(tmp_path.rglob("*"))
    for arguments in ((), ("--dry-run",)):
        assert run("--model", given, *arguments) == 3
        message = capsys.readouterr().err
        assert "model-openvino-gpu-fp16: lies in the model" in message
        assert "choose another --output" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_ctrl_c_is_a_line_that_says_how_to_go_on(
    demo_model: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["vaefix.convert.convert"], "copy_pipeline", interrupt)
    assert run("--model", demo_model, "--output", tmp_path / "out", "--cache", cache_folder) == 130
    message = capsys.readouterr().err
    assert str(tmp_path / "out.partial") in message
    assert "the same command goes on from where it stopped" in message
