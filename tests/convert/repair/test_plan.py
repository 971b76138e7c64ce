"""The plan as data, and what applying it to a program changes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from vaefix.convert.program import Input, Op, Parameter, Program, Ref
from vaefix.convert.repair.plan import Range, ScaledOp, ScalePlan, apply_to_program, plan_from_exponents
from vaefix.convert.repair.plant import plant
from vaefix.runtime.errors import InputError

NORM = Program(
    parameters={"w": Parameter("proj.weight", (4, 4)), "g": Parameter("norm.weight", (4,))},
    inputs=(Input("x", "float32", (1, 4)),),
    ops=(
        Op("a", "aten.linear.default", (Ref("x"), Ref("w")), {}, "proj", "float32", ("n", "n")),
        Op("out", "aten.layer_norm.default", (Ref("a"), [4], Ref("g")), {}, "norm", "float32", ("n", "n")),
    ),
    outputs=(("y", "out"),),
)


@pytest.mark.parametrize("module", ["plan", "rules", "solve", "plant"])
def test_reasoning_about_exponents_needs_no_torch(module: str) -> None:
    code = f"import sys, vaefix.convert.repair.{module}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]


def test_plan_survives_json() -> None:
    plan = ScalePlan({"w": -3}, {"n": -6}, (ScaledOp("n", "mid.norm", 1e6, -3, 1.25e5),), ("n",), {"w": 1e-4})
    assert ScalePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plan_of_a_real_component_survives_json(vae_decoder: Any) -> None:
    plan = plant(vae_decoder.program, vae_decoder.measured()[0], 0)
    assert ScalePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("plan", [ScalePlan({"w": 1}), ScalePlan(literals={"n": 2}), ScalePlan(keep_fp32=("a",))])
def test_plan_that_asks_for_anything_is_not_empty(plan: ScalePlan) -> None:
    assert not plan.is_empty
    assert ScalePlan().is_empty


def test_exponents_become_weights_literals_and_ranges() -> None:
    plan = plan_from_exponents(NORM, {"w": 5, "a": 5, "g": 0}, {"a": Range(3.0)})
    assert plan.parameters == {"proj.weight": 5}
    assert plan.literals == {"out": 10}
    assert plan.ops == (ScaledOp("a", "proj", 3.0, 5, 96.0),)


@pytest.mark.parametrize("exponents", [{"w": 5}, {"a": 5}, {"g": 1, "out": 1}, {"x": 1, "a": 1}])
def test_exponents_that_break_a_rule_are_refused(exponents: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exponent"):
        plan_from_exponents(NORM, exponents, {})


def test_eps_left_to_its_default_is_written_out() -> None:
    scaled = apply_to_program(NORM, ScalePlan({"proj.weight": 1}, {"out": 2}))
    assert scaled.ops[1].kwargs == {"eps": 1e-5 * 4}
    assert scaled.ops[0] == NORM.ops[0]
    assert NORM.ops[1].kwargs == {}


def test_only_the_named_literals_change(vae_decoder: Any) -> None:
    program = vae_decoder.program
    norm = next(op for op in program.ops if op.target == "aten.group_norm.default")
    scaled = apply_to_program(program, ScalePlan(literals={norm.name: -4}))
    changed = [(old, new) for old, new in zip(program.ops, scaled.ops, strict=True) if old != new]
    assert [old.name for old, _ in changed] == [norm.name]
    assert changed[0][1].args[4] == norm.args[4] / 16


@pytest.mark.parametrize("plan", [ScalePlan({"other": 1}), ScalePlan(literals={"other": 1}), ScalePlan(literals={"a": 1})])
def test_plan_of_another_program_is_refused(plan: ScalePlan) -> None:
    with pytest.raises(InputError, match="'(other|a)'"):
        apply_to_program(NORM, plan)
