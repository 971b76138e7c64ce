"""layers.py: which layer is nearest to fp16's end, and where it first goes wrong."""

from __future__ import annotations

import math

import pytest

from vaefix.validate.ranges import LayerRange
from vaefix.validate.report.layers import component_layers
from vaefix.validate.verdict import Verdict


def layer(name: str, absmax: float, nonfinite: int = 0, subnormal: float = 0.0) -> LayerRange:
    return LayerRange(name, 10, nonfinite, absmax, subnormal, ())


def test_a_summary_names_the_peak_and_the_first_layer_that_is_not_finite(full: Verdict) -> None:
    found = component_layers("vae_decoder", full.ranges["vae_decoder"])
    assert found is not None
    reference, artifact, emulated = found.summaries
    assert (reference.peak, reference.peak_layer) == (288_000.0, "decoder.mid_block.resnets.0.conv2")
    assert reference.headroom == pytest.approx(65504 / 288_000)
    assert (artifact.headroom, artifact.nonfinite) == (pytest.approx(65504 / 4500), 0)
    assert (emulated.first_nonfinite, emulated.nonfinite) == ("decoder.mid_block.resnets.0.conv2", 2)
    assert (emulated.peak, emulated.peak_layer, emulated.headroom) == (900, "decoder.conv_in", 0)
    assert [run.risk for run in found.summaries] == ["over", "none", "over"]


@pytest.mark.parametrize(
    ("absmax", "risk"), [(65505.0, "over"), (65504.0, "near"), (16377.0, "near"), (16376.0, "none"), (0.0, "none")]
)
def test_the_risk_begins_at_a_quarter_of_fp16(absmax: float, risk: str) -> None:
    found = component_layers("unet", {"artifact": [layer("a", absmax)]})
    assert found is not None
    assert found.summaries[0].risk == risk


def test_a_layer_that_one_run_lacks_is_kept_in_its_place() -> None:
    reference = [layer("a", 1), layer("dropout", 2), layer("b", 3), layer("c", 3)]
    emulated = [layer("first", 1), layer("a", 1), layer("b", 3), layer("extra", 4), layer("c", 3)]
    found = component_layers("unet", {"reference": reference, "emulated": emulated})
    assert found is not None
    rows = [(row.layer, *(entry is not None for entry in row.ranges)) for row in found.rows]
    assert rows == [
        ("first", False, True),
        ("a", True, True),
        ("dropout", True, False),
        ("b", True, True),
        ("extra", False, True),
        ("c", True, True),
    ]


def test_a_layer_that_runs_twice_has_two_rows() -> None:
    twice = [layer("a", 1), layer("shared", 2), layer("a", 3)]
    found = component_layers("unet", {"reference": twice, "artifact": twice})
    assert found is not None
    shown = [(row.layer, [entry.absmax for entry in row.ranges if entry]) for row in found.rows]
    assert shown == [("a", [1, 1]), ("shared", [2, 2]), ("a", [3, 3])]


def test_the_most_subnormal_layer_is_named() -> None:
    found = component_layers("unet", {"artifact": [layer("a", 1), layer("b", 1, subnormal=0.7), layer("c", 1, subnormal=0.1)]})
    assert found is not None
    assert (found.summaries[0].subnormal, found.summaries[0].subnormal_layer) == (0.7, "b")


def test_a_run_in_which_nothing_is_finite_has_no_peak_to_trust() -> None:
    found = component_layers("unet", {"artifact": [layer("a", math.inf, 1), layer("b", math.inf, 2)]})
    assert found is not None
    (run,) = found.summaries
    assert (run.peak, run.headroom, run.first_nonfinite) == (math.inf, 0, "a")


@pytest.mark.parametrize("ranges", [{}, {"reference": (), "artifact": ()}])
def test_without_layers_there_is_nothing_to_show(ranges: dict[str, tuple[LayerRange, ...]]) -> None:
    assert component_layers("unet", ranges) is None
