"""What the solver decides: when a repair is due, what it moves, and what it says where none is possible."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from vaefix.convert.program import Input, Op, Parameter, Program, Ref
from vaefix.convert.repair.identity import check_identity
from vaefix.convert.repair.plan import Range, WeightStatistics
from vaefix.convert.repair.solve import DUE, FLOAT16_MAX, HEADROOM, WEIGHT_FLOOR, solve
from vaefix.runtime.errors import InputError

LIMIT = FLOAT16_MAX / HEADROOM


def op(name: str, target: str, *args: Any) -> Op:
    return Op(name, f"aten.{target}", args, {}, f"model.{name}", "float32", ("n", "n", "n"))


def program(*ops: Op) -> Program:
    """The last operation is the output; every value that no operation makes, except `x`, is a parameter."""
    made = {item.name for item in ops} | {"x"}
    names = dict.fromkeys(ref.name for item in ops for ref in item.refs() if ref.name not in made)
    return Program(
        {name: Parameter(name, (4, 4)) for name in names}, (Input("x", "float32", (1, 4)),), ops, (("y", ops[-1].name),)
    )


def statistics(graph: Program, **absmax: float) -> dict[str, WeightStatistics]:
    return {name: WeightStatistics(absmax.get(name, 1.0), absmax.get(name, 1.0) / 4, 2) for name in graph.parameters}


def ranges(**absmax: float) -> dict[str, Range]:
    return {name: Range(value) for name, value in absmax.items()}


STREAM = program(
    op("a", "linear.default", Ref("x"), Ref("w1"), Ref("b1")),
    op("n", "layer_norm.default", Ref("a"), [4], Ref("gamma"), Ref("beta"), 1e-5),
    op("s", "silu.default", Ref("n")),
    op("out", "linear.default", Ref("s"), Ref("w2")),
)


def test_overflow_before_a_norm_is_moved_into_its_eps() -> None:
    plan = solve(STREAM, ranges(a=1e6, n=3, s=3, out=1), statistics(STREAM))
    exponent = math.floor(math.log2(LIMIT / 1e6))
    assert plan.parameters == {"w1": exponent, "b1": exponent}
    assert plan.literals == {"n": 2 * exponent}
    assert not plan.keep_fp32
    assert {item.name: item.exponent for item in plan.ops} == {"a": exponent, "n": 0, "s": 0, "out": 0}
    assert plan.ops[0].absmax_after == 1e6 * 2.0**exponent <= LIMIT
    assert plan.ops[0].path == "model.a"


def test_repair_is_due_only_within_a_factor_of_overflow() -> None:
    assert solve(STREAM, ranges(a=DUE * LIMIT, n=3, s=3, out=1), statistics(STREAM)).is_empty
    assert not solve(STREAM, ranges(a=DUE * LIMIT * 1.001, n=3, s=3, out=1), statistics(STREAM)).is_empty


def test_small_weights_alone_make_no_repair_due() -> None:
    assert solve(STREAM, ranges(a=1e-5, n=3, s=3, out=1), statistics(STREAM, w1=1e-6)).is_empty


def test_weight_beyond_float16_is_brought_back() -> None:
    plan = solve(STREAM, ranges(a=100, n=3, s=3, out=1), statistics(STREAM, w1=1e6))
    assert 1e6 * 2.0 ** plan.parameters["w1"] <= FLOAT16_MAX
    assert plan.parameters["b1"] == plan.parameters["w1"]


def test_weight_beyond_float16_that_nothing_can_scale_is_named() -> None:
    with pytest.raises(InputError, match="w2") as caught:
        solve(STREAM, ranges(a=100, n=3, s=3, out=1), statistics(STREAM, w2=1e6))
    assert caught.value.source == "w2"
    assert "fp32" in str(caught.value.remedy)


def test_weights_that_cannot_both_be_brought_back_are_named() -> None:
    graph = program(op("h", "linear.default", Ref("x"), Ref("w1")), op("out", "linear.default", Ref("h"), Ref("w2")))
    with pytest.raises(InputError, match="beyond float16") as caught:
        solve(graph, ranges(h=1, out=1), statistics(graph, w1=1e6, w2=2e6))
    assert caught.value.source == "w2"


def test_blurred_weight_is_reported() -> None:
    plan = solve(STREAM, ranges(a=1e6, n=3, s=3, out=1), statistics(STREAM, w1=2**-6))
    assert plan.below_floor == {"w1": 2.0**-8 * 2.0 ** plan.parameters["w1"]}
    assert plan.below_floor["w1"] < WEIGHT_FLOOR


def test_operations_without_freedom_stay_in_fp32_with_their_readers() -> None:
    graph = program(
        op("a", "linear.default", Ref("x"), Ref("w1")),
        op("s", "silu.default", Ref("a")),
        op("b", "linear.default", Ref("s"), Ref("w2")),
        op("n", "layer_norm.default", Ref("b"), [4], Ref("gamma"), Ref("beta"), 1e-5),
        op("out", "linear.default", Ref("n"), Ref("w3")),
    )
    plan = solve(graph, ranges(a=1e6, s=1e6, b=1e7, n=3, out=1), statistics(graph))
    assert plan.keep_fp32 == ("a", "s", "b")
    assert plan.parameters["w2"] < 0
    assert {item.name: item.absmax_after for item in plan.ops}["b"] <= LIMIT


def test_component_without_any_freedom_stays_in_fp32_where_it_must() -> None:
    graph = program(op("e", "exp.default", Ref("x")), op("l", "log.default", Ref("e")), op("out", "sin.default", Ref("l")))
    plan = solve(graph, ranges(e=1e30, l=70, out=1), {})
    assert plan.keep_fp32 == ("e", "l")
    assert not plan.is_empty
    assert not plan.parameters


def test_fewest_operations_stay_in_fp32() -> None:
    graph = program(
        op("q", "linear.default", Ref("x"), Ref("wq")),
        op("k", "linear.default", Ref("x"), Ref("wk")),
        op("v", "linear.default", Ref("x"), Ref("wv")),
        op("out", "scaled_dot_product_attention.default", Ref("q"), Ref("k"), Ref("v")),
    )
    plan = solve(graph, ranges(q=1e6, k=1e6, v=1, out=1), statistics(graph))
    assert len(plan.keep_fp32) == 2
    assert plan.keep_fp32[1] == "out"
    after = {item.name: item.absmax_after for item in plan.ops}
    assert min(after["q"], after["k"]) <= LIMIT


def test_tight_but_safe_operation_without_freedom_is_left_in_16_bits() -> None:
    graph = program(*STREAM.ops[:-1], op("t", "linear.default", Ref("s"), Ref("w2")), op("out", "tanh.default", Ref("t")))
    plan = solve(graph, ranges(a=1e6, n=3, s=3, t=2 * LIMIT, out=1), statistics(graph))
    assert plan.parameters
    assert not plan.keep_fp32


def test_output_that_is_not_finite_is_refused_where_it_is_born() -> None:
    reached = ranges(a=1, n=3, s=3, out=1) | {"n": Range(3, 2), "out": Range(1, 1)}
    with pytest.raises(InputError, match="2 values") as caught:
        solve(STREAM, reached, statistics(STREAM))
    assert caught.value.source == "model.n"


def test_infinite_mask_on_the_way_is_no_reason_to_refuse() -> None:
    assert solve(STREAM, ranges(a=1, n=3, s=3, out=1) | {"n": Range(3, 2)}, statistics(STREAM)).is_empty


def test_inflated_residual_stream_of_the_decoder_is_what_moves(vae_decoder: Any) -> None:
    writers = re.compile(r"decoder\.(conv_in|.*conv2|.*to_out\.0)\.|decoder\..*(conv_shortcut|upsamplers\.0\.conv)\.bias")
    inflated = {name for name in vae_decoder.tensors if writers.match(name)}
    tensors = {name: t * 2.0**18 if name in inflated else t for name, t in vae_decoder.tensors.items()}
    ill = type(vae_decoder)(vae_decoder.program, tensors, vae_decoder.sample)
    inputs = vae_decoder.sample(0)
    assert ill.overflows_in_half(inputs)
    plan = solve(ill.program, *ill.measured())
    assert inflated <= plan.parameters.keys()
    assert all(plan.parameters[name] < 0 for name in inflated)
    seams = plan.parameters.keys() - inflated  # between stretches of the stream that get different exponents
    assert all(re.search(r"(conv_shortcut|upsamplers\.0\.conv)\.weight$", name) for name in seams)
    check_identity(ill.program, plan, ill.weights, inputs)
    (half,), (expected,) = ill.scaled(plan).run_half(inputs), ill.run(inputs)
    assert half.isfinite().all()
    assert float((half - expected).norm() / expected.norm()) < 0.005
    assert torch.allclose(expected, vae_decoder.run(inputs)[0], atol=1e-4)
