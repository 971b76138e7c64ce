"""Whole conversions: every layout of a checkpoint gives the same artifact, and a cached skeleton needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import openvino as ov
import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from vaefix.convert.cli import main
from vaefix.convert.convert import ConvertOptions, Progress, convert
from vaefix.runtime.artifact import Artifact

TORCH_FREE = """
import sys
from pathlib import Path
from vaefix.convert import verify
from vaefix.convert.convert import ConvertOptions, convert
verify.LARGE = 0  # as if this were the full-size UNet, which is not executed
model, output, cache = map(Path, sys.argv[1:])
convert(ConvertOptions(output, model, components=("unet",), cache=cache))
heavy = {"torch", "diffusers", "transformers", "openvino", "scipy"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the demo model that a test may rewrite."""
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


@pytest.fixture
def unet(model: Path, tmp_path: Path, cache_folder: Path) -> ConvertOptions:
    """A request for that copy's UNet."""
    return ConvertOptions(tmp_path / "out", model, components=("unet",), cache=cache_folder)


def weights(folder: Path, component: str = "unet") -> dict[str, bytes]:
    """Name -> bytes of every constant, as OpenVINO reads them."""
    model = ov.Core().read_model(folder / component / "openvino_model.xml")
    return {node.get_friendly_name(): node.data.tobytes() for node in model.get_ops() if node.get_type_name() == "Constant"}


def test_unet_with_cached_skeleton_is_converted_without_torch_or_openvino(
    demo_artifact_fp16: Artifact, demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", TORCH_FREE, str(demo_model), str(tmp_path / "out"), str(cache_folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert weights(tmp_path / "out") == weights(demo_artifact_fp16.folder)
    parity = Artifact.load(tmp_path / "out", verify=True).parity["unet"]
    assert "not compared" in parity["outputs"]
    assert "relative_max_abs_limit" not in parity


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_other_dtypes_are_rounded_once(unet: ConvertOptions, model: Path, dtype: torch.dtype) -> None:
    options, file = replace(unet, components=("text_encoder",)), model / "text_encoder" / "model.safetensors"
    plain = convert(replace(options, output=options.output.with_name("plain")))
    tensors = load_file(file)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, file)
    artifact = convert(options)
    same = weights(artifact.folder, "text_encoder") == weights(plain.folder, "text_encoder")
    assert same == (dtype is torch.float32)
    assert artifact.parity["text_encoder"]["outputs"] == "equal"


def test_fp32_from_fp16_holds_the_same_values(demo_artifact_fp32: Artifact, demo_artifact_fp16: Artifact) -> None:
    wide, narrow = (artifact.folder / "unet" / "openvino_model.bin" for artifact in (demo_artifact_fp32, demo_artifact_fp16))
    assert 1.9 < wide.stat().st_size / narrow.stat().st_size < 2.1
    assert demo_artifact_fp32.components["unet"].precision == "fp32"
    assert not any(entry.repaired for entry in demo_artifact_fp32.components.values())
    assert demo_artifact_fp16.components["vae_decoder"].repaired


def test_precision_is_chosen_per_component(model: Path, cache_folder: Path, tmp_path: Path) -> None:
    precision = {"*": "fp16", "vae_encoder": "fp32"}
    options = ConvertOptions(
        tmp_path / "out", model, precision=precision, components=("vae_encoder", "vae_decoder"), cache=cache_folder
    )
    artifact = convert(options)
    entries = artifact.components
    assert (entries["vae_encoder"].precision, entries["vae_encoder"].repaired) == ("fp32", False)
    assert (entries["vae_decoder"].precision, entries["vae_decoder"].repaired) == ("fp16", True)
    assert set(entries) == {"vae_encoder", "vae_decoder"}


def test_old_and_bare_parameter_names_are_understood(unet: ConvertOptions, model: Path, tmp_path: Path) -> None:
    """VAE attention as diffusers named it before 0.18, text encoders without their prefix."""
    options = replace(unet, components=("text_encoder", "vae_encoder"), precision={"*": "fp32"})
    plain = convert(replace(options, output=tmp_path / "plain"))
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn.", "text_model.": ""}
    for file in (model / "vae" / "diffusion_pytorch_model.safetensors", model / "text_encoder" / "model.safetensors"):
        tensors = load_file(file)
        for new, old in names.items():
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        save_file(tensors, file)
    renamed = convert(options)
    for name in options.components or ():
        assert weights(renamed.folder, name) == weights(plain.folder, name)


def test_position_ids_of_older_checkpoints_are_not_surplus(unet: ConvertOptions, model: Path) -> None:
    file = model / "text_encoder" / "model.safetensors"
    save_file({**load_file(file), "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    assert "text_encoder" in convert(replace(unet, components=("text_encoder",))).components


def test_sources_and_every_file_are_sealed(demo_artifact_fp16: Artifact, demo_model: Path) -> None:
    for name, digest in demo_artifact_fp16.sources.items():
        assert digest == f"xxh3_128:{xxhash.xxh3_128((demo_model / name).read_bytes()).hexdigest()}"
    assert len(demo_artifact_fp16.sources) == 4
    found = {
        path.relative_to(demo_artifact_fp16.folder).as_posix()
        for path in demo_artifact_fp16.folder.rglob("*")
        if path.is_file()
    }
    assert found == {*demo_artifact_fp16.files, "vaefix.json"}
    assert Artifact.load(demo_artifact_fp16.folder, verify=True) == replace(
        demo_artifact_fp16, files=dict(sorted(demo_artifact_fp16.files.items()))
    )


def test_nothing_is_written_outside_the_output_and_the_cache(unet: ConvertOptions, model: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    convert(unet)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if unet.output not in [path, *path.parents]}
    assert after == before


def test_progress_tells_every_stage_and_every_byte(unet: ConvertOptions) -> None:
    stages: list[str] = []
    expected: list[int] = []
    written: list[int] = []
    artifact = convert(unet, Progress(lambda stage: stages.append(str(stage)), expected.append, written.append))
    unet_stages = [f"unet, 1 of 1: {what}" for what in ("capture", "sample", "write", "verify")]
    whole = ["read back", "hash the model's files", "publish"]
    assert stages == ["read the model", "copy tokenizers and scheduler", *unet_stages, *whole]
    (announced,) = expected
    assert 0.95 < announced / artifact.files["unet/openvino_model.bin"].size <= 1
    total = sum(entry.size for entry in artifact.files.values())
    assert sum(written) == total + (artifact.folder / "vaefix.json").stat().st_size


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["vaefix-convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_command_converts_the_demo_model_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], cache_folder: Path, tmp_path: Path
) -> None:
    arguments = ["--output", tmp_path / "out", "--cache", cache_folder, "--components", "vae_decoder", "--json"]
    assert run(monkeypatch, *arguments) == 0
    out, err = capfd.readouterr()
    assert "built-in demo model" in err
    assert json.loads(out)["components"]["vae_decoder"]["repaired"] is True
    assert run(monkeypatch, *arguments) == 3
    assert "remedy: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--precision", "fp99"], 2),
        (["--precision", "fp16", "--precision", "fp32"], 2),
        (["--target", "openvino-abacus"], 2),
        (["--no-such-flag"], 2),
    ],
)
def test_command_refuses(
    monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path, arguments: list[str], code: int
) -> None:
    assert run(monkeypatch, "--output", tmp_path / "out", "--cache", cache_folder, *arguments) == code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["vaefix.convert.cli", "vaefix.runtime.cli"])
def test_help_is_light(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'openvino', 'diffusers', 'scipy'}} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
