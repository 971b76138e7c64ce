"""Which value of a graph is the output of which PyTorch module, told by the names of the nodes: `module.path/operation/...`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """A value of a graph: its name, and the modules that made and that read it; None reads it as an output of the graph."""

    name: str
    maker: str
    readers: tuple[str | None, ...]


def module_of(node: str) -> str:
    """The path of the module in a node's name; empty for what belongs to none."""
    return node.partition("/")[0] if "/" in node else ""


def layer_outputs(values: Iterable[Value], weights: Iterable[str]) -> dict[str, str]:
    """Module path -> the value that is its output, in the order of `values`.

    It is the one value made in the module, or in a module inside it, that is read outside; if that one comes from a
    module inside it, it is listed there only. Modules without weights are left out.
    """
    leaving: dict[str, list[Value]] = defaultdict(list)
    for value in values:
        for module in _enclosing(value.maker):
            if not all(reader is not None and _is_within(reader, module) for reader in value.readers):
                leaving[module].append(value)
    weighted = {module for weight in weights for module in _enclosing(weight.rpartition(".")[0])}
    return {
        module: outputs[0].name
        for module, outputs in leaving.items()
        if len(outputs) == 1 and outputs[0].maker == module and module in weighted
    }


def _enclosing(module: str) -> Iterator[str]:
    """The module itself, and all around it."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _is_within(module: str, outer: str) -> bool:
    return module == outer or module.startswith(f"{outer}.")
