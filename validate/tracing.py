"""Where a component goes wrong: what its layers reach in every run, and the first one where a run leaves the reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vaefix.runtime.errors import ArtifactError

from .emulate import EmulatedSession
from .ranges import LayerRange, first_parting, scaled_layers, unscaled
from .reference import Feeds
from .verdict import Comparison

Ranges = dict[str, tuple[LayerRange, ...]]

_RUN_OF = {"parity": "artifact", "emulated": "emulated"}  # kind of comparison -> the run that it judges
# Of a layer's relative error; healthy layers of the demo model have at most 2.8e-6 in f32, 5.3e-3 in fp16, 2.0e-2 in bf16.
_TOLERANCE = {"f32": 1e-4, "fp16": 1.5e-2, "bf16": 5e-2}


def trace(graph: Path, reference: tuple[LayerRange, ...], feeds: Feeds, emulated: tuple[LayerRange, ...]) -> Ranges:
    """Run (`reference`, `artifact` in f32, `emulated`) -> its layers, as the graph has them: scaled where it was repaired.

    reference: of the same inputs, its weights rounded as the artifact stores them.  emulated: of the same; empty for none.
    """
    session = EmulatedSession(graph, "f32", ranges=True)
    session.run(feeds)
    if not session.ranges:
        raise ArtifactError("no layer of it can be told by its name", source=graph, remedy="convert the model again")
    ranges = {"reference": reference, "artifact": session.ranges}
    return {**ranges, "emulated": emulated} if emulated else ranges


def located(comparisons: Iterable[Comparison], ranges: Ranges, component: Path, emulate: str | None) -> list[Comparison]:
    """The comparisons, those that failed with the first layer where the run parts from the reference.

    component: folder of the graph, and of its repair.json.  emulate: `fp16` or `bf16`.
    """
    exponents = scaled_layers(component)

    def named(comparison: Comparison) -> Comparison:
        run = _RUN_OF.get(comparison.kind, "")
        if comparison.status != "failed" or run not in ranges:
            return comparison
        tolerance = _TOLERANCE["f32" if run == "artifact" else str(emulate)]
        layer = first_parting(ranges["reference"], unscaled(ranges[run], exponents), tolerance)
        where = "no single layer is to blame for the first seed" if layer is None else f"first differs in {layer}"
        return replace(comparison, failures=(*comparison.failures, where))

    return [named(comparison) for comparison in comparisons]
