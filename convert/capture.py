"""A PyTorch module on the meta device -> `Program`, without a byte of weights.

The parameters become fake tensors (shape and dtype only), so `torch.export` lifts every one of them into a graph
input: nothing is allocated, nothing is folded by value, no framework is patched, and module paths survive.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind, InputSpec

from vaefix.runtime.errors import ModelError
from vaefix.runtime.libraries import refusals

from .checkpoint import TensorRef
from .families import Component
from .program import Input, Op, Parameter, Program, Ref, Symbol

_OPERATORS = {
    getattr(operator, name): f"operator.{name}" for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "getitem")
}
_SURPLUS = 4  # a decoder alone is a part of the model that is built: the encoder's weights may be absent
_OTHER = "give the config.json that belongs to the weights"
_ASSERTIONS = {torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default}
_IN_PLACE = {torch.ops.aten.masked_fill_.Scalar: torch.ops.aten.masked_fill.Scalar}


def build(component: Component, tensors: Mapping[str, TensorRef], source: Path) -> torch.nn.Module:
    """The component's module on the meta device, with the parameters that its weights have.

    tensors: everything in its part of the checkpoint.  source: the config that it is built from.
    Raises ModelError for what the library does not build, or would build without end, CheckpointError for other weights.
    """
    most, made = _SURPLUS * (len(tensors) + 100), 0

    def count(_module: torch.nn.Module, name: str, _parameter: Any) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise ValueError(f"more than {most} parameters where the weights are {len(tensors)} tensors, the last one {name}")

    counting = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with refusals(ModelError, "the library cannot build this model", source=source, remedy=_OTHER):
            module = component.build()
    finally:
        counting.remove()
    prefix = f"{component.root}." if component.root else ""
    shapes = {name.removeprefix(prefix): tuple(parameter.shape) for name, parameter in module.named_parameters()}
    component.bind(shapes, tensors)
    return module


def capture(module: torch.nn.Module, inputs: Sequence[Input], outputs: Sequence[str], root: str = "") -> Program:
    """Trace `module` (on the meta device, taking `inputs` positionally) into a `Program`.

    outputs: public names of the tensors it returns, in order.
    root: the attribute under which the module holds the real one; stripped from parameter names and paths.
    Returns float32 semantics whatever the module's dtype. Raises ValueError if the number of outputs differs.
    """
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    _to_fake(module, fake_mode)
    with fake_mode:
        example = tuple(_example(item) for item in inputs)
    dynamic = tuple({axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(item.shape) if size is None} for item in inputs)
    with torch.no_grad():
        exported = torch.export.export(module.eval(), example, dynamic_shapes=dynamic, strict=False)
    drop_assertions(exported.graph)
    return _from_exported(exported, inputs, outputs, root)


def _to_fake(module: torch.nn.Module, fake_mode: FakeTensorMode) -> None:
    with fake_mode:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _example(item: Input) -> torch.Tensor:
    sizes = iter(item.example)
    shape = [next(sizes) if size is None else size for size in item.shape]
    return torch.zeros(shape, dtype=getattr(torch, item.dtype))


def drop_assertions(graph: torch.fx.Graph) -> None:
    """Remove what checks sizes and types, and what was computed for that alone."""
    for node in reversed(list(graph.nodes)):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _from_exported(exported: Any, inputs: Sequence[Input], outputs: Sequence[str], root: str) -> Program:
    def strip(path: str) -> str:
        return path.removeprefix(root).removeprefix(".") if root else path

    specs: list[InputSpec] = exported.graph_signature.input_specs
    shapes = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    parameters = {
        spec.arg.name: Parameter(strip(str(spec.target)), tuple(shapes[spec.arg.name].shape))
        for spec in specs
        if spec.kind is InputKind.PARAMETER
    }
    user_inputs = [spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT]
    nodes = (node for node in exported.graph.nodes if node.op == "call_function")
    ops = tuple(_sized_by_the_first(_op(node, strip), [shapes[name] for name in user_inputs], user_inputs) for node in nodes)
    results = [spec.arg.name for spec in exported.graph_signature.output_specs]
    if len(results) != len(outputs) or len(user_inputs) != len(inputs):
        raise ValueError(
            f"{len(results)} outputs for {list(outputs)}, {len(user_inputs)} inputs for {[i.name for i in inputs]}"
        )
    renamed = dict(zip(user_inputs, (item.name for item in inputs), strict=True))
    return _rename(Program(parameters, tuple(inputs), ops, tuple(zip(outputs, results, strict=True))), renamed)


def _sized_by_the_first(op: Op, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> Op:
    """The size of an input, read from the first input that has it: a later one may be broadcast to it, and be 1 (GenAI's
    `timestep_cond`), where torch reads it from the last.
    """
    if op.target != "aten.sym_size.int" or not isinstance(op.args[0], Ref) or op.args[0].name not in names:
        return op
    sizes = {(name, axis): size for name, tensor in zip(names, tensors, strict=True) for axis, size in enumerate(tensor.shape)}
    wanted = str(sizes[op.args[0].name, op.args[1]])
    name, axis = next(place for place, size in sizes.items() if str(size) == wanted)
    return replace(op, args=(Ref(name), axis))


def _op(node: torch.fx.Node, strip: Any) -> Op:
    target = _OPERATORS.get(node.target) or str(_functional(node))
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values()) if not path.startswith("_empty")), "")
    value = node.meta.get("val")
    dtype: str | None = None if isinstance(value, (list, tuple)) else "int"
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
    return Op(
        name=node.name,
        target=target,
        args=tuple(_plain(argument) for argument in node.args),
        kwargs={key: _plain(argument) for key, argument in node.kwargs.items()},
        path=strip(path),
        dtype=dtype,
        shape=tuple(map(_size, value.shape)) if isinstance(value, torch.Tensor) else (),
    )


def _functional(node: torch.fx.Node) -> Any:
    """The node's function; out of place where it overwrites a tensor that was made for it, which nothing else reads."""
    if node.target not in _IN_PLACE:
        return node.target
    overwritten = node.args[0]
    full = torch.ops.aten.full.default
    made_for_it = isinstance(overwritten, torch.fx.Node) and overwritten.target is full and len(overwritten.users) == 1
    return _IN_PLACE[node.target] if made_for_it else node.target


def _size(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)


def _plain(argument: Any) -> Any:
    if isinstance(argument, torch.fx.Node):
        return Ref(argument.name)
    if isinstance(argument, (list, tuple)):
        return [_plain(item) for item in argument]
    for kind in ("dtype", "device", "layout", "memory_format"):
        if isinstance(argument, getattr(torch, kind)):
            return Symbol(f"{kind}:{str(argument).removeprefix('torch.')}")
    return argument


def _rename(program: Program, names: Mapping[str, str]) -> Program:
    """The program with the traced input names replaced by the public ones."""
    if all(old == new for old, new in names.items()):
        return program
    taken = {op.name for op in program.ops} | set(program.parameters)
    if clash := taken & set(names.values()):
        raise ValueError(f"input names {sorted(clash)} are taken by operations")
    text = program.to_json()

    def renamed(data: Any) -> Any:
        if isinstance(data, list):
            return [renamed(item) for item in data]
        if isinstance(data, dict):
            return (
                {"ref": names.get(data["ref"], data["ref"])}
                if data.keys() == {"ref"}
                else {k: renamed(v) for k, v in data.items()}
            )
        return data

    text["ops"] = renamed(text["ops"])
    return Program.from_json(text)
