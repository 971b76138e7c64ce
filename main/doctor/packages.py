"""What is installed: read from the metadata of packages, none of which is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from vaefix.runtime.errors import InputError, VaefixError
from vaefix.runtime.install import REMOVE_ONNXRUNTIME
from vaefix.runtime.versions import package_versions

EXTRAS = ("openvino", "onnx", "cuda")
"""Of vaefix, that bring an engine."""
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


@dataclass(frozen=True)
class Package:
    """One that vaefix needs.

    wanted: the versions known to work: `>=2.6,<3`.  extra: of vaefix, that brings it; None for what is always needed.
    version: installed; None: it is not.  problem: why that is not known to work; empty if it is.
    """

    name: str
    wanted: str
    extra: str | None
    version: str | None
    problem: str

    @property
    def known(self) -> bool | None:
        """Whether the installed version is known to work; None where there is none."""
        return None if self.version is None else not self.problem


def packages() -> tuple[Package, ...]:
    """All that vaefix needs here, those of its engines included."""
    installed, found = package_versions(), dict[str, Package]()
    for requirement in map(Requirement, requires("vaefix") or []):
        name, extra = requirement.name, next((extra for extra in (None, *EXTRAS) if _applies(requirement, extra)), "")
        if extra != "" and name not in found:
            wanted = ",".join(sorted(map(str, requirement.specifier), key=lambda bound: not bound.startswith(">")))
            here = installed.get(name)
            found[name] = Package(name, wanted, extra, here.installed if here else None, here.problem if here else "")
    return tuple(found.values())


def _applies(requirement: Requirement, extra: str | None) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})


def missing_extras(there: tuple[Package, ...]) -> dict[str, str]:
    """Extra -> the command that brings its engine, where that is not installed."""
    absent = {package.extra for package in there if package.extra and package.version is None}
    installed = {package.name for package in there if package.version is not None}
    commands = {extra: f"pip install 'vaefix[{extra}]'" for extra in EXTRAS if extra in absent}
    if "cuda" in commands and "onnxruntime" in installed:
        commands["cuda"] = f"{REMOVE_ONNXRUNTIME}; {commands['cuda']}"
    if "onnxruntime-gpu" in installed:  # it has the CPU too
        commands.pop("onnx", None)
    return commands


def broken(there: tuple[Package, ...]) -> Iterator[VaefixError]:
    """What cannot work: a package that is always needed and absent, builds of ONNX Runtime that share a folder."""
    for package in there:
        if package.extra is None and package.version is None:
            remedy = f"pip install '{package.name}{package.wanted}'"
            yield InputError("not installed, and vaefix needs it", source=package.name, remedy=remedy)
    builds = [name for name in _ONNXRUNTIMES if _version(name) is not None]
    if len(builds) > 1:
        reason = "they are installed into the same folder, and overwrite each other"
        remedy = f"pip uninstall -y {' '.join(builds)}; pip install 'vaefix[onnx]', or 'vaefix[cuda]' for an NVIDIA card"
        yield InputError(reason, source=" and ".join(builds), remedy=remedy)


def doubtful(there: tuple[Package, ...]) -> Iterator[VaefixError]:
    """What may not work: a version that is not known to, or that another of these packages does not want."""
    names = {canonicalize_name(package.name) for package in there}
    for package in there:
        if package.problem:
            yield InputError(package.problem, source="installation", remedy=f"pip install '{package.name}{package.wanted}'")
        for wanted in _wants(package):
            here = _version(wanted.name) if canonicalize_name(wanted.name) in names else None
            if here is not None and not _suits(wanted, here):
                reason = f"{package.version} wants {wanted.name}{wanted.specifier}, here is {here}"
                yield InputError(reason, source=package.name, remedy=f"pip install '{wanted.name}{wanted.specifier}'")


def _wants(package: Package) -> Iterator[Requirement]:
    for text in (requires(package.name) if package.version else None) or []:
        with suppress(InvalidRequirement):  # in a word that this version of `packaging` does not know
            if _applies(wanted := Requirement(text), None):
                yield wanted


def _suits(wanted: Requirement, here: str) -> bool:
    try:
        return wanted.specifier.contains(here, prereleases=True)
    except InvalidVersion:
        return False


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
