"""No healthy conversion raises an alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.artifact import Artifact
from vaefix.validate.emulate import EMULATIONS
from vaefix.validate.inputs import PictureSize
from vaefix.validate.validate import ValidateOptions, validate
from vaefix.validate.verdict import Verdict

from .conversions import ALL, HEALTHY, Conversion

_EMULATIONS = {execution: name for name, execution in EMULATIONS.items()}


def validated(artifact: Artifact, model: Path, conversion: Conversion) -> Verdict:
    """Compared in f32, and in emulated 16 bits where it executes in them."""
    executed = {artifact.component(name).execution for name in conversion.components or artifact.components} - {"f32"}
    options = {
        "components": conversion.components or conversion.compared,
        "generation": conversion.components is ALL,
        "size": PictureSize(64, 96),
        "steps": 3,
        "seeds": (0,),
        "emulate": _EMULATIONS[min(executed, key=["f16", "bf16"].index)] if executed else None,
    }
    return validate(ValidateOptions(artifact.folder, model, **{**options, **conversion.validate}))


def closest(verdict: Verdict) -> Iterator[tuple[float, str]]:
    """The share of its limit that each relative error takes, and what it is."""
    for item in verdict.comparisons:
        if item.difference is not None and item.budget is not None and item.budget.relative is not None:
            error, limit = item.difference.relative, item.budget.relative
            yield error / limit, f"{error:.1e} of {limit:.0e} ({item.component} {item.kind} {item.output})"


@pytest.mark.parametrize(
    "conversion",
    [pytest.param(item, id=item.id, marks=[] if item.fast else [pytest.mark.slow]) for item in HEALTHY],
)
def test_a_healthy_conversion_passes(
    conversion: Conversion, cache_folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    model = conversion.write_model(tmp_path / "model")
    options = ConvertOptions(tmp_path / "artifact", model, conversion.target, conversion.precision, cache=cache_folder)
    artifact = convert(ConvertOptions(**{**vars(options), "components": conversion.components, **conversion.convert}))
    verdict = validated(artifact, model, conversion)
    assert verdict.exit_code == 0, [item for item in verdict.comparisons if item.status != "passed"]
    record_property("measured", max(closest(verdict))[1])
