"""Hub ids, offline: huggingface_hub's own cache layout, filled by the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vaefix.convert.hub import locate
from vaefix.runtime.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(demo_model: Path, tmp_path: Path) -> Path:
    """A hub cache that holds the demo model as `someone/tiny-sdxl`, with files that must not matter."""
    repository = tmp_path / "hub" / "models--someone--tiny-sdxl"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(demo_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def convert_offline(hub: Path, output: Path, cache: Path, model: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user without network does."""
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "vaefix.convert.cli",
        "--model",
        model,
        "--components",
        "vae_encoder",
        "--precision",
        "fp32",
    ]
    command += ["--output", str(output), "--cache", str(cache)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_id_in_the_local_cache_is_converted_without_a_network(hub: Path, cache_folder: Path, tmp_path: Path) -> None:
    result = convert_offline(hub, tmp_path / "out", cache_folder, "someone/tiny-sdxl")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "vae_encoder" / "openvino_model.bin").stat().st_size > 0


def test_id_that_is_not_cached_is_named_with_a_remedy(hub: Path, cache_folder: Path, tmp_path: Path) -> None:
    result = convert_offline(hub, tmp_path / "out", cache_folder, "someone/other-sdxl")
    assert result.returncode == 3
    assert "someone/other-sdxl" in result.stderr
    assert "remedy" in result.stderr
    assert not (tmp_path / "out").exists()
    message = result.stderr[result.stderr.index("error: ") :].splitlines()
    assert len(message) == 2, message


@pytest.mark.parametrize(("variant", "wanted"), [(None, "model.safetensors"), ("fp16", "model.fp16.safetensors")])
def test_only_configs_and_the_safetensors_of_one_variant_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: str | None, wanted: str
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict = {}

    def snapshot(model: str, **patterns: object) -> str:
        asked.update(patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert locate("someone/sdxl", variant, "main") == tmp_path
    files = ["model_index.json", "README.md", "sdxl.safetensors", "unet/config.json", "unet/unet.py", "tokenizer/merges.txt"]
    files += [f"text_encoder/model{infix}.{kind}" for infix in ("", ".fp16") for kind in ("safetensors", "bin", "onnx")]
    found = set(filter_repo_objects(files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]))
    assert found == {"model_index.json", "unet/config.json", "tokenizer/merges.txt", f"text_encoder/{wanted}"}
    assert asked["revision"] == "main"


@pytest.mark.parametrize("model", ["../models/sdxl", "../sdxl", "no-slash", "a/b/c", "https://example.org/x", ""])
def test_what_is_neither_folder_nor_id_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if model == "":
        (tmp_path / "empty").touch()
        model = "empty"
    with pytest.raises(ModelError):
        locate(model)
