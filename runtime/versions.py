"""Which versions of the packages vaefix is known to work with, and which are installed.

Known are the ranges that vaefix itself declares to pip, so there is one place to change them: pyproject.toml. Nothing is
imported to find out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

_EXTRAS = ("", "openvino", "onnx", "cuda", "optimum")


@dataclass(frozen=True)
class PackageVersion:
    """A package that vaefix uses. installed: its version.  known: the range that is known to work, `>=4.56,<5.25`."""

    package: str
    installed: str
    known: SpecifierSet

    @property
    def is_known(self) -> bool:
        """Whether the installed version lies in the range."""
        return not self.problem

    @property
    def problem(self) -> str:
        """One sentence on why the installed version is not known to work; empty if it is."""
        bounds = sorted(map(str, set(self.known)), key=lambda bound: (not bound.startswith(">"), bound))
        missed = [bound for bound in bounds if not _contains(bound, self.installed)]
        if not missed:
            return ""
        relation = {">": "older than", "<": "newer than"}.get(missed[0][0], "not among")
        return f"{self.package} {self.installed} is {relation} what vaefix is known to work with ({','.join(bounds)})"


def package_versions() -> dict[str, PackageVersion]:
    """Package -> what is installed of it, in the order of pyproject.toml; what is not installed is left out."""
    found = {}
    for package, known in _known().items():
        try:
            found[package] = PackageVersion(package, metadata.version(package), known)
        except metadata.PackageNotFoundError:
            continue
    return found


def outside_known() -> list[str]:
    """One sentence for every installed package whose version is not known to work."""
    return [version.problem for version in package_versions().values() if not version.is_known]


def remedy_or_versions(remedy: str) -> str:
    """The remedy; but where a package is outside what is known, that it may be the cause, and not the model."""
    outside = outside_known()
    if not outside:
        return remedy
    return f"this may be no fault of the model: {'; '.join(outside)}. Install a version within that range"


def _known() -> dict[str, SpecifierSet]:
    """Package -> its range, of what vaefix needs and of what its extras add for use. Empty where vaefix is not installed."""
    ranges: dict[str, SpecifierSet] = {}
    for requirement in _requirements():
        ranges[requirement.name] = ranges.get(requirement.name, SpecifierSet()) & requirement.specifier
    return ranges


def _requirements() -> Iterator[Requirement]:
    try:
        declared = metadata.requires("vaefix") or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, declared):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            yield requirement


def _contains(bound: str, installed: str) -> bool:
    try:
        return Version(installed) in SpecifierSet(bound, prereleases=True)
    except InvalidVersion:
        return False
