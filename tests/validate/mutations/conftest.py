"""What the faults are planted in, and what the damaged artifacts are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import write_sdxl
from vaefix.runtime.artifact import Artifact
from vaefix.validate.inputs import Prompt, prompt_text
from vaefix.validate.references import ModelReference
from vaefix.validate.saved import Recorder
from vaefix.validate.validate import ValidateOptions

from .fault import ONNX, ONNX_F32, OPENVINO, OPENVINO_F32, Fault, Patient

FIXTURES = {
    OPENVINO: "demo_artifact_fp16",
    ONNX: "demo_artifact_onnx_cuda",
    OPENVINO_F32: "demo_artifact_fp32",
    ONNX_F32: "demo_artifact_onnx_cpu",
}
COMPARED = ValidateOptions(Path(), seeds=(0,), steps=3, generation=False)


@pytest.fixture(scope="session")
def references(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """references(precision): everything that the demo model computes, for artifacts that store it so; made once."""

    @cache
    def saved(precision: str) -> Path:
        recorder = Recorder(ModelReference(Checkpoint.open(demo_model)))
        for name in recorder.parts:
            for seeds in (COMPARED.seeds, (0, 1)):
                recorder.case(name, seeds, COMPARED.size, precision)
            recorder.ranges(name, COMPARED.seeds[0], COMPARED.size, precision)
        (seed,) = COMPARED.seeds
        prompt = Prompt(prompt_text(seed), seed, COMPARED.steps, COMPARED.size)
        recorder.generations([prompt], dict.fromkeys(recorder.parts, precision))
        path = tmp_path_factory.mktemp("reference") / f"{precision}.safetensors"
        recorder.save(path)
        return path

    return saved


@pytest.fixture
def patient(
    request: pytest.FixtureRequest,
    references: Callable[[str], Path],
    cache_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Fault], Patient]:
    """patient(fault): a copy of the artifact it is for, and the options with which it must be found."""

    def made(fault: Fault) -> Patient:
        original: Artifact = request.getfixturevalue(FIXTURES[fault.base])
        artifact = replace(original, folder=Path(shutil.copytree(original.folder, tmp_path / "copied")))
        precision = next(iter(artifact.components.values())).precision

        def model(*, seed: int = 0) -> Path:
            write_sdxl(tmp_path / "model", DEMO_SIZE, seed=seed)
            return tmp_path / "model"

        def converted(model: Path, component: str, *, repair: str = "auto") -> Artifact:
            options = ConvertOptions(tmp_path / "other", model, artifact.target, {"*": precision}, components=(component,))
            return convert(replace(options, repair=repair, cache=cache_folder))

        component = fault.component if fault.component in artifact.components else "vae_encoder"
        options = replace(
            COMPARED,
            artifact=artifact.folder,
            components=(component,),
            generation=fault.drawn is not None or component != fault.component,
            emulate=fault.emulate,
            load_reference=references(precision),
        )
        return Patient(artifact, options, monkeypatch, tmp_path, model, converted)

    return made
