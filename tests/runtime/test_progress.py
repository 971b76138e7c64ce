"""What is being done is said in full, without the numbers of what was done before, and nothing is silent for long."""

from __future__ import annotations

import io
import sys

import pytest

from vaefix.runtime import progress
from vaefix.runtime.progress import SILENCE_S, Activity, Display


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def shown(clock: Clock, stream: io.StringIO) -> Display:
    return Display(stream, clock)


WRITE = Activity("write", "unet", 3, 5)


def test_a_line_says_what_of_what_how_much_and_how_long(shown: Display, clock: Clock) -> None:
    shown.expect(5.1e9)
    shown.stage(WRITE)
    shown.advance(2.1e9)
    clock.now += 28
    assert shown.line == "unet, 3 of 5: write, for 28 s, 2.1 of 5.1 GB, 40 s left"


def test_a_stage_begins_at_its_own_beginning(shown: Display, clock: Clock) -> None:
    shown.stage(Activity("load", "unet"))
    clock.now += 100
    assert shown.line == "unet: load, for 1 min 40 s"
    shown.expect(30, "steps")
    shown.stage(Activity("draw"))
    assert shown.line == "draw, 0 of 30 steps"
    shown.advance(15)
    clock.now += 60
    assert shown.line == "draw, for 60 s, 15 of 30 steps, 60 s left"
    shown.expect(0)
    shown.stage(Activity("decode"))
    assert shown.line == "decode"


def test_what_is_done_is_not_counted_beyond_the_end(shown: Display, clock: Clock) -> None:
    shown.expect(1e6)
    shown.stage(WRITE)
    shown.advance(2e6)
    clock.now += 5
    assert shown.line == "unet, 3 of 5: write, for 5 s"


def test_no_time_is_guessed_from_almost_nothing(shown: Display, clock: Clock) -> None:
    shown.expect(5.1e9)
    shown.stage(WRITE)
    shown.advance(1e6)
    clock.now += 30
    assert "left" not in shown.line


def test_a_line_is_written_for_every_stage_once(shown: Display, stream: io.StringIO) -> None:
    for activity in (Activity("read"), WRITE, WRITE):
        shown.stage(activity)
    assert stream.getvalue() == "read\nunet, 3 of 5: write\n"


def test_silence_is_broken_with_the_numbers_of_that_moment(shown: Display, stream: io.StringIO, clock: Clock) -> None:
    shown.stage(WRITE)
    clock.now += SILENCE_S - 1
    shown.remind()
    assert stream.getvalue() == "unet, 3 of 5: write\n"
    clock.now += 1
    shown.remind()
    shown.remind()
    assert stream.getvalue() == "unet, 3 of 5: write\nunet, 3 of 5: write, for 10 s\n"


def test_a_reader_that_is_gone_stops_no_work(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Display(stream, clock)
    stream.close()
    shown.stage(WRITE)
    assert shown.line == "unet, 3 of 5: write"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_a_line_that_changes_and_a_file_gets_lines(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress.display() as shown:
        shown.stage(WRITE)
    assert "unet, 3 of 5: write" in stderr.getvalue()
    assert ("\x1b[" in stderr.getvalue()) == terminal


def test_an_error_ends_the_display_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(KeyboardInterrupt), progress.display() as shown:
        shown.stage(WRITE)
        raise KeyboardInterrupt
