"""What `vaefix doctor` says of an artifact or a model that it is given."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vaefix.convert.cache import versions
from vaefix.doctor.engines import Device, Engine
from vaefix.doctor.subject import examine
from vaefix.runtime.artifact import MANIFEST, Artifact, ComponentEntry, FileEntry, sha256_of

Doctor = Callable[..., tuple[int, str]]
GPU = Device("GPU", "Arc", {"fp32": "f32", "fp16": "f16", "bf16": None, "int8": "f16"})
ENGINES = (Engine("openvino", "2026.4", (GPU,)), Engine("onnxruntime", "1.31", (replace(GPU, name="CUDA"),)))


def ignore(done: int, size: int) -> None:
    """Of progress."""


FILES = (
    "model_index.json",
    "tokenizer/vocab.json",
    *(f"{name}/{file}" for name in ("unet", "vae_decoder") for file in ("config.json", "model.onnx", "model.onnx_data")),
)


def make_artifact(folder: Path, execution: str = "f32") -> Path:
    """An artifact for onnx-cpu as far as its manifest goes: the files hold something else."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * (100_000 if name.endswith("_data") else 10))
    files = {name: FileEntry((folder / name).stat().st_size, sha256_of(folder / name)) for name in FILES}
    components = {name: ComponentEntry(f"{name}/model.onnx", "fp32", execution) for name in ("unet", "vae_decoder")}
    sealed = Artifact(folder, "onnx-cpu", "sdxl", components, files, tools=versions())
    (folder / MANIFEST).write_bytes(sealed.manifest())
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """One to damage."""
    return make_artifact(tmp_path / "artifact")


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


def test_a_whole_artifact_is_said_to_be_one_and_where_it_runs(artifact: Path, doctor: Doctor) -> None:
    code, text = doctor(artifact, "--json")
    subject = json.loads(text)["subject"]
    assert code == 0
    assert (subject["kind"], subject["made"], subject["problems"]) == ("artifact", "sdxl for onnx-cpu", [])
    assert {part["name"]: part["kind"] for part in subject["parts"]}["unet"] == "fp32"
    assert subject["devices"]["CPU"]["vae_decoder"] == "f32"
    assert subject["unlisted"] == []
    code, text = doctor(artifact)
    assert code == 0
    assert "runs on CPU in f32" in text


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is asked, which is quicker."""
    monkeypatch.setattr("vaefix.doctor.engines.is_installed", lambda name: False)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("unet/model.onnx_data", _flip, "altered"),
        ("unet/model.onnx", Path.unlink, "missing"),
        ("vae_decoder/model.onnx_data", lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, the manifest says"),
        ("tokenizer/vocab.json", lambda path: (path.unlink(), path.mkdir()), "a folder, not a file"),
        ("vaefix.json", lambda path: path.write_text("{}"), "format version"),
        ("vaefix.json", lambda path: path.write_text("[" * 10), "not valid JSON"),
        ("vaefix.json", lambda path: path.write_text(path.read_text().replace("onnx-cpu", "onnx-gpu")), "altered"),
    ],
)
def test_a_damaged_artifact_is_exit_code_3_and_names_the_file(
    name: str, damage: Callable[[Path], object], said: str, artifact: Path, doctor: Doctor
) -> None:
    damage(artifact / name)
    code, text = doctor(artifact)
    assert code == 3
    (line,) = (line for line in text.splitlines() if line.startswith("broken: "))
    assert str(artifact / name) in line
    assert said in line


def test_every_damaged_file_is_named_not_the_first_alone(artifact: Path) -> None:
    for name in ("unet/model.onnx_data", "vae_decoder/model.onnx", "model_index.json"):
        _flip(artifact / name)
    (artifact / "unet" / "config.json").unlink()
    problems = examine(str(artifact), ENGINES, ignore).problems
    named = {Path(str(error.source)).relative_to(artifact).as_posix() for error in problems}
    assert named == {"unet/model.onnx_data", "vae_decoder/model.onnx", "model_index.json", "unet/config.json"}


@pytest.mark.usefixtures("no_engine")
def test_files_that_are_not_of_the_artifact_are_said_and_harm_nothing(artifact: Path, doctor: Doctor) -> None:
    (artifact / "notes.txt").write_text("mine")
    code, text = doctor(artifact)
    assert code == 0
    assert "not of the artifact: notes.txt" in text


def test_reading_is_reported_to_its_end(artifact: Path) -> None:
    seen = []
    found = examine(str(artifact), ENGINES, lambda done, size: seen.append((done, size)))
    assert seen[-1] == (found.size, found.size)
    assert found.size > 10**6
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_versions_other_than_those_that_made_it_are_said(artifact: Path) -> None:
    tools = {**Artifact.load(artifact).tools, "numpy": "1.0", "gone": "2.0"}
    (artifact / "vaefix.json").write_bytes(replace(Artifact.load(artifact), tools=tools).manifest())
    found = examine(str(artifact), ENGINES, ignore)
    assert found.problems == ()
    assert found.tools is not None
    assert set(found.tools) == {"numpy", "gone"}
    assert found.tools["numpy"][0] == "1.0"
    assert found.tools["gone"] == ("2.0", None)


def test_a_device_that_cannot_compute_it_is_said(tmp_path: Path) -> None:
    in_f16, in_bf16 = (str(make_artifact(tmp_path / execution, execution)) for execution in ("f16", "bf16"))
    assert examine(in_f16, ENGINES, ignore).devices == {"CUDA": {"unet": "f16", "vae_decoder": "f16"}}
    assert examine(in_bf16, ENGINES, ignore).devices == {"CUDA": {"unet": None, "vae_decoder": None}}
    assert examine(in_f16, ENGINES[:1], ignore).devices == {}, "OpenVINO runs no ONNX graphs"


def test_an_artifact_whose_engine_is_not_here_says_so(artifact: Path, doctor: Doctor, no_engine: None) -> None:
    code, text = doctor(artifact)
    assert code == 0
    assert "nothing here runs it" in text


@pytest.mark.usefixtures("no_engine")
def test_a_model_that_can_be_converted(model: Path, doctor: Doctor) -> None:
    code, text = doctor(model, "--json")
    subject = json.loads(text)["subject"]
    assert code == 0
    assert (subject["kind"], subject["made"], subject["problems"]) == ("model", "StableDiffusionXLPipeline", [])
    assert [part["name"] for part in subject["parts"]] == ["text_encoder", "text_encoder_2", "unet", "vae"]
    assert all("F16" in part["detail"] and part["size"] > 0 for part in subject["parts"])
    assert "can be converted" in doctor(model)[1]


def _index(model: Path, **changed: object) -> None:
    path = model / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def _pickled(model: Path) -> None:
    for path in (model / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def _pipe(model: Path) -> None:
    (model / "vae" / "config.json").unlink()
    os.mkfifo(model / "vae" / "config.json")


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: _index(model, _class_name="FluxPipeline"), "unknown pipeline class 'FluxPipeline'"),
        (lambda model: _index(model, _class_name=7), "unknown pipeline class 7"),
        (lambda model: _index(model, unet=["my_module", "MyUNet"]), "outside diffusers and transformers"),
        (lambda model: _index(model, unet=None), "component unet is missing"),
        (_pickled, "a pickle, which can run code"),
        (lambda model: shutil.rmtree(model / "vae"), "config.json"),
        (lambda model: (model / "vae" / "config.json").write_text("{"), "not valid JSON"),
        (lambda model: (model / "model_index.json").write_text("nothing"), "not valid JSON"),
        (
            lambda model: (model / "scheduler" / "scheduler_config.json").write_text("[]"),
            "scheduler_config.json: not a JSON object",
        ),
        (
            lambda model: (model / "tokenizer" / "tokenizer_config.json").write_text("[1,2]"),
            "tokenizer_config.json: not a JSON object",
        ),
        (
            lambda model: (model / "tokenizer_2" / "special_tokens_map.json").write_text("{"),
            "special_tokens_map.json: not valid JSON",
        ),
        (lambda model: (model / "tokenizer_2" / "merges.txt").unlink(), "no tokenizer"),
        (_pipe, "a pipe, a socket or a device"),
        (lambda model: (model / "evil.py").write_text("1"), "brings its own code"),
        (lambda model: next((model / "unet").glob("*.safetensors")).write_bytes(b"short"), "not a safetensors file"),
    ],
)
def test_a_model_that_cannot_be_converted_is_exit_code_3_and_says_why(
    change: Callable[[Path], object], said: str, model: Path, doctor: Doctor
) -> None:
    change(model)
    code, text = doctor(model)
    assert code == 3
    assert any(said in line for line in text.splitlines() if line.startswith("broken: "))
    assert "can be converted" not in text


@pytest.mark.usefixtures("no_engine")
def test_of_an_unknown_family_what_is_there_is_said_too(model: Path, doctor: Doctor) -> None:
    _index(model, _class_name="FluxPipeline", **{"../outside": ["diffusers", "UNet2DConditionModel"]})
    _, text = doctor(model, "--json")
    assert {part["name"] for part in json.loads(text)["subject"]["parts"]} == {"text_encoder", "text_encoder_2", "unet", "vae"}


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "nothing is fetched from the hub"),
        ("no-such-folder", "no such folder"),
        ("file.safetensors", "a single file"),
        ("empty", "neither an artifact"),
        ("sdxl.partial", "a conversion that has not ended"),
        ("optimum", "graphs without vaefix.json"),
    ],
)
def test_what_is_neither_is_exit_code_3(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sdxl.partial").mkdir()
    (tmp_path / "sdxl.partial" / "journal.jsonl").touch()
    (tmp_path / "optimum" / "unet").mkdir(parents=True)
    (tmp_path / "optimum" / "model_index.json").write_text("{}")
    (tmp_path / "optimum" / "unet" / "openvino_model.xml").touch()
    code, text = doctor(name)
    assert code == 3
    assert said in text
