"""A captured component as plain data: ATen operations over named values, independent of torch.

`capture` makes it from `torch.export`, `repair` reasons about it, `targets` lower it. It holds no weight, so it is
small (a few hundred kilobytes for the SDXL UNet) and lives in the skeleton cache as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Ref:
    """A use of a named value: a parameter, an input or the output of an operation."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A torch constant that is not a number: `dtype:float32`, `device:cpu`, `memory_format:contiguous_format`."""

    name: str


@dataclass(frozen=True)
class Op:
    """One operation. `name` names its output; `target` is `aten.conv2d.default`, `operator.mul`, ...

    args, kwargs: numbers, strings, None, lists, `Ref` and `Symbol`.
    path: the PyTorch module path it belongs to (`decoder.mid_block.resnets.0.conv1`), for messages and reports.
    dtype, shape: of the output tensor; `dtype` is `int` for a symbolic size and None for a tuple.
    A dynamic size in `shape` is a symbolic expression (`s77`, `8*s3`): equal strings are equal sizes.
    """

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    path: str
    dtype: str | None
    shape: tuple[int | str, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions of the output tensor."""
        return len(self.shape)

    def arguments(self, *names: str, **defaults: Any) -> list[Any]:
        """The arguments by their names in ATen's schema, wherever they were passed."""
        given = dict(zip(names, self.args, strict=False)) | self.kwargs
        return [given.get(name, defaults.get(name)) for name in names]

    def refs(self) -> Iterator[Ref]:
        """Every value this operation reads, in order, with repetitions."""
        yield from _refs([*self.args, *self.kwargs.values()])


@dataclass(frozen=True)
class Parameter:
    """A weight: `name` is its name in the component, also the name of its hole; `shape` is static."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Input:
    """A graph input: `dtype` is `float32` or `int64`; `shape` has None for a dynamic dimension.

    example: sizes of the dynamic dimensions, in order, with which it is traced. None may be special to the component, or
    the program holds for such sizes only.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    example: tuple[int, ...] = (2, 18, 26)


@dataclass(frozen=True)
class Program:
    """A component: `parameters` by the value name that refers to them, ops in execution order, outputs by name.

    outputs: pairs of (public output name, value name).
    """

    parameters: dict[str, Parameter]
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[tuple[str, str], ...]

    def last_uses(self) -> dict[str, int]:
        """Value name -> index of the last operation that reads it; outputs are never in it."""
        kept = {value for _, value in self.outputs}
        return {ref.name: i for i, op in enumerate(self.ops) for ref in op.refs() if ref.name not in kept}

    def without_unread(self) -> Program:
        """Without the parameters that no operation reads: a module may hold weights that it does not use."""
        read = {ref.name for op in self.ops for ref in op.refs()}
        return replace(self, parameters={value: found for value, found in self.parameters.items() if value in read})

    def types(self) -> dict[str, tuple[str, int]]:
        """Value name -> dtype and rank of every tensor, and of every symbolic size (`int`, 0)."""
        found = {item.name: (item.dtype, len(item.shape)) for item in self.inputs}
        found |= {value: ("float32", len(parameter.shape)) for value, parameter in self.parameters.items()}
        return found | {op.name: (op.dtype, op.rank) for op in self.ops if op.dtype is not None}

    def ancestors(self, targets: Container[str]) -> frozenset[str]:
        """Names of the operations of these targets, and of all that they are computed from."""
        found: set[str] = set()
        for op in reversed(self.ops):
            if op.target in targets or op.name in found:
                found.add(op.name)
                found.update(ref.name for ref in op.refs())
        return frozenset(op.name for op in self.ops if op.name in found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `Program.from_json` is its inverse."""
        return {
            "parameters": {value: [p.name, list(p.shape)] for value, p in self.parameters.items()},
            "inputs": [[i.name, i.dtype, list(i.shape), list(i.example)] for i in self.inputs],
            "ops": [
                [op.name, op.target, _encode(list(op.args)), _encode(op.kwargs), op.path, op.dtype, list(op.shape)]
                for op in self.ops
            ],
            "outputs": [list(pair) for pair in self.outputs],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Program:
        """The program that `to_json` wrote."""
        return cls(
            parameters={value: Parameter(name, tuple(shape)) for value, (name, shape) in data["parameters"].items()},
            inputs=tuple(Input(name, dtype, tuple(shape), tuple(example)) for name, dtype, shape, example in data["inputs"]),
            ops=tuple(
                Op(name, target, tuple(_decode(args)), _decode(kwargs), path, dtype, tuple(shape))
                for name, target, args, kwargs, path, dtype, shape in data["ops"]
            ),
            outputs=tuple((public, value) for public, value in data["outputs"]),
        )


def substitute(argument: Any, replace: Callable[[Any], Any]) -> Any:
    """The argument with every `Ref` and `Symbol` in it, also inside lists, replaced by `replace(it)`."""
    if isinstance(argument, (Ref, Symbol)):
        return replace(argument)
    if isinstance(argument, (list, tuple)):
        return [substitute(item, replace) for item in argument]
    return argument


def _refs(argument: Any) -> Iterator[Ref]:
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for item in argument:
            yield from _refs(item)


def _encode(argument: Any) -> Any:
    if isinstance(argument, dict):
        return {key: _encode(value) for key, value in argument.items()}
    if isinstance(argument, (list, tuple)):
        return [_encode(item) for item in argument]
    if isinstance(argument, Ref):
        return {"ref": argument.name}
    if isinstance(argument, Symbol):
        return {"symbol": argument.name}
    return argument


def _decode(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode(item) for item in data]
    if isinstance(data, dict):
        if data.keys() == {"ref"}:
            return Ref(data["ref"])
        if data.keys() == {"symbol"}:
            return Symbol(data["symbol"])
        return {key: _decode(value) for key, value in data.items()}
    return data
