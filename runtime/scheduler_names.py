"""What a person calls a scheduler: a class of diffusers, or a short name as A1111, ComfyUI and InvokeAI have them.

Nothing here imports diffusers, so that a wrong name is answered at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .defaults import constructor_defaults
from .errors import RequestError, UsageError


@dataclass(frozen=True)
class Sampler:
    """names: its spellings, the usual one first.  cls: of diffusers.  changes: to the model's own scheduler config."""

    names: tuple[str, ...]
    cls: str
    changes: Mapping[str, Any]


_NO_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_SIGMAS: Mapping[tuple[str, ...], Mapping[str, bool]] = {
    ("",): _NO_SIGMAS,
    ("_karras", "_k"): {**_NO_SIGMAS, "use_karras_sigmas": True},
    ("_exponential",): {**_NO_SIGMAS, "use_exponential_sigmas": True},
}
"""Endings of a name, and what they mean to the classes that can space their steps in several ways."""


def _plain(cls: str, *names: str, **changes: Any) -> tuple[Sampler]:
    return (Sampler(names, cls, changes),)


def _spaced(cls: str, *names: str, **changes: Any) -> tuple[Sampler, ...]:
    return tuple(
        Sampler(tuple(f"{name}{ending}" for name in names for ending in endings), cls, {**changes, **sigmas})
        for endings, sigmas in _SIGMAS.items()
    )


OF_ANOTHER_KIND = "it is made for another kind of model: it does not ask what the network predicts"
_USUAL = ("euler", "euler_a", "dpm++2m_karras", "ddim", "unipc")
_ODE, _SDE = "dpmsolver++", "sde-dpmsolver++"
SAMPLERS = (
    *_spaced("EulerDiscreteScheduler", "euler"),
    *_plain("EulerAncestralDiscreteScheduler", "euler_a", "euler_ancestral"),
    *_spaced("HeunDiscreteScheduler", "heun"),
    *_spaced("LMSDiscreteScheduler", "lms"),
    *_spaced("KDPM2DiscreteScheduler", "dpm2"),
    *_spaced("KDPM2AncestralDiscreteScheduler", "dpm2_a", "dpm2_ancestral"),
    *_spaced("DPMSolverMultistepScheduler", "dpm++2m", algorithm_type=_ODE, solver_order=2),
    *_spaced("DPMSolverMultistepScheduler", "dpm++2m_sde", "dpm++2m_sde_gpu", algorithm_type=_SDE, solver_order=2),
    *_spaced("DPMSolverMultistepScheduler", "dpm++3m", algorithm_type=_ODE, solver_order=3),
    *_spaced("DPMSolverMultistepScheduler", "dpm++3m_sde", "dpm++3m_sde_gpu", algorithm_type=_SDE, solver_order=3),
    *_spaced("DPMSolverSinglestepScheduler", "dpm++2s", algorithm_type=_ODE, solver_order=2),
    *_spaced("DPMSolverSinglestepScheduler", "dpm++sde", "dpm++sde_gpu", algorithm_type=_SDE, solver_order=2),
    *_spaced("DEISMultistepScheduler", "deis"),
    *_spaced("UniPCMultistepScheduler", "unipc", "unipc_bh2"),
    *_plain("DDIMScheduler", "ddim"),
    *_plain("DDPMScheduler", "ddpm"),
    *_plain("PNDMScheduler", "pndm"),
    *_plain("PNDMScheduler", "plms", skip_prk_steps=True),
    *_plain("LCMScheduler", "lcm"),
    *_plain("TCDScheduler", "tcd"),
)


def find_sampler(name: str, *, source: str) -> Sampler:
    """What a person means: `euler_a`, `DPM++ 2M Karras`, `dpmpp_2m`, `k_euler`, `DDIMScheduler`, `DDIM`.

    Raises UsageError with names that are close for anything else; `source` is the option.
    """
    by_key = {_key(spelling): sampler for sampler in SAMPLERS for spelling in sampler.names}
    classes = {_key(cls): Sampler((cls,), cls, {}) for cls in scheduler_names()}
    by_key = {**{f"k{key}": sampler for key, sampler in by_key.items()}, **by_key, **classes}
    key = _key(name)
    if found := by_key.get(key) or classes.get(f"{key}scheduler"):
        return found
    close = dict.fromkeys(by_key[match].names[0] for match in difflib.get_close_matches(key, by_key, n=6, cutoff=0.5))
    raise UsageError(
        f"{name} is not a scheduler", source=source, remedy=f"name another, such as {', '.join(list(close)[:4] or _USUAL)}"
    )


def require_drawing_sampler(name: str, *, source: str) -> None:
    """What the source of diffusers tells of a name, see `find_sampler`, before it is imported.

    Raises UsageError where there is no scheduler of that name, RequestError where it is made for another kind of model.
    """
    if not asks_what_is_predicted(find_sampler(name, source=source).cls):
        reason = f"{name} cannot draw this model ({OF_ANOTHER_KIND})"
        raise RequestError(reason, source=source, remedy=f"choose one that can: {', '.join(_USUAL)}")


def asks_what_is_predicted(cls: str) -> bool:
    """Whether a scheduler of diffusers is told what the network predicts, as all are that draw with an SDXL."""
    return "prediction_type" in constructor_defaults("diffusers", "schedulers", cls)


def scheduler_names() -> frozenset[str]:
    """The schedulers that diffusers exports, read from its source, so that nothing is imported."""
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise RequestError("diffusers is not installed", remedy="pip install diffusers")
    names = re.findall(r'"(\w+Scheduler)"', Path(spec.origin).read_text(encoding="utf-8"))
    return frozenset(name for name in names if not name.startswith("Flax"))


def short_name(cls: str) -> str | None:
    """What a person calls the class, if there is a name for it: `euler`."""
    return next((sampler.names[0] for sampler in SAMPLERS if sampler.cls == cls), None)


def _key(name: str) -> str:
    """Neither case nor spaces, hyphens and underscores count, and `pp` is `++`."""
    return re.sub(r"[\s_-]", "", name.lower()).replace("++", "pp")
