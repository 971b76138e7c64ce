"""The demo model and its artifacts, to be spoilt, and commands that are run in this process and must refuse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from vaefix.runtime import command
from vaefix.runtime.artifact import Artifact

TARGETS = ("openvino-cpu", "onnx-cpu")


@dataclass(frozen=True)
class Folder:
    """A copy of a model or an artifact, to be spoilt. It shares its files with the original until one is written."""

    path: Path

    def write(self, name: str, data: bytes | str) -> None:
        """Replace a file, whatever stands there."""
        file = self.path / name
        if file.parent.is_dir():
            self.remove(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())

    def folder(self, name: str) -> None:
        """Put a folder, with a file in it, in the place of a file."""
        self.remove(name)
        self.write(f"{name}/x", b"")

    def remove(self, name: str) -> None:
        """A file, a link or a folder."""
        file = self.path / name
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)

    def link(self, name: str, target: str) -> None:
        """Put a link in the place of a file."""
        self.remove(name)
        (self.path / name).symlink_to(target)

    def pipe(self, name: str) -> None:
        """Put a pipe, to which nobody writes, in the place of a file."""
        self.remove(name)
        os.mkfifo(self.path / name)

    def read(self, name: str) -> Any:
        """A JSON file."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def change(self, name: str, entries: Mapping[str, Any], *, without: str | None = None) -> None:
        """Change entries of a JSON file."""
        content = {key: value for key, value in {**self.read(name), **entries}.items() if key != without}
        self.write(name, json.dumps(content))

    def state(self) -> dict[str, tuple[int, int] | str]:
        """What is there: a link's target, a file's size and time of change."""
        found: dict[str, tuple[int, int] | str] = {}
        for path in sorted(self.path.rglob("*")):
            stat = path.lstat()
            found[str(path)] = str(path.readlink()) if path.is_symlink() else (stat.st_size, stat.st_mtime_ns)
        return found


@pytest.fixture(scope="session")
def artifacts(demo_artifact_fp32: Artifact, demo_artifact_onnx_cpu: Artifact) -> dict[str, Path]:
    """By target."""
    return {artifact.target: artifact.folder for artifact in (demo_artifact_fp32, demo_artifact_onnx_cpu)}


def _copy(source: Path, path: Path) -> Folder:
    return Folder(Path(shutil.copytree(source, path, copy_function=os.link)))


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Folder:
    return _copy(demo_model, tmp_path / "model")


@pytest.fixture(params=TARGETS)
def artifact(request: pytest.FixtureRequest, artifacts: dict[str, Path], tmp_path: Path) -> Folder:
    return _copy(artifacts[request.param], tmp_path / "artifact")


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(app, *arguments, code=3): run a command, which must end with one message and this code. Returns the message."""

    def run(app: typer.Typer, *arguments: object, code: int = 3) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            command.run(app, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert caught.value.code == code, err
        assert "Traceback" not in out + err
        assert f"\n{err}".count("\nerror: ") == 1, err
        message = err[err.index("error: ") :].rstrip().splitlines()  # before it stands what was being done
        assert all(line.startswith("  remedy: ") for line in message[1:]), err
        assert len(message) <= 2, err
        assert out == ""
        return err

    return run
