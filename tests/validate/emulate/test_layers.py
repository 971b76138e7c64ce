"""layers.py: which value is a module's output."""

from __future__ import annotations

from vaefix.validate.emulate.layers import Value, layer_outputs, module_of


def outputs(*values: tuple[str, str, tuple[str | None, ...]]) -> dict[str, str]:
    return layer_outputs((Value(*value) for value in values), ["a.weight", "a.b.weight", "a.bc.weight", "a.b.c.weight"])


def test_the_path_is_what_stands_before_the_operation() -> None:
    assert module_of("decoder.conv_in/conv2d_1/Conv") == "decoder.conv_in"
    assert module_of("latent_sample") == ""


def test_of_several_values_the_one_that_is_read_outside_is_the_output() -> None:
    found = outputs(("product", "a.b", ("a.b",)), ("biased", "a.b", ("a.c", "a.d")), ("unread", "a.b", ()))
    assert found == {"a.b": "biased"}


def test_an_output_of_the_graph_is_read_outside() -> None:
    assert outputs(("last", "a", (None,))) == {"a": "last"}


def test_a_block_that_adds_has_an_output_of_its_own() -> None:
    assert outputs(("inner", "a.b", ("a",)), ("sum", "a", ("z",))) == {"a.b": "inner", "a": "sum"}


def test_what_a_container_hands_on_belongs_to_the_module_inside() -> None:
    assert outputs(("inner", "a.b", ("z",))) == {"a.b": "inner"}


def test_a_module_with_two_outputs_is_left_out() -> None:
    assert outputs(("one", "a", ("z",)), ("two", "a", ("y",))) == {}


def test_a_module_without_weights_is_left_out() -> None:
    assert outputs(("one", "silu", ("z",))) == {}


def test_a_longer_name_is_another_module() -> None:
    assert outputs(("one", "a.b", ("a.bc",)), ("two", "a.bc", ("a.b",))) == {"a.b": "one", "a.bc": "two"}
