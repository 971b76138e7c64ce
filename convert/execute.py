"""Run a `Program` in PyTorch, one operation at a time, with weights fetched when they are needed and dropped after.

Peak memory is the live activations plus one weight, whatever the size of the model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from .checkpoint import TensorRef
from .precision import refuse_nonfinite
from .program import Op, Program, Ref, Symbol, substitute

Weights = Callable[[str], torch.Tensor]
Observer = Callable[[Op, torch.Tensor], torch.Tensor | None]


def execute(
    program: Program,
    weights: Weights,
    inputs: Mapping[str, torch.Tensor],
    observe: Observer | None = None,
) -> dict[str, torch.Tensor]:
    """Public output name -> tensor.

    weights: parameter name -> tensor, called once per use.
    observe: called with every operation and its tensor output, in order (floating and integer alike); what it returns, if
        anything, takes the output's place.
    Runs without gradients, in the dtype of the weights and inputs.
    """
    values: dict[str, Any] = dict(inputs)
    last_use = program.last_uses()
    kept = {value for _, value in program.outputs}

    def lookup(name: str) -> Any:
        parameter = program.parameters.get(name)
        return weights(parameter.name) if parameter else values[name]

    with torch.no_grad():
        for index, op in enumerate(program.ops):
            result = evaluate(op, lookup)
            if observe is not None and isinstance(result, torch.Tensor):
                replaced = observe(op, result)
                result = result if replaced is None else replaced
            if op.name in last_use or op.name in kept:
                values[op.name] = result
            del result
            for name in {ref.name for ref in op.refs()}:
                if last_use.get(name) == index:
                    values.pop(name, None)
        return {public: values[value] for public, value in program.outputs}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums split over threads round differently: with one, what is measured does not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def static_values(program: Program) -> dict[str, Any]:
    """Name -> value of every operation that depends on neither an input nor a weight."""
    values: dict[str, Any] = {}
    for op in program.ops:
        if op.dtype != "int" and all(ref.name in values for ref in op.refs()):
            values[op.name] = evaluate(op, values.__getitem__)
    return values


def load(tensor: TensorRef) -> torch.Tensor:
    """A checkpoint's tensor as float32, in its shape. Raises CheckpointError naming it if it holds NaN or Inf."""
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]
    result = torch.empty(tensor.count)
    position = 0
    for chunk in tensor.chunks():
        refuse_nonfinite(tensor, chunk)
        values = torch.frombuffer(chunk, dtype=dtype)
        result[position : position + len(values)] = values
        position += len(values)
    return result.reshape(tensor.shape)


def evaluate(op: Op, lookup: Callable[[str], Any]) -> Any:
    """The result of one operation; `lookup` gives the value of each name it reads."""

    def resolve(item: Ref | Symbol) -> Any:
        return lookup(item.name) if isinstance(item, Ref) else _torch_constant(item.name)

    kwargs = {key: substitute(value, resolve) for key, value in op.kwargs.items()}
    return _function(op.target)(*substitute(op.args, resolve), **kwargs)


def _function(target: str) -> Callable[..., Any]:
    namespace, _, rest = target.partition(".")
    if namespace == "operator":
        return getattr(operator, rest)
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def _torch_constant(name: str) -> Any:
    kind, _, value = name.partition(":")
    return torch.device(value) if kind == "device" else getattr(torch, value)
