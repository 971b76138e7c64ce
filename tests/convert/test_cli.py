"""cli.py: what is not said has a default, and what is said twice is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
