"""Malformed weights files and model folders: each is refused, and the error names what is wrong."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from vaefix.convert.checkpoint import Checkpoint, read_header
from vaefix.convert.families import find_family
from vaefix.convert.hub import locate
from vaefix.runtime.errors import CheckpointError, ModelError


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {f"t{i}": random.standard_normal((i + 1, 7)).astype(np.float16 if i % 2 else np.float32) for i in range(9)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = read_header(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert b"".join(bytes(chunk) for chunk in tensor.chunks(16)) == tensors[name].tobytes()
        assert tensor.shape == tensors[name].shape


BAD_HEADERS = {
    "truncated prefix": (b"", b"", 5, "header claims"),
    "length beyond the file": ({}, b"", 10**6, "header claims"),
    "not JSON": (b"{nonsense", b"", None, "not valid JSON"),
    "not an object": (b"[1,2]", b"", None, "not a JSON object"),
    "a name twice": (b'{"a":{},"a":{}}', b"", None, "occurs twice"),
    "no offsets": ({"a": {"dtype": "F16", "shape": [1]}}, b"00", None, "tensor a lacks"),
    "three offsets": ({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2, 4]}}, b"00", None, "tensor a lacks"),
    "unknown dtype": ({"a": entry(0, 2, [1], "F13")}, b"00", None, "dtype F13"),
    "negative size": ({"a": entry(0, 2, [-1])}, b"00", None, "tensor a has an invalid shape"),
    "boolean size": ({"a": {**entry(0, 2, []), "shape": [True]}}, b"00", None, "tensor a has an invalid shape"),
    "bytes do not match the shape": ({"a": entry(0, 4, [1])}, b"0000", None, "tensor a claims 4 bytes"),
    "offsets outside the file": ({"a": entry(0, 200, [100])}, b"00", None, "the file has"),
    "a gap": ({"a": entry(0, 2, [1]), "b": entry(4, 6, [1])}, b"000000", None, "tensor b begins at byte 4"),
    "an overlap": ({"a": entry(0, 4, [2]), "b": entry(2, 6, [2])}, b"000000", None, "tensor b begins at byte 2"),
    "surplus bytes": ({"a": entry(0, 2, [1])}, b"0000", None, "the tensors end at byte"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_lying_header_is_refused(tmp_path: Path, case: str) -> None:
    header, data, length, reason = BAD_HEADERS[case]
    file = write(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_header(file)
    assert str(file) in str(error.value)
    assert error.value.remedy
    assert error.value.exit_code == 3


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_or_missing_byte_of_a_header_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    file = write(tmp_path_factory.mktemp("fuzz") / "x.safetensors", {"a": entry(0, 4, [2]), "b": entry(4, 6, [1])}, b"123456")
    raw = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 7))
    raw[position] = data.draw(st.integers(0, 255))
    file.write_bytes(raw[: data.draw(st.integers(position, len(raw)))])
    try:
        tensors = read_header(file)
    except CheckpointError:
        return
    assert all(tensor.offset + tensor.nbytes <= len(raw) for tensor in tensors.values())


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the demo model that a test may damage."""
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


def edit_index(model: Path, **entries: Any) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **entries}))


BAD_INDICES = {
    "unknown pipeline": ({"_class_name": "FluxPipeline"}, "unknown pipeline class 'FluxPipeline'"),
    "unknown class": ({"unet": ["diffusers", "EvilUNet"]}, "unet is of unknown class diffusers.EvilUNet"),
    "unknown scheduler": ({"scheduler": ["diffusers", "EvilScheduler"]}, "unknown class diffusers.EvilScheduler"),
    "scheduler that is none": ({"scheduler": ["diffusers", "AutoencoderKL"]}, "unknown class diffusers.AutoencoderKL"),
    "foreign library": ({"vae": ["os", "system"]}, "vae is system of 'os', outside diffusers and transformers"),
    "custom code": ({"unet": ["my_unet", "MyUNet"]}, "outside diffusers and transformers"),
    "path": ({"../../etc": ["diffusers", "AutoencoderKL"]}, "is a path"),
    "unknown component": ({"unet_3": ["diffusers", "UNet2DConditionModel"]}, "unknown component unet_3"),
    "no text encoder": ({"text_encoder": [None, None]}, "component text_encoder is missing"),
}


@pytest.mark.parametrize("case", BAD_INDICES)
def test_model_index_that_names_anything_unknown_is_refused(model: Path, case: str) -> None:
    entries, reason = BAD_INDICES[case]
    edit_index(model, **entries)
    with pytest.raises(ModelError) as error:
        find_family(Checkpoint.open(model))
    assert reason in str(error.value)
    assert "model_index.json" in str(error.value)
    assert error.value.remedy


def test_every_scheduler_of_diffusers_is_accepted(model: Path) -> None:
    for name in ("EulerDiscreteScheduler", "DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"):
        edit_index(model, scheduler=["diffusers", name])
        assert find_family(Checkpoint.open(model)).__name__.endswith("sdxl")


def test_code_in_the_folder_is_refused(model: Path) -> None:
    (model / "unet" / "my_unet.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match="never runs") as error:
        Checkpoint.open(model)
    assert "my_unet.py" in str(error.value)


def test_config_that_asks_for_code_is_refused(model: Path) -> None:
    config = json.loads((model / "text_encoder" / "config.json").read_text())
    (model / "text_encoder" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError, match="custom code"):
        Checkpoint.open(model).config("text_encoder")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "model.pt"])
def test_pickle_is_refused_with_the_way_to_convert_it(model: Path, name: str) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / name)
    with pytest.raises(ModelError, match="pickle") as error:
        Checkpoint.open(model).tensors("unet")
    assert name in str(error.value)
    assert "safe_serialization" in (error.value.remedy or "")


def test_missing_folders_are_named(model: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "vae")
    with pytest.raises(ModelError, match="component vae is missing"):
        Checkpoint.open(model).weight_files("vae")
    with pytest.raises(ModelError, match="no such folder, and not a hub id"):
        locate(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="a single file"):
        locate(tmp_path / "one.safetensors")


def shard(model: Path, names: list[str], index: str) -> dict[str, np.ndarray]:
    """Split the UNet's weights over files of these names, with an index."""
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    weight_map = {}
    for i, name in enumerate(names):
        part = {key: value for j, (key, value) in enumerate(tensors.items()) if j % len(names) == i}
        save_file(part, model / "unet" / name)
        weight_map.update(dict.fromkeys(part, name))
    (model / "unet" / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors


SHARDS = {
    "plain": (None, "diffusion_pytorch_model-0000{}-of-00003.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    "variant": (
        "fp16",
        "diffusion_pytorch_model.fp16-0000{}-of-00003.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
    "legacy variant": (
        "fp16",
        "diffusion_pytorch_model-0000{}-of-00003.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
    ),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_are_one_checkpoint(model: Path, kind: str) -> None:
    variant, name, index = SHARDS[kind]
    tensors = shard(model, [name.format(i) for i in (1, 2, 3)], index)
    assert Checkpoint.open(model, variant).tensors("unet").keys() == tensors.keys()


def test_incomplete_or_inconsistent_shards_are_refused(model: Path) -> None:
    _, name, index = SHARDS["plain"]
    shard(model, [name.format(i) for i in (1, 2, 3)], index)
    path = model / "unet" / index
    content = json.loads(path.read_text())
    lost = next(iter(content["weight_map"]))
    path.write_text(json.dumps({"weight_map": {key: value for key, value in content["weight_map"].items() if key != lost}}))
    with pytest.raises(CheckpointError, match=f"{lost} is not in the index"):
        Checkpoint.open(model).tensors("unet")
    path.write_text(json.dumps({"weight_map": {**content["weight_map"], "ghost": "../../x"}}))
    with pytest.raises(CheckpointError, match="ghost is not in the shards"):
        Checkpoint.open(model).tensors("unet")
    (model / "unet" / name.format(2)).unlink()
    with pytest.raises(CheckpointError, match="missing 2 of 3"):
        Checkpoint.open(model).tensors("unet")


def test_variant_is_chosen_by_name_and_the_only_one_is_taken(model: Path) -> None:
    folder = model / "vae"
    plain = folder / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, folder / "diffusion_pytorch_model.fp16.safetensors")
    assert [file.name for file in Checkpoint.open(model).weight_files("vae")] == [plain.name]
    assert [file.name for file in Checkpoint.open(model, "fp16").weight_files("vae")] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    with pytest.raises(ModelError, match=r"no weights of variant bf16; there: \(plain\), fp16"):
        Checkpoint.open(model, "bf16").weight_files("vae")
    plain.unlink()
    assert [file.name for file in Checkpoint.open(model).weight_files("vae")] == ["diffusion_pytorch_model.fp16.safetensors"]
