"""What the user's own model computes: float32, PyTorch on the CPU, loaded by diffusers and transformers alone.

Nothing of the conversion takes part, so that a mistake in it cannot hide in the reference. Only the checks of the
model folder (no pickles, no code, which variant) are shared, and which weights a precision quantises; how that rounds
them is computed by torch, not by the encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from vaefix.convert.checkpoint import Checkpoint, variant_of
from vaefix.convert.families import find_family
from vaefix.convert.families.sdxl import as_published
from vaefix.convert.policy import storage_of
from vaefix.convert.precision import Storage
from vaefix.convert.rounding import rounded as quantized
from vaefix.runtime.errors import CheckpointError, ModelError
from vaefix.runtime.libraries import refusals
from vaefix.runtime.tokenizers import load_tokenizer
from vaefix.runtime.versions import remedy_or_versions

from .inputs import Prompt
from .ranges import LayerRange, recorded

Feeds = Mapping[str, NDArray]
Outputs = dict[str, NDArray]
Run = Callable[..., dict[str, torch.Tensor]]

_SIGNIFICANT_BITS = {"f16": 11, "bf16": 8}
_KINDS = {torch.nn.Linear: "linear", torch.nn.Conv2d: "conv"}
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_PUBLISHED_NAMES = {r"^(?!text_model\.|text_projection\.)": "text_model."}  # transformers from 5.6 on saves without the prefix
_COMPLETE = "give a complete model, with matching configs and weights"


@dataclass(frozen=True)
class Expected:
    """untouched: what the user's model computes.  stored: the same with its weights rounded as the artifact stores them.

    The two are one object where storing loses nothing. `stored` is what the artifact must equal but for the order of
    summation; `untouched` is what it must come close to.
    """

    untouched: Outputs
    stored: Outputs


def component_outputs(checkpoint: Checkpoint, component: str, feeds: Sequence[Feeds], precision: str) -> Expected:
    """Every output of one component, by the artifact's output names, stacked over `feeds`.

    The component is loaded, run and released; no other is in memory.
    precision: how the artifact stores its weights, see Expected.
    """
    part, run = _COMPONENTS[component]
    model = _load(checkpoint, part)
    outputs = _run_all(model, run, feeds)
    return Expected(outputs, _run_all(model, run, feeds) if _narrow(model, checkpoint, component, precision) else outputs)


def component_ranges(checkpoint: Checkpoint, component: str, feeds: Feeds, precision: str) -> tuple[LayerRange, ...]:
    """What the layers of one component reach in one run, its weights rounded as `precision` stores them."""
    part, run = _COMPONENTS[component]
    model = _load(checkpoint, part)
    _narrow(model, checkpoint, component, precision)
    with recorded(as_published(model) if part in _TEXT_ENCODERS else model) as ranges:
        _run_all(model, run, [feeds])
    return tuple(ranges)


def generations(checkpoint: Checkpoint, prompts: Sequence[Prompt], precisions: Mapping[str, str]) -> list[Expected]:
    """A short generation of the whole model for each prompt, see `generate`.

    precisions: by component, as for `component_outputs`.
    """
    models = {part: _load(checkpoint, part) for part in _PARTS}
    parts = {**models, **{name: load_tokenizer(checkpoint.folder / name) for name in ("tokenizer", "tokenizer_2")}}
    with refusals(ModelError, "the library cannot load this model", source=checkpoint.folder, remedy=_COMPLETE):
        pipeline = DiffusionPipeline.from_pretrained(checkpoint.folder, **parts, local_files_only=True, add_watermarker=False)
    draw = partial(generate, pipeline, encode="vae_encoder" in precisions)
    untouched = [draw(prompt) for prompt in prompts]
    narrowed = [_narrow(models[_COMPONENTS[name][0]], checkpoint, name, precision) for name, precision in precisions.items()]
    stored = [draw(prompt) for prompt in prompts] if any(narrowed) else untouched
    return [Expected(*pair) for pair in zip(untouched, stored, strict=True)]


def narrow_weights(model: torch.nn.Module, precision: str, kept: str | None = None, prefix: str = "") -> bool:
    """Round the weights as `precision` stores them, in place; whether any of them changed.

    kept: what is found in the names of the weights that are not quantised, a regular expression.
    prefix: of those names, what the model is called in a larger one.
    In 16 bits only the significant ones count, of weights and of the scales of codes. fp16's range plays no part: what the
    repair scales by a power of two would leave it.
    """
    if precision == "fp32":
        return False
    changed = False
    for path, module in model.named_modules(prefix=prefix):
        for name, weight in module.named_parameters(path, recurse=False):
            kind = _KINDS.get(type(module), "other") if name.endswith("weight") else "other"
            rounded = _rounded(weight.data, storage_of(name, kind, tuple(weight.shape), precision, kept))
            changed = changed or not torch.equal(rounded, weight.data)
            weight.data = rounded
    return changed


def _rounded(weight: torch.Tensor, storage: Storage) -> torch.Tensor:
    bits = _SIGNIFICANT_BITS.get(storage.element_type)
    if bits is None:
        return quantized(weight, replace(storage, scale_type="f32"))
    mantissa, exponent = torch.frexp(weight)
    return torch.ldexp(torch.round(mantissa * 2.0**bits) / 2.0**bits, exponent)


def _narrow(model: torch.nn.Module, checkpoint: Checkpoint, component: str, precision: str) -> bool:
    """Round the weights of one component; each half of the VAE may be stored in a precision of its own."""
    kept = find_family(checkpoint).KEPT.get(component)
    modules = {name: getattr(model, name) for name in _HALVES[component]} if component in _HALVES else {"": model}
    there = {name: module for name, module in modules.items() if module is not None}  # a VAE may have no quant_conv
    changed = [narrow_weights(module, precision, kept, name) for name, module in there.items()]
    return any(changed)


def generate(pipeline: StableDiffusionXLPipeline, prompt: Prompt, *, encode: bool) -> Outputs:
    """Draw one picture with any SDXL pipeline; the reference and an artifact take the same path.

    encode: also encode the picture, for which the artifact needs a `vae_encoder`.

    encoder_hidden_states, text_embeds, time_ids: what the UNet is told in the first step, the negative prompt's first,
    float32 [2, ...].  timestep: in each of its calls, float32 [calls].
    timestep_cond: the guidance, where the UNet of a latent consistency model is told it, float32 [1, ...]; the others are
    [1, ...] too then.
    trajectory: float32 [steps, 1, 4, H/8, W/8], the scaled latents after each step.  latents: the last of them.
    picture: float32 [1, H, W, 3] in 0..1.  encoded: float32 [1, 4, H/8, W/8], the latents that the picture is encoded to.
    So where a generation goes wrong, the first output that differs says which part of it is to blame.
    """
    calls: list[dict[str, NDArray]] = []
    latents: list[NDArray] = []

    def listen(_unet: Any, arguments: tuple[Any, ...], told: dict[str, Any]) -> None:
        tensors = {
            "encoder_hidden_states": told["encoder_hidden_states"],
            **told["added_cond_kwargs"],
            "timestep": arguments[1],
            "timestep_cond": told["timestep_cond"],
        }
        calls.append(
            {
                name: torch.as_tensor(value).numpy(force=True).astype(np.float32)
                for name, value in tensors.items()
                if value is not None
            }
        )

    def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"].numpy(force=True).astype(np.float32))
        return tensors

    pipeline.set_progress_bar_config(disable=True)
    listening = pipeline.unet.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        picture = pipeline(
            prompt.text,
            height=prompt.size.height,
            width=prompt.size.width,
            num_inference_steps=prompt.steps,
            guidance_scale=prompt.guidance,
            generator=torch.Generator("cpu").manual_seed(prompt.seed),
            callback_on_step_end=keep,
            output_type="np",
        ).images
    finally:
        listening.remove()
    told = {**calls[0], "timestep": np.stack([call["timestep"] for call in calls])}
    outputs = {**told, "trajectory": np.stack(latents), "latents": latents[-1], "picture": picture}
    return {**outputs, "encoded": _encoded(pipeline.vae, picture)} if encode else outputs


def _encoded(vae: Any, picture: NDArray) -> NDArray:
    with torch.inference_mode():
        distribution = vae.encode(torch.from_numpy(picture).permute(0, 3, 1, 2) * 2 - 1).latent_dist
    latents: NDArray = distribution.mode().numpy(force=True)
    return latents


def _load(checkpoint: Checkpoint, part: str) -> torch.nn.Module:
    """Raises CheckpointError for weights that are damaged or incomplete, ModelError where the library refuses them."""
    file = next(iter(checkpoint.tensors(part).values())).file
    variant = variant_of(file.name)
    settings: dict[str, Any] = {"torch_dtype": torch.float32}
    if part in _TEXT_ENCODERS:
        settings = {"dtype": torch.float32, "key_mapping": _PUBLISHED_NAMES}
    with refusals(ModelError, "the library cannot load it", source=file.parent, remedy=_COMPLETE):
        model, info = _PARTS[part].from_pretrained(
            file.parent,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **settings,
        )
    if missing := sorted(info["missing_keys"]):
        reason = f"tensor {missing[0]} is missing ({len(missing)} in all), so the reference would be random"
        raise CheckpointError(reason, source=file.parent, remedy=remedy_or_versions(_COMPLETE))
    return model.eval()


def _run_all(model: torch.nn.Module, run: Run, feeds: Sequence[Feeds]) -> Outputs:
    with torch.inference_mode():
        results = [run(model, **{name: torch.from_numpy(value) for name, value in feed.items()}) for feed in feeds]
    return {name: np.stack([result[name].numpy() for result in results]) for name in results[0]}


def _text_encoder(model: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    output = model(input_ids, output_hidden_states=True)
    return {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output, **_hidden_states(output)}


def _text_encoder_2(model: Any, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    output = model(input_ids, output_hidden_states=True)
    return {"text_embeds": output.text_embeds, "last_hidden_state": output.last_hidden_state, **_hidden_states(output)}


def _hidden_states(output: Any) -> dict[str, torch.Tensor]:
    return {f"hidden_states.{layer}": value for layer, value in enumerate(output.hidden_states)}


def _unet(
    model: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep_cond: torch.Tensor | None = None,
    **added: torch.Tensor,
) -> dict[str, torch.Tensor]:
    told = {"timestep_cond": timestep_cond, "added_cond_kwargs": added}
    return {"out_sample": model(sample, timestep, encoder_hidden_states, **told).sample}


def _vae_encoder(model: Any, sample: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"latent_parameters": model.encode(sample).latent_dist.parameters}


def _vae_decoder(model: Any, latent_sample: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"sample": model.decode(latent_sample).sample}


_HALVES = {"vae_encoder": ("encoder", "quant_conv"), "vae_decoder": ("post_quant_conv", "decoder")}
_PARTS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
_COMPONENTS: Mapping[str, tuple[str, Run]] = {
    "text_encoder": ("text_encoder", _text_encoder),
    "text_encoder_2": ("text_encoder_2", _text_encoder_2),
    "unet": ("unet", _unet),
    "vae_encoder": ("vae", _vae_encoder),
    "vae_decoder": ("vae", _vae_decoder),
}
