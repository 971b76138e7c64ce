"""The command `vaefix`, and what `import vaefix` offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vaefix
from vaefix import __main__ as commands
from vaefix.convert.convert import ConvertOptions
from vaefix.runtime.errors import UsageError
from vaefix.validate.request import ValidateOptions


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of `vaefix` with these words."""
    monkeypatch.setattr(sys, "argv", ["vaefix", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", ["convert", "run", "validate", "doctor"])
def test_every_command_is_a_subcommand_and_says_how_it_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, name, "--help") == 0
    assert f"Usage: vaefix {name} " in capsys.readouterr().out
    assert run(monkeypatch, "--help") == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("entry", ["convert", "run", "validate"])
def test_the_short_forms_are_the_same_commands(
    entry: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"vaefix-{entry}", "--help"])
    with pytest.raises(SystemExit):
        getattr(commands, entry)()
    assert f"Usage: vaefix-{entry} " in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--version",), ("convert", "--version"), ("run", "--version"), ("validate", "--version")])
def test_the_version_is_shown(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 0
    assert capsys.readouterr().out == f"vaefix {vaefix.__version__}\n"


@pytest.mark.parametrize(
    "words", [(), ("convrt",), ("--versio",), ("run",), ("convert", "--steps", "3"), ("run", "x", "--steps", "0")]
)
def test_wrong_usage_is_two(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") or "Usage: " in output.out


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vaefix", "--version"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == f"vaefix {vaefix.__version__}\n"


def test_importing_it_imports_nothing_and_offers_three_functions() -> None:
    code = (
        "import sys, vaefix; vaefix.__version__; print(sorted(name for name in sys.modules if name.startswith('vaefix')));"
        "from vaefix import convert, load_pipeline, validate; import vaefix.convert.cli, vaefix.validate.cli;"
        "print(callable(vaefix.convert), callable(vaefix.validate), callable(load_pipeline), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['vaefix']\nTrue True True False\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vaefix.nothing  # noqa: B018


_WRONG: list[tuple[str, dict[str, object]]] = [
    *(("convert", {"precision": value}) for value in (16, None, ["unet=int8"], {"unet": 3}, {3: "fp16"})),
    *(("convert", {name: 5}) for name in ("output", "model", "target", "components", "calibration", "variant", "cache")),
    *(("convert", {name: value}) for name, value in (("output", None), ("force", "yes"), ("budget", "4GB"), ("budget", True))),
    *(
        ("validate", {name: 7})
        for name in ("artifact", "reference", "components", "device", "prompts", "size", "load_reference")
    ),
    *(("validate", {"seeds": value}) for value in ("x", 3, (1.5,), [True])),
    *(("validate", {name: value}) for name, value in (("artifact", None), ("steps", "5"), ("generation", 0))),
    *(("load_pipeline", {"device": value}) for value in (None, 5, {"unet": 3}, ["CPU"])),
    *(("load_pipeline", {name: 5}) for name in ("folder", "verify", "options", "thrift")),
]


@pytest.mark.parametrize(("name", "given"), _WRONG, ids=[f"{name} {given}" for name, given in _WRONG])
def test_an_argument_of_a_wrong_type_is_named(name: str, given: dict[str, object], tmp_path: Path) -> None:
    usual: dict[str, object] = {"validate": {"artifact": "x"}, "convert": {"output": tmp_path / "x"}}.get(name, {"folder": "x"})
    with pytest.raises(UsageError) as caught:
        getattr(vaefix, name)(**{**usual, **given})
    assert caught.value.source == next(iter(given))
    assert caught.value.remedy


def test_options_of_another_class_are_named() -> None:
    for call in (vaefix.convert, vaefix.validate):
        with pytest.raises(UsageError, match="options: 'x' is not an instance of"):
            call("x")


def test_a_single_name_is_as_good_as_a_list_of_one(tmp_path: Path) -> None:
    options = ConvertOptions(str(tmp_path), components="text_encoder", calibration="a.npy", precision="int8")
    assert options == ConvertOptions(
        tmp_path, components=["text_encoder"], calibration=[Path("a.npy")], precision={"*": "int8"}
    )
    assert ConvertOptions(tmp_path, components="unet, vae").components == ("unet", "vae_encoder", "vae_decoder")
    assert ValidateOptions(str(tmp_path), components="unet", seeds=range(2), prompts="a cat") == ValidateOptions(
        tmp_path, components=("unet",), seeds=(0, 1), prompts=("a cat",)
    )


def test_a_package_is_called_with_the_fields_of_its_options(demo_model: Path, cache_folder: Path, tmp_path: Path) -> None:
    named = {"model": demo_model, "target": "onnx-cpu", "components": ("vae_decoder",), "cache": cache_folder}
    by_name = vaefix.convert(output=tmp_path / "named", precision="fp32", **named)
    by_options = vaefix.convert(ConvertOptions(tmp_path / "options", precision={"*": "fp32"}, **named))
    assert by_name.manifest() == by_options.manifest()
    verdict = vaefix.validate(artifact=tmp_path / "named", reference=demo_model, generation=False, seeds=(0,))
    assert verdict.passed
