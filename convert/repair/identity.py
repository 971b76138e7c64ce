"""Proof that a repaired component is the same float32 function, on real inputs, bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from vaefix.runtime.errors import ParityError

from ..execute import Weights, execute
from ..program import Op, Program
from .plan import ScalePlan, apply_to_program


def scaled_weights(weights: Weights, plan: ScalePlan) -> Weights:
    """The weights multiplied by the plan's powers of two, in their own dtype, one at a time as they are asked for."""

    def scaled(name: str) -> torch.Tensor:
        exponent = plan.parameters.get(name, 0)
        return weights(name) * 2.0**exponent if exponent else weights(name)

    return scaled


def check_identity(program: Program, plan: ScalePlan, weights: Weights, inputs: Mapping[str, torch.Tensor]) -> None:
    """Run the component before and after the plan, in float32, and require bit-identical and finite outputs.

    weights, inputs: those of the original, float32. Memory: live activations, one weight and the outputs.
    Raises ParityError naming the first operation whose output is not exactly 2**exponent times the original.
    """
    repaired = apply_to_program(program, plan)
    expected = execute(program, weights, inputs)
    found = execute(repaired, scaled_weights(weights, plan), inputs)
    if not expected:
        raise ParityError("nothing to compare: the component has no outputs", remedy="capture it again")
    for name, output in expected.items():
        if output.is_floating_point() and (nonfinite := int((~output.isfinite()).sum())):
            raise ParityError(
                f"{nonfinite} values are not finite in float32 before any repair",
                source=name,
                remedy="check the weights and the inputs: no repair makes this component finite",
            )
    if all(torch.equal(output, found[name]) for name, output in expected.items()):
        return
    where = _first_difference(program, plan, weights, inputs)
    raise ParityError(
        f"the repaired component differs from the original in float32, first at {where}",
        source=", ".join(name for name, output in expected.items() if not torch.equal(output, found[name])),
        remedy="convert with --repair never and report this: a rule of the repair is wrong for this operation",
    )


def _first_difference(program: Program, plan: ScalePlan, weights: Weights, inputs: Mapping[str, torch.Tensor]) -> str:
    """Path and name of the first operation that differs, found from a digest of every output."""
    exponents = {op.name: op.exponent for op in plan.ops}
    before = _digests(program, weights, inputs, {})
    after = _digests(apply_to_program(program, plan), scaled_weights(weights, plan), inputs, exponents)
    op = next((op for op in program.ops if before.get(op.name) != after.get(op.name)), program.ops[-1])
    return f"{op.path or 'the top level'} ({op.target}, {op.name})"


def _digests(
    program: Program, weights: Weights, inputs: Mapping[str, torch.Tensor], exponents: Mapping[str, int]
) -> dict[str, str]:
    """Operation name -> hash of its output, scaled back by 2**-exponent."""
    digests: dict[str, str] = {}

    def observe(op: Op, output: torch.Tensor) -> None:
        exponent = exponents.get(op.name, 0)
        value = output * 2.0**-exponent if exponent else output
        digests[op.name] = hashlib.sha256(value.contiguous().cpu().numpy().tobytes()).hexdigest()

    execute(program, weights, inputs, observe)
    return digests
