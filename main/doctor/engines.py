"""What the engines can do here. Each is asked in a process of its own: one that crashes or hangs is a line, and no more.

In this process no engine is imported; the one that is asked runs `answer` and prints what it found as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vaefix.runtime.install import is_installed

_PATIENCE = 30
"""Seconds for an engine to answer: it takes one, and several when its files are read for the first time."""
_CODES = "int8"
"""Stands for every precision of 8 and 4 bits: the weights are widened to what is computed in."""


@dataclass(frozen=True)
class Device:
    """Where an engine computes.

    name: as `--device` takes it.  label: as its maker calls it.  memory_bytes: of a card.
    executes: precision of an artifact (`fp32`, `fp16`, `bf16`, `int8` for all of 8 and 4 bits) -> what it is computed in
        (`f32`, `f16`, `bf16`); None: it does not run there.
    note: what else is to be said of it.
    """

    name: str
    label: str
    executes: Mapping[str, str | None]
    memory_bytes: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class Engine:
    """One engine. fault: why it cannot be used, if it cannot.  notes: what of it cannot be."""

    name: str
    version: str | None = None
    devices: tuple[Device, ...] = ()
    notes: tuple[str, ...] = ()
    fault: str | None = None


class Asked:
    """Engines that have been asked, and work on the answer.

    names: of their modules; those that are not installed are left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        # The same search path, so that the same packages are found, and not those of the working directory.
        code = f"import sys; sys.path[:] = {sys.path!r}; from vaefix.doctor import engines; engines.answer(sys.argv[1])"
        self._processes = {name: _start(code, name) for name in names if is_installed(name)}

    def answers(self) -> tuple[Engine, ...]:
        """What they say, once all have answered, or have had the time to."""
        return tuple(_answer_of(name, process) for name, process in self._processes.items())


def _start(code: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, name]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace")


def _answer_of(name: str, process: subprocess.Popen[str]) -> Engine:
    try:
        out, err = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Engine(name, fault=f"no answer within {_PATIENCE} s")
    if process.returncode < 0:
        return Engine(name, fault=f"it crashes (signal {-process.returncode})")
    try:
        found = json.loads(out.strip().rpartition("\n")[2])
    except ValueError:  # it failed, or ended before it had answered
        said = err.strip().rpartition("\n")[2]
        return Engine(name, fault=said or f"it ended with code {process.returncode}")
    return Engine(
        **{**found, "devices": tuple(Device(**device) for device in found["devices"]), "notes": tuple(found["notes"])}
    )


def answer(name: str) -> None:
    """Print what an engine can do here, as a line of JSON. Raises whatever the engine does."""
    print(json.dumps(asdict({"openvino": _openvino, "onnxruntime": _onnxruntime, "torch": _torch}[name]())))  # noqa: T201


def _openvino() -> Engine:
    import openvino

    core = openvino.Core()
    devices = tuple(_openvino_device(core, name) for name in core.available_devices)
    return Engine("openvino", openvino.__version__.partition("-")[0], devices)


def _openvino_device(core: Any, name: str) -> Device:
    able = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
    label = core.get_property(name, "FULL_DEVICE_NAME")
    kind = name.partition(".")[0]
    if kind == "CPU":
        executes = {"fp32": "f32", "fp16": "f32", "bf16": "bf16" if "BF16" in able else None, _CODES: "f32"}
        return Device(name, label, executes)
    if kind != "GPU":
        return Device(name, label, dict.fromkeys(("fp32", "fp16", "bf16", _CODES)), note="no target of vaefix")
    computed = "f16" if "FP16" in able else None
    memory = core.get_property(name, "GPU_DEVICE_TOTAL_MEM_SIZE")
    executes = {"fp32": "f32", "fp16": computed, "bf16": None, _CODES: computed}
    return Device(name, label, executes, memory, "with matrix units (XMX)" if "GPU_HW_MATMUL" in able else None)


def _onnxruntime() -> Engine:
    import onnxruntime

    from vaefix.runtime.cuda import cards, missing_library

    executes = dict.fromkeys(("fp32", "fp16", "bf16", _CODES), "f32")
    devices, notes = [Device("CPU", "", executes)], []
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        notes.append("this build has no CUDA")
    elif (missing := missing_library()) is not None:
        notes.append(f"CUDA cannot be used: {missing}")
    else:
        try:
            devices += (_cuda_device(ordinal, card) for ordinal, card in enumerate(cards()))
        except OSError as error:
            notes.append(f"CUDA cannot be used: {error}")
    return Engine("onnxruntime", onnxruntime.__version__, tuple(devices), tuple(notes))


def _cuda_device(ordinal: int, card: Any) -> Device:
    computed = "bf16" if card.capability >= (8, 0) else None
    executes = {"fp32": "f32", "fp16": "f16", "bf16": computed, _CODES: "f16"}
    return Device(f"CUDA:{ordinal}" if ordinal else "CUDA", card.name, executes, card.memory_bytes)


def _torch() -> Engine:
    import torch

    executes = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", _CODES: None}
    devices = [Device("cpu", f"{torch.get_num_threads()} threads", executes)]
    notes = [f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "this build has no CUDA"]
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        count = module.device_count() if module.is_available() else 0
        for ordinal in range(count):
            size = module.get_device_properties(ordinal).total_memory
            devices.append(Device(f"{kind}:{ordinal}", module.get_device_name(ordinal), executes, size))
    return Engine("torch", torch.__version__, tuple(devices), tuple(notes))


def runs(engine: Engine, executions: Sequence[tuple[str, str]]) -> dict[str, dict[str, str | None]]:
    """Device -> component -> what it is computed in there, None where it does not run.

    executions: component and what it was made for (`f32`, `f16`, `bf16`).
    """
    precision = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
    return {
        device.name: {name: device.executes[precision[execution]] for name, execution in executions}
        for device in engine.devices
    }
