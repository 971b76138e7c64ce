"""Faults in the runtime that a user's picture goes through."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.configuration_utils import FrozenDict

from ..stored import reseal
from .fault import GENERATION, ONNX, OPENVINO, Fault, Patient, Plant

_MODULES = "vaefix.runtime.modules"
_ONNX_SESSION = "vaefix.runtime.backends.onnx.session.OnnxSession"
_OPENVINO_SESSION = "vaefix.runtime.backends.openvino.OpenVINOSession"


def around(target: str, new: Callable[..., Any]) -> Plant:
    """Replace a function: the new one is called with the old one and its arguments."""

    def plant(patient: Patient) -> None:
        old = pkgutil.resolve_name(target)
        patient.monkeypatch.setattr(target, lambda *arguments, **named: new(old, *arguments, **named))

    return plant


def _after(target: str, change: Callable[[Any], Any]) -> Plant:
    """Change what a function returns."""
    return around(target, lambda old, *arguments, **named: change(old(*arguments, **named)))


def _pipeline(change: Callable[[Any], Any]) -> Plant:
    """Change the pipeline that is loaded from the artifact."""

    def changed(load: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        pipeline = load(*arguments, **named)
        change(pipeline)
        return pipeline

    return around("vaefix.validate.drawing.load_pipeline", changed)


def _drawing(name: str, plant: Plant, first: str, base: str = ONNX) -> Fault:
    """first: the output of a generation that fails first."""
    return Fault(name, base, GENERATION, plant, f"parity {first}")


# ------------------------------------------------------------------------------------------------------- the prompt


def _last_hidden_state(output: Any) -> Any:
    """Pipelines take the last but one."""
    output.hidden_states = (*output.hidden_states[1:], output.hidden_states[-1])
    return output


def _pooled_by_the_first(patient: Patient) -> None:
    pooled: list[torch.Tensor] = []

    def forward(old: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        output = old(*arguments, **named)
        if "text_embeds" not in output:
            pooled[:] = [output.pooler_output]
        else:
            output.text_embeds = pooled[0].repeat(1, output.text_embeds.shape[1] // pooled[0].shape[1])
        return output

    around(f"{_MODULES}.TextEncoder.forward", forward)(patient)


def _not_projected(old: Callable[..., Any], module: Any, input_ids: torch.Tensor, *arguments: Any, **named: Any) -> Any:
    output = old(module, input_ids, *arguments, **named)
    if "text_embeds" in output:
        output.text_embeds = output.last_hidden_state[torch.arange(len(input_ids)), input_ids.argmax(-1)]
    return output


def _prompts_exchanged(pipeline: Any) -> None:
    encode = pipeline.encode_prompt

    def exchanged(*arguments: Any, **named: Any) -> Any:
        positive, negative, pooled, negative_pooled = encode(*arguments, **named)
        return negative, positive, negative_pooled, pooled

    pipeline.encode_prompt = exchanged


def _encoders_in_the_other_order(pipeline: Any) -> None:
    encode, width = pipeline.encode_prompt, pipeline.text_encoder.config.hidden_size

    def rolled(*arguments: Any, **named: Any) -> Any:
        positive, negative, *pooled = encode(*arguments, **named)
        return positive.roll(-width, -1), negative.roll(-width, -1), *pooled

    pipeline.encode_prompt = rolled


def _sizes_exchanged(pipeline: Any) -> None:
    make = pipeline._get_add_time_ids
    pipeline._get_add_time_ids = lambda size, crop, target, **named: make(size[::-1], crop, target[::-1], **named)


# ------------------------------------------------------------------------------------------------------ the denoiser


def _at_timestep(change: Callable[[Any], Any]) -> Plant:
    def forward(old: Callable[..., Any], module: Any, sample: Any, timestep: Any, *arguments: Any, **named: Any) -> Any:
        return old(module, sample, change(timestep), *arguments, **named)

    return around(f"{_MODULES}.UNet.forward", forward)


def _whole_timesteps(patient: Patient) -> None:
    """Shows where the schedule has fractional ones."""
    model = patient.model()
    for folder in (model, patient.artifact.folder):
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(path.read_text(encoding="utf-8").replace("leading", "linspace"), encoding="utf-8")
    reseal(patient.artifact)
    patient.options = replace(patient.options, load_reference=None, reference=model)
    _at_timestep(torch.floor)(patient)


def _stale_timestep(patient: Patient) -> None:
    first: list[Any] = []

    def kept(timestep: Any) -> Any:
        first.append(timestep)
        return first[0]

    _at_timestep(kept)(patient)


def _more_guidance(patient: Patient) -> None:
    scale = property(lambda pipeline: pipeline._guidance_scale + 1)
    patient.monkeypatch.setattr("diffusers.StableDiffusionXLPipeline.guidance_scale", scale)


def _unscaled_input(pipeline: Any) -> None:
    pipeline.scheduler.scale_model_input = lambda sample, _timestep: sample


def _own_scheduler(pipeline: Any) -> None:
    pipeline.scheduler = EulerDiscreteScheduler()


def _one_tokenizer(pipeline: Any) -> None:
    pipeline.tokenizer = pipeline.tokenizer_2


# ------------------------------------------------------------------------------------------------------- the picture


def _without_scaling_factor(pipeline: Any) -> None:
    pipeline.vae.config = FrozenDict({**pipeline.vae.config, "scaling_factor": 1.0})


def _decoded(change: Callable[[torch.Tensor], torch.Tensor]) -> Plant:
    """return_dict is false where pipelines decode."""
    return _after(f"{_MODULES}.Vae.decode", lambda output: (change(output[0]),))


def _constant_picture(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(value, 0.3) if name == "sample" else value for name, value in outputs.items()}


# -------------------------------------------------------------------------------------------------------- the engine


def _zeros(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value) for name, value in outputs.items()}


def _rounded_to_fp16(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float16).astype(np.float32) for name, value in outputs.items()}


def _renamed(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The hidden states in reverse."""
    names = [name for name in outputs if name.startswith("hidden_states.")]
    return {**outputs, **{name: outputs[other] for name, other in zip(names, reversed(names), strict=True)}}


def _one_buffer(patient: Patient) -> None:
    """A later run overwrites what an earlier one returned."""
    buffers: dict[Any, torch.Tensor] = {}

    def empty(old: Callable[..., Any], memory: Any, port: Any, shape: Any) -> Any:
        return buffers.setdefault((port.name, tuple(shape)), old(memory, port, shape))

    around("vaefix.runtime.backends.onnx.memory.TorchMemory.empty", empty)(patient)
    patient.options = replace(patient.options, seeds=(0, 1))


def _moments_exchanged(output: Any) -> Any:
    distribution = output.latent_dist
    output.latent_dist = type(distribution)(distribution.parameters.roll(distribution.parameters.shape[1] // 2, dims=1))
    return output


_PLANTED = (
    _drawing("hidden state -1, not -2", _after(f"{_MODULES}.TextEncoder.forward", _last_hidden_state), "encoder_hidden_states"),
    _drawing("the prompts exchanged", _pipeline(_prompts_exchanged), "encoder_hidden_states"),
    _drawing("the encoders in the other order", _pipeline(_encoders_in_the_other_order), "encoder_hidden_states"),
    _drawing("one tokenizer for both encoders", _pipeline(_one_tokenizer), "encoder_hidden_states"),
    _drawing("pooled from the wrong encoder", _pooled_by_the_first, "text_embeds"),
    _drawing("pooled and not projected", around(f"{_MODULES}.TextEncoder.forward", _not_projected), "text_embeds"),
    _drawing("time_ids exchanged", _pipeline(_sizes_exchanged), "time_ids", OPENVINO),
    _drawing("the scheduler's config ignored", _pipeline(_own_scheduler), "timestep"),
    _drawing("the timestep off by one", _at_timestep(lambda timestep: timestep + 1), "trajectory"),
    _drawing("fractional timesteps cut to whole ones", _whole_timesteps, "trajectory"),
    _drawing("the first timestep in every step", _stale_timestep, "trajectory"),
    _drawing("guidance off by one", _more_guidance, "trajectory"),
    _drawing("latents not scaled for the UNet", _pipeline(_unscaled_input), "trajectory"),
    _drawing(
        "guided and unguided prediction exchanged",
        _after(f"{_MODULES}.UNet.forward", lambda output: (output[0].flip(0),)),
        "trajectory",
    ),
    _drawing("latents not divided by scaling_factor", _pipeline(_without_scaling_factor), "picture"),
    _drawing("a picture in 0..1", _decoded(lambda sample: sample / 2 + 0.5), "picture"),
    _drawing("blue for red", _decoded(lambda sample: sample.flip(1)), "picture"),
    _drawing("a constant picture", _after(f"{_MODULES}._run", _constant_picture), "picture"),
    Fault(
        "an engine that returns zeros",
        ONNX,
        "vae_encoder",
        _after(f"{_ONNX_SESSION}.run_tensors", _zeros),
        "parity latent_parameters",
        drawn="picture",
    ),
    Fault(
        "an engine that rounds its outputs to fp16",
        OPENVINO,
        "vae_decoder",
        _after(f"{_OPENVINO_SESSION}.run", _rounded_to_fp16),
        "parity sample",
    ),
    Fault(
        "an engine that mistakes its outputs' names",
        OPENVINO,
        "text_encoder",
        _after(f"{_OPENVINO_SESSION}.run", _renamed),
        "parity hidden_states.0",
    ),
    Fault("outputs of several runs in one buffer", ONNX, "text_encoder", _one_buffer, "parity last_hidden_state"),
    _drawing(
        "mean and variance exchanged where a picture is encoded",
        _after(f"{_MODULES}.Vae.encode", _moments_exchanged),
        "encoded",
    ),
)
RUNTIME_FAULTS = tuple(replace(fault, where="the runtime") for fault in _PLANTED)
