"""Every planted fault is caught, under the name of what was damaged, and nothing else is blamed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from vaefix.runtime.command import run
from vaefix.validate.cli import app
from vaefix.validate.validate import ValidateOptions, validate
from vaefix.validate.verdict import Comparison, Verdict

from .comparison import COMPARISON_FAULTS
from .conftest import FIXTURES
from .fault import FIRST_OUTPUT, GENERATION, ONNX, OPENVINO, Fault, Patient
from .faults import FAULTS
from .files import FILE_FAULTS
from .runtime import RUNTIME_FAULTS
from .structure import STRUCTURE_FAULTS
from .weights import WEIGHT_FAULTS

Make = Callable[[Fault], Patient]
IN_A_GENERATION = "encoder_hidden_states text_embeds time_ids timestep trajectory latents picture encoded".split()


def first_failed(verdict: Verdict, component: str) -> Comparison | None:
    """The first comparison of a component that failed, in the order in which its outputs are made."""
    failed = [item for item in verdict.comparisons if (item.component, item.status) == (component, "failed")]
    order = IN_A_GENERATION if component == GENERATION else [FIRST_OUTPUT[component]]
    return min(failed, key=lambda item: order.index(item.output) if item.output in order else len(order), default=None)


def check(fault: Fault, verdict: Verdict) -> Comparison:
    """It is caught where it is, and nowhere else."""
    found = first_failed(verdict, fault.component)
    assert found is not None, "not caught"
    assert f"{found.kind} {found.output}" == fault.caught
    assert verdict.exit_code == 1
    blamed = {item.component for item in verdict.comparisons if item.status == "failed"}
    assert blamed == ({fault.component, GENERATION} if fault.drawn else {fault.component})
    if fault.drawn is not None:
        drawn = first_failed(verdict, GENERATION)
        assert drawn is not None
        assert drawn.output == fault.drawn
    return found


def parameters(faults: Iterable[Fault]) -> list[object]:
    return [pytest.param(fault, id=fault.id) for fault in faults]


def representatives() -> list[object]:
    """One fault of each way to plant it in each component; the others are slow."""
    kinds = (WEIGHT_FAULTS, STRUCTURE_FAULTS, FILE_FAULTS, RUNTIME_FAULTS, COMPARISON_FAULTS)
    chosen = {(kind, fault.component): fault.id for kind, faults in enumerate(kinds) for fault in faults}.values()
    return [pytest.param(f, id=f.id, marks=[] if f.id in chosen else [pytest.mark.slow]) for f in FAULTS]


@pytest.mark.parametrize("fault", representatives())
def test_a_planted_fault_is_caught_where_it_is(
    fault: Fault, patient: Make, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    located = fault.layer is not None and fault.component != "unet"
    if not located:  # looking for the layer takes longer than everything else
        monkeypatch.setattr("vaefix.validate.components.trace", lambda *_, **__: {})
    ill = patient(fault)
    fault.plant(ill)
    found = check(fault, validate(ill.options))
    if located:
        assert found.failures[-1] == f"first differs in {fault.layer}"
    record_property("measured", found.failures[0])


@pytest.mark.slow
@pytest.mark.parametrize("fault", parameters(fault for fault in FAULTS if fault.layer and fault.component == "unet"))
def test_a_wrong_weight_of_the_unet_is_named_at_its_layer(fault: Fault, patient: Make) -> None:
    ill = patient(fault)
    fault.plant(ill)
    assert check(fault, validate(ill.options)).failures[-1] == f"first differs in {fault.layer}"


def undamaged(base: str) -> Fault:
    return Fault("nothing", base, GENERATION, lambda _: None, "")


@pytest.mark.parametrize("base", [ONNX, *(pytest.param(base, marks=pytest.mark.slow) for base in FIXTURES if base != ONNX)])
def test_before_anything_is_planted_nothing_fails(base: str, patient: Make) -> None:
    options = replace(patient(undamaged(base)).options, components=None)
    assert validate(options).exit_code == 0


# ---------------------------------------------------------------------------------------------------- the real command


def arguments(options: ValidateOptions) -> list[str]:
    return [
        *(str(options.artifact), "--load-reference", str(options.load_reference)),
        *("--components", ",".join(options.components or ()), "--seeds", str(len(options.seeds))),
        *("--steps", str(options.steps), "--generation" if options.generation else "--no-generation"),
    ]


COMMANDED = {
    "nothing": (undamaged(ONNX), 0),
    "a weight": (WEIGHT_FAULTS[1], 1),
    "the graph": (STRUCTURE_FAULTS[2], 1),
    "a file": (FILE_FAULTS[1], 1),
    "the runtime": (RUNTIME_FAULTS[0], 1),
}


@pytest.mark.parametrize("damaged", COMMANDED)
@pytest.mark.usefixtures("capsys")
def test_the_command_exits_0_and_1(damaged: str, patient: Make) -> None:
    fault, expected = COMMANDED[damaged]
    ill = patient(fault)
    fault.plant(ill)
    with pytest.raises(SystemExit) as caught:
        run(app, arguments(ill.options))
    assert caught.value.code == expected


@pytest.mark.slow
@pytest.mark.parametrize("base", [OPENVINO, ONNX])
def test_a_process_exits_0_and_1(base: str, patient: Make) -> None:
    healthy = patient(undamaged(base))
    command = [sys.executable, "-m", "vaefix.validate.cli", *arguments(healthy.options)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    healthy.change_weight("vae_encoder", "quant_conv.bias", lambda weight: weight.__imul__(2))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
