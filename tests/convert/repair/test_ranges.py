"""Measured ranges against PyTorch's own hooks, and the corners: masks, NaN, large weights, memory."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from vaefix.convert.program import Input, Op, Parameter, Program, Ref
from vaefix.convert.repair.plan import Range
from vaefix.convert.repair.ranges import activation_ranges, weight_statistics

ADD = Program(
    {"b": Parameter("bias", (3,))},
    (Input("x", "float32", (None,)),),
    (Op("out", "aten.add.Tensor", (Ref("x"), Ref("b")), {}, "", "float32", ("n",)),),
    (("y", "out"),),
)
LOWEST = torch.finfo(torch.float32).min


def reached(*values: list[float]) -> Range:
    inputs = [{"x": torch.tensor(value)} for value in values]
    return activation_ranges(ADD, lambda name: torch.zeros(3), inputs)["out"]


def test_ranges_agree_with_hooks_on_the_modules(vae_decoder: Any) -> None:
    convolutions = [op for op in vae_decoder.program.ops if op.target == "aten.conv2d.default"]
    config = {"block_out_channels": [16, 32, 64, 64], "layers_per_block": 2, "norm_num_groups": 8}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(**config, **blocks, latent_channels=4).eval()
    assert not vae.load_state_dict(vae_decoder.tensors, strict=False).unexpected_keys
    seen: dict[str, float] = {}

    def hook(path: str) -> Any:
        def record(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> None:
            seen[path] = max(seen.get(path, 0.0), float(output.abs().max()))

        return record

    for op in convolutions:
        vae.get_submodule(op.path).register_forward_hook(hook(op.path))
    inputs = [vae_decoder.sample(seed) for seed in (1, 2)]
    with torch.no_grad():
        for feeds in inputs:
            vae.decode(feeds["latent_sample"])
    ranges = activation_ranges(vae_decoder.program, vae_decoder.weights, inputs)
    assert len(convolutions) > 20
    for op in convolutions:
        assert ranges[op.name].absmax == pytest.approx(seen[op.path], rel=1e-5)


def test_only_floating_point_outputs_have_a_range(text_encoder: Any) -> None:
    ranges, _ = text_encoder.measured()
    floating = {op.name for op in text_encoder.program.ops if op.dtype == "float32"}
    assert ranges.keys() == floating
    assert len(floating) < len(text_encoder.program.ops)


def test_largest_over_all_inputs_counts() -> None:
    assert reached([1.0, 2.0, -3.0], [0.0, 2.5, 1.0]) == Range(3.0)


def test_non_finite_values_are_counted_and_do_not_hide_the_rest() -> None:
    assert reached([math.nan, math.inf, -3.0], [-math.inf, 5.0, 1.0]) == Range(5.0, 3)
    assert reached([math.nan] * 3) == Range(0.0, 3)


def test_lowest_float_stands_for_minus_infinity() -> None:
    assert reached([LOWEST, 1.0, -2.0]) == Range(2.0)


def test_no_calibration_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="calibration"):
        reached()


def test_weight_statistics_of_a_large_weight_are_those_of_the_whole() -> None:
    weight = torch.randn(3000, 2000, generator=torch.Generator().manual_seed(0)).half()
    weight[2999, 1999] = -77.0
    program = Program({"w": Parameter("weight", (3000, 2000))}, (), (), ())
    found = weight_statistics(program, lambda name: weight)["weight"]
    assert found.absmax == 77.0
    assert found.rms == pytest.approx(float(weight.double().square().mean().sqrt()), rel=1e-12)
    assert found.rank == 2


def test_one_weight_lives_at_a_time(vae_decoder: Any) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def weights(name: str) -> torch.Tensor:
        nonlocal most
        tensor = vae_decoder.tensors[name].clone()
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    weight_statistics(vae_decoder.program, weights)
    assert most <= 2  # the next one is fetched before the name of the last is bound anew
    most = 0
    activation_ranges(vae_decoder.program, weights, [vae_decoder.sample(0)])
    assert most <= 3  # weight and bias of one operation
