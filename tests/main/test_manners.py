"""How the commands behave: mistakes are answered before anything slow is imported, and nobody else talks on the screen."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaefix
from vaefix.runtime.artifact import Artifact

_MANY = """
import contextlib, io, json, os, sys
from vaefix import __main__ as commands
slow = ("torch", "diffusers", "transformers", "openvino", "onnxruntime", "onnx", "scipy", "skimage")
for words in json.load(sys.stdin):
    before = set(os.listdir())
    sys.argv = ["vaefix", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            commands.main()
        except SystemExit as ended:
            code = ended.code
    made = sorted(set(os.listdir()) - before)
    loaded = [name for name in slow if name in sys.modules]
    print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue(), "loaded": loaded, "made": made}))
"""
"""Each command line of a list in one fresh interpreter: what it prints, makes and has imported."""

_RUN = ("run", "OPENVINO", "-p", "a cat")
_VALIDATE = ("validate", "OPENVINO", "--cache", "CACHE")
MISTAKES = [
    (2, "--steps", (*_RUN, "--steps", "0")),
    (2, "--steps", (*_RUN, "--steps", "many")),
    (2, "--seed", (*_RUN, "--seed", "-1")),
    (2, "--seed", (*_RUN, "--seed", str(2**63))),
    (2, "--images", (*_RUN, "--images", "0")),
    (2, "--guidance", (*_RUN, "--guidance", "nan")),
    (2, "--negative-prompt", (*_RUN, "--negative", "x")),
    (2, "--scheduler", (*_RUN, "--scheduler", "eulr")),
    (2, "multiples of 8", (*_RUN, "--width", "100")),
    (2, "out.xyz", (*_RUN, "-o", "out.xyz")),
    (2, "it can only be read", (*_RUN, "-o", "out.psd")),
    (2, "cannot write mode RGB", (*_RUN, "-o", "out.xbm")),
    (2, "cannot hold a picture", (*_RUN, "-o", "out.webp", "--width", "20000")),
    (2, "no text in UTF-8", ("run", "OPENVINO", "-p", "a \udcff")),
    (2, "unett", (*_RUN, "--device", "unett=CPU")),
    (2, "two devices", (*_RUN, "--device", "CPU", "--device", "GPU")),
    (2, "unett", (*_RUN, "--engine-option", "unett:A=1")),
    (2, "--engine-option", (*_RUN, "--engine-option", "A")),
    (2, "--memory", (*_RUN, "--memory", "4")),
    (2, "--memory", (*_RUN, "--memory", "4GB", "--allow-fallback")),
    (3, "--target onnx-cuda", (*_RUN, "--device", "CUDA")),
    (3, "--target onnx-cuda", (*_RUN, "--device", "vae:cuda:1")),
    (3, "--target openvino-gpu", ("run", "ONNX", "-p", "a cat", "--device", "gpu")),
    (3, "TPU", (*_RUN, "--device", "TPU")),
    (3, "nowhere", (*_RUN, "-o", "nowhere/out.png")),
    (3, "it is a folder", (*_RUN, "-o", "folder.png")),
    (3, "vaefix.json", ("run", "nowhere", "-p", "a cat")),
    (3, "vaefix.json", ("run", "MODEL", "-p", "a cat")),
    (4, "1000000x1000000", (*_RUN, "--width", "1000000", "--height", "1000000")),
    (4, "1000000x1000000", ("run", "ONNX", "-p", "a cat", "--width", "1000000", "--height", "1000000", "--device", "cpu")),
    (4, "10000 pictures", (*_RUN, "--width", "8000", "--height", "8000", "--images", "10000")),
    (4, "too little", (*_RUN, "--memory", "9MB")),
    (3, "OpenVINO has no CUDA graphs", (*_RUN, "--cuda-graphs")),
    (3, "are for CUDA", ("run", "ONNX", "-p", "a cat", "--cuda-graphs")),
    (3, "are for CUDA", ("run", "ONNX", "-p", "a cat", "--engine-option", "vae:use_tf32=1")),
    (3, "keeps no compiled graphs", ("run", "ONNX", "-p", "a cat", "--cache", "graphs")),
    (3, "--scheduler: FlowMatchEulerDiscreteScheduler cannot draw", (*_RUN, "--scheduler", "FlowMatchEulerDiscreteScheduler")),
    (3, "--cache: file is not a folder", (*_RUN, "--cache", "file")),
    (3, "--cache: file is not a folder", (*_RUN, "--cache", "file/graphs")),
    (3, "file is not a folder", (*_RUN, "-o", "file/out.png")),
    (2, "write it as in CPU, or unet=CPU", (*_RUN, "--device", "")),
    (2, "--target", ("convert", "--target", "openvino")),
    (2, "--target", ("convert", "--target", "cuda", "--json")),
    (2, "fp17", ("convert", "--precision", "fp17")),
    (2, "no precision 'bf16'", ("convert", "--target", "onnx-cpu", "--precision", "unet:bf16")),
    (2, "unett", ("convert", "--precision", "unett=fp16")),
    (2, "two precisions", ("convert", "--precision", "vae=fp16", "--precision", "VAE:half", "--precision", "vae:f32")),
    (2, "--components", ("convert", "--components", "unet,vea")),
    (2, "--components", ("convert", "--components", "")),
    (2, "--repair", ("convert", "--repair", "sometimes")),
    (2, "--verify", ("convert", "--verify", "half")),
    (2, "--io", ("convert", "--io", "fp16")),
    (2, "--budget", ("convert", "--budget", "much")),
    (2, "--budget", ("convert", "--budget", "4GB", "--cache", "CACHE")),
    (2, "--precision", ("convert", "--precision", "auto", "--cache", "CACHE")),
    (3, "x.npy", ("convert", "--calibration", "x.npy")),
    (3, "bad.npy: not an array", ("convert", "--calibration", "bad.npy")),
    (3, "objects.npy: it holds object", ("convert", "--calibration", "objects.npy")),
    (3, "flat.npy: its shape is (4, 8)", ("convert", "--calibration", "flat.npy")),
    (3, "bad.png: unreadable", ("convert", "--calibration", "bad.png")),
    (3, "pipe.npy: not a file", ("convert", "--calibration", "pipe.npy")),
    (2, "--model", ("convert", "-m", "")),
    (2, "--cache: it lies in the output", ("convert", "-o", "x", "--cache", "x")),
    (2, "--revision", ("convert", "--revision", "main")),
    (3, "lies in the model", ("convert", "-m", "MODEL", "--cache", "INSIDE")),
    (3, "a converted artifact already", ("convert", "-m", "OPENVINO", "--cache", "CACHE")),
    (3, "file is not a folder", ("convert", "-o", "file/out")),
    (3, "tokenizer_config.json: not a JSON object", ("convert", "-m", "SPOILT", "--cache", "EMPTY")),
    (3, "nowhere", ("convert", "--model", "nowhere")),
    (3, "folder.png", ("convert", "-m", "folder.png")),
    (2, "no seeds", (*_VALIDATE, "--seeds", "0")),
    (2, "--seeds", (*_VALIDATE, "--seeds", "1000000000")),
    (2, "no steps", (*_VALIDATE, "--steps", "0")),
    (2, "fp8", (*_VALIDATE, "--emulate", "fp8")),
    (2, "multiples of 8", (*_VALIDATE, "--width", "50")),
    (2, "unet_2", (*_VALIDATE, "--components", "unet_2")),
    (2, "out.pdf", (*_VALIDATE, "--report", "out.pdf")),
    (2, "--load-reference", (*_VALIDATE, "--load-reference", "x", "--save-reference", "y")),
    (3, "nowhere", (*_VALIDATE, "--report", "nowhere/out.html")),
    (3, "nowhere", (*_VALIDATE, "--save-reference", "nowhere/x")),
    (3, "nothing", (*_VALIDATE, "--load-reference", "nothing")),
    (3, "nothing", (*_VALIDATE, "--prompts", "nothing")),
    (3, "nowhere", (*_VALIDATE, "-r", "nowhere")),
    (2, "--reference", (*_VALIDATE, "-r", "")),
    (3, "lies in the model", (*_VALIDATE, "-r", "MODEL", "--cache", "INSIDE")),
    (3, "folder.png", (*_VALIDATE, "-r", "folder.png")),
    (3, "--target onnx-cuda", (*_VALIDATE, "--device", "cuda")),
    (3, "vaefix.json", ("validate", "MODEL", "--cache", "CACHE")),
    (4, "1000000x1000000", (*_VALIDATE, "--width", "1000000", "--height", "1000000")),
]
"""Exit code, a part of the message, and the words; those in capitals are folders."""


@pytest.fixture(scope="module")
def answers(
    demo_artifact_fp32: Artifact,
    demo_artifact_onnx_cpu: Artifact,
    demo_model: Path,
    cache_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """What each of MISTAKES is answered, plain and then with --json."""
    work = tmp_path_factory.mktemp("work")
    (work / "folder.png").mkdir()
    for name in ("file", "bad.npy", "bad.png"):
        (work / name).write_text("x")
    os.mkfifo(work / "pipe.npy")
    np.save(work / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(work / "flat.npy", np.zeros((4, 8)))
    spoilt = Path(shutil.copytree(demo_model, tmp_path_factory.mktemp("spoilt") / "model"))
    (spoilt / "tokenizer" / "tokenizer_config.json").write_text("[1, 2]")
    folders = {
        "SPOILT": spoilt,
        "EMPTY": spoilt.with_name("cache"),
        "INSIDE": demo_model / "cache",
        "OPENVINO": demo_artifact_fp32.folder,
        "ONNX": demo_artifact_onnx_cpu.folder,
        "MODEL": demo_model,
        "CACHE": cache_folder,
    }
    lines = [[str(folders.get(word, word)) for word in words] for _, _, words in MISTAKES]
    done = subprocess.run(
        [sys.executable, "-c", _MANY],
        input=json.dumps([*lines, *([*words, "--json"] for words in lines)]),
        capture_output=True,
        text=True,
        cwd=work,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[" ".join(map(ascii, words)) for _, _, words in MISTAKES])
def test_a_mistake_is_one_message_before_anything_slow_is_imported(number: int, answers: Sequence[dict[str, Any]]) -> None:
    code, said, _ = MISTAKES[number]
    for answer in (answers[number], answers[number + len(MISTAKES)]):
        assert answer["loaded"] == []
        assert answer["made"] == []
        errors = [line for line in answer["err"].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert said in answer["err"]
        assert "remedy: " in answer["err"]
        assert "Traceback" not in answer["err"]
        assert answer["code"] == code
    assert (answers[number]["out"] == "") or "--json" in MISTAKES[number][2]
    error = json.loads(answers[number + len(MISTAKES)]["out"])["error"]
    assert error["exit_code"] == code
    assert error["reason"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--device", "GPU.9"), "device GPU.9 is not there (there: CPU"),
        (("--engine-option", "FOO=BAR"), "Unsupported property FOO"),
        (("--engine-option", "vae:NUM_STREAMS=some"), "NUM_STREAMS=some"),
    ],
)
def test_what_only_the_engine_knows_needs_the_engine_alone(
    asked: tuple[str, ...], said: str, demo_artifact_fp32: Artifact, tmp_path: Path
) -> None:
    words = ["run", str(demo_artifact_fp32.folder), "-p", "a cat", *asked]
    done = subprocess.run(
        [sys.executable, "-c", _MANY], input=json.dumps([words]), capture_output=True, text=True, cwd=tmp_path, check=True
    )
    answer = json.loads(done.stdout)
    assert (answer["code"], answer["loaded"]) == (3, ["openvino"])
    assert said in answer["err"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino-cpu", "onnx-cpu"])
def test_nobody_else_talks_on_the_screen(target: str, tmp_path: Path) -> None:
    """In processes of their own: other packages talk when they are imported, and engines past Python's streams."""
    long = "a cat " * 60
    span = r"\d+ (s|min|h)( \d+ (s|min))?"
    amount = r"[\d.]+ of [\d.]+ (MB|steps)"
    stage = re.compile(rf"(\w+(, \d of \d)?: )?[a-zA-Z' ]+(, for {span})?(, {amount})?(, {span} left)?")
    for words, printed in (
        (("convert", "--target", target, "--precision", "fp32", "-o", "out", "--cache", "cache"), r"out: .*"),
        (("run", "out", "-p", long, "--negative-prompt", long, "--steps", "1"), r"a-cat-.*\.png\n"),
        (("validate", "out", "--cache", "cache", "--seeds", "1", "--steps", "1", "--json"), r"\{.*\}\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "vaefix", *words], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(printed, done.stdout, re.DOTALL)
        lines = done.stderr.splitlines()
        own = [line for line in lines if line.startswith(("warning: ", "no --model given"))]
        assert [line for line in lines if line not in own and not stage.fullmatch(line)] == []
        if words[0] == "run":
            assert len(own) == 2
            assert own[0].startswith("warning: the prompt is too long; left out: ")
            assert own[1].startswith("warning: the negative prompt is too long; left out: ")


_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from vaefix.runtime import cli, command, drawing

def draw(*given):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (60 << 20),) * 2)
    return drawing.draw(*given)

cli.draw = draw
command.run(cli.app, [sys.argv[1], "-p", "a cat", "--steps", "1", "--width", "768", "--height", "768", "-o", "out.png"])
"""
"""Once everything is loaded, the process may take 60 MiB more."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("engine", ["fp32", "onnx_cpu"])
def test_an_engine_that_finds_no_memory_is_exit_code_4(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(f"demo_artifact_{engine}").folder
    done = subprocess.run(
        [sys.executable, "-c", _LITTLE_MEMORY, str(folder)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 4, done.stderr
    assert "error: unet: CPU has not the memory for sample [2, 4, 96, 96]" in done.stderr
    assert "remedy: draw smaller or fewer pictures" in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_program_that_loads_a_pipeline_keeps_its_own_logs_and_warnings(demo_artifact_fp32: Artifact) -> None:
    others = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    before = logging.root.manager.disable, [log.level for log in others], list(warnings.filters), warnings.showwarning
    vaefix.load_pipeline(demo_artifact_fp32.folder)
    after = logging.root.manager.disable, [log.level for log in others], list(warnings.filters), warnings.showwarning
    assert after == before
