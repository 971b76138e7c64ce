"""What a command is doing, for whoever waits: one line that keeps itself up to date on a terminal, a line per stage elsewhere.

Nothing is silent for more than ten seconds: where there is no terminal, the line is said again with the numbers of that moment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

SILENCE_S = 10.0
"""Seconds after which a line is said again."""
_TOLD_APART_S = 1.0
_GUESSED_AFTER = 0.05  # of the whole: before that, the pace says little


@dataclass(frozen=True)
class Activity:
    """What has begun.

    what: `verify`.  part: of what that is done: `unet`; empty for all of it.  number, count: it is the 3rd of 5 parts.
    """

    what: str
    part: str = ""
    number: int = 0
    count: int = 0

    def __str__(self) -> str:
        place = f", {self.number} of {self.count}" if self.count else ""
        return f"{self.part}{place}: {self.what}" if self.part else self.what


class Display:
    """What is being done, and how much of it is.

    stream: where lines are written, None for a terminal that shows `line` by itself.  clock: seconds.
    """

    def __init__(self, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._activity = Activity("")
        self._began = self._said = self._counted = clock()
        self._total, self._done, self._unit = 0.0, 0.0, ""

    def stage(self, activity: Activity) -> None:
        """Something begins; nothing new is said where it goes on."""
        if activity == self._activity:
            return
        self._activity, self._began = activity, self._clock()
        self._say()

    def expect(self, total: float, unit: str = "B") -> None:
        """So much is to be done from now on; 0 if that is not known. unit: `steps`, or `B` for bytes."""
        self._total, self._done, self._unit, self._counted = total, 0.0, unit, self._clock()

    def reach(self, done: float, total: float) -> None:
        """So many bytes of so many are done by now."""
        if total != self._total:
            self.expect(total)
        self._done = done

    def advance(self, count: float) -> None:
        """So much more of it is done."""
        self._done += count

    def remind(self) -> None:
        """Say the line again if nothing was said for SILENCE_S."""
        if self._clock() - self._said >= SILENCE_S:
            self._say()

    @property
    def line(self) -> str:
        """`unet, 3 of 5: write, 2.1 of 5.1 GB, 40 s left`."""
        elapsed, left = self._clock() - self._began, self._left()
        parts = [str(self._activity)]
        if elapsed >= _TOLD_APART_S:
            parts.append(f"for {_duration(elapsed)}")
        if self._done < self._total:
            parts.append(self._amount())
        if left >= 1:
            parts.append(f"{_duration(left)} left")
        return ", ".join(parts)

    def _amount(self) -> str:
        if self._unit != "B":
            return f"{self._done:.0f} of {self._total:.0f} {self._unit}"
        size, unit = (1e9, "GB") if self._total >= 1e9 else (1e6, "MB")
        return f"{self._done / size:.1f} of {self._total / size:.1f} {unit}"

    def _left(self) -> float:
        """Seconds, at the pace so far; 0 where there is none yet."""
        elapsed = self._clock() - self._counted
        if not _GUESSED_AFTER * self._total < self._done < self._total:
            return 0
        return elapsed * (self._total - self._done) / self._done

    def _say(self) -> None:
        self._said = self._clock()
        if self._stream is not None:
            with suppress(OSError, ValueError):  # that nobody listens stops no work
                self._stream.write(f"{self.line}\n")
                self._stream.flush()


@contextmanager
def display() -> Iterator[Display]:
    """Show on stderr what is told to the display, until the block ends."""
    if sys.stderr.isatty():
        shown = Display(None)
        with Progress(SpinnerColumn(), _Line(shown), console=Console(stderr=True), transient=True) as bar:
            bar.add_task("")
            yield shown
        return
    shown, over = Display(sys.stderr), Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_remind, shown, over)
        try:
            yield shown
        finally:
            over.set()


def _remind(shown: Display, over: Event) -> None:
    while not over.wait(1):
        shown.remind()


class _Line(ProgressColumn):
    def __init__(self, shown: Display) -> None:
        super().__init__()
        self._shown = shown

    def render(self, task: Task) -> Text:  # noqa: ARG002 (there is one)
        return Text(self._shown.line, overflow="ellipsis", no_wrap=True)


def _duration(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `1 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if round(seconds) < 90:
        return f"{round(seconds)} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
