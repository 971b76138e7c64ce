"""Every rule against arithmetic: exponents it allows leave float32 bit-identical, exponents it forbids do not.

Each case is captured from a small function. All exponents in a small cube are tried for its inputs and its output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from vaefix.convert.capture import capture
from vaefix.convert.execute import execute
from vaefix.convert.program import Input, Op, Parameter, Program, Ref
from vaefix.convert.repair.rules import RULES, constraints, is_floating, rule_of

aten = torch.ops.aten
IDS = "ids"  # an integer input of shape (2, 3) with values 0 to 3


@dataclass(frozen=True)
class Case:
    """A function of float inputs of these shapes (or IDS). exact: the rule allows everything that is bit-identical."""

    target: str
    function: Callable[..., torch.Tensor]
    inputs: tuple[tuple[int, ...] | str, ...]
    exact: bool = True


def case(target: str, function: Callable[..., torch.Tensor], *inputs: tuple[int, ...] | str, exact: bool = True) -> object:
    prefix = "" if target.startswith("operator.") else "aten."
    return pytest.param(Case(prefix + target, function, inputs, exact), id=f"{target}-{len(inputs)}")


V, M, T, F = (8,), (3, 4), (2, 3, 4), (2, 4, 6, 6)

# rule 1
CONTRACTIONS = [
    case("matmul.default", lambda x, y: x @ y, T, (4, 5)),
    case("mm.default", lambda x, y: aten.mm(x, y), M, (4, 5)),
    case("bmm.default", lambda x, y: torch.bmm(x, y), T, (2, 4, 5)),
    case("einsum.default", lambda x, y: torch.einsum("bij,bjk->bik", x, y), T, (2, 4, 5)),
    case("mul.Tensor", lambda x, y: x * y, M, M),
    case("mul.Tensor", lambda x: x * 0.3, M),
    case("mul.Tensor", lambda x: x * x, M),
    case("mul.Scalar", lambda x: aten.mul.Scalar(x, 0.3), M),
    case("linear.default", lambda x, w, b: torch.nn.functional.linear(x, w, b), T, (5, 4), (5,)),
    case("linear.default", lambda x, w: torch.nn.functional.linear(x, w), T, (5, 4)),
    case("conv1d.default", lambda x, w, b: torch.conv1d(x, w, b), (2, 4, 6), (3, 4, 3), (3,)),
    case("conv2d.default", lambda x, w, b: torch.conv2d(x, w, b, padding=1), F, (3, 4, 3, 3), (3,)),
    case("conv2d.default", lambda x, w: torch.conv2d(x, w), F, (3, 4, 3, 3)),
    case("conv3d.default", lambda x, w, b: torch.conv3d(x, w, b), (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), (3,)),
    case("conv_transpose1d.default", lambda x, w, b: torch.conv_transpose1d(x, w, b), (2, 4, 6), (4, 3, 3), (3,)),
    case("conv_transpose2d.input", lambda x, w, b: torch.conv_transpose2d(x, w, b), F, (4, 3, 3, 3), (3,)),
    case("conv_transpose3d.input", lambda x, w: torch.conv_transpose3d(x, w), (1, 2, 3, 3, 3), (2, 3, 2, 2, 2)),
    case("addmm.default", lambda b, x, w: torch.addmm(b, x, w, beta=0.5), (5,), M, (4, 5)),
    case("baddbmm.default", lambda b, x, w: torch.baddbmm(b, x, w), (2, 3, 5), T, (2, 4, 5)),
]
# rule 2
SUMS = [
    case("add.Tensor", lambda x, y: x + y, M, M),
    case("add.Tensor", lambda x, y: torch.add(x, y, alpha=3), M, (4,)),
    case("add.Tensor", lambda x: x + 0.3, M),
    case("add.Scalar", lambda x: aten.add.Scalar(x, 0.3), M),
    case("sub.Tensor", lambda x, y: x - y, M, M),
    case("sub.Tensor", lambda x: x - 1, M),
    case("sub.Scalar", lambda x: aten.sub.Scalar(x, 0.3), M),
    case("rsub.Scalar", lambda x: aten.rsub.Scalar(x, 1), M),
    case("rsub.Tensor", lambda x, y: aten.rsub.Tensor(x, y), M, M),
    case("cat.default", lambda x, y: torch.cat([x, y], 1), M, M),
    case("concat.default", lambda x, y: torch.concat([x, y], 1), M, M),
    case("stack.default", lambda x, y: torch.stack([x, y]), M, M),
    case("maximum.default", lambda x, y: torch.maximum(x, y), M, M),
    case("minimum.default", lambda x, y: torch.minimum(x, y), M, M),
    case("where.self", lambda i, x, y: torch.where(i > 1, x, y), IDS, (2, 3), (2, 3)),
]
# rule 3
QUOTIENTS = [
    case("div.Tensor", lambda x, y: x / y, M, M),
    case("div.Tensor", lambda x: x / 0.3, M),
    case("div.Scalar", lambda x: aten.div.Scalar(x, 0.3), M),
]
# rule 4
POWERS = [
    *(case("pow.Tensor_Scalar", lambda x, p=p: x.abs().pow(p), M) for p in (-2, -1, -0.5, 0.5, 1, 2, 3, 2.0)),
    case("square.default", lambda x: x.square(), M),
    case("sqrt.default", lambda x: x.abs().sqrt(), M),
    case("rsqrt.default", lambda x: x.abs().rsqrt(), M),
    case("reciprocal.default", lambda x: x.reciprocal(), M),
]
# rule 5
NORMS = [
    case("group_norm.default", lambda x, w, b: torch.nn.functional.group_norm(x, 2, w, b, 1e-3), F, (4,), (4,)),
    case("group_norm.default", lambda x, w, b: aten.group_norm(x, 2, w, b), F, (4,), (4,)),
    case("group_norm.default", lambda x: torch.nn.functional.group_norm(x, 2, eps=1e-3), F),
    case("layer_norm.default", lambda x, w, b: torch.nn.functional.layer_norm(x, [4], w, b, 1e-3), T, (4,), (4,)),
    case("layer_norm.default", lambda x, w: torch.nn.functional.layer_norm(x, [4], w, None, 1e-3), T, (4,)),
    case("layer_norm.default", lambda x, w: torch.nn.functional.layer_norm(x, [4], w, None, 0.0), T, (4,)),
    case("layer_norm.default", lambda x: torch.nn.functional.layer_norm(x, [4]), T),
    case("rms_norm.default", lambda x, w: torch.nn.functional.rms_norm(x, [4], w, 1e-3), T, (4,)),
    case("rms_norm.default", lambda x: torch.nn.functional.rms_norm(x, [4], None, 1e-3), T),
    case("rms_norm.default", lambda x, w: torch.nn.functional.rms_norm(1e-3 * x, [4], w), T, (4,)),
]
# rule 6
CARRIERS = [
    case("view.default", lambda x: x.view(4, 3), M),
    case("reshape.default", lambda x: x.reshape(-1), M),
    case("flatten.using_ints", lambda x: x.flatten(1), T),
    case("unflatten.int", lambda x: x.unflatten(1, (2, 2)), M),
    case("unsqueeze.default", lambda x: x.unsqueeze(0), M),
    case("squeeze.dim", lambda x: x.squeeze(0), (1, 4)),
    case("squeeze.default", lambda x: x.squeeze(), (1, 4)),
    case("transpose.int", lambda x: x.transpose(0, 1), M),
    case("t.default", lambda x: x.t(), M),
    case("permute.default", lambda x: x.permute(2, 0, 1), T),
    case("expand.default", lambda x: x.expand(2, 3, 4), M),
    case("repeat.default", lambda x: x.repeat(2, 1), M),
    case("contiguous.default", lambda x: x.t().contiguous(), M),
    case("clone.default", lambda x: x.clone(), M),
    case("alias.default", lambda x: aten.alias(x), M),
    case("slice.Tensor", lambda x: x[:, 1:3], M),
    case("select.int", lambda x: x[0], M),
    case("narrow.default", lambda x: x.narrow(1, 0, 2), M),
    case("chunk.default", lambda x: x.chunk(2, 1)[1], M),
    case("split.Tensor", lambda x: x.split(2, 1)[1], M),
    case("split_with_sizes.default", lambda x: x.split([1, 3], 1)[1], M),
    case("unbind.int", lambda x: x.unbind(0)[1], M),
    case("operator.getitem", lambda x: x.unbind(0)[0], M),
    case("index.Tensor", lambda x, i: x[i], (4, 3), IDS),
    case("index_select.default", lambda x, i: x.index_select(0, i[0]), (4, 3), IDS),
    case("gather.default", lambda x, i: x.gather(1, i), (2, 4), IDS),
    case("roll.default", lambda x: x.roll(1, 0), M),
    case("flip.default", lambda x: x.flip(0), M),
    case("embedding.default", lambda x, i: torch.nn.functional.embedding(i, x), (4, 3), IDS),
    case("to.dtype", lambda x: x.to(torch.float64), M),
    case("to.device", lambda x: x.to(torch.device("cpu"), torch.float64), M),
    case("detach.default", lambda x: x.detach(), M),
    case("type_as.default", lambda x, y: x.type_as(y), M, M),
    case("dropout.default", lambda x: torch.nn.functional.dropout(x, 0.5, training=False), M),
    case("relu.default", lambda x: x.relu(), M),
    case("leaky_relu.default", lambda x: torch.nn.functional.leaky_relu(x, 0.1), M),
    case("abs.default", lambda x: x.abs(), M),
    case("neg.default", lambda x: -x, M),
    case("mean.default", lambda x: x.mean(), M),
    case("mean.dim", lambda x: x.mean(1, keepdim=True), M),
    case("sum.default", lambda x: x.sum(), M),
    case("sum.dim_IntList", lambda x: x.sum(1), M),
    case("amax.default", lambda x: x.amax(1), M),
    case("amin.default", lambda x: x.amin(1), M),
    case("upsample_nearest2d.vec", lambda x: torch.nn.functional.interpolate(x, scale_factor=2.0), F),
    case("upsample_bilinear2d.vec", lambda x: torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"), F),
    case("avg_pool2d.default", lambda x: torch.nn.functional.avg_pool2d(x, 3), F),
    case("max_pool2d.default", lambda x: torch.nn.functional.max_pool2d(x, 3, padding=1), F),
    case("pixel_shuffle.default", lambda x: torch.nn.functional.pixel_shuffle(x, 2), F),
    case("pixel_unshuffle.default", lambda x: torch.nn.functional.pixel_unshuffle(x, 2), F),
]
# rule 7
sdpa = torch.nn.functional.scaled_dot_product_attention
ATTENTION = [
    case("scaled_dot_product_attention.default", lambda q, k, v: sdpa(q, k, v), (1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4)),
    case("scaled_dot_product_attention.default", lambda x, v: sdpa(x, x, v, is_causal=True), (1, 1, 3, 4), (1, 1, 3, 4)),
    case(
        "scaled_dot_product_attention.default",
        lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask),
        *((1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 3)),
    ),
    case(
        "scaled_dot_product_attention.default",
        lambda i, q, k, v: sdpa(q, k, v, attn_mask=i >= 0),
        *(IDS, (1, 1, 2, 4), (1, 1, 3, 4), (1, 1, 3, 4)),
    ),
]
# rule 8
FILLS = [
    case("pad.default", lambda x: torch.nn.functional.pad(x, (0, 1)), M),
    case("pad.default", lambda x: torch.nn.functional.pad(x, (0, 1), mode="replicate"), T),
    case("pad.default", lambda x: torch.nn.functional.pad(x, (0, 1), value=0.3), M),
    case("constant_pad_nd.default", lambda x: aten.constant_pad_nd(x, (0, 1)), M),
    case("constant_pad_nd.default", lambda x: aten.constant_pad_nd(x, (0, 1), 0.3), M),
    case("where.ScalarOther", lambda i, x: aten.where.ScalarOther(i > 1, x, -math.inf), IDS, (2, 3)),
    case("where.ScalarOther", lambda i, x: aten.where.ScalarOther(i > 1, x, 0.3), IDS, (2, 3)),
    case("where.ScalarSelf", lambda i, x: aten.where.ScalarSelf(i > 1, 0.0, x), IDS, (2, 3)),
    case("where.Scalar", lambda i: aten.where.Scalar(i > 1, 0.3, 0.0), IDS),
    case("masked_fill.Scalar", lambda i, x: x.masked_fill(i > 1, -math.inf), IDS, (2, 3)),
    case("masked_fill.Scalar", lambda i, x: x.masked_fill(i > 1, -1e4), IDS, (2, 3)),
]
# rule 9
SHAPES = [
    case("sym_size.int", lambda x: torch.ones(x.shape[0]), (None, 4)),
    case("ones_like.default", lambda x: torch.ones_like(x), M),
    case("full_like.default", lambda x: torch.full_like(x, 0.3), M),
    case("zeros_like.default", lambda x: torch.zeros_like(x), M, exact=False),
]
# rule 10, and operations in place
THE_REST = [
    case("silu.default", lambda x: torch.nn.functional.silu(x), M),
    case("gelu.default", lambda x: torch.nn.functional.gelu(x), M),
    case("sigmoid.default", lambda x: x.sigmoid(), M),
    case("tanh.default", lambda x: x.tanh(), M),
    case("softmax.int", lambda x: x.softmax(-1), M),
    case("exp.default", lambda x: x.exp(), M),
    case("sin.default", lambda x: x.sin(), M),
    case("clamp.default", lambda x: x.clamp(-0.5, 0.5), M),
    case("pow.Tensor_Scalar", lambda x: x.abs().pow(1.5), M, exact=False),
    case("pow.Scalar", lambda x: 2**x, M),
    case("argmax.default", lambda x: x.argmax(-1), M, exact=False),
    case("mul_.Tensor", lambda x, y: x.mul_(y), M, M, exact=False),
    case("silu_.default", lambda x: torch.nn.functional.silu(x, inplace=True), M),
    case("detach_.default", lambda x: x.detach_(), M),
    case("add_.Tensor", lambda x, y: x.add_(y), M, M),
]
CASES = [*CONTRACTIONS, *SUMS, *QUOTIENTS, *POWERS, *NORMS, *CARRIERS, *ATTENTION, *FILLS, *SHAPES, *THE_REST]


def captured(function: Callable[..., torch.Tensor], *shapes: tuple[int | None, ...] | str) -> Program:
    inputs = [
        Input(f"in{i}", "int64", (2, 3)) if shape == IDS else Input(f"in{i}", "float32", shape)  # type: ignore[arg-type]
        for i, shape in enumerate(shapes)
    ]
    module = type("Module", (torch.nn.Module,), {"forward": staticmethod(function)})()
    return capture(module, inputs, ["out"])


def random_inputs(program: Program) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        item.name: torch.randint(0, 4, (2, 3), generator=generator)
        if item.dtype == "int64"
        else torch.randn([size or 2 for size in item.shape], generator=generator)
        for item in program.inputs
    }


def run(program: Program, inputs: dict[str, torch.Tensor], exponents: dict[str, int]) -> torch.Tensor:
    """The output for scaled inputs and literals."""
    feeds = {
        name: value * 2.0 ** exponents[name] if name in exponents and value.is_floating_point() else value.clone()
        for name, value in inputs.items()
    }
    scaled = replace(program, ops=tuple(with_scaled_literal(op, exponents) for op in program.ops))

    def no_weights(name: str) -> torch.Tensor:
        raise AssertionError(name)

    return execute(scaled, no_weights, feeds)["out"]


def with_scaled_literal(op: Op, exponents: dict[str, int]) -> Op:
    _, literal = rule_of(op)
    if literal is None:
        return op
    number = literal.number * 2.0 ** (literal.factor * exponents[literal.value])
    if literal.position < len(op.args):
        return replace(op, args=(*op.args[: literal.position], number, *op.args[literal.position + 1 :]))
    return replace(op, kwargs={**op.kwargs, literal.keyword: number})


def assignments(program: Program) -> Iterator[tuple[dict[str, int], bool]]:
    """All exponents in a small cube over floating inputs and values, and whether the rules allow them."""
    names = [item.name for item in program.inputs if item.dtype == "float32"]
    names += [op.name for op in program.ops if op.dtype is None or is_floating(op.dtype)]
    equations = [equation for op in program.ops for equation in rule_of(op)[0]]
    cube = range(-2, 3) if len(names) < 4 else range(-1, 2)
    for chosen in itertools.product(cube, repeat=len(names)):
        exponents = dict(zip(names, chosen, strict=True))
        yield exponents, all(sum(c * exponents.get(name, 0) for name, c in equation.items()) == 0 for equation in equations)


@pytest.mark.parametrize("case", CASES)
def test_rule_allows_exactly_what_leaves_float32_bit_identical(case: Case) -> None:
    program = captured(case.function, *case.inputs)
    assert case.target in {op.target for op in program.ops}
    inputs = random_inputs(program)
    expected = run(program, inputs, dict.fromkeys((*inputs, *(op.name for op in program.ops)), 0))
    output = program.outputs[0][1]
    visible = [*(item.name for item in program.inputs if item.dtype == "float32"), output]
    tried: dict[tuple[int, ...], dict[str, int]] = {}
    allowed: dict[tuple[int, ...], dict[str, int]] = {}
    for exponents, follows_rules in assignments(program):
        key = tuple(exponents.get(name, 0) for name in visible)
        tried.setdefault(key, exponents)
        if follows_rules:
            allowed[key] = exponents
    assert allowed
    assert len(allowed) < len(tried)
    for key in tried:
        exponents = allowed.get(key, tried[key])
        found = run(program, inputs, exponents)
        identical = torch.equal(found, expected * 2.0 ** exponents.get(output, 0))
        if key in allowed or case.exact:
            assert identical == (key in allowed), exponents


def test_every_rule_has_a_case() -> None:
    covered = {item.values[0].target for item in CASES}
    assert RULES.keys() - covered == set()


def test_operation_without_a_rule_moves_nothing() -> None:
    op = Op("out", "aten.unheard_of.default", (Ref("x"), [Ref("y")]), {"z": Ref("z")}, "", "float32", ("n", "n"))
    equations, literal = rule_of(op)
    assert literal is None
    assert all(len(equation) == 1 for equation in equations)
    assert {name for equation in equations for name in equation} == {"out", "x", "y", "z"}


def test_eps_that_stays_behind_changes_the_result() -> None:
    program = captured(lambda x, w, b: torch.nn.functional.group_norm(x, 2, w, b, 1e-3), F, (4,), (4,))
    inputs = random_inputs(program)
    expected = run(program, inputs, {"in0": 0})
    grown = {**inputs, "in0": inputs["in0"] * 4}
    assert not torch.equal(run(program, grown, {"in0": 0}), expected)
    assert torch.equal(run(program, inputs, {"in0": 2}), expected)


def test_inputs_outputs_buffers_integers_and_unread_parameters_are_fixed() -> None:
    def op(name: str, target: str, *args: object, dtype: str = "float32") -> Op:
        return Op(name, target, args, {}, "", dtype, ("n", "n"))

    program = Program(
        parameters={"w": Parameter("weight", (4, 4)), "v": Parameter("other", (4, 4)), "unread": Parameter("unread", (4,))},
        inputs=(Input("x", "float32", (2, 4)),),
        ops=(
            op("size", "aten.sym_size.int", Ref("x"), 0, dtype="int"),
            op("hidden", "aten.linear.default", Ref("x"), Ref("w")),
            op("viewed", "aten.view.default", Ref("x"), [4, 2]),
            op("shifted", "aten.add.Tensor", Ref("viewed"), Ref("buffer")),
            op("out", "aten.linear.default", Ref("hidden"), Ref("v")),
        ),
        outputs=(("y", "out"),),
    )
    found = constraints(program)
    assert {"x", "size", "buffer", "viewed", "shifted", "out", "unread"} <= found.fixed
    assert not {"w", "v", "hidden"} & found.fixed


def test_parameter_known_under_two_names_has_one_exponent() -> None:
    program = Program(
        parameters={"a": Parameter("shared", (4, 4)), "b": Parameter("shared", (4, 4))},
        inputs=(Input("x", "float32", (2, 4)),),
        ops=(Op("y", "aten.mul.Tensor", (Ref("a"), Ref("b")), {}, "", "float32", ("n", "n")),),
        outputs=(),
    )
    assert {"b": 1, "a": -1} in constraints(program).equations
