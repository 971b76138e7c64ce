"""A dry run says what a conversion would do; it reads no weight and makes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from vaefix.convert.checkpoint import TensorRef, read_header
from vaefix.convert.cli import app
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.dry_run import DryRun, dry_run, table
from vaefix.runtime import command
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import CheckpointError, RequestError

NAMES = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"]


@pytest.fixture
def options(demo_model: Path, cache_folder: Path, tmp_path: Path) -> ConvertOptions:
    return ConvertOptions(tmp_path / "output", demo_model, "openvino-gpu", {"*": "fp16"}, cache=cache_folder)


@pytest.fixture
def unreadable(options: ConvertOptions, tmp_path: Path) -> ConvertOptions:
    """The demo model with every weight NaN: only its headers can be used."""
    folder = Path(shutil.copytree(str(options.model), tmp_path / "unreadable"))
    for file in folder.rglob("*.safetensors"):
        tensors = read_header(file).values()
        start, end = min(tensor.offset for tensor in tensors), file.stat().st_size
        file.write_bytes(file.read_bytes()[:start] + b"\xff" * (end - start))
    return replace(options, model=folder)


def test_no_weight_is_read(unreadable: ConvertOptions, options: ConvertOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="NaN"):  # the weights are as bad as this test needs them
        convert(replace(unreadable, components=("text_encoder",), repair="never"))

    def refuse(tensor: TensorRef, _size: int = 0) -> Iterator[memoryview]:
        raise AssertionError(f"{tensor.name} was read")

    monkeypatch.setattr(TensorRef, "chunks", refuse)
    assert dry_run(unreadable) == dry_run(options)


def test_nothing_is_written(options: ConvertOptions, demo_model: Path, tmp_path: Path) -> None:
    before = sorted(demo_model.rglob("*"))
    dry_run(options)
    assert list(tmp_path.iterdir()) == []
    assert sorted(demo_model.rglob("*")) == before


def test_it_says_what_the_artifact_then_is(options: ConvertOptions, demo_artifact_fp16: Artifact) -> None:
    found = dry_run(options)
    assert [part.component for part in found.components] == NAMES
    for part in found.components:
        entry = demo_artifact_fp16.components[part.component]
        written = demo_artifact_fp16.files[entry.model.replace(".xml", ".bin")].size
        assert (part.precision, part.execution) == (entry.precision, entry.execution)
        assert 0 < part.disk_bytes <= written < 1.2 * part.disk_bytes + 65536  # tensors are aligned
        assert part.examined == (part.component in ("vae_encoder", "vae_decoder"))
        assert part.run_bytes.keys() == {"GPU", "CPU"}
        assert part.convert_bytes > part.disk_bytes


@pytest.mark.parametrize(("target", "devices"), [("openvino-cpu", ["CPU"]), ("onnx-cuda", ["CUDA", "CPU"])])
def test_memory_is_planned_for_the_devices_of_the_target(options: ConvertOptions, target: str, devices: list[str]) -> None:
    found = dry_run(replace(options, target=target))
    assert list(found.draw_bytes) == devices
    for sides in found.draw_bytes.values():
        assert list(sides) == [512, 1024]
        assert all(least <= loaded for loaded, least in sides.values())
        assert sides[512][1] <= sides[1024][1]


def test_fewer_bits_take_less_of_the_disk(options: ConvertOptions) -> None:
    def disk(precision: str) -> int:
        return sum(part.disk_bytes for part in dry_run(replace(options, precision={"*": precision})).components)

    assert disk("int4") < disk("int8") < disk("fp16") < disk("fp32")


def test_nothing_is_examined_where_nothing_is_repaired(options: ConvertOptions) -> None:
    assert not any(part.examined for part in dry_run(replace(options, repair="never")).components)
    assert all(part.examined for part in dry_run(replace(options, repair="always")).components)


def test_what_cannot_draw_has_no_memory_to_draw(options: ConvertOptions) -> None:
    found = dry_run(replace(options, components=("unet",)))
    assert found.draw_bytes == {}
    assert "at least" not in _text(found)


def test_the_table_and_the_json_name_every_component(options: ConvertOptions) -> None:
    found = dry_run(options)
    text, data = _text(found), json.loads(json.dumps(found.to_json()))
    assert [part["component"] for part in data["components"]] == NAMES
    for name in NAMES:
        assert name in text
    assert text.count("*") == 3  # two halves of the VAE, and what it means
    assert "at least" in text


def test_a_bad_request_is_refused_as_by_a_conversion(options: ConvertOptions) -> None:
    with pytest.raises(RequestError, match="no precision 'int7'"):
        dry_run(replace(options, precision={"*": "int7"}))


def run(options: ConvertOptions, *arguments: str) -> int:
    """The exit code of the command."""
    known = ("--model", str(options.model), "--cache", str(options.cache), "--output", str(options.output))
    with pytest.raises(SystemExit) as caught:
        command.run(app, [*known, *arguments])
    return int(caught.value.code or 0)


def test_the_command_says_it_as_json_and_makes_nothing(options: ConvertOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options, "--dry-run", "--json", "--precision", "int8") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(dry_run(replace(options, precision={"*": "int8"})).to_json())
    )
    assert not options.output.exists()


def test_the_command_prints_the_table(options: ConvertOptions, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options, "--dry-run", "--target", "onnx-cpu") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("text_encoder_2", "vae_decoder", "onnx-cpu", "at least"))
    assert max(map(len, out.splitlines())) <= 80


def test_the_command_dry_runs_what_it_chose(options: ConvertOptions, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--precision", "auto", "--precision", "vae_decoder=fp32", "--budget", "8GB")
    assert run(options, "--dry-run", "--json", *asked) == 0
    said = capsys.readouterr()
    precisions = {part["component"]: part["precision"] for part in json.loads(said.out)["components"]}
    assert precisions == {**dict.fromkeys(NAMES, "fp16"), "vae_decoder": "fp32", "vae_encoder": "fp32"}
    assert "chosen" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--precision", "auto"), 2, "within a budget"),
        (("--budget", "4GB"), 2, "nothing to choose"),
        (("--precision", "auto", "--budget", "much"), 2, "'much' is not a size"),
        (("--precision", "auto", "--budget", "1MB"), 4, "is too little"),
    ],
)
def test_a_bad_budget_is_refused_and_nothing_is_made(
    options: ConvertOptions, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(options, *arguments) == code
    assert message in capsys.readouterr().err
    assert not options.output.exists()


def _text(found: DryRun) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table(found))
    return captured.get()
