"""Processes of a benchmark that must succeed, or fail for want of memory and nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from process_tree import Usage, measure

_WORKER = Path(__file__).with_name("bench_worker.py")
_NO_MEMORY = re.compile(
    r"bad_alloc|MemoryError|out of memory|failed to allocate|cannot allocate|could(n't| not) (create a memory|allocate)"
    r"|mmap failed|can't start new thread",
    re.IGNORECASE,
)
_GAVE_UP = (4, -6, -9, -11)
"""Exit codes: vaefix's own; aborted, as nobody caught a bad_alloc; killed by the kernel; an unchecked null pointer."""


class MemoryLimitReachedError(Exception):
    """The process failed because it got no more memory. usage: until then.  reason: its last line."""

    def __init__(self, usage: Usage, reason: str) -> None:
        super().__init__(reason)
        self.usage, self.reason = usage, reason


def finished(name: str, command: Sequence[str], log: Path) -> Usage:
    """Run a command to its end, which must be a good one.

    Raises MemoryLimitReachedError where it says that it lacks memory, or is killed, SystemExit for any other failure.
    """
    usage = measure(command, log=log, environment={**os.environ, "HF_HUB_OFFLINE": "1"})
    if usage.exit_code == 0:
        return usage
    text = log.read_text(errors="replace")
    if usage.exit_code in _GAVE_UP or _NO_MEMORY.search(text):
        raise MemoryLimitReachedError(usage, (text.strip().splitlines() or ["killed"])[-1])
    raise SystemExit(f"{name}: exit code {usage.exit_code}\n{text[-4000:]}")


def worker(limit: int | None, *arguments: object) -> list[str]:
    """The command line of `bench_worker.py`. limit: bytes of private memory."""
    return [sys.executable, str(_WORKER), str(limit or "unlimited"), *map(str, arguments)]
