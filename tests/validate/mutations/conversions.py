"""Healthy conversions: whatever a user may convert and compare, none may raise an alarm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import SdxlSize, write_sdxl
from vaefix.validate.inputs import PictureSize

ALL = None
VAE, TEXT = ("vae_encoder", "vae_decoder"), ("text_encoder", "text_encoder_2")
_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
TARGETS = {
    "openvino-gpu": ("fp16", "fp32"),
    "openvino-cpu": ("fp32", "fp16"),
    "onnx-cuda": ("fp16", "bf16", "fp32"),
    "onnx-cpu": ("fp32", "fp16"),
}


@dataclass(frozen=True)
class Conversion:
    """A model, its conversion, and how it is compared.

    about: what is particular about it.  components: those that are converted and compared; ALL draws a picture, too.
    compared: those that are compared of ALL.
    seed, size, healthy: of the model's weights, see `write_sdxl`.  change: of the model's folder, once it is written.
    convert, validate: further options of the two.  fast: cheap enough to be tried every time.
    """

    about: str
    target: str
    precision: Mapping[str, str]
    components: tuple[str, ...] | None = ALL
    compared: tuple[str, ...] | None = None
    seed: int = 0
    size: SdxlSize = DEMO_SIZE
    healthy: bool = False
    change: Callable[[Path], None] | None = None
    convert: Mapping[str, Any] = field(default_factory=dict)
    validate: Mapping[str, Any] = field(default_factory=dict)
    fast: bool = False

    @property
    def what(self) -> str:
        """The components, in words."""
        whole = f"a picture and {', '.join(self.compared)}" if self.compared else "all, and a picture"
        return whole if self.components is ALL else ", ".join(self.components)

    @property
    def id(self) -> str:
        """Unique."""
        stored = "+".join(dict.fromkeys(self.precision.values()))
        return f"{self.about}, {self.target}, {stored}, {self.what}".replace(" ", "-")

    def write_model(self, folder: Path) -> Path:
        """The model, in diffusers layout."""
        write_sdxl(folder, self.size, seed=self.seed, healthy=self.healthy)
        if self.change is not None:
            self.change(folder)
        return folder


def _json(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return change


def _scheduled(kind: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        _json(_INDEX, scheduler=["diffusers", kind])(folder)
        _json(_SCHEDULER, _class_name=kind, **changes)(folder)

    return change


def _with_longer_weights(folder: Path) -> None:
    """In float32, which neither fp16 nor bf16 holds exactly."""
    random = np.random.default_rng(0)
    for file in folder.glob("*/*.safetensors"):
        weights = load_file(file)
        longer = {name: weight * random.uniform(1, 1.001, weight.shape).astype(np.float32) for name, weight in weights.items()}
        save_file(longer, file, {"format": "pt"})


def _whole() -> Iterator[Conversion]:
    """Every target in every precision, and mixtures."""
    for target, precisions in TARGETS.items():
        for precision in precisions:
            yield Conversion("the demo model", target, {"*": precision})
    yield Conversion("precisions mixed", "onnx-cuda", {"*": "fp16", "vae_decoder": "fp32", "unet": "bf16"})
    yield Conversion("precisions mixed", "openvino-gpu", {"*": "fp16", "vae_decoder": "fp32"})
    yield Conversion("inputs and outputs in fp16", "onnx-cuda", {"*": "fp16"}, convert={"io": "fp16"})
    yield Conversion("weights of another seed", "onnx-cuda", {"*": "fp16"}, seed=7)


def _seeds() -> Iterator[Conversion]:
    """Weights of many seeds; the VAE is ill in each."""
    for seed, target in zip(range(1, 9), cycle(TARGETS)):
        yield Conversion(f"weights of seed {seed}", target, {"*": TARGETS[target][0]}, VAE, seed=seed, fast=seed == 1)
    for seed, target in zip(range(1, 5), cycle(TARGETS)):
        precision = {"*": TARGETS[target][-1]}
        yield Conversion(f"weights of seed {seed}", target, precision, TEXT, seed=seed, fast=seed == 3)


def _shapes() -> Iterator[Conversion]:
    """Pictures of many shapes, and several inputs."""
    sides = [(32, 32), (64, 64), (32, 128), (160, 96), (128, 128), (64, 256)]
    for (height, width), target in zip(sides, cycle(TARGETS)):
        size = {"size": PictureSize(height, width)}
        yield Conversion(f"{width}x{height} pixels", target, {"*": TARGETS[target][0]}, VAE, validate=size)
    size = {"size": PictureSize(96, 128)}
    yield Conversion("128x96 pixels", "onnx-cpu", {"*": "fp32"}, compared=("vae_decoder",), validate=size)
    yield Conversion("128x96 pixels", "onnx-cuda", {"*": "fp16"}, ("unet",), validate=size)
    yield Conversion("five other seeds", "onnx-cuda", {"*": "fp16"}, VAE, validate={"seeds": (11, 12, 13, 14, 15)})
    yield Conversion("five other seeds", "onnx-cuda", {"*": "bf16"}, TEXT, validate={"seeds": (11, 12, 13, 14, 15)}, fast=True)


def _schedulers() -> Iterator[Conversion]:
    schedulers = {
        "DDIM": _scheduled("DDIMScheduler"),
        "DPM++ 2M Karras": _scheduled("DPMSolverMultistepScheduler", use_karras_sigmas=True),
        "UniPC": _scheduled("UniPCMultistepScheduler"),
        "Heun": _scheduled("HeunDiscreteScheduler"),
        "LMS": _scheduled("LMSDiscreteScheduler"),
        "PNDM": _scheduled("PNDMScheduler", skip_prk_steps=True),
        "Euler ancestral": _scheduled("EulerAncestralDiscreteScheduler"),
        "DDPM": _scheduled("DDPMScheduler"),
        "Euler of fractional timesteps": _scheduled("EulerDiscreteScheduler", timestep_spacing="linspace"),
        "Euler from the end": _scheduled("EulerDiscreteScheduler", timestep_spacing="trailing"),
        "v-prediction": _scheduled("EulerDiscreteScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    }
    for (name, change), target in zip(schedulers.items(), cycle(TARGETS)):
        precision = {"*": TARGETS[target][0]}
        yield Conversion(name, target, precision, compared=("vae_decoder",), change=change)


def _prompts() -> Iterator[Conversion]:
    prompts = {
        "an empty prompt": "",
        "a prompt of 120 words": "red harbour " * 60,
        "a prompt that is no English": "夜の港、雨 🐈 größer",
    }
    for name, prompt in prompts.items():
        validate = {"prompts": (prompt,)}
        yield Conversion(name, "onnx-cpu", {"*": "fp32"}, compared=("text_encoder",), validate=validate)
    yield Conversion(
        "the empty prompt encoded",
        "onnx-cuda",
        {"*": "fp16"},
        compared=("text_encoder",),
        change=_json(_INDEX, force_zeros_for_empty_prompt=False),
    )


def _models() -> Iterator[Conversion]:
    """Other architectures, weights of other types, a VAE that needs no repair, one that is repaired although."""
    sizes = {
        "a wider VAE": (replace(DEMO_SIZE, vae_channels=(32, 64, 96, 96)), VAE),
        "a narrower VAE of fewer groups": (replace(DEMO_SIZE, vae_channels=(16, 32, 32, 64), norm_groups=4), VAE),
        "deeper text encoders": (replace(DEMO_SIZE, text_layers=(5, 6)), TEXT),
        "text encoders of other heads": (replace(DEMO_SIZE, text_hidden=(48, 96), text_heads=(4, 8)), TEXT),
        "a larger vocabulary": (replace(DEMO_SIZE, vocabulary=4096), TEXT),
    }
    for (name, (size, components)), target in zip(sizes.items(), cycle(["onnx-cuda", "openvino-gpu"])):
        yield Conversion(name, target, {"*": "fp16"}, components, size=size)
    for target, precision in (("onnx-cuda", "fp16"), ("openvino-gpu", "fp16"), ("onnx-cuda", "bf16"), ("onnx-cpu", "fp32")):
        longer = Conversion("weights in float32", target, {"*": precision}, VAE, change=_with_longer_weights)
        yield longer
        yield replace(longer, components=TEXT, fast=precision == "bf16")
    longer = Conversion("weights in float32", "onnx-cuda", {"*": "bf16"}, change=_with_longer_weights)
    yield replace(longer, compared=("vae_decoder",))
    yield replace(longer, components=("unet",))
    for target in ("onnx-cuda", "openvino-gpu"):
        yield Conversion("a VAE that needs no repair", target, {"*": "fp16"}, VAE, healthy=True)
        yield Conversion("repaired without need", target, {"*": "fp16"}, TEXT, convert={"repair": "always"})


HEALTHY = (*_whole(), *_seeds(), *_shapes(), *_schedulers(), *_prompts(), *_models())
