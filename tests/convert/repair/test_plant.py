"""Planted illnesses follow the rules on every architecture, and the rules are tight."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from vaefix.convert.repair.identity import check_identity
from vaefix.convert.repair.plant import plant
from vaefix.convert.repair.rules import constraints
from vaefix.convert.repair.solve import FLOAT16_MAX
from vaefix.runtime.errors import ParityError

NETWORKS = [
    *("vae_decoder", "vae_encoder", "text_encoder", "t5_encoder"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "sd3_transformer")),
]
LARGEST = 2.0**23


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_network_is_the_same_function(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    ranges, _ = network.measured()
    for seed in range(3):
        plan = plant(network.program, ranges, seed)
        assert len(plan.parameters) > len(network.tensors) / 4
        assert plan.literals
        check_identity(network.program, plan, network.weights, network.sample(seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_network_with_one_wrong_exponent_is_another_function(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    plan = plant(network.program, network.measured()[0], 0)
    generator = random.Random(0)
    matrices = sorted(key for key in plan.parameters if network.tensors[key].dim() > 1)
    for chosen in generator.sample(matrices, 3):
        wrong = replace(plan, parameters={**plan.parameters, chosen: plan.parameters[chosen] + 1})
        with pytest.raises(ParityError, match="first at"):
            check_identity(network.program, wrong, network.weights, network.sample(0))


def test_seed_decides(vae_decoder: Any) -> None:
    ranges, _ = vae_decoder.measured()
    assert plant(vae_decoder.program, ranges, 7) == plant(vae_decoder.program, ranges, 7)
    assert plant(vae_decoder.program, ranges, 7) != plant(vae_decoder.program, ranges, 8)


def test_peaks_reach_far_beyond_float16_and_no_further_than_asked(vae_decoder: Any) -> None:
    ranges, _ = vae_decoder.measured()
    peaks = [max(op.absmax_after for op in plant(vae_decoder.program, ranges, seed).ops) for seed in range(30)]
    assert min(peaks) > 2.0**16
    assert LARGEST / 4 < max(peaks) <= LARGEST
    assert max(op.absmax_after for op in plant(vae_decoder.program, ranges, 0, largest_peak=2.0**10).ops) <= 2.0**10


def test_weights_that_are_known_stay_storable_beside_the_peak_asked_for(vae_decoder: Any) -> None:
    ranges, weights = vae_decoder.measured()
    for seed in range(5):
        plan = plant(vae_decoder.program, ranges, seed, largest_peak=2.0**20, weights=weights)
        assert 2.0**19 < max(op.absmax_after for op in plan.ops) <= 2.0**20
        assert max(weights[name].absmax * 2.0**exponent for name, exponent in plan.parameters.items()) <= FLOAT16_MAX


def test_illness_without_literals_fits_a_checkpoint_and_nearly_keeps_the_function(vae_decoder: Any) -> None:
    ranges, _ = vae_decoder.measured()
    inputs = vae_decoder.sample(0)
    (expected,) = vae_decoder.run(inputs)
    norm_inputs = {literal.value for literal in constraints(vae_decoder.program).literals.values()}
    for seed in range(5):
        plan = plant(vae_decoder.program, ranges, seed, literals=False)
        assert not plan.literals
        assert all(op.exponent >= 0 for op in plan.ops if op.name in norm_inputs)
        ill = vae_decoder.scaled(plan)
        assert ill.program == vae_decoder.program
        assert torch.allclose(ill.run(inputs)[0], expected, atol=1e-4)
        assert ill.overflows_in_half(inputs)
