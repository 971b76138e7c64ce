"""What the layers of a component reach in each run, side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ranges import FP16_MAX, SAFE_HEADROOM, LayerRange, headroom
from .chart import Chart, log_chart

_Turn = tuple[str, int]
_RUNS = ("reference", "artifact", "emulated")


@dataclass(frozen=True)
class RunSummary:
    """What stands out in one run of a component.

    peak: the largest finite absolute value, in the layer `peak_layer`.  headroom: how often fp16 holds it; 0 if not finite.
    nonfinite: how many layers have values that are not finite; `first_nonfinite` is the first, where it goes wrong.
    subnormal: the largest share of values below fp16's normal numbers, in the layer `subnormal_layer`.
    """

    run: str
    peak: float
    peak_layer: str
    headroom: float
    nonfinite: int
    first_nonfinite: str | None
    subnormal: float
    subnormal_layer: str

    @property
    def risk(self) -> str:
        """`over` where fp16 overflows, `near` where it might, else `none`."""
        if self.headroom < 1:
            return "over"
        return "near" if self.headroom < SAFE_HEADROOM else "none"


@dataclass(frozen=True)
class LayerRow:
    """One layer in every run; None where a run has no such layer."""

    layer: str
    count: int
    ranges: tuple[LayerRange | None, ...]


@dataclass(frozen=True)
class ComponentLayers:
    """A component's layers, in order of execution."""

    component: str
    summaries: tuple[RunSummary, ...]
    rows: tuple[LayerRow, ...]
    chart: Chart


def component_layers(component: str, ranges: Mapping[str, Sequence[LayerRange]]) -> ComponentLayers | None:
    """None where no run has layers. ranges: run -> its layers."""
    runs = {run: _by_turn(ranges[run]) for run in _RUNS if ranges.get(run)}
    if not runs:
        return None
    turns = _merged([list(layers) for layers in runs.values()])
    rows = tuple(_row(turn[0], [layers.get(turn) for layers in runs.values()]) for turn in turns)
    values = {run: [_value(layers.get(turn)) for turn in turns] for run, layers in runs.items()}
    limits = {f"fp16 limit {FP16_MAX:,.0f}": FP16_MAX, f"{SAFE_HEADROOM} times below": FP16_MAX / SAFE_HEADROOM}
    return ComponentLayers(component, tuple(_summary(run, ranges[run]) for run in runs), rows, log_chart(values, limits))


def _by_turn(layers: Sequence[LayerRange]) -> dict[_Turn, LayerRange]:
    """By name and turn, since a layer that runs twice is there twice."""
    turns: Counter[str] = Counter()
    found = {}
    for entry in layers:
        found[entry.layer, turns[entry.layer]] = entry
        turns[entry.layer] += 1
    return found


def _merged(orders: Sequence[Sequence[_Turn]]) -> list[_Turn]:
    """Every turn once, in the first order; one that it lacks comes after what ran before it in its own."""
    merged = list(orders[0])
    for order in orders[1:]:
        place = 0
        for turn in order:
            if turn in merged:
                place = merged.index(turn) + 1
            else:
                merged.insert(place, turn)
                place += 1
    return merged


def _row(layer: str, entries: Sequence[LayerRange | None]) -> LayerRow:
    return LayerRow(layer, next(entry.count for entry in entries if entry), tuple(entries))


def _value(entry: LayerRange | None) -> float | None:
    if entry is None:
        return None
    return math.nan if entry.nonfinite else entry.absmax


def _summary(run: str, layers: Sequence[LayerRange]) -> RunSummary:
    peak = max(layers, key=lambda entry: entry.absmax if math.isfinite(entry.absmax) else -1.0)
    subnormal = max(layers, key=lambda entry: entry.subnormal)
    broken = [entry.layer for entry in layers if entry.nonfinite]
    return RunSummary(
        run=run,
        peak=peak.absmax,
        peak_layer=peak.layer,
        headroom=headroom(layers),
        nonfinite=len(broken),
        first_nonfinite=broken[0] if broken else None,
        subnormal=subnormal.subnormal,
        subnormal_layer=subnormal.layer,
    )
