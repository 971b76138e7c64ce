"""A person's names for schedulers mean what they mean elsewhere, all of them draw, and a wrong one is answered at once."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError, RequestError, UsageError
from vaefix.runtime.scheduler_names import SAMPLERS, Sampler, asks_what_is_predicted, find_sampler, scheduler_names
from vaefix.runtime.schedulers import chosen_scheduler

KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}


@pytest.mark.parametrize(
    ("names", "cls", "config"),
    [
        ("euler, Euler, k_euler, EULER", "EulerDiscrete", {"use_karras_sigmas": False}),
        ("euler_karras, Euler Karras, euler_k", "EulerDiscrete", KARRAS),
        ("euler_a, Euler a, k_euler_a, euler_ancestral, Euler Ancestral", "EulerAncestralDiscrete", {}),
        ("heun, k_heun", "HeunDiscrete", {}),
        ("lms, LMS, k_lms", "LMSDiscrete", {}),
        ("LMS Karras, lms_k", "LMSDiscrete", KARRAS),
        ("ddim, DDIM", "DDIM", {}),
        ("pndm", "PNDM", {}),
        ("plms, PLMS", "PNDM", {"skip_prk_steps": True}),
        ("dpm2, DPM2, dpm_2, k_dpm_2, kdpm_2", "KDPM2Discrete", {}),
        ("dpm2_a, DPM2 a, dpm_2_ancestral, kdpm_2_a", "KDPM2AncestralDiscrete", {}),
        ("DPM2 a Karras, kdpm_2_a_k", "KDPM2AncestralDiscrete", KARRAS),
        (
            "dpm++2m, DPM++ 2M, dpmpp_2m, k_dpmpp_2m, dpm++_2m, dpm++-2m",
            "DPMSolverMultistep",
            {"algorithm_type": "dpmsolver++"},
        ),
        ("dpm++2m_karras, DPM++ 2M Karras, dpmpp_2m_k, dpmpp_2m_karras", "DPMSolverMultistep", {**KARRAS, "solver_order": 2}),
        ("DPM++ 2M Exponential", "DPMSolverMultistep", EXPONENTIAL),
        ("dpm++2m_sde, DPM++ 2M SDE, dpmpp_2m_sde_gpu", "DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPM++ 2M SDE Karras, dpmpp_2m_sde_k", "DPMSolverMultistep", {**KARRAS, "algorithm_type": "sde-dpmsolver++"}),
        ("dpm++3m_sde, DPM++ 3M SDE", "DPMSolverMultistep", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}),
        ("dpm++sde, DPM++ SDE, dpmpp_sde", "DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPM++ SDE Karras", "DPMSolverSinglestep", KARRAS),
        ("unipc, UniPC, uni_pc", "UniPCMultistep", {}),
        ("deis, DEIS", "DEISMultistep", {}),
        ("lcm, LCM", "LCM", {}),
        ("tcd", "TCD", {}),
        ("HeunDiscreteScheduler, HeunDiscrete, heundiscretescheduler", "HeunDiscrete", {}),
    ],
)
def test_every_usual_spelling_is_understood(names: str, cls: str, config: dict[str, Any]) -> None:
    for name in names.split(", "):
        sampler = find_sampler(name, source="--scheduler")
        assert sampler.cls == f"{cls}Scheduler"
        assert {key: sampler.changes[key] for key in config} == config


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("dpmpp_2m_kar", "dpm++2m_karras"),
        ("Eulr", "euler"),
        ("EulerDiscreteSheduler", "EulerDiscreteScheduler"),
        ("Euler a Karras", "euler_karras"),
        ("DPM++ 2S a", "dpm++2s"),
        ("uni pcm", "unipc"),
        ("DiffusionPipeline", ""),
        ("SchedulerMixin", ""),
        ("os", ""),
        ("", "euler"),
        ("../euler/x", "euler"),
        ("FlaxDDIMScheduler", "DDIMScheduler"),
    ],
)
def test_any_other_name_is_wrong_usage_with_close_ones(name: str, close: str) -> None:
    with pytest.raises(UsageError, match="is not a scheduler") as caught:
        find_sampler(name, source="--scheduler")
    assert (caught.value.source, caught.value.exit_code) == ("--scheduler", 2)
    assert close in str(caught.value.remedy)


def test_no_two_samplers_share_a_name_and_all_are_classes_of_diffusers() -> None:
    for sampler in SAMPLERS:
        assert sampler.cls in scheduler_names()
        for name in sampler.names:
            assert find_sampler(name, source="") is sampler


@pytest.mark.parametrize("cls", sorted({sampler.cls for sampler in SAMPLERS}))
def test_a_class_is_offered_with_the_sigmas_that_it_has_and_no_change_is_ignored(cls: str) -> None:
    known = inspect.signature(getattr(diffusers, cls)).parameters
    own = [sampler for sampler in SAMPLERS if sampler.cls == cls]
    assert all(sampler.changes.keys() <= known.keys() for sampler in own)
    assert any("karras" in name for sampler in own for name in sampler.names) == ("use_karras_sigmas" in known)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(sampler, id=name, marks=pytest.mark.slow if name.endswith(("_karras", "_exponential")) else ())
        for sampler in SAMPLERS
        for name in sampler.names[:1]
    ],
)
def test_every_short_name_draws(sampler: Sampler, demo_artifact_onnx_cpu: Artifact, onnx_pipeline: Any) -> None:
    before = onnx_pipeline.scheduler
    folder = demo_artifact_onnx_cpu.folder / "scheduler"
    try:
        onnx_pipeline.scheduler = chosen_scheduler(folder, sampler.names[0], source="--scheduler")
        generator = torch.Generator().manual_seed(0)
        picture = onnx_pipeline("a", num_inference_steps=4, height=32, width=32, generator=generator, output_type="np").images
    finally:
        onnx_pipeline.scheduler = before
    assert np.isfinite(picture).all()
    assert np.ptp(picture) > 0.1


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DDIMInverseScheduler", "IPNDMScheduler"])
def test_one_that_cannot_draw_this_model_is_refused_with_those_that_can(name: str, demo_artifact_onnx_cpu: Artifact) -> None:
    with pytest.raises(RequestError, match=f"--scheduler: {name} cannot draw this model") as caught:
        chosen_scheduler(demo_artifact_onnx_cpu.folder / "scheduler", name, source="--scheduler")
    assert caught.value.exit_code == 3
    assert "euler (EulerDiscreteScheduler)" in str(caught.value.remedy)
    assert name not in str(caught.value.remedy)


def test_what_the_source_says_of_a_class_is_what_the_class_says() -> None:
    classes = {name: getattr(diffusers, name) for name in scheduler_names()}
    there = {name: cls for name, cls in classes.items() if issubclass(cls, diffusers.SchedulerMixin)}
    assert len(there) > 20
    for name, cls in there.items():
        asks = "prediction_type" in inspect.signature(cls.__init__).parameters
        assert asks_what_is_predicted(name) is asks, name


def test_a_damaged_config_of_the_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="scheduler_config.json: missing"):
        chosen_scheduler(tmp_path, "euler", source="--scheduler")


def test_a_name_is_looked_up_without_torch_and_diffusers() -> None:
    code = """
import sys
from vaefix.runtime.scheduler_names import find_sampler
find_sampler("DPM++ 2M Karras", source="")
find_sampler("DDIMScheduler", source="")
print(*(name for name in ("torch", "diffusers", "transformers", "numpy") if name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""
