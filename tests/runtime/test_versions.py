"""versions.py: what is installed against what pyproject.toml declares; told in a sentence, never blamed on the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata

import pytest

from vaefix.runtime import versions
from vaefix.runtime.versions import outside_known, package_versions, remedy_or_versions

DECLARED = [
    "torch<2.15,>=2.6",
    "transformers!=5.7.0,<5.25,>=4.56.1",
    "rich>=13",
    'openvino<2026.5,>=2025.3; extra == "openvino"',
    'onnx<1.24,>=1.19; extra == "onnx"',
    'onnx<1.24,>=1.19; extra == "cuda"',
    'onnxruntime-gpu[cuda,cudnn]<1.33,>=1.25; extra == "cuda"',
    'pytest>=8; extra == "test"',
    'colorama<0.5; sys_platform == "nowhere"',
]
HEALTHY = {"torch": "2.13.0+cpu", "transformers": "5.5.4", "rich": "15.0.0", "openvino": "2026.4.1", "onnx": "1.23.2"}

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(declared=..., package=version, ...): the metadata that Python finds."""

    def call(declared: list[str] | None, **installed: str) -> None:
        def version(name: str) -> str:
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name]

        def requires(name: str) -> list[str] | None:
            if name != "vaefix":
                raise metadata.PackageNotFoundError(name)
            return declared

        monkeypatch.setattr(versions.metadata, "version", version)
        monkeypatch.setattr(versions.metadata, "requires", requires)

    return call


def test_versions_within_the_ranges_are_known(install: Install) -> None:
    install(DECLARED, **HEALTHY)
    assert outside_known() == []
    found = package_versions()
    assert {name: version.installed for name, version in found.items()} == HEALTHY
    assert all(version.is_known for version in found.values())
    assert remedy_or_versions("give a complete model") == "give a complete model"


@pytest.mark.parametrize(
    ("package", "installed", "sentence"),
    [
        (
            "transformers",
            "5.30.0",
            "transformers 5.30.0 is newer than what vaefix is known to work with (>=4.56.1,!=5.7.0,<5.25)",
        ),
        ("transformers", "4.45.0", "transformers 4.45.0 is older than what vaefix is known to work with"),
        ("transformers", "5.7.0", "transformers 5.7.0 is not among what vaefix is known to work with"),
        ("torch", "2.15.0", "torch 2.15.0 is newer than what vaefix is known to work with (>=2.6,<2.15)"),
        ("torch", "2.15.0.dev20261127+cpu", "torch 2.15.0.dev20261127+cpu is newer than"),
        ("torch", "2.6.0rc1", "torch 2.6.0rc1 is older than"),
        ("onnx", "1.18.0", "onnx 1.18.0 is older than what vaefix is known to work with (>=1.19,<1.24)"),
        ("openvino", "a build of mine", "openvino a build of mine is "),
    ],
)
def test_what_is_outside_is_told_in_one_sentence(install: Install, package: str, installed: str, sentence: str) -> None:
    install(DECLARED, **{**HEALTHY, package: installed})
    (told,) = outside_known()
    assert sentence in told
    assert [name for name, version in package_versions().items() if not version.is_known] == [package]


@pytest.mark.parametrize("installed", ["2.14.1", "2.14.1+cu130", "2.7.0rc1", "2.6"])
def test_local_builds_and_candidates_within_the_range_are_known(install: Install, installed: str) -> None:
    install(DECLARED, **{**HEALTHY, "torch": installed})
    assert outside_known() == []


def test_what_is_not_installed_or_for_tests_alone_is_no_matter(install: Install) -> None:
    install(DECLARED, torch="2.13.0", pytest="1.0", colorama="9")
    assert list(package_versions()) == ["torch"]
    assert outside_known() == []


@pytest.mark.parametrize("declared", [None, []])
def test_without_declared_ranges_nothing_is_said(install: Install, declared: list[str] | None) -> None:
    install(declared, torch="1.0")
    assert (package_versions(), outside_known()) == ({}, [])


def test_without_vaefix_installed_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "requires", missing)
    assert outside_known() == []


def test_a_version_outside_comes_before_blaming_the_model(install: Install) -> None:
    install(DECLARED, **{**HEALTHY, "transformers": "5.30.0", "torch": "3.0"})
    remedy = remedy_or_versions("give matching ones")
    assert "matching" not in remedy
    assert remedy.index("torch 3.0 is newer") < remedy.index("transformers 5.30.0 is newer")


def test_this_environment_is_known_and_looked_at_in_no_time() -> None:
    started = time.process_time()
    found = package_versions()
    assert time.process_time() - started < 0.5
    assert {"torch", "transformers", "diffusers", "openvino", "onnxruntime", "optimum-intel"} <= found.keys()
    assert outside_known() == []
