"""The promise of the repair, on the real VAE architecture: any illness that the rules allow is cured, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from vaefix.convert.repair.plan import Range
from vaefix.convert.repair.plant import plant
from vaefix.convert.repair.solve import FLOAT16_MAX, HEADROOM, solve

ALLOWED = 1.1  # error of the repaired model in half, relative to that of its healthy twin


def seeds(default: int, of: int) -> list[object]:
    """The first by default, the others when there is time."""
    return [*range(default), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(default, of))]


@dataclass(frozen=True)
class Twin:
    """The healthy network, its ranges and outputs, and the error that half arithmetic makes in it."""

    network: Any
    ranges: dict[str, Range]
    inputs: dict[str, torch.Tensor]
    expected: torch.Tensor
    half_error: float


def relative_rms(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def twin_of(network: Any) -> Twin:
    inputs = network.sample(0)
    (expected,), (half,) = network.run(inputs), network.run_half(inputs)
    assert half.isfinite().all()
    return Twin(network, network.measured()[0], inputs, expected, relative_rms(half, expected))


@pytest.fixture(scope="module")
def decoder_twin(vae_decoder: Any) -> Twin:
    return twin_of(vae_decoder)


@pytest.fixture(scope="module")
def encoder_twin(vae_encoder: Any) -> Twin:
    return twin_of(vae_encoder)


def check_cure(twin: Twin, seed: int) -> None:
    illness = plant(twin.network.program, twin.ranges, seed)
    ill = twin.network.scaled(illness)
    assert torch.equal(ill.run(twin.inputs)[0], twin.expected)
    assert max(op.absmax_after for op in illness.ops) > FLOAT16_MAX
    assert min(illness.parameters.values()) < 0 < max(illness.parameters.values())
    assert ill.overflows_in_half(twin.inputs)

    plan = solve(ill.program, *ill.measured())
    assert not plan.keep_fp32
    assert max(op.absmax_after for op in plan.ops) <= FLOAT16_MAX / HEADROOM

    cured = ill.scaled(plan)
    assert torch.equal(cured.run(twin.inputs)[0], twin.expected)
    (half,) = cured.run_half(twin.inputs)
    assert half.isfinite().all()
    error = relative_rms(half, twin.expected)
    assert error <= ALLOWED * twin.half_error, f"{error / twin.half_error:.3f} times the error of the healthy twin"


@pytest.mark.parametrize("seed", seeds(12, of=70))
def test_ill_decoder_is_cured(decoder_twin: Twin, seed: int) -> None:
    check_cure(decoder_twin, seed)


@pytest.mark.parametrize("seed", seeds(6, of=30))
def test_ill_encoder_is_cured(encoder_twin: Twin, seed: int) -> None:
    check_cure(encoder_twin, seed)


@pytest.mark.parametrize("name", ["decoder_twin", "encoder_twin"])
@pytest.mark.parametrize("seed", range(4))
def test_same_illness_gets_the_same_plan_and_no_second_one(name: str, seed: int, request: pytest.FixtureRequest) -> None:
    twin = request.getfixturevalue(name)
    ill = twin.network.scaled(plant(twin.network.program, twin.ranges, seed))
    plan = solve(ill.program, *ill.measured())
    assert not plan.is_empty
    assert solve(ill.program, *ill.measured()) == plan
    cured = ill.scaled(plan)
    assert solve(cured.program, *cured.measured()).is_empty


@pytest.mark.parametrize(
    "name",
    [
        *("vae_decoder", "vae_encoder", "text_encoder", "t5_encoder"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "sd3_transformer")),
    ],
)
def test_healthy_network_gets_an_empty_plan_and_keeps_its_bytes(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name)
    plan = solve(network.program, *network.measured())
    assert plan.is_empty
    cured = network.scaled(plan)
    assert cured.program == network.program
    assert all(cured.weights(key) is tensor for key, tensor in network.tensors.items())


def test_repair_without_floors_for_precision_would_fail(decoder_twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaefix.convert.repair.solve.LOST_BIT", 0.0)
    errors = []
    for seed in range(6):
        ill = decoder_twin.network.scaled(plant(decoder_twin.network.program, decoder_twin.ranges, seed))
        (half,) = ill.scaled(solve(ill.program, *ill.measured())).run_half(decoder_twin.inputs)
        errors.append(relative_rms(half, decoder_twin.expected))
    assert not max(errors) <= ALLOWED * decoder_twin.half_error
