"""The proof of identity accepts what is identical and names the place where something is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vaefix.convert.program import Program
from vaefix.convert.repair.identity import check_identity, scaled_weights
from vaefix.convert.repair.plan import ScalePlan
from vaefix.convert.repair.plant import plant
from vaefix.runtime.errors import ParityError


@pytest.fixture(scope="module")
def plan(vae_decoder: Any) -> ScalePlan:
    return plant(vae_decoder.program, vae_decoder.measured()[0], 1)


def check(network: Any, plan: ScalePlan) -> None:
    check_identity(network.program, plan, network.weights, network.sample(0))


def test_plan_that_follows_the_rules_passes(vae_decoder: Any, plan: ScalePlan) -> None:
    check(vae_decoder, plan)


def test_eps_that_stays_behind_is_named(vae_decoder: Any, plan: ScalePlan) -> None:
    norm = next(op for op in vae_decoder.program.ops if plan.literals.get(op.name, 0) < -4)
    literals = {name: exponent for name, exponent in plan.literals.items() if name != norm.name}
    with pytest.raises(ParityError, match=f"first at {norm.path} ") as caught:
        check(vae_decoder, replace(plan, literals=literals))
    assert caught.value.source == "sample"


@pytest.mark.parametrize("index", [0, 3, -1])
def test_weight_off_by_one_exponent_is_named(vae_decoder: Any, plan: ScalePlan, index: int) -> None:
    convolution = [op for op in vae_decoder.program.ops if op.target == "aten.conv2d.default"][index]
    name = f"{convolution.path}.weight"
    wrong = {**plan.parameters, name: plan.parameters.get(name, 0) + 1}
    with pytest.raises(ParityError, match=f"first at {convolution.path} "):
        check(vae_decoder, replace(plan, parameters=wrong))


def test_component_that_is_not_finite_fails_though_both_runs_agree(vae_decoder: Any) -> None:
    tensors = {**vae_decoder.tensors, "decoder.conv_out.bias": torch.full((3,), torch.nan)}
    with pytest.raises(ParityError, match="not finite"):
        check(type(vae_decoder)(vae_decoder.program, tensors, vae_decoder.sample), ScalePlan())


def test_comparing_nothing_fails() -> None:
    with pytest.raises(ParityError, match="nothing to compare"):
        check_identity(Program({}, (), (), ()), ScalePlan(), lambda name: torch.zeros(1), {})


def test_unscaled_weights_are_passed_through_untouched(vae_decoder: Any) -> None:
    scaled = scaled_weights(vae_decoder.weights, ScalePlan({"decoder.conv_in.bias": -3}))
    assert scaled("decoder.conv_in.weight") is vae_decoder.tensors["decoder.conv_in.weight"]
    assert torch.equal(scaled("decoder.conv_in.bias") * 8, vae_decoder.tensors["decoder.conv_in.bias"])
