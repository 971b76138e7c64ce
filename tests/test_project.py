"""The project as it is installed: packages, wheel, import walls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

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


def package_files() -> set[str]:
    """Modules and what lies beside them, relative to the root: all of it belongs into a wheel."""
    files = {path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()}
    return {path.as_posix() for path in files if path.suffix != ".pyc"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, since building leaves a folder behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copied = folder / "source"
    for name in [*package_files(), "pyproject.toml", "README.md", "LICENSE"]:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copied]
    subprocess.run([str(part) for part in build], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_and_every_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    expected = {f"vaefix/{name.removeprefix('main/')}" for name in package_files()}
    assert {"vaefix/py.typed", "vaefix/doctor/cli.py", "vaefix/validate/report/style.css"} <= expected
    assert expected <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    for command in ("vaefix", "vaefix-convert", "vaefix-run", "vaefix-validate"):
        assert f"{command} = " in commands


@pytest.fixture(scope="session")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh virtual environment that has the wheel, and from here what the wheel needs.

    Folders that a .pth file adds are searched for packages, but their own .pth files do nothing: this checkout is not seen.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "environment"
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", wheel]
    subprocess.run([str(part) for part in pip], check=True)
    return folder / "bin"


@pytest.mark.skipif(sys.platform == "win32", reason="programs lie elsewhere")
def test_a_wheel_installed_elsewhere_works(elsewhere: Path, cache_folder: Path, demo_model: Path, tmp_path: Path) -> None:
    def run(program: str, *words: object) -> str:
        line = [str(elsewhere / program), *map(str, words)]
        return subprocess.run(line, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    code = """if True:
        from importlib.resources import files
        from vaefix import __version__, convert, load_pipeline, validate
        import vaefix
        assert all(map(callable, (convert, load_pipeline, validate)))
        names = {entry.name for entry in files("vaefix.validate.report").iterdir()}
        assert (files("vaefix") / "py.typed").is_file() and any(name.endswith(".jinja") for name in names), names
        print(__version__, vaefix.__file__)
    """
    version, file = run("python", "-c", code).split()
    assert Path(file).is_relative_to(elsewhere.parent)
    assert run("vaefix", "--version") == f"vaefix {version}\n"
    assert json.loads(run("vaefix", "doctor", "--json"))["vaefix"] == version
    what = ("--target", "onnx-cpu", "--precision", "fp32", "--components", "vae_decoder", "--cache", cache_folder)
    assert "vae_decoder" in run("vaefix", "convert", "--model", demo_model, *what, "--output", "made")
    assert "nothing is broken" in run("vaefix", "doctor", "made")


@pytest.mark.parametrize(
    "module",
    [
        "vaefix",
        "vaefix.__main__",
        "vaefix.doctor.cli",
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


def test_every_range_has_a_floor_that_scripts_versions_can_install() -> None:
    versions = pytest.importorskip("versions")
    pins = [versions.lowest(requirement) for requirement in versions.declared(ROOT / "pyproject.toml")]
    assert {pin.partition("==")[0] for pin in pins} >= {"torch", "transformers", "openvino", "onnxruntime"}
    assert all(pin.partition("==")[2] for pin in pins)


@pytest.mark.parametrize(
    "package", ["torch", "diffusers", "transformers", "openvino", "openvino-tokenizers", "onnx", "onnxruntime"]
)
def test_what_decides_on_graphs_is_capped_behind_the_last_version_that_was_run(package: str) -> None:
    versions = pytest.importorskip("versions")
    (requirement,) = (item for item in versions.declared(ROOT / "pyproject.toml") if item.name == package)
    assert any(bound.operator == "<" for bound in requirement.specifier)
