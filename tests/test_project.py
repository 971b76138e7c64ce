"""The project as it is installed: packages, wheel, import walls."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"main": "vaefix", "convert": "vaefix.convert", "runtime": "vaefix.runtime", "validate": "vaefix.validate"}
ENGINES = ("torch", "diffusers", "transformers", "openvino", "onnxruntime", "scipy")


def sources() -> set[str]:
    """Every module file of the packages, relative to the root."""
    files = {str(path.relative_to(ROOT)) for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert files
    return files


def test_every_folder_with_modules_is_a_listed_package() -> None:
    folders = {Path(name).parent for name in sources()}
    packages = {".".join((FOLDERS[folder.parts[0]], *folder.parts[1:])) for folder in folders}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_the_wheel_holds_every_module_and_every_command(tmp_path: Path) -> None:
    copied = tmp_path / "source"
    for name in [*sources(), "main/py.typed", "pyproject.toml", "README.md", "LICENSE"]:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, copied]
    subprocess.run([str(part) for part in build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    assert {f"vaefix/{name.removeprefix('main/')}" for name in [*sources(), "main/py.typed"]} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for command in ("vaefix", "vaefix-convert", "vaefix-run", "vaefix-validate"):
        assert f"{command} = " in commands


@pytest.mark.parametrize(
    "module",
    [
        "vaefix",
        "vaefix.__main__",
        "vaefix.doctor",
        "vaefix.group",
        "vaefix.runtime.artifact",
        "vaefix.runtime.errors",
        "vaefix.runtime.session",
        "vaefix.runtime.guard",
        "vaefix.runtime.cli",
        "vaefix.convert.cli",
        "vaefix.convert.checkpoint",
        "vaefix.convert.demo",
        "vaefix.convert.writer",
        "vaefix.validate.cli",
        "vaefix.validate.metrics",
    ],
)
def test_importing_loads_no_engine(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {ENGINES!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []


@pytest.mark.parametrize("package", ["convert", "runtime", "validate"])
def test_a_command_runs_as_a_module_too(package: str) -> None:
    command = [sys.executable, "-m", f"vaefix.{package}.cli", "--help"]
    assert "Usage: " in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_tested_versions_lie_in_the_declared_ranges() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {name.replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *extras["openvino"], *extras["onnx"], *extras["optimum"], *extras["test"]]
    for text in declared:
        requirement = requirements.Requirement(text)
        if requirement.name != "setuptools":
            assert requirement.specifier.contains(pins[requirement.name]), text
    assert "+" not in " ".join(pins.values()), "a local version cannot be installed elsewhere"


def test_the_two_builds_of_onnxruntime_are_never_asked_for_together() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for name, packages in extras.items():
        named = {re.split(r"[\[>]", text)[0] for text in packages}
        builds = named & {"onnxruntime", "onnxruntime-gpu"}
        assert builds == {"onnx": {"onnxruntime"}, "cuda": {"onnxruntime-gpu"}}.get(name, set())
