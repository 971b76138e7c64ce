"""Schedulers of diffusers: found by name, and tried before a picture depends on them. Importing this file imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import read_object
from .errors import ArtifactError, ModelError, RequestError, VaefixError
from .install import is_installed
from .libraries import quiet, refusals, words_of
from .scheduler_names import OF_ANOTHER_KIND, asks_what_is_predicted, find_sampler, short_name

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

CONFIG = "scheduler_config.json"
_STEPS = 10  # fewer are no test of those that look back several steps
_LARGEST = 100_000  # of a whole number in a config: schedulers make tables of num_train_timesteps entries


def scheduler_class(name: str, *, source: str | Path | None = None) -> type[SchedulerMixin]:
    """The scheduler of that name in `diffusers.schedulers`; `source` says who asks for it.

    Raises RequestError for anything else, so that a model cannot name code of its own.
    """
    import diffusers
    from diffusers import schedulers

    known = _schedulers()
    if name in known:
        return known[name]
    lacks = getattr(getattr(schedulers, name, None), "_backends", None)  # what diffusers puts in the place of a scheduler
    if isinstance(lacks, list) and name.endswith("Scheduler"):
        packages = " ".join(package for package in lacks if not is_installed(package))
        raise RequestError(f"{name} needs {packages}, which is not installed", source=source, remedy=f"pip install {packages}")
    close = difflib.get_close_matches(name, known) or ["EulerDiscreteScheduler"]
    raise RequestError(
        f"{name} is not a scheduler of diffusers {diffusers.__version__}",
        source=source,
        remedy=f"name one of its schedulers, such as {', '.join(close)}",
    )


def load_scheduler(folder: Path, name: str, error: type[VaefixError], *, source: Path, remedy: str) -> SchedulerMixin:
    """The scheduler in a folder, of the class that `source` names, tried.

    Raises `error` where its config is damaged, or it cannot draw.
    """
    config = read_object(folder / CONFIG, error, remedy=remedy)
    cls = scheduler_class(name, source=source)
    if (reason := draws(cls, config)) is not None:
        if draws(cls, {}) is not None:  # whatever its config
            remedy = f"{remedy}; those that can draw: {', '.join(drawing_schedulers(config))}"
        raise error(f"{name} cannot draw ({reason})", source=folder / CONFIG, remedy=remedy)
    with quiet():
        return cls.from_config(config)


def chosen_scheduler(folder: Path, name: str, *, source: str) -> SchedulerMixin:
    """The scheduler that a person names, see `find_sampler`, made from the config in `folder` and tried.

    Raises UsageError where there is none of that name, RequestError with those that can where it cannot draw this model,
    ArtifactError for a damaged config. `source` is the option.
    """
    sampler = find_sampler(name, source=source)
    config = read_object(folder / CONFIG, ArtifactError, remedy="convert the model again with vaefix-convert")
    cls, changed = scheduler_class(sampler.cls, source=source), {**config, **sampler.changes}
    if (reason := draws(cls, changed)) is not None:
        drawing = [f"{short} ({known})" if (short := short_name(known)) else known for known in drawing_schedulers(config)]
        remedy = f"choose one that can: {', '.join(drawing)}"
        raise RequestError(f"{name} cannot draw this model ({reason})", source=source, remedy=remedy)
    with quiet():
        return cls.from_config(changed)


def draws(cls: type[SchedulerMixin], config: Mapping[str, Any]) -> str | None:
    """Why this scheduler, made from this config, cannot draw with a UNet that predicts noise or velocity; None if it can.

    It is made, asked for its steps and taken through them on a small latent, as diffusers' pipelines do.
    """
    for key, value in config.items():
        if isinstance(value, int) and abs(value) > _LARGEST:
            return f"{key} is {value if abs(value) < 10**18 else 'a number of many digits'}, more than {_LARGEST}"
    try:
        with refusals(ModelError, "cannot draw", source=cls.__name__, remedy="choose another scheduler"):
            return _trial(cls.from_config(dict(config)))
    except ModelError as error:  # whatever it raises here it would raise while drawing
        return words_of(error.__cause__ or error)


def drawing_schedulers(config: Mapping[str, Any]) -> list[str]:
    """The names of the schedulers that can draw, each made from this config."""
    return sorted(name for name, cls in _schedulers().items() if draws(cls, config) is None)


def _schedulers() -> dict[str, type[SchedulerMixin]]:
    """By name, all that diffusers has and can import."""
    from diffusers import SchedulerMixin, schedulers

    with quiet():  # about names that it will drop
        found = {name: getattr(schedulers, name) for name in dir(schedulers) if name.endswith("Scheduler")}
    return {name: cls for name, cls in found.items() if isinstance(cls, type) and issubclass(cls, SchedulerMixin)}


def _trial(scheduler: Any) -> str | None:
    import torch

    if not asks_what_is_predicted(type(scheduler).__name__):
        return OF_ANOTHER_KIND
    scheduler.set_timesteps(_STEPS)
    if not scheduler.timesteps[0] > scheduler.timesteps[-1]:
        return "it goes from a picture to noise"
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=noise) * scheduler.init_noise_sigma
    scheduler.add_noise(latents, latents, scheduler.timesteps[:1])  # how drawing from a picture begins
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(latents, timestep)
        prediction = torch.randn(latents.shape, generator=noise)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return None if torch.isfinite(latents).all() else "what it draws is not finite"
