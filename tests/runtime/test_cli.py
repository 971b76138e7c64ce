"""What a person types: pictures, exit codes, and messages on the right stream."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from vaefix.runtime import command
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.cli import app

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(*arguments): vaefix-run in an empty folder; its exit code."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            command.run(app, [str(argument) for argument in arguments])
        assert isinstance(caught.value.code, int)
        return caught.value.code

    return call


def _pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_picture_of_the_model_s_own_size_is_drawn(
    run: Run, demo_artifact_fp32: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo_artifact_fp32.folder, "--prompt", "a red cat", "--steps", 2, "-o", "out.png") == 0
    printed = capsys.readouterr()
    assert printed.out == "out.png\n"
    stages = [line.partition(",")[0] for line in printed.err.splitlines() if ", for " not in line]
    loaded = [f"{name}: load" for name in ("text_encoder", "text_encoder_2", "unet", "vae_decoder")]
    assert stages == ["load PyTorch", *loaded, "draw", "decode"]
    assert _pixels("out.png").shape == (128, 128, 3)
    assert np.ptp(_pixels("out.png")) > 20


def test_every_option_reaches_the_picture(
    run: Run,
    demo_artifact_fp32: Artifact,
    openvino_pipeline: diffusers.StableDiffusionXLPipeline,
    model_scheduler: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        "prompt": "the sky",
        "negative_prompt": "blurred",
        "num_inference_steps": 3,
        "width": 96,
        "height": 64,
        "guidance_scale": 1.5,
    }

    def drawn(seed: int = 4, scheduler: str = "DDIMScheduler", **changes: object) -> np.ndarray:
        openvino_pipeline.scheduler = getattr(diffusers, scheduler).from_config(model_scheduler)
        picture = openvino_pipeline(generator=torch.Generator().manual_seed(seed), **{**options, **changes}).images[0]
        return np.asarray(picture).astype(int)

    names = {"num_inference_steps": "steps", "guidance_scale": "guidance", "negative_prompt": "negative-prompt"}
    arguments = [text for name, value in options.items() for text in (f"--{names.get(name, name)}", value)]
    arguments += ["--engine-option", "unet:ENABLE_CPU_PINNING=NO", "--engine-option", "PERFORMANCE_HINT=LATENCY"]
    arguments += ["--seed", 4, "--scheduler", "DDIMScheduler", "--device", "AUTO", "--device", "unet=CPU"]
    assert run(demo_artifact_fp32.folder, *arguments, "--verify", "--cache", "graphs", "-o", "out.png") == 0
    assert np.array_equal(_pixels("out.png"), drawn())
    assert any(Path("graphs").iterdir())
    assert capsys.readouterr().out == "out.png\n"
    for change in (
        {"seed": 5},
        {"scheduler": "EulerDiscreteScheduler"},
        {"prompt": "the sea"},
        {"negative_prompt": "clear"},
        {"num_inference_steps": 4},
        {"guidance_scale": 2},
    ):
        assert not np.array_equal(drawn(**change), drawn()), f"{change} makes no difference, so the above shows nothing"


@pytest.mark.slow
def test_several_pictures_have_numbers_and_successive_seeds(
    run: Run, demo_artifact_fp32: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [demo_artifact_fp32.folder, "--prompt", "a red cat", "--steps", 2, "--width", 64, "--height", 64, "--json"]
    assert run(*base, "--images", 3, "--seed", 7, "-o", "out.png") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pictures"] == [{"file": f"out-{number}.png", "seed": 6 + number} for number in (1, 2, 3)]
    assert result["components"]["unet"] == {"device": "CPU", "precision": "f32"}
    assert (result["width"], result["height"], result["scheduler"]) == (64, 64, "EulerDiscreteScheduler")
    assert run(*base, "--seed", 8, "-o", "alone.png") == 0
    assert np.abs(_pixels("alone.png") - _pixels("out-2.png")).max() <= 1
    assert np.abs(_pixels("alone.png") - _pixels("out-1.png")).max() > 20


def test_a_scheduler_has_a_short_name(run: Run, demo_artifact_onnx_cpu: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [demo_artifact_onnx_cpu.folder, "--prompt", "a cat", "--steps", 2, "--width", 64, "--height", 64, "--json"]
    assert run(*arguments, "--scheduler", "DPM++ 2M Karras", "-o", "out.png") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["scheduler"] == "DPMSolverMultistepScheduler"
    assert "warning" not in printed.err


def test_a_scheduler_that_cannot_draw_is_refused_before_anything_is_loaded(
    run: Run, demo_artifact_fp32: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr("vaefix.runtime.pipeline.load_pipeline", lambda *given, **_: loaded.append(given))
    assert run(demo_artifact_fp32.folder, "--prompt", "a", "--scheduler", "DDIMInverseScheduler", "-o", "o.png") == 3
    assert "choose one that can: " in capsys.readouterr().err
    assert loaded == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "out.png"], 2, "--prompt"),
        (["--prompt", "a cat", "-o", "out.png", "--steps", "0"], 2, "--steps"),
        (["--prompt", "a cat", "-o", "out.png", "--colour", "red"], 2, "--colour"),
        (["--prompt", "a cat", "-o", "out.xyz"], 2, "out.xyz: no picture format"),
        (["--prompt", "a cat", "-o", "nowhere/out.png"], 3, "nowhere/out.png: its folder does not exist"),
        (["--prompt", "a cat", "-o", "out.png", "--device", "GPU.9"], 3, "device GPU.9 is not there"),
        (["--prompt", "a cat", "-o", "out.png", "--device", "CUDA"], 3, "convert the model with --target onnx-cuda"),
        (["--prompt", "a cat", "-o", "out.png", "--device", "vea=CPU"], 2, "a device is given for vea"),
        (["--prompt", "a cat", "-o", "out.png", "--cuda-graphs"], 3, "OpenVINO has no CUDA graphs"),
        (["--prompt", "a cat", "-o", "out.png", "--engine-option", "use_tf32"], 2, "'use_tf32' is not [COMPONENT:]KEY=VALUE"),
        (["--prompt", "a cat", "-o", "out.png", "--engine-option", "unet:=1"], 2, "'unet:=1' is not [COMPONENT:]KEY=VALUE"),
        (["--prompt", "a cat", "-o", "out.png", "--engine-option", "vea:A=1"], 2, "a setting is given for vea"),
        (["--prompt", "a cat", "-o", "out.png", "--engine-option", "unet:NO_SUCH=a=b"], 3, "NO_SUCH=a=b"),
        (["--prompt", "a cat", "-o", "out.png", "--scheduler", "Eulr"], 2, "--scheduler: Eulr is not a scheduler"),
        (["--prompt", "a cat", "-o", "out.png", "--scheduler", "DDIMInverseScheduler"], 3, "cannot draw this model"),
        (["--prompt", "a cat", "-o", "out.png", "--memory", "4"], 2, "--memory: '4' is not a size"),
        (["--prompt", "a cat", "-o", "out.png", "--memory", "9MB"], 4, "--memory: 0.01 GB is too little"),
        (["--prompt", "a cat", "-o", "out.png", "--width", "100"], 2, "100x128 cannot be drawn"),
        (["--prompt", "a cat", "-o", "out.png", "--scheduler", "DDIMScheduler", "--steps", "1001"], 3, "num_inference_steps"),
    ],
)
def test_a_bad_request_is_answered_with_its_exit_code_and_draws_nothing(
    arguments: list[str], code: int, message: str, run: Run, demo_artifact_fp32: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo_artifact_fp32.folder, *arguments) == code
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""
    if code in (3, 4):
        assert "\n  remedy: " in output.err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_device_that_is_not_there_draws_on_the_cpu_when_that_is_allowed(
    run: Run, demo_artifact_onnx_cpu: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [demo_artifact_onnx_cpu.folder, "--prompt", "a cat", "--steps", 1, "-o", "out.png", "--json"]
    arguments += ["--device", "GPU", "--device", "vae_decoder=CPU"]
    assert run(*arguments) == 3
    assert "device GPU runs no ONNX graph, and the artifact is made for onnx-cpu" in capsys.readouterr().err
    assert run(*arguments, "--allow-fallback") == 0
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if "warning" in line]
    assert [line.partition(" runs on the CPU")[0] for line in lines] == [
        f"warning: {name}" for name in ("text_encoder", "text_encoder_2", "unet")
    ]
    components = json.loads(printed.out)["components"]
    assert set(components) == {"text_encoder", "text_encoder_2", "unet", "vae_decoder"}
    assert all(component == {"device": "CPU", "precision": "f32"} for component in components.values())


def test_a_memory_limit_is_planned_for_and_what_it_takes_is_said(
    run: Run, demo_artifact_onnx_cpu: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [demo_artifact_onnx_cpu.folder, "--prompt", "a cat", "--steps", 1, "-o", "out.png", "--json"]
    assert run(*arguments, "--memory", "64GiB") == 0
    printed = capsys.readouterr()
    assert "everything is loaded at once" in printed.err
    lavish = json.loads(printed.out)
    assert not lavish["memory"]["one_at_a_time"]
    drawn = _pixels("out.png")
    assert run(*arguments, "--memory", "1MB") == 4
    refusal = capsys.readouterr().err
    least = re.search(r"remedy: allow (\S+ GB)", refusal)
    assert least is not None, refusal
    assert run(*arguments, "--memory", least[1]) == 0
    printed = capsys.readouterr()
    assert "one component is loaded at a time" in printed.err
    thrifty = json.loads(printed.out)
    assert thrifty["memory"]["low_memory"]
    assert thrifty["memory"]["one_at_a_time"]
    assert thrifty["memory"]["needed_bytes"] < lavish["memory"]["needed_bytes"]
    assert thrifty["components"] == lavish["components"]
    assert np.abs(_pixels("out.png") - drawn).max() <= 1


def test_no_artifact_is_bad_input(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--prompt", "a cat", "-o", "out.png") == 3
    assert "vaefix.json: no vaefix artifact here" in capsys.readouterr().err


def test_verify_finds_a_flipped_byte(run: Run, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "tokenizer" / "vocab.json"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert run(copied, "--prompt", "a cat", "-o", "out.png", "--verify") == 3
    assert "tokenizer/vocab.json: its contents were altered" in capsys.readouterr().err


def test_a_black_picture_is_an_error_and_no_file(
    run: Run, copied: Path, reseal: Callable[[], None], edit_weight: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_weight("vae_decoder", "decoder.conv_out.weight", lambda values: 0 * values)
    reseal()
    assert run(copied, "--prompt", "a cat", "--steps", 1, "-o", "out.png") == 1
    assert "vae_decoder in f32 on CPU: picture 1 of 1 is one constant colour" in capsys.readouterr().err
    assert not Path("out.png").exists()


def test_a_picture_that_cannot_be_written_is_a_resource_error(
    run: Run, demo_artifact_onnx_cpu: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name.startswith(".vaefix-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *arguments, **named)

    Path("out.png").write_text("an older one")
    monkeypatch.setattr(Path, "open", full)
    assert run(demo_artifact_onnx_cpu.folder, "--prompt", "a cat", "--steps", 1, "-o", "out.png") == 4
    assert "out.png: cannot be written (No space left on device)" in capsys.readouterr().err
    assert Path("out.png").read_text() == "an older one"


def test_a_picture_without_a_name_gets_one_that_is_free(
    run: Run, demo_artifact_onnx_cpu: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a-cat.png").write_text("mine")
    arguments = [
        demo_artifact_onnx_cpu.folder,
        "-p",
        "A cat!",
        "--steps",
        1,
        "--width",
        64,
        "--height",
        64,
        "--device",
        "vae=cpu",
    ]
    assert run(*arguments, "--images", 2) == 0
    assert capsys.readouterr().out == "a-cat-2.png\na-cat-3.png\n"
    assert Path("a-cat.png").read_text() == "mine"
    assert _pixels("a-cat-2.png").shape == _pixels("a-cat-3.png").shape == (64, 64, 3)


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_prompt_that_is_cut_is_said_once(
    run: Run, demo_artifact_onnx_cpu: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--steps", 1, "--width", 64, "--height", 64, "-o", "out.png"]
    assert run(demo_artifact_onnx_cpu.folder, "-p", "cat " * 75 + "dog", *small) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warned) == 1
    assert warned[0].startswith("warning: the prompt is too long; left out: ")
    assert warned[0].endswith(" cat dog")
    assert run(demo_artifact_onnx_cpu.folder, "-p", "cat " * 5, *small) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_name_that_no_console_can_print_is_written_and_shown(
    run: Run, demo_artifact_onnx_cpu: Artifact, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "\udcff.png"  # how Python holds a byte that is no text
    small = ["--steps", 1, "--width", 64, "--height", 64, "-o", name]
    assert run(demo_artifact_onnx_cpu.folder, "-p", "a cat", *small) == 0
    assert run(demo_artifact_onnx_cpu.folder, "-p", "a cat", *small, "--json") == 0
    assert Path(name).stat().st_size > 0
