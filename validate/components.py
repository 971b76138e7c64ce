"""One component against the reference: in f32, in emulated 16 bits, on a device; and where it goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np

from vaefix.runtime.errors import VaefixError
from vaefix.runtime.session import Session, open_session

from .budgets import ARITHMETIC, Kind, component_budget
from .comparing import IN_F32, Announce, attempt, compared, compared_in_f32, elsewhere
from .emulate import EmulatedSession, computed_in_16_bits, emulated_in
from .ranges import SAFE_HEADROOM, LayerRange, headroom
from .reference import Feeds, Outputs
from .references import Case
from .request import EMULATIONS
from .subject import Subject, kinds_asked
from .tracing import Ranges, located, trace
from .verdict import Comparison


def compare_component(subject: Subject, name: str, announce: Announce) -> tuple[list[Comparison], Ranges]:
    """Its comparisons, and what its layers reach, if that was measured. announce: is told what begins."""
    entry, options = subject.artifact.component(name), subject.options
    kinds = kinds_asked(options, entry.execution)
    announce("reference")
    try:
        case = subject.reference.case(name, options.seeds, options.size, entry.precision)
    except VaefixError as error:
        return [Comparison(name, kind, obstacle=str(error)) for kind in kinds], {}
    component = _Component(subject, name, case)
    tasks: dict[Kind, Callable[[], list[Comparison]]] = {
        "parity": component.in_f32,
        "emulated": component.in_16_bits,
        "hardware": component.on_device,
    }
    found = []
    for kind in kinds:
        announce(kind)
        found += attempt(name, kind, tasks[kind])
    announce("layers")
    return component.located(found)


class _Component:
    """One component of the artifact, and what the reference makes of its inputs."""

    def __init__(self, subject: Subject, name: str, case: Case) -> None:
        self._subject, self._options, self._name, self._case = subject, subject.options, name, case
        self._entry = subject.artifact.component(name)
        self._graph = subject.artifact.folder / self._entry.model
        self._parameters = subject.reference.parts[name].parameters
        self._emulated: tuple[LayerRange, ...] = ()  # of the first input

    def in_f32(self) -> list[Comparison]:
        session = open_session(self._subject.artifact, self._name, options=IN_F32)
        budget = partial(component_budget, parameters=self._parameters, precision=self._entry.precision)
        found = compared_in_f32(self._name, self._case.expected, _run(session, self._case.feeds), budget)
        if self._entry.execution != "f32":
            return [replace(item, warnings=self._left_out()) for item in found]
        narrow = computed_in_16_bits(self._graph)
        if not narrow:
            return found
        broken = f"{len(narrow)} values are in 16 bits, though it is made for 32: {narrow[0]}"
        return [replace(item, failures=(*item.failures, broken)) for item in found]

    def in_16_bits(self) -> list[Comparison]:
        precision = str(self._options.emulate)
        session = emulated_in(precision, self._graph, ranges=True)
        results, layers = [], []
        for feed in self._case.feeds:
            results.append(session.run(feed))
            layers.append(session.ranges)
        self._emulated = layers[0]
        limits = component_budget("emulated", self._parameters, precision)
        found = compared(self._name, "emulated", (self._case.expected.stored, _stacked(results)), limits)
        if any(item.difference is not None and item.difference.nonfinite_actual for item in found):
            fused = _run(EmulatedSession(self._graph, "fused"), self._case.feeds)
            return [_with_certainty(item, fused) for item in found]
        warnings = _near_overflow([*chain(*layers)]) if precision == "fp16" else ()
        return [replace(item, warnings=warnings) for item in found]

    def on_device(self) -> list[Comparison]:
        session = open_session(self._subject.artifact, self._name, str(self._options.device))
        precision = ARITHMETIC[session.precision]
        limits = component_budget("hardware", self._parameters, precision)
        found = compared(self._name, "hardware", (self._case.expected.stored, _run(session, self._case.feeds)), limits)
        return [replace(item, warnings=elsewhere(session, str(self._options.device))) for item in found]

    def located(self, comparisons: list[Comparison]) -> tuple[list[Comparison], Ranges]:
        """The comparisons, with the layer to blame where one failed, and what the layers reach, if that was measured."""
        options = self._options
        failed = any(item.status == "failed" and item.kind in ("parity", "emulated") for item in comparisons)
        if not (failed or options.ranges or options.save_reference is not None):  # a saved reference must serve failures, too
            return comparisons, {}
        try:
            reference = self._subject.reference.ranges(self._name, options.seeds[0], options.size, self._entry.precision)
            ranges = trace(self._graph, reference, self._case.feeds[0], self._emulated)
            return located(comparisons, ranges, self._graph.parent, options.emulate), ranges
        except VaefixError as error:
            return [*comparisons, Comparison(self._name, "ranges", obstacle=str(error))], {}

    def _left_out(self) -> tuple[str, ...]:
        """A warning where what is emulated is not what this component executes in."""
        emulate, execution = self._options.emulate, self._entry.execution
        if emulate is None or execution == EMULATIONS[emulate]:
            return ()
        return (f"executes in {execution}, so it was not emulated in {emulate}",)


def _with_certainty(comparison: Comparison, fused: Outputs) -> Comparison:
    """Tells an overflow that every GPU has from one that only those have which write each operation's result to memory."""
    if comparison.difference is None or not comparison.difference.nonfinite_actual:
        return comparison
    certain = not np.isfinite(fused[comparison.output]).all()
    note = "will overflow" if certain else "at risk: it overflows where a GPU fuses no operations"
    return replace(comparison, failures=(*comparison.failures, note))


def _near_overflow(layers: Sequence[LayerRange]) -> tuple[str, ...]:
    """A warning where a layer comes so close to fp16's largest number that not every kernel can be trusted with it."""
    if not layers:
        return ("its headroom is not known: no layer of it can be told by its name",)
    if headroom(layers) >= SAFE_HEADROOM:
        return ()
    largest = max(layers, key=lambda layer: layer.absmax)
    if largest.nonfinite:
        return (f"{largest.layer} is not finite, though what follows from it is",)
    reached = f"headroom {headroom(layers):.1f}: {largest.layer} reaches {largest.absmax:,.0f}"
    return (f"{reached}; a kernel that accumulates in fp16 may overflow",)


def _run(session: Session | EmulatedSession, feeds: Sequence[Feeds]) -> Outputs:
    return _stacked([session.run(feed) for feed in feeds])


def _stacked(results: Sequence[Outputs]) -> Outputs:
    return {name: np.stack([result[name] for result in results]) for name in results[0]}
