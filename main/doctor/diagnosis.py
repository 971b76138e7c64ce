"""What is found: put together here, shown elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from vaefix.runtime.errors import DeviceError, InputError, ResourceError, VaefixError

from .engines import Asked, Engine
from .machine import Disk, Memory, disks, memory
from .packages import Package, broken, doubtful, missing_extras, packages
from .subject import Subject, examine


@dataclass(frozen=True)
class Diagnosis:
    """All that `vaefix doctor` says.

    extras: those of vaefix that are not installed, and the command that installs each.
    subject: what was given to look at.  broken: what does not work.  doubtful: what may not.
    """

    vaefix: str
    python: str
    system: str
    packages: tuple[Package, ...]
    extras: dict[str, str]
    engines: tuple[Engine, ...]
    memory: Memory
    disks: tuple[Disk, ...]
    subject: Subject | None
    broken: tuple[VaefixError, ...]
    doubtful: tuple[VaefixError, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = {name: value for name, value in vars(self).items() if name not in ("subject", "broken", "doubtful")}
        found |= {"memory": asdict(self.memory), "disks": [asdict(disk) for disk in self.disks]}
        found["packages"] = [{**asdict(package), "known": package.known} for package in self.packages]
        found["engines"] = [asdict(engine) for engine in self.engines]
        found["subject"] = None
        if self.subject is not None:
            found["subject"] = {**asdict(self.subject), "problems": [_facts(error) for error in self.subject.problems]}
        return {**found, "broken": [_facts(error) for error in self.broken], "doubtful": list(map(_facts, self.doubtful))}


def _facts(error: VaefixError) -> dict[str, str | None]:
    return {"kind": type(error).__name__, "source": error.source, "reason": error.reason, "remedy": error.remedy}


def diagnose(given: str | None, on_read: Callable[[int, int], None], *, with_torch: bool = False) -> Diagnosis:
    """Look at this installation and machine, and at what is given: an artifact or the folder of a model.

    on_read: see `examine`.  with_torch: ask PyTorch too, which takes seconds.
    """
    asked = Asked(("openvino", "onnxruntime", *(("torch",) if with_torch else ())))
    there = packages()
    places = disks()
    engines = asked.answers()
    subject = None if given is None else examine(given, engines, on_read)
    failures = [*broken(there), *_faults(engines), *(subject.problems if subject else ())]
    return Diagnosis(
        vaefix=version("vaefix"),
        python=platform.python_version(),
        system=platform.platform(),
        packages=there,
        extras=missing_extras(there),
        engines=engines,
        memory=memory(),
        disks=places,
        subject=subject,
        broken=tuple(failures),
        doubtful=(*doubtful(there), *_doubts(engines, places)),
    )


def _faults(engines: tuple[Engine, ...]) -> Iterator[VaefixError]:
    for engine in engines:
        if engine.fault is not None:
            remedy = "install it again, and what the message says is missing"
            yield DeviceError(f"installed, but cannot be used: {engine.fault}", source=engine.name, remedy=remedy)


def _doubts(engines: tuple[Engine, ...], places: tuple[Disk, ...]) -> Iterator[VaefixError]:
    if not any(engine.devices for engine in engines if engine.name != "torch"):
        yield InputError("no engine can be used", source="vaefix", remedy="pip install 'vaefix[openvino]', or 'vaefix[onnx]'")
    for engine in engines:
        for note in engine.notes:
            if note.startswith("CUDA"):
                remedy = "for an NVIDIA card: its driver, and pip install 'onnxruntime-gpu[cuda,cudnn]'. On a CPU: nothing"
                yield DeviceError(note, source=engine.name, remedy=remedy)
    for disk in places:
        if not disk.writable:
            remedy = "write somewhere else" if disk.what != "the cache" else "give another with --cache, or go on without one"
            yield ResourceError(f"{disk.what}: cannot be written to", source=disk.folder, remedy=remedy)
