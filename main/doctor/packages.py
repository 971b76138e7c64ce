"""What is installed: read from the metadata of packages, none of which is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vaefix.runtime.errors import InputError, VaefixError
from vaefix.runtime.install import REMOVE_ONNXRUNTIME

EXTRAS = ("openvino", "onnx", "cuda")
"""Of vaefix, that bring an engine."""
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


@dataclass(frozen=True)
class Package:
    """One that vaefix needs.

    wanted: the versions known to work: `>=2.6,<3`.  extra: of vaefix, that brings it; None for what is always needed.
    version: installed; None: it is not.
    """

    name: str
    wanted: str
    extra: str | None
    version: str | None

    @property
    def known(self) -> bool | None:
        """Whether the installed version is known to work; None where there is none."""
        return (
            None if self.version is None else Requirement(f"x{self.wanted}").specifier.contains(self.version, prereleases=True)
        )


def packages() -> tuple[Package, ...]:
    """All that vaefix needs here, those of its engines included."""
    found: dict[str, Package] = {}
    for requirement in map(Requirement, requires("vaefix") or []):
        brought = [extra for extra in (None, *EXTRAS) if _applies(requirement, extra)]
        if brought and requirement.name not in found:
            name, wanted = requirement.name, str(requirement.specifier)
            found[name] = Package(name, wanted, brought[0], _version(name))
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
        if package.known is False:
            remedy = f"pip install '{package.name}{package.wanted}'"
            yield InputError(f"{package.version} is not known to work", source=package.name, remedy=remedy)
        for wanted in _wants(package):
            here = _version(wanted.name) if canonicalize_name(wanted.name) in names else None
            if here is not None and not wanted.specifier.contains(here, prereleases=True):
                reason = f"{package.version} wants {wanted.name}{wanted.specifier}, here is {here}"
                yield InputError(reason, source=package.name, remedy=f"pip install '{wanted.name}{wanted.specifier}'")


def _wants(package: Package) -> Iterator[Requirement]:
    if package.version is not None:
        yield from (wanted for wanted in map(Requirement, requires(package.name) or []) if _applies(wanted, None))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
