"""What a user may give that cannot be converted: exit code 3, named, with a remedy, and nothing lost or left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.artifact import MANIFEST
from vaefix.runtime.errors import InputError

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TENSOR = "mid_block.resnets.0.conv1.weight"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the demo model that a test may damage."""
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


@pytest.fixture
def options(model: Path, tmp_path: Path, cache_folder: Path) -> ConvertOptions:
    """A request for the damaged model's UNet."""
    return ConvertOptions(tmp_path / "out", model, components=("unet",), cache=cache_folder)


def edit(model: Path, change: Callable[[Tensors], None], weights: str = WEIGHTS) -> None:
    tensors = load_file(model / weights)
    change(tensors)
    save_file(tensors, model / weights)


def refused(options: ConvertOptions, reason: str, exit_code: int = 3) -> InputError:
    with pytest.raises(InputError) as error:
        convert(options)
    assert reason in str(error.value)
    assert error.value.exit_code == exit_code
    assert error.value.remedy
    assert not options.output.exists()
    assert not options.output.with_name(options.output.name + ".partial").exists()
    return error.value


def drop(tensors: Tensors) -> None:
    del tensors[TENSOR]


def rename(tensors: Tensors) -> None:
    tensors["surplus.weight"] = np.zeros(3, dtype=np.float16)


def reshape(tensors: Tensors) -> None:
    tensors[TENSOR] = tensors[TENSOR][:, :-1].copy()


def transpose(tensors: Tensors) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def integers(tensors: Tensors) -> None:
    tensors[TENSOR] = tensors[TENSOR].astype(np.int32)


def one_nan(tensors: Tensors) -> None:
    tensors[TENSOR].flat[-1] = np.nan


def one_inf(tensors: Tensors) -> None:
    tensors[TENSOR].flat[7] = -np.inf


def one_nan_in_float32(tensors: Tensors) -> None:
    tensors[TENSOR] = tensors[TENSOR].astype(np.float32)
    tensors[TENSOR].flat[3] = np.nan


def beyond_fp16(tensors: Tensors) -> None:
    tensors[TENSOR] = tensors[TENSOR].astype(np.float32)
    tensors[TENSOR].flat[3] = 70000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop, f"tensor {TENSOR} is missing"),
        (rename, "tensor surplus.weight belongs to no parameter"),
        (reshape, f"tensor {TENSOR} has shape"),
        (transpose, "ff.net.0.proj.weight has shape"),
        (integers, f"tensor {TENSOR} is I32"),
        (one_nan, f"tensor {TENSOR} holds NaN or Inf"),
        (one_inf, f"tensor {TENSOR} holds NaN or Inf"),
        (one_nan_in_float32, f"tensor {TENSOR} holds NaN or Inf"),
    ],
)
def test_damaged_tensor_is_named(options: ConvertOptions, model: Path, change: Callable[[Tensors], None], reason: str) -> None:
    edit(model, change)
    error = refused(options, reason)
    assert error.source == str(model / WEIGHTS)


def test_a_weight_beyond_fp16_is_named_where_no_repair_is_wanted(options: ConvertOptions, model: Path) -> None:
    edit(model, beyond_fp16)
    error = refused(replace(options, repair="never"), f"tensor {TENSOR} reaches 70000, beyond what fp16 can hold")
    assert error.source == str(model / WEIGHTS)


def test_nan_in_the_vae_is_named_before_any_repair(options: ConvertOptions, model: Path) -> None:
    name = "decoder.mid_block.resnets.0.conv2.weight"

    def damage(tensors: Tensors) -> None:
        tensors[name].flat[5] = np.nan

    edit(model, damage, "vae/diffusion_pytorch_model.safetensors")
    refused(replace(options, components=("vae_decoder",)), f"tensor {name} holds NaN or Inf")


@pytest.mark.parametrize(
    "name", ["scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "text_encoder/config.json"]
)
def test_missing_file_of_the_pipeline_is_named(options: ConvertOptions, model: Path, name: str) -> None:
    (model / name).unlink()
    assert refused(replace(options, components=("text_encoder",)), "missing").source == str(model / name)


def test_truncated_weights_are_refused(options: ConvertOptions, model: Path) -> None:
    file = model / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    assert refused(options, "the file has").source == str(file)


def test_existing_output_is_kept_without_force(options: ConvertOptions) -> None:
    options.output.mkdir()
    (options.output / MANIFEST).write_text("precious")
    with pytest.raises(InputError, match="the output exists") as error:
        convert(options)
    assert "--force" in (error.value.remedy or "")
    assert (options.output / MANIFEST).read_text() == "precious"


def test_failed_replacement_keeps_the_old_output(options: ConvertOptions, model: Path) -> None:
    options.output.mkdir()
    (options.output / MANIFEST).write_text("precious")
    edit(model, one_nan)
    with pytest.raises(InputError, match="NaN"):
        convert(replace(options, force=True))
    assert [path.name for path in options.output.iterdir()] == [MANIFEST]


def test_force_replaces_the_whole_output(options: ConvertOptions) -> None:
    options.output.mkdir()
    for name in (MANIFEST, "stale.bin"):
        (options.output / name).write_text("old")
    artifact = convert(replace(options, force=True))
    found = {path.relative_to(options.output).as_posix() for path in options.output.rglob("*") if path.is_file()}
    assert found == {*artifact.files, MANIFEST}
    assert not options.output.with_name("out.partial").exists()
