"""One component against the reference: in f32, in emulated 16 bits, on a device; and where it goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from vaefix.runtime.errors import VaefixError
from vaefix.runtime.session import Session, open_session

from .budgets import ARITHMETIC, Kind, component_budget
from .comparing import attempt, compared, compared_in_f32
from .emulate import EMULATIONS, EmulatedSession
from .ranges import SAFE_HEADROOM, LayerRange, headroom
from .reference import Feeds, Outputs
from .references import Case
from .subject import Subject
from .tracing import Ranges, located, trace
from .verdict import Comparison


def compare_component(subject: Subject, name: str) -> tuple[list[Comparison], Ranges]:
    """Its comparisons, and what its layers reach, if that was measured."""
    entry, options = subject.artifact.component(name), subject.options
    tasks: dict[Kind, Callable[[Subject, str, Case], list[Comparison]]] = {"parity": _in_f32}
    if options.emulate is not None and entry.execution == EMULATIONS[options.emulate]:
        tasks["emulated"] = _in_16_bits
    if options.device is not None:
        tasks["hardware"] = _on_device
    try:
        case = subject.reference.case(name, options.seeds, options.size, entry.precision)
    except VaefixError as error:
        return [Comparison(name, kind, obstacle=str(error)) for kind in tasks], {}
    found = [item for kind, task in tasks.items() for item in attempt(name, kind, partial(task, subject, name, case))]
    return _located(subject, name, case, found)


def _located(subject: Subject, name: str, case: Case, comparisons: list[Comparison]) -> tuple[list[Comparison], Ranges]:
    """The comparisons, with the layer to blame where one failed, and what the layers reach, if that was measured."""
    options, entry = subject.options, subject.artifact.component(name)
    graph = subject.artifact.folder / entry.model
    failed = any(item.status == "failed" and item.kind in ("parity", "emulated") for item in comparisons)
    if not (failed or options.ranges or options.save_reference is not None):  # a saved reference must serve failures, too
        return comparisons, {}
    emulated = any(item.kind == "emulated" for item in comparisons)
    try:
        reference = subject.reference.ranges(name, options.seeds[0], options.size, entry.precision)
        ranges = trace(graph, reference, case.feeds[0], emulated=emulated)
        return located(comparisons, ranges, graph.parent, options.emulate), ranges
    except VaefixError as error:
        return [*comparisons, Comparison(name, "ranges", obstacle=str(error))], {}


def _in_f32(subject: Subject, name: str, case: Case) -> list[Comparison]:
    budget = partial(component_budget, parameters=_size(subject, name), precision=subject.artifact.component(name).precision)
    return compared_in_f32(name, case.expected, _run(open_session(subject.artifact, name), case.feeds), budget)


def _in_16_bits(subject: Subject, name: str, case: Case) -> list[Comparison]:
    graph, precision = subject.artifact.folder / subject.artifact.component(name).model, str(subject.options.emulate)
    session = EmulatedSession(graph, ranges=precision == "fp16")
    outputs, layers = _run_measured(session, case.feeds)
    limits = component_budget("emulated", _size(subject, name), precision)
    found = compared(name, "emulated", (case.expected.untouched, outputs), limits)
    if any(item.difference is not None and item.difference.nonfinite_actual for item in found):
        fused = _run(EmulatedSession(graph, "fused"), case.feeds)
        return [_with_certainty(item, fused) for item in found]
    warnings = _near_overflow(layers)
    return [replace(item, warnings=warnings) for item in found]


def _on_device(subject: Subject, name: str, case: Case) -> list[Comparison]:
    session = open_session(subject.artifact, name, str(subject.options.device))
    precision = ARITHMETIC[session.precision]
    expected = case.expected.stored if precision == "fp32" else case.expected.untouched
    limits = component_budget("hardware", _size(subject, name), precision)
    return compared(name, "hardware", (expected, _run(session, case.feeds)), limits)


def _size(subject: Subject, name: str) -> int:
    return subject.reference.parts[name].parameters


def _with_certainty(comparison: Comparison, fused: Outputs) -> Comparison:
    """Tells an overflow that every GPU has from one that only those have which write each operation's result to memory."""
    if comparison.difference is None or not comparison.difference.nonfinite_actual:
        return comparison
    certain = not np.isfinite(fused[comparison.output]).all()
    note = "will overflow" if certain else "at risk: it overflows where a GPU fuses no operations"
    return replace(comparison, failures=(*comparison.failures, note))


def _near_overflow(layers: Sequence[LayerRange]) -> tuple[str, ...]:
    """A warning where a layer comes so close to fp16's largest number that not every kernel can be trusted with it."""
    if not layers or headroom(layers) >= SAFE_HEADROOM:
        return ()
    largest = max(layers, key=lambda layer: layer.absmax)
    if largest.nonfinite:
        return (f"{largest.layer} is not finite, though what follows from it is",)
    reached = f"headroom {headroom(layers):.1f}: {largest.layer} reaches {largest.absmax:,.0f}"
    return (f"{reached}; a kernel that accumulates in fp16 may overflow",)


def _run_measured(session: EmulatedSession, feeds: Sequence[Feeds]) -> tuple[Outputs, list[LayerRange]]:
    """The outputs, and what the layers reach in all runs."""
    layers: list[LayerRange] = []
    results = []
    for feed in feeds:
        results.append(session.run(feed))
        layers += session.ranges
    return _stacked(results), layers


def _run(session: Session | EmulatedSession, feeds: Sequence[Feeds]) -> Outputs:
    return _stacked([session.run(feed) for feed in feeds])


def _stacked(results: Sequence[Outputs]) -> Outputs:
    return {name: np.stack([result[name] for result in results]) for name in results[0]}
