"""A diagnosis for people, in tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .diagnosis import Diagnosis
from .engines import Engine
from .subject import Subject

_PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def show(found: Diagnosis, console: Console) -> None:
    """Print it: what is here, then what was given, then what is wrong."""

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    say(f"vaefix {found.vaefix}, Python {found.python}, {found.system}")
    say(f"memory: {_size(found.memory.available)} of {_size(found.memory.total)} available")
    for disk in found.disks:
        held = "" if disk.size is None else f", holds {_size(disk.size)}"
        free = "" if disk.free is None else f": {_size(disk.free)} free"
        say(f"{disk.what}, {disk.folder}{free}{held}{'' if disk.writable else ', cannot be written to'}")
    console.print(_packages(found))
    for extra, command in found.extras.items():
        say(f"not installed: {extra} ({command})")
    if found.engines:
        console.print(_engines(found.engines))
    for engine in found.engines:
        for note in engine.notes:
            say(f"{engine.name}: {note}")
    if found.subject is not None:
        _subject(found.subject, console, _remarks(found.subject))
    for error in found.doubtful:
        say(f"\nwarning: {error}")
    for error in found.broken:
        say(f"\nbroken: {error}")
    say(f"\n{_sum_up(found)}")


def _sum_up(found: Diagnosis) -> str:
    if found.broken:
        return f"{len(found.broken)} broken, see above"
    return f"nothing is broken{', but see the warnings' if found.doubtful else ''}"


def _packages(found: Diagnosis) -> Table:
    shown = _table("", "installed", "known to work")
    for package in found.packages:
        if package.version is not None:
            verdict = "" if package.known else "no: "
            shown.add_row(package.name, package.version, f"{verdict}{package.wanted or 'any'}")
    return shown


def _engines(engines: tuple[Engine, ...]) -> Table:
    shown = _table("engine", "device", *_PRECISIONS, "")
    for engine in engines:
        if engine.fault is not None:
            shown.add_row(f"{engine.name}: broken", "", *("" for _ in _PRECISIONS), "")
        for device in engine.devices:
            memory = "" if device.memory_bytes is None else _size(device.memory_bytes)
            label = ", ".join(filter(None, (device.label, memory, device.note)))
            computed = (device.executes[precision] or "-" for precision in _PRECISIONS)
            shown.add_row(engine.name, device.name, *computed, Text(label))
    shown.caption = "what artifacts of each precision are computed in; int8: all of 8 and 4 bits; -: not at all"
    return shown


def _subject(subject: Subject, console: Console, lines: Iterator[str]) -> None:
    console.print(Text(f"\n{subject.kind} {subject.path}: {subject.made or 'not read'}, {_size(subject.size)}"), soft_wrap=True)
    if subject.parts:
        shown = _table("", "as", "files", "")
        for part in subject.parts:
            shown.add_row(Text(part.name), Text(part.kind), _size(part.size), Text(part.detail))
        console.print(shown)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _remarks(subject: Subject) -> Iterator[str]:
    """Where an artifact runs, and how what made it differs from what is here."""
    if subject.kind == "model" and not subject.problems:
        yield "can be converted; the names and shapes of its tensors are compared when it is"
    for device, computed in (subject.devices or {}).items():
        without = [name for name, precision in computed.items() if precision is None]
        used = ", ".join(sorted({precision for precision in computed.values() if precision is not None}))
        yield f"runs on {device} in {used}" if not without else f"does not run on {device}: {', '.join(without)}"
    if subject.kind == "artifact" and subject.devices == {}:
        yield "nothing here runs it: its engine is not installed, or broken"
    for name, (made, here) in (subject.tools or {}).items():
        yield f"made with {name} {made}, here is {here or 'none'}"
    for name in subject.unlisted:
        yield f"not of the artifact: {name}"


def _table(*headings: str) -> Table:
    shown = Table(box=box.SIMPLE, collapse_padding=True, pad_edge=False, caption_justify="left")
    for heading in headings:
        shown.add_column(heading)
    return shown


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.1f} MB"
