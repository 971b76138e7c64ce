"""Errors leave a command as their exit code, with reason and remedy on stderr."""

from __future__ import annotations

import json
import signal

import pytest
import typer

from vaefix.runtime import command
from vaefix.runtime.errors import (
    ArtifactError,
    CheckpointError,
    DeviceError,
    InputError,
    ModelError,
    ParityError,
    PictureError,
    RequestError,
    ResourceError,
    VaefixError,
)


def _run(error: BaseException | None, *arguments: str) -> int:
    app = typer.Typer()

    @app.command()
    def _(number: int = 0, json: bool = False) -> None:
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as caught:
        command.run(app, arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ParityError, 1),
        (PictureError, 1),
        (InputError, 3),
        (CheckpointError, 3),
        (ModelError, 3),
        (ArtifactError, 3),
        (RequestError, 3),
        (DeviceError, 3),
        (ResourceError, 4),
    ],
)
def test_an_error_becomes_its_exit_code_and_message(
    error: type[VaefixError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(error("it is bad", source="unet/config.json", remedy="give another")) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "error: unet/config.json: it is bad\n  remedy: give another\n"


def test_running_out_of_memory_is_a_resource_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(MemoryError("Unable to allocate 8 GiB")) == 4
    assert "error: out of memory (Unable to allocate 8 GiB)\n  remedy: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4GiB", 4 << 30),
        ("3.5 gb", 3_500_000_000),
        ("0.5gib", 1 << 29),
        ("800MB", 8 * 10**8),
        (" 512MiB ", 512 << 20),
    ],
)
def test_sizes_are_read_in_their_units(text: str, size: int) -> None:
    assert command.size_in_bytes(text, source="--memory") == size


@pytest.mark.parametrize("text", ["", "4", "GB", "4TB", "-4GB", "4G", "4GB/s", "4,5GB", "1e3MB", "0GB", "0.0000000001GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--memory: .* is not a size\n  remedy: .*4GB"):
        command.size_in_bytes(text, source="--memory")


def test_success_is_zero_and_wrong_usage_is_two() -> None:
    assert _run(None) == 0
    assert _run(None, "--number", "1") == 0
    assert _run(None, "--number", "many") == 2
    assert _run(None, "--unknown") == 2


def test_ctrl_c_anywhere_in_a_command_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(KeyboardInterrupt(), "--json") == 130
    output = capsys.readouterr()
    assert output.err.strip().startswith("error: stopped\n  remedy: ")
    assert json.loads(output.out)["error"]["exit_code"] == 130
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "a second one would cut the message off"
