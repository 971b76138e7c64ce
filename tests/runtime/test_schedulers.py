"""A scheduler is tried before a picture depends on it: what cannot draw says why, and those that can are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from vaefix.runtime.errors import ArtifactError, RequestError
from vaefix.runtime.install import is_installed
from vaefix.runtime.schedulers import CONFIG, drawing_schedulers, draws, load_scheduler, scheduler_class

SDXL: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
USUAL = "DDIM DPMSolverMultistep EulerAncestralDiscrete EulerDiscrete HeunDiscrete LCM PNDM UniPCMultistep".split()
FOREIGN = "FlowMatchEulerDiscrete DDIMInverse IPNDM CMStochasticIterative VQDiffusion RePaint SCM KarrasVe".split()


@pytest.fixture(scope="module")
def drawing() -> list[str]:
    return drawing_schedulers(SDXL)


@pytest.mark.parametrize("name", USUAL)
def test_those_that_draw_sdxl_are_listed(name: str, drawing: list[str]) -> None:
    assert f"{name}Scheduler" in drawing
    assert draws(scheduler_class(f"{name}Scheduler"), SDXL) is None


@pytest.mark.parametrize("name", FOREIGN)
def test_those_of_other_models_say_why_they_cannot(name: str, drawing: list[str]) -> None:
    assert f"{name}Scheduler" not in drawing
    assert draws(scheduler_class(f"{name}Scheduler"), SDXL)


@pytest.mark.parametrize(
    "change", [{"prediction_type": "v_prediction"}, {"lambda_min_clipped": float("-inf")}, {"unknown": [{}]}]
)
def test_a_config_that_the_library_draws_with_is_accepted(change: dict[str, Any]) -> None:
    assert draws(scheduler_class("DPMSolverMultistepScheduler"), {**SDXL, **change}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "x"},
        {"prediction_type": "x"},
        {"prediction_type": None},
        {"timestep_spacing": "x"},
        {"num_train_timesteps": -3},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": "x"},
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 10**5000},
        {"beta_start": "x"},
        {"beta_start": None},
        {"beta_start": float("nan")},
        {"trained_betas": [1, 2]},
        {"steps_offset": "1"},
        {"_class_name": 3},
    ],
)
def test_a_config_that_nothing_can_be_drawn_with_is_refused_by_file(change: dict[str, Any], tmp_path: Path) -> None:
    if change.get("num_train_timesteps") == 10**5000:
        text = json.dumps(SDXL).replace("1000", "1" + "0" * 5000)
    else:
        text = json.dumps({**SDXL, **change})
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ArtifactError) as caught:
        load_scheduler(tmp_path, "EulerDiscreteScheduler", ArtifactError, source=tmp_path / "index", remedy="convert again")
    assert caught.value.source == str(tmp_path / CONFIG)
    assert len(str(caught.value)) < 2000


def test_schedulers_are_those_of_diffusers() -> None:
    assert scheduler_class("HeunDiscreteScheduler") is diffusers.HeunDiscreteScheduler
    with pytest.raises(RequestError, match="EulerDiscreteSheduler is not a scheduler") as caught:
        scheduler_class("EulerDiscreteSheduler")
    assert "EulerDiscreteScheduler" in str(caught.value.remedy)


@pytest.mark.skipif(is_installed("torchsde"), reason="nothing is missing")
def test_one_whose_package_is_not_installed_names_it() -> None:
    with pytest.raises(RequestError, match="needs torchsde") as caught:
        scheduler_class("DPMSolverSDEScheduler", source="--scheduler")
    assert caught.value.remedy == "pip install torchsde"
