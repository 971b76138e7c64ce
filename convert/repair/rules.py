"""What each operation allows when the values around it are multiplied by powers of two: one rule per ATen operation.

Every value v has an integer exponent e(v): the scaled program carries 2**e(v) * v. A rule says which exponents leave
the operation's float32 arithmetic bit-identical, as linear equations between the exponents of what it reads and writes.

    rule           operations                                      allows
    1 contraction  convolution, linear, matmul, einsum, mul        e(out) = sum of e(operands); e(bias) = e(out)
    2 sum          add, sub, concat, maximum, where                all equal; a number added takes 2**e(out)
    3 quotient     div                                             e(out) = e(numerator) - e(denominator)
    4 power        pow, sqrt, rsqrt, reciprocal                    e(out) = power * e(in)
    5 norm         group, layer, RMS norm                          e(out) = e(gamma) = e(beta); e(in) free, eps takes 4**e(in)
    6 carry        view, permute, slice, upsample, relu, mean,     e(out) = e(first operand)
                   embedding, cast, negation
    7 attention    scaled dot product attention                    e(query) + e(key) = 0; e(out) = e(value); e(mask) = 0
    8 fill         pad, where, masked fill with a number           as 6 or 2; 0 if the number is neither 0 nor infinite
    9 shape        size, zeros_like                                e(out) = 0, nothing about what it reads
    10 the rest    silu, softmax, sin, argmax, ...                 all 0

A decomposed RMSNorm (pow 2, mean, + eps, rsqrt, mul) needs no rule of its own. Graph inputs and outputs, buffers, what
is not floating point and parameters that nothing reads have exponent 0. A new operation is one line in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..program import Op, Program, Ref

Equation = dict[str, int]
"""Value name -> coefficient: the sum of coefficient * exponent is 0."""

EPS_FACTOR = 2
"""An eps is added to a variance, which moves twice as far as the values."""


@dataclass(frozen=True)
class Literal:
    """A number written in an operation that has to be multiplied by 2**(factor * e(value)).

    position, keyword: where the operation holds it, positionally or else by name.
    number: what stands there, the operator's default if nothing does.
    """

    position: int
    keyword: str
    number: float
    factor: int
    value: str


Rule = Callable[[Op], Iterator[Equation | Literal]]


@dataclass(frozen=True)
class Constraints:
    """Everything the rules say about a program.

    values: the names that have an exponent: parameters (by value name), then operations.
    fixed: those of them, and the inputs and buffers, that can have no exponent but 0.
    equations: between the others.
    literals: operation name -> the number in it that moves with an exponent.
    """

    values: tuple[str, ...]
    fixed: frozenset[str]
    equations: tuple[Equation, ...]
    literals: dict[str, Literal]


def constraints(program: Program) -> Constraints:
    """The equations of every operation, and what follows from inputs, outputs, integers and tied parameters."""
    values = (*program.parameters, *(op.name for op in program.ops))
    fixed = {value for _, value in program.outputs}
    fixed |= {op.name for op in program.ops if not is_floating(op.dtype) and op.dtype is not None}
    read = {ref.name for op in program.ops for ref in op.refs()}
    fixed |= (read - set(values)) | (program.parameters.keys() - read)
    equations = _ties(program)
    literals: dict[str, Literal] = {}
    for op in program.ops:
        found, literal = rule_of(op)
        equations += found
        if literal is not None:
            literals[op.name] = literal
    while True:
        reduced = [{name: c for name, c in equation.items() if name not in fixed} for equation in equations]
        equations = [equation for equation in reduced if equation]
        alone = {name for equation in equations if len(equation) == 1 for name in equation}
        if not alone:
            return Constraints(values, frozenset(fixed), tuple(equations), literals)
        fixed |= alone


def rule_of(op: Op) -> tuple[list[Equation], Literal | None]:
    """The equations of one operation and the number in it that is scaled along, if there is one."""
    packet, _, overload = op.target.rpartition(".")
    in_place = packet.endswith("_") and op.target not in RULES
    rule = RULES.get(f"{packet[:-1]}.{overload}" if in_place else op.target, _all_zero)
    emitted = list(rule(op))
    if in_place:  # the operand and the result are one tensor
        emitted.append(_sum({op.name: 1}, (-1, op.args[0])))
    equations = [{name: c for name, c in item.items() if c} for item in emitted if isinstance(item, dict)]
    literal = next((item for item in emitted if isinstance(item, Literal)), None)
    return [equation for equation in equations if equation], literal


def is_floating(dtype: str | None) -> bool:
    """Whether a dtype name (`float32`, `bfloat16`, `int64`, None for a tuple) can carry an exponent."""
    return dtype is not None and "float" in dtype


def _ties(program: Program) -> list[Equation]:
    """One exponent for a parameter that the graph knows under several names."""
    first: dict[str, str] = {}
    for value, parameter in program.parameters.items():
        first.setdefault(parameter.name, value)
    return [
        {value: 1, first[parameter.name]: -1}
        for value, parameter in program.parameters.items()
        if first[parameter.name] != value
    ]


def _argument(op: Op, position: int, keyword: str, default: Any = None) -> Any:
    return op.args[position] if position < len(op.args) else op.kwargs.get(keyword, default)


def _is_number(argument: Any) -> bool:
    return isinstance(argument, (int, float)) and not isinstance(argument, bool)


def _sum(equation: Equation, *terms: tuple[int, Any]) -> Equation:
    """The equation with coefficient * argument added; numbers and absent arguments have no exponent."""
    total = dict(equation)
    for coefficient, argument in terms:
        if isinstance(argument, Ref):
            total[argument.name] = total.get(argument.name, 0) + coefficient
    return total


def _contraction(op: Op) -> Iterator[Equation | Literal]:
    operands = op.args[1] if op.target.startswith("aten.einsum") else op.args[:2]
    yield _sum({op.name: 1}, *((-1, operand) for operand in operands))


def _contraction_with_bias(op: Op) -> Iterator[Equation | Literal]:
    yield from _contraction(op)
    yield _equal(op, _argument(op, 2, "bias"))


def _bias_first(op: Op) -> Iterator[Equation | Literal]:
    yield _sum({op.name: 1}, (-1, op.args[1]), (-1, op.args[2]))
    yield _equal(op, op.args[0])


def _equal(op: Op, argument: Any) -> Equation:
    return _sum({op.name: 1}, (-1, argument)) if isinstance(argument, Ref) else {}


def _addition(op: Op) -> Iterator[Equation | Literal]:
    for position, argument in enumerate(op.args[:2]):
        yield _equal(op, argument)
        if _is_number(argument) and argument != 0:
            yield Literal(position, "other", float(argument), 1, op.name)


def _all_equal(op: Op) -> Iterator[Equation | Literal]:
    for operand in op.args[0] if isinstance(op.args[0], (list, tuple)) else op.args[:2]:
        yield _equal(op, operand)


def _choice(op: Op) -> Iterator[Equation | Literal]:
    for choice in op.args[1:3]:
        yield _fill(op, choice) if _is_number(choice) else _equal(op, choice)


def _quotient(op: Op) -> Iterator[Equation | Literal]:
    yield _sum({op.name: 1}, (-1, op.args[0]), (1, op.args[1]))


def _power_of(exponent: float) -> Rule:
    numerator, denominator = float(exponent).as_integer_ratio()

    def rule(op: Op) -> Iterator[Equation | Literal]:
        yield _sum({op.name: denominator}, (-numerator, op.args[0]))

    return rule


def _power(op: Op) -> Iterator[Equation | Literal]:
    # Only these are computed by multiplication, division and square root; a general pow rounds as it likes.
    exact = _is_number(op.args[1]) and op.args[1] in (-2, -1, -0.5, 0.5, 1, 2, 3)
    yield from (_power_of(op.args[1]) if exact else _all_zero)(op)


def _norm(gamma: int, beta: int | None, eps: int, default_eps: float | None) -> Rule:
    """The rule of a norm whose gamma, beta and eps are the arguments at these positions."""

    def rule(op: Op) -> Iterator[Equation | Literal]:
        scale = _argument(op, gamma, "weight")
        shift = None if beta is None else _argument(op, beta, "bias")
        yield _equal(op, scale) if isinstance(scale, Ref) else {op.name: 1}
        yield _equal(op, shift)
        number, source = _argument(op, eps, "eps", default_eps), op.args[0].name
        if number is None:  # RMS norm's own choice by dtype: a number nobody can scale
            yield {source: 1}
        elif number != 0:
            yield Literal(eps, "eps", float(number), EPS_FACTOR, source)

    return rule


def _carry(op: Op) -> Iterator[Equation | Literal]:
    yield _equal(op, op.args[0])


def _attention(op: Op) -> Iterator[Equation | Literal]:
    query, key, value = op.args[:3]
    yield _sum({}, (1, query), (1, key))
    yield _equal(op, value)
    yield _sum({}, (1, _argument(op, 3, "attn_mask")))


def _fill(op: Op, number: float) -> Equation:
    return {} if number == 0 or math.isinf(number) else {op.name: 1}


def _pad(op: Op) -> Iterator[Equation | Literal]:
    yield from _carry(op)
    position = 2 if op.target.startswith("aten.constant_pad_nd") else 3
    yield _fill(op, _argument(op, position, "value") or 0)


def _masked_fill(op: Op) -> Iterator[Equation | Literal]:
    yield from _carry(op)
    yield _fill(op, op.args[2])


def _shape_only(op: Op) -> Iterator[Equation | Literal]:
    yield {op.name: 1}


def _all_zero(op: Op) -> Iterator[Equation | Literal]:
    yield {op.name: 1}
    for ref in op.refs():
        yield {ref.name: 1}


_CARRYING = """
    view.default reshape.default flatten.using_ints unflatten.int unsqueeze.default squeeze.dim squeeze.default
    transpose.int t.default permute.default expand.default repeat.default contiguous.default clone.default alias.default
    slice.Tensor select.int narrow.default chunk.default split.Tensor split_with_sizes.default unbind.int
    index.Tensor index_select.default gather.default roll.default flip.default embedding.default
    to.dtype to.device type_as.default detach.default dropout.default relu.default leaky_relu.default abs.default neg.default
    mean.default mean.dim sum.default sum.dim_IntList amax.default amin.default
    upsample_nearest2d.vec upsample_bilinear2d.vec avg_pool2d.default max_pool2d.default
    pixel_shuffle.default pixel_unshuffle.default
"""


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names.split()}


RULES: dict[str, Rule] = {
    **_each("matmul.default bmm.default mm.default einsum.default mul.Tensor mul.Scalar", _contraction),
    **_each("conv1d.default conv2d.default conv3d.default linear.default", _contraction_with_bias),
    **_each("conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input", _contraction_with_bias),
    **_each("addmm.default baddbmm.default", _bias_first),
    **_each("add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar", _addition),
    **_each("cat.default concat.default stack.default maximum.default minimum.default", _all_equal),
    **_each("div.Tensor div.Scalar", _quotient),
    **_each("pow.Tensor_Scalar", _power),
    **_each("square.default", _power_of(2)),
    **_each("sqrt.default", _power_of(0.5)),
    **_each("rsqrt.default", _power_of(-0.5)),
    **_each("reciprocal.default", _power_of(-1)),
    **_each("group_norm.default layer_norm.default", _norm(gamma=2, beta=3, eps=4, default_eps=1e-5)),
    **_each("rms_norm.default", _norm(gamma=2, beta=None, eps=3, default_eps=None)),
    **_each(_CARRYING, _carry),
    **_each("scaled_dot_product_attention.default", _attention),
    **_each("where.self where.ScalarOther where.ScalarSelf where.Scalar", _choice),
    **_each("pad.default constant_pad_nd.default", _pad),
    **_each("masked_fill.Scalar", _masked_fill),
    **_each("sym_size.int zeros_like.default ones_like.default full_like.default", _shape_only),
    "operator.getitem": _carry,
}
