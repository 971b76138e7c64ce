"""What a command costs: time, CPU and peak memory of the process and everything it starts. Linux only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL_SECONDS = 0.02
_FIELDS = ("RssAnon", "RssFile", "VmRSS", "VmData")  # in the order of the peaks of `Usage`


@dataclass(frozen=True)
class Usage:
    """One run. cpu_seconds: user and system, children included. The peaks, in bytes, are of sums over the process tree.

    peak_anonymous: memory that only the processes themselves hold. peak_mapped: pages of mapped files. peak_resident: both.
    peak_private: what RLIMIT_DATA limits, all private writable mappings, whether their pages are in memory or not.
    """

    exit_code: int
    wall_seconds: float
    cpu_seconds: float
    peak_anonymous: int
    peak_mapped: int
    peak_resident: int
    peak_private: int


def measure(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Usage:
    """Run a command to its end, its output going to `log`, and sample its process tree every `INTERVAL_SECONDS`."""
    peaks = dict.fromkeys(_FIELDS, 0)
    with log.open("wb") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(environment))
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            samples = [_memory(member) for member in _tree(process.pid)]
            peaks = {name: max(peak, sum(sample[name] for sample in samples)) for name, peak in peaks.items()}
            time.sleep(INTERVAL_SECONDS)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return Usage(process.returncode, wall, usage.ru_utime + usage.ru_stime, *peaks.values())


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in _read(task / "children").split():
            yield from _tree(int(child))


def _memory(pid: int) -> dict[str, int]:
    fields = dict(line.split(":", 1) for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    return {name: int(fields.get(name, "0 kB").split()[0]) * 1024 for name in _FIELDS}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""
