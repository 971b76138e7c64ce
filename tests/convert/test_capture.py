"""Capture: a module becomes data that computes the same, for any shape, without a weight in memory."""

from __future__ import annotations

import json
import operator
from pathlib import Path

import pytest
import torch

from vaefix.convert.capture import capture, drop_assertions
from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.execute import execute
from vaefix.convert.families import Component, sdxl
from vaefix.convert.program import Input, Op, Program, Ref

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")


@pytest.fixture(scope="module")
def components(demo_model: Path) -> dict[str, Component]:
    """The demo model's components by name."""
    return {component.name: component for component in sdxl.components(Checkpoint.open(demo_model))}


def materialised(component: Component) -> torch.nn.Module:
    """The component's own module with seeded random weights."""
    module = component.build()
    torch.manual_seed(0)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(torch.randn(parameter.shape) * 0.1, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.arange(buffer.numel()).reshape(buffer.shape)
    return module.eval()


@pytest.mark.parametrize(
    "name", [name if name != "unet" else pytest.param(name, marks=pytest.mark.slow) for name in COMPONENTS]
)
def test_program_computes_bit_for_bit_what_the_module_computes(components: dict[str, Component], name: str) -> None:
    component = components[name]
    program = capture(component.build(), component.inputs, component.outputs, component.root)
    program = Program.from_json(json.loads(json.dumps(program.to_json())))
    module = materialised(component)
    prefix = f"{component.root}." if component.root else ""
    weights = {key.removeprefix(prefix): value for key, value in module.named_parameters()}
    assert {parameter.name for parameter in program.parameters.values()} == weights.keys()
    for seed, side in ((0, 8), (1, 12), (2, 9)):
        feeds = {key: torch.from_numpy(value) for key, value in sdxl.sample_inputs(component, seed, side).items()}
        with torch.no_grad():
            expected = module(*feeds.values())
        found = execute(program, weights.__getitem__, feeds)
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert list(found) == list(component.outputs)
        assert all(torch.equal(one, other) for one, other in zip(found.values(), expected, strict=True))


def test_no_weight_is_allocated() -> None:
    """A parameter of 4 TB cannot be allocated; it can be captured."""

    class Huge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1_000_000, 1_000_000, device="meta")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    program = capture(Huge(), [Input("x", "float32", (None, 1_000_000))], ["y"])
    assert {parameter.shape for parameter in program.parameters.values()} == {(1_000_000, 1_000_000), (1_000_000,)}


def test_operations_know_their_module(components: dict[str, Component]) -> None:
    component = components["vae_decoder"]
    program = capture(component.build(), component.inputs, component.outputs, component.root)
    paths = {op.path for op in program.ops if op.target == "aten.conv2d.default"}
    assert {"post_quant_conv", "decoder.conv_in", "decoder.up_blocks.2.resnets.0.conv_shortcut"} <= paths


def test_wrong_number_of_outputs_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 outputs"):
        capture(torch.nn.ReLU(), [Input("x", "float32", (None, 4))], ["y", "z"])


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[int] = []
    references: list[torch.Tensor] = []

    def watch(op: Op, output: torch.Tensor) -> None:
        import weakref

        references.append(weakref.ref(output))  # type: ignore[arg-type]
        alive.append(sum(reference() is not None for reference in references))  # type: ignore[misc]

    ops = tuple(Op(f"v{i}", "aten.relu.default", (Ref(f"v{i - 1}" if i else "x"),), {}, "", "float32", (4,)) for i in range(20))
    program = Program({}, (Input("x", "float32", (4,)),), ops, (("y", "v19"),))
    assert torch.equal(execute(program, _no_weights, {"x": torch.ones(4)}, watch)["y"], torch.ones(4))
    assert max(alive) <= 2


def _no_weights(name: str) -> torch.Tensor:
    raise AssertionError(f"{name} was asked for")


def test_modules_are_captured_for_inference() -> None:
    (dropout,) = capture(torch.nn.Dropout(0.5), [Input("x", "float32", (None, 4))], ["y"]).ops
    assert (dropout.target, *dropout.args[1:]) == ("aten.dropout.default", 0.5, False)


def test_checks_of_sizes_are_dropped_with_all_that_only_they_read() -> None:
    """As torch 2.8 traces them; newer ones leave the comparison out themselves."""
    aten = torch.ops.aten
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_function(aten.sym_size.int, (x, 0))
    differs = graph.call_function(operator.ne, (size, 5))
    graph.call_function(aten._assert_scalar.default, (differs, "not 5"))
    graph.output((graph.call_function(aten.relu.default, (x,)),))
    drop_assertions(graph)
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [aten.relu.default]
