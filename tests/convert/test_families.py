"""Components: parameters are found under every name that a library has given them; a library is blamed for its own names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vaefix.convert.checkpoint import Checkpoint, TensorRef
from vaefix.convert.families import Component, sdxl
from vaefix.convert.families.sdxl import as_published
from vaefix.runtime import versions
from vaefix.runtime.errors import CheckpointError

OUTSIDE = "transformers 99.0 is newer than what vaefix is known to work with (>=4.56.1,<5.25)"


class Nested(torch.nn.Module):
    """`CLIPTextModel` up to transformers 5.5."""

    def __init__(self) -> None:
        super().__init__()
        self.text_model = Flat()


class Flat(torch.nn.Module):
    """`CLIPTextModel` since transformers 5.6."""

    def __init__(self) -> None:
        super().__init__()
        self.final_layer_norm = torch.nn.LayerNorm(4)


@pytest.mark.parametrize("model", [Nested(), Flat()], ids=["up to 5.5", "since 5.6"])
def test_a_text_encoder_has_its_published_names_in_every_transformers(model: torch.nn.Module) -> None:
    assert list(as_published(model).state_dict()) == ["text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"]


@pytest.fixture
def encoder(demo_model: Path) -> Component:
    return next(iter(sdxl.components(Checkpoint.open(demo_model))))


@pytest.fixture
def tensors(demo_model: Path) -> dict[str, TensorRef]:
    return dict(Checkpoint.open(demo_model).tensors("text_encoder"))


def shapes(tensors: dict[str, TensorRef]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def test_names_with_and_without_prefix_are_the_same_parameters(encoder: Component, tensors: dict[str, TensorRef]) -> None:
    assert all(name.startswith("text_model.") for name in tensors)
    assert encoder.bind(shapes(tensors), tensors).keys() == tensors.keys()
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    renamed = {name: replace(tensor, name=name) for name, tensor in bare.items()}
    bound = encoder.bind(shapes(tensors), renamed)
    assert {name: tensor.name for name, tensor in bound.items()} == {name: name.removeprefix("text_model.") for name in tensors}


def test_one_missing_tensor_is_the_models_fault(encoder: Component, tensors: dict[str, TensorRef]) -> None:
    name = "text_model.final_layer_norm.bias"
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing") as caught:
        encoder.bind(shapes(tensors), {key: tensor for key, tensor in tensors.items() if key != name})
    assert "different models" in str(caught.value)


def test_names_of_which_none_is_known_are_no_missing_tensor(encoder: Component, tensors: dict[str, TensorRef]) -> None:
    with pytest.raises(CheckpointError, match="no tensor is named as any parameter of text_encoder is") as caught:
        encoder.bind({f"renamed.{name}": shape for name, shape in shapes(tensors).items()}, tensors)
    assert "different models" not in str(caught.value)


def test_an_unknown_version_is_named_before_the_model_is_blamed(
    encoder: Component, tensors: dict[str, TensorRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "outside_known", lambda: [OUTSIDE])
    for wanted in ({"new_name": (1,)}, {**shapes(tensors), "new_name": (1,)}):
        with pytest.raises(CheckpointError) as caught:
            encoder.bind(wanted, tensors)
        assert OUTSIDE in str(caught.value)
        assert "different models" not in str(caught.value)
