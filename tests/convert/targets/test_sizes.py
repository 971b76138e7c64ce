"""A graph holds for every size: models of any number of levels, at sizes that do not divide, on every engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaefix.convert.capture import capture
from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.execute import execute
from vaefix.convert.families import Component, sdxl

from .small import ENGINES, loaded

Configs = dict[str, dict[str, Any]]
LIMIT = 2e-5
# batch, height, width, tokens: those that divide, those that do not, and the smallest
LATENTS = [(1, 16, 16, 77), (1, 17, 19, 1), (2, 16, 22, 154), (3, 9, 5, 13), (1, 33, 32, 2), (1, 18, 26, 77), (1, 1, 3, 7)]


def unet(levels: int) -> Configs:
    channels = [16, 32, 32, 32][:levels]
    kinds = ["DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)] if levels > 1 else ["CrossAttnDownBlock2D"]
    ups = [kind.replace("Down", "Up") for kind in reversed(kinds)]
    changes = {"down_block_types": kinds, "up_block_types": ups, "block_out_channels": channels, "layers_per_block": 1}
    return {"unet": {**changes, "attention_head_dim": 2, "transformer_layers_per_block": 1, "norm_num_groups": 8}}


def vae(levels: int) -> Configs:
    blocks = {f"{way}_block_types": [f"{kind}Block2D"] * levels for way, kind in (("down", "DownEncoder"), ("up", "UpDecoder"))}
    return {"vae": {**blocks, "block_out_channels": [8, 8, 16, 16, 16][:levels], "layers_per_block": 1, "norm_num_groups": 4}}


@pytest.fixture
def described(demo_model: Path, tmp_path: Path) -> Callable[[str, Configs], Component]:
    """described(name, changes): a component of the demo model, configs changed; there are no weights."""

    def describe(name: str, changes: Configs) -> Component:
        folder = tmp_path / "described"
        for source in demo_model.rglob("*.json"):
            (folder / source.relative_to(demo_model)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / source.relative_to(demo_model))
        for part, change in changes.items():
            file = folder / part / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
        return next(found for found in sdxl.components(Checkpoint.open(folder)) if found.name == name)

    return describe


def with_weights(component: Component) -> torch.nn.Module:
    """The component's own module with seeded random weights."""
    module, generator = component.build(), torch.Generator().manual_seed(0)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                values = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
                part._parameters[name] = torch.nn.Parameter(values, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.arange(buffer.numel()).reshape(buffer.shape)
    return module.eval()


def feeds_of(component: Component, batch: int, height: int, width: int, tokens: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for item in component.inputs:
        if item.dtype == "int64":
            count = 1 if item.name == "timestep" else batch
            feeds[item.name] = random.integers(0, 90, (count, tokens)[: len(item.shape)])
            continue
        sizes = iter((batch, height, width) if len(item.shape) == 4 else (batch, tokens))
        feeds[item.name] = random.standard_normal([s or next(sizes) for s in item.shape], dtype=np.float32)
    return feeds


def assert_holds_for_every_size(component: Component, sizes: list[tuple[int, int, int, int]], folder: Path) -> None:
    program = capture(component.build(), component.inputs, component.outputs, component.root)
    module = with_weights(component)
    prefix = f"{component.root}." if component.root else ""
    weights = {key.removeprefix(prefix): value for key, value in module.named_parameters()}
    arrays = {name: value.numpy() for name, value in weights.items()}
    runs = {engine: loaded(engine, program, folder, arrays) for engine in ENGINES}
    for size in sizes:
        feeds = feeds_of(component, *size)
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        with torch.no_grad():
            made = module(*tensors.values())
        expected = dict(zip(component.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        captured = execute(program, weights.__getitem__, tensors)
        for name, wanted in expected.items():
            assert torch.equal(captured[name], wanted), (size, name)
        for engine, run in runs.items():
            found = run(feeds)
            for name, wanted in expected.items():
                assert found[name].shape == wanted.shape, (engine, size, name)
                scale = max(1.0, float(wanted.abs().max()))
                assert np.abs(found[name] - wanted.numpy()).max() <= LIMIT * scale, (engine, size, name)


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(3, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_unet_of_any_number_of_levels_holds_for_every_size(
    described: Callable[[str, Configs], Component], levels: int, tmp_path: Path
) -> None:
    assert_holds_for_every_size(described("unet", unet(levels)), LATENTS, tmp_path)


@pytest.mark.parametrize("levels", [*(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 3, 4)), 5])
def test_vae_of_any_number_of_levels_holds_for_every_size(
    described: Callable[[str, Configs], Component], levels: int, tmp_path: Path
) -> None:
    smallest = 2 ** (levels - 1)
    pictures = [(1, 2 * smallest, 3 * smallest, 0), (2, smallest, smallest + 1, 0), (3, 2 * smallest + 1, 4 * smallest - 1, 0)]
    assert_holds_for_every_size(described("vae_encoder", vae(levels)), pictures, tmp_path)
    assert_holds_for_every_size(described("vae_decoder", vae(levels)), [(1, 4, 4, 0), (1, 1, 1, 0), (3, 3, 2, 0)], tmp_path)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("positions", [77, pytest.param(8, marks=pytest.mark.slow), pytest.param(248, marks=pytest.mark.slow)])
def test_text_encoder_of_any_length_holds_for_every_number_of_tokens(
    described: Callable[[str, Configs], Component], name: str, positions: int, tmp_path: Path
) -> None:
    counts = sorted({min(count, positions) for count in (1, 2, 5, 13, 76, 77, 154, 248)})
    sizes = [(1 + count % 3, 0, 0, count) for count in counts]
    assert_holds_for_every_size(described(name, {name: {"max_position_embeddings": positions}}), sizes, tmp_path)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("eos", [49407, pytest.param(0, marks=pytest.mark.slow), 7])
def test_pooled_state_is_that_of_the_first_end_of_the_prompt(
    described: Callable[[str, Configs], Component], name: str, eos: int, tmp_path: Path
) -> None:
    """None, one, several, and padding that is the end token; the highest id is another one."""
    vocabulary = 49408 if eos == 49407 else 100
    component = described(name, {name: {"eos_token_id": eos, "vocab_size": vocabulary}})
    program = capture(component.build(), component.inputs, component.outputs, component.root)
    module = with_weights(component)
    weights = {key.removeprefix("encoder."): value for key, value in module.named_parameters()}
    ids = np.array([[5, 6, 98, 9, 1], [5, eos, 98, eos, 1], [5, 6, 98, 9, eos], [eos] * 5, [5, 98, eos, 1, 1]])
    pooled = component.outputs[0 if name == "text_encoder_2" else 1]
    with torch.no_grad():
        expected = dict(zip(component.outputs, module(torch.from_numpy(ids)), strict=True))[pooled].numpy()
    assert len({row.tobytes() for row in expected}) == len(ids)
    for engine in ENGINES:
        run = loaded(engine, program, tmp_path, {key: value.numpy() for key, value in weights.items()})
        found = run({"input_ids": ids})[pooled]
        assert np.abs(found - expected).max() <= LIMIT * max(1.0, float(np.abs(expected).max())), engine
