"""The words that a person types, and what they stand for: components, precisions, devices and targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from .errors import UsageError

GROUPS: Mapping[str, tuple[str, ...]] = {"vae": ("vae_encoder", "vae_decoder")}
"""Names that stand for several components."""
ALL = "*"
"""Stands for every component that is not named."""
_DEVICES = {"CPU", "GPU", "NPU", "CUDA", "AUTO", "MULTI", "HETERO", "BATCH"}
_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("f32", "float32", "float", "single", "full"),
    "fp16": ("f16", "float16", "half"),
    "bf16": ("bfloat16",),
    "int8": ("i8", "8bit", "int8_sym"),
    "int4": ("i4", "4bit", "int4_sym"),
    "fp8_e4m3": ("f8e4m3", "e4m3", "fp8_e4m3fn", "float8_e4m3", "float8_e4m3fn", "fp8e4m3", "f8_e4m3"),
    "fp8_e5m2": ("f8e5m2", "e5m2", "float8_e5m2", "fp8e5m2", "f8_e5m2"),
}
"""Precision -> its other spellings."""
_EXAMPLES = {"precision": "fp16", "device": "CPU"}
_Value = TypeVar("_Value")


def component_names(text: str) -> tuple[str, ...]:
    """`"UNet, vae"` -> `("unet", "vae_encoder", "vae_decoder")`, each once."""
    return in_full([text])


def in_full(names: Iterable[str]) -> tuple[str, ...]:
    """The components that are named, each once; a group's name is that of all in it, and a name may be several with commas."""
    spelt = filter(None, (_component(name) for text in names for name in text.split(",")))
    return tuple(dict.fromkeys(name for word in spelt for name in GROUPS.get(word, (word,))))


def by_component(values: Iterable[str], what: str, source: str, spell: Callable[[str], str]) -> dict[str, str]:
    """`["GPU", "vae=cpu", "unet:CUDA:1"]` -> `{"*": "GPU", "vae": "CPU", "unet": "CUDA:1"}`.

    what: is given, `precision` or `device`, for messages.  spell: its usual spelling.
    Raises UsageError for half of a pair, and where a component is given two.
    """
    found: dict[str, str] = {}
    for text in values:
        name, value = _pair(text)
        if not (name and value):
            value, name = value or _EXAMPLES[what], "unet" if name in ("", ALL) else name
            example = f"write it as in {value}, or {name}={value} for one component"
            raise UsageError(f"{text!r} is not [COMPONENT=]{what.upper()}", source=source, remedy=example)
        if found.setdefault(name, spell(value)) != spell(value):
            whom = "all components" if name == ALL else name
            raise UsageError(f"two {what}s for {whom}", source=source, remedy="give one")
    return found


def of_component(values: Mapping[str, _Value], component: str) -> _Value | None:
    """The value that holds for a component: its own before its group's before that of all."""
    groups = (group for group, members in GROUPS.items() if component in members)
    return next((values[name] for name in (component, *groups, ALL) if name in values), None)


def unknown_components(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of `names` that stand for none of the `known` components, in alphabetical order."""
    there = set(known)
    return sorted(name for name in names if name != ALL and not there & {name, *GROUPS.get(name, ())})


def precision(text: str) -> str:
    """`Float16` -> `fp16`; what is no precision remains as it is."""
    word = text.strip().lower().replace("-", "_")
    return next((name for name, others in _PRECISIONS.items() if word in others), word)


def device(text: str) -> str:
    """`gpu:1` -> `GPU.1`, as OpenVINO counts; `cuda.1` -> `CUDA:1`, as CUDA does."""
    word = text.strip().upper()
    numbered = re.fullmatch(r"(GPU|NPU|CUDA)[.:](\d+)", word)
    return f"{numbered[1]}{':' if numbered[1] == 'CUDA' else '.'}{numbered[2]}" if numbered else word


def target(text: str) -> str:
    """`OpenVINO_GPU` -> `openvino-gpu`."""
    return text.strip().lower().replace("_", "-")


def _component(text: str) -> str:
    return text.strip().lower().replace("-", "_")


def _pair(text: str) -> tuple[str, str]:
    """Component and value; a colon separates them too, unless what is before it is a device: `CUDA:1`."""
    for mark in ("=", ":"):
        name, found, value = text.partition(mark)
        if found and name.strip().upper() not in _DEVICES:
            return _component(name), value.strip()
    return ALL, text.strip()
