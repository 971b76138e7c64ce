"""Models whose configs leave out what the library defaults, or whose VAE is of another factor: converted, run, compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.families import sdxl
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.defaults import completed
from vaefix.runtime.pipeline import load_pipeline
from vaefix.validate.inputs import PictureSize
from vaefix.validate.subject import ValidateOptions
from vaefix.validate.validate import validate

PARTS = {
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
    "unet": UNet2DConditionModel.from_config,
    "vae": AutoencoderKL.from_config,
}
TARGETS = ("openvino-cpu", "onnx-cpu")
Config = dict[str, Any]


def with_part(model: Path, name: str, changes: Mapping[str, Any]) -> Config:
    """Give the model a part of another config, with seeded weights, as its library saves it; returns the config."""
    config = json.loads((model / name / "config.json").read_text()) | changes
    torch.manual_seed(0)
    for file in (model / name).iterdir():
        file.unlink()
    PARTS[name](config).save_pretrained(model / name, safe_serialization=True)
    return dict(json.loads((model / name / "config.json").read_text()))


def write(model: Path, name: str, config: Config) -> None:
    (model / name / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def defaulted(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that uses the library's defaults wherever it can be as small; every key is written out."""
    model = Path(shutil.copytree(demo_model, tmp_path_factory.mktemp("defaulted") / "model"))
    for name in ("text_encoder", "text_encoder_2"):
        with_part(
            model, name, {"intermediate_size": 2048, "num_attention_heads": 8, "eos_token_id": 49407, "vocab_size": 49408}
        )
    with_part(model, "unet", {"attention_head_dim": 8, "sample_size": None})
    with_part(model, "vae", {"scaling_factor": 0.18215})
    return model


@pytest.fixture(scope="module")
def stripped(defaulted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without all of these keys."""
    model = Path(shutil.copytree(defaulted, tmp_path_factory.mktemp("stripped") / "model"))
    for name in PARTS:
        config = json.loads((model / name / "config.json").read_text())
        defaults = completed({}, name)
        write(model, name, {key: value for key, value in config.items() if key not in defaults or defaults[key] != value})
    return model


NEEDED = {
    "text_encoder": {"vocab_size", "intermediate_size", "num_attention_heads", "max_position_embeddings", "eos_token_id"},
    "text_encoder_2": {"vocab_size", "intermediate_size", "num_attention_heads", "max_position_embeddings", "eos_token_id"},
    "unet": {"attention_head_dim", "in_channels", "out_channels", "sample_size", "mid_block_type", "norm_eps"},
    "vae": {"scaling_factor", "in_channels", "latent_channels", "act_fn"},
}


@pytest.mark.parametrize("name", PARTS)
def test_each_key_with_a_default_can_be_left_out(defaulted: Path, tmp_path: Path, name: str) -> None:
    model = Path(shutil.copytree(defaulted, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    config, defaults = json.loads((model / name / "config.json").read_text()), completed({}, name)
    removable = [key for key in config if key in defaults and defaults[key] == config[key]]
    assert NEEDED[name] <= {*removable}
    whole = described(model)
    for key in removable:
        write(model, name, {other: value for other, value in config.items() if other != key})
        assert described(model) == whole, key


def described(model: Path) -> list[tuple[Any, ...]]:
    """All that a family says of the components, and what it feeds them."""
    found = []
    for component in sdxl.components(Checkpoint.open(model)):
        feeds = {name: value.tobytes() for name, value in sdxl.sample_inputs(component, 0, 4).items()}
        found.append((component.name, dict(component.config), component.inputs, component.outputs, component.picture, feeds))
    return found


@pytest.mark.slow  # whole models; that each key can be left out is held above
@pytest.mark.parametrize("target", TARGETS)
def test_a_model_without_any_of_them_is_the_same_model(
    stripped: Path, defaulted: Path, cache_folder: Path, tmp_path: Path, target: str
) -> None:
    left_out, written = (
        convert(ConvertOptions(tmp_path / name, model, target, {"*": "fp32"}, cache=cache_folder))
        for name, model in (("stripped", stripped), ("whole", defaulted))
    )
    assert left_out.files.keys() == written.files.keys()
    assert {name for name in written.files if left_out.files[name] != written.files[name]} == set()
    for name, library in (("vae_decoder", "vae"), ("unet", "unet"), ("text_encoder", "text_encoder")):
        stored = json.loads((left_out.folder / name / "config.json").read_text())
        assert completed({}, library).keys() <= stored.keys()  # other software has other defaults
    pipeline = load_pipeline(left_out.folder)
    assert (pipeline.default_sample_size, pipeline.vae.config.scaling_factor) == (128, 0.18215)


@pytest.fixture
def of_levels(demo_model: Path, tmp_path: Path) -> Callable[[int], Path]:
    """of_levels(n): the demo model with a VAE of that many levels."""

    def make(levels: int) -> Path:
        model = Path(shutil.copytree(demo_model, tmp_path / "model"))
        blocks = {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": [16, 32, 32, 32, 32, 32][:levels],
            "norm_num_groups": 8,
        }
        with_part(model, "vae", blocks)
        return model

    return make


@pytest.mark.parametrize(
    ("levels", "target"),
    [
        pytest.param(5, "openvino-cpu", marks=pytest.mark.slow),
        pytest.param(3, "openvino-cpu", marks=pytest.mark.slow),
        *(pytest.param(levels, "onnx-cpu", marks=pytest.mark.slow) for levels in (1, 3, 5, 6)),
    ],
)
def test_a_vae_of_another_factor_is_converted_drawn_with_and_compared(
    of_levels: Callable[[int], Path], cache_folder: Path, tmp_path: Path, levels: int, target: str
) -> None:
    model, factor = of_levels(levels), 2 ** (levels - 1)
    artifact = convert(ConvertOptions(tmp_path / "out", model, target, {"*": "fp32"}, cache=cache_folder))
    side = max(64, 2 * factor)
    verdict = validate(
        ValidateOptions(artifact.folder, model, size=PictureSize(side, side + max(8, factor)), steps=1, seeds=(0,))
    )
    assert [comparison for comparison in verdict.comparisons if comparison.failures or comparison.obstacle] == []
    assert {comparison.component for comparison in verdict.comparisons} >= {"vae_decoder", "vae_encoder", "generation"}
    pipeline = load_pipeline(artifact.folder)
    picture = pipeline("a cat", num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert picture.shape == (1, 16 * factor, 16 * factor, 3)
    assert np.isfinite(picture).all()


def test_an_artifact_of_before_has_the_defaults_too(demo_artifact_fp32: Artifact, tmp_path: Path) -> None:
    (tmp_path / "vae_decoder").mkdir()
    (tmp_path / "vae_decoder" / "config.json").write_text('{"block_out_channels": [8, 8]}')
    old = Artifact(tmp_path, demo_artifact_fp32.target, demo_artifact_fp32.family, demo_artifact_fp32.components, {})
    assert old.config("vae_decoder")["scaling_factor"] == 0.18215
