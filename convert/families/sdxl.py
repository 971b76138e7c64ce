"""Stable Diffusion XL: two CLIP text encoders, a UNet and both halves of the VAE."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vaefix.runtime.errors import ModelError
from vaefix.runtime.needs import native_picture, vae_factor

from ..checkpoint import Checkpoint
from ..program import Input
from . import Component

if TYPE_CHECKING:
    import torch

PIPELINES = ("StableDiffusionXLPipeline",)
TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}  # and the encoder that each one feeds
_CLASSES = {
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", ()),  # any scheduler that diffusers has
}
_OPTIONAL = {"image_encoder", "feature_extractor"}  # present in some folders, not part of text to image
KEPT = {
    "text_encoder_2": r"^text_projection",
    "unet": r"^conv_in|^conv_out|time_embedding|add_embedding|conv_shortcut",
    "vae_encoder": r"conv_in|conv_out|quant_conv|conv_shortcut",
    "vae_decoder": r"conv_in|conv_out|quant_conv|conv_shortcut",
}
"""Component -> the weights that stay in 16 bits where others have 8 or 4, see `Component.kept`."""
_ATTENTION_ALIASES = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))


def check(checkpoint: Checkpoint) -> None:
    """Raise ModelError naming the entry of `model_index.json` that is missing, unsafe or unknown."""
    source = checkpoint.folder / "model_index.json"
    for name, entry in checkpoint.index.items():
        if not isinstance(entry, list) or name.startswith("_"):
            continue
        if Path(name).name != name or name in {"..", "."} or "\\" in name:
            raise ModelError(f"component name {name!r} is a path", source=source, remedy="use a model from a trusted source")
        if name in _OPTIONAL or entry == [None, None]:
            continue
        library, cls = entry if len(entry) == 2 else (None, None)
        if library not in {"diffusers", "transformers"}:
            remedy = "vaefix never runs a model's own code; use a model made of diffusers and transformers classes"
            raise ModelError(
                f"{name} is {cls} of {library!r}, outside diffusers and transformers", source=source, remedy=remedy
            )
        if name not in _CLASSES:
            raise ModelError(f"unknown component {name}", source=source, remedy=f"SDXL has {', '.join(_CLASSES)}")
        expected_library, expected = _CLASSES[name]
        if library != expected_library or (cls not in expected if expected else not _is_scheduler(cls)):
            known = ", ".join(expected) or "a scheduler of diffusers"
            raise ModelError(f"{name} is of unknown class {library}.{cls}", source=source, remedy=f"expected {known}")
    for name in _CLASSES:
        if not isinstance(checkpoint.index.get(name), list) or checkpoint.index[name][0] is None:
            raise ModelError(f"component {name} is missing", source=source, remedy="give a complete diffusers folder")


def _is_scheduler(cls: Any) -> bool:
    """Whether diffusers exports a scheduler of this name: read from its source, so that nothing is imported."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        raise ModelError("diffusers is not installed", remedy="pip install diffusers")
    return isinstance(cls, str) and cls.endswith("Scheduler") and f'"{cls}"' in Path(spec.origin).read_text(encoding="utf-8")


def components(checkpoint: Checkpoint) -> tuple[Component, ...]:
    """The five components, in the order in which they are converted."""
    picture = native_picture(checkpoint.config("unet"), checkpoint.config("vae"))
    described = (
        _text_encoder(checkpoint, "text_encoder", "CLIPTextModel", ("last_hidden_state", "pooler_output")),
        _text_encoder(checkpoint, "text_encoder_2", "CLIPTextModelWithProjection", ("text_embeds", "last_hidden_state")),
        _unet(checkpoint),
        *_vae(checkpoint),
    )
    return tuple(replace(component, picture=picture) for component in described)


def _sides(levels: int, *, up: bool) -> tuple[int, int]:
    """Height and width to trace a network of so many levels with: odd on each of them, and above 1 on the last.

    up: a level halves by rounding up, as the UNet's do; else down, as the VAE encoder's.
    Were one of them even, a UNet would be traced without what makes its levels meet at sizes that do not divide; a 1 would
    be taken for a size that never changes.
    """
    unit = 2**levels
    return (unit + 1, 2 * unit + 1) if up else (2 * unit - 1, 3 * unit - 1)


def _text_encoder(checkpoint: Checkpoint, name: str, cls: str, heads: tuple[str, str]) -> Component:
    config = checkpoint.config(name)
    layers = _number(config, "num_hidden_layers", checkpoint, name)
    outputs = (*heads, *(f"hidden_states.{layer}" for layer in range(layers + 1)))
    positions = _number(config, "max_position_embeddings", checkpoint, name)
    tokens = {0: "batch_size", 1: "sequence_length"}
    pooled = 1 - heads.index("last_hidden_state")

    def build() -> torch.nn.Module:
        import torch
        import transformers

        class TextEncoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = getattr(transformers, cls)(transformers.CLIPTextConfig(**config))

            def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
                positions = torch.arange(input_ids.shape[1]).unsqueeze(0)  # the module's own buffer has no value on meta
                output = self.encoder(input_ids, position_ids=positions, output_hidden_states=True)
                return (*(output[head] for head in heads), *output.hidden_states)

        with torch.device("meta"):
            return TextEncoder()

    return Component(
        name=name,
        part=name,
        config=config,
        inputs=(Input("input_ids", "int64", (None, None), (2, min(13, positions))),),
        outputs=outputs,
        dynamic_axes={"input_ids": tokens, **dict.fromkeys(outputs, tokens), heads[pooled]: {0: "batch_size"}},
        build=build,
        root="encoder",
        kept=KEPT.get(name),
        aliases=(("text_model.", ""),),
        optional=("text_model.embeddings.position_ids", "embeddings.position_ids"),
    )


def _unet(checkpoint: Checkpoint) -> Component:
    config = checkpoint.config("unet")
    sides = _sides(len(config["block_out_channels"]), up=True)
    time_ids = 6
    latent_axes = {0: "batch_size", 2: "height", 3: "width"}
    cross = _number(config, "cross_attention_dim", checkpoint, "unet")
    time_dim = _number(config, "addition_time_embed_dim", checkpoint, "unet")
    pooled = _number(config, "projection_class_embeddings_input_dim", checkpoint, "unet") - time_ids * time_dim

    def build() -> torch.nn.Module:
        import torch
        from diffusers import UNet2DConditionModel

        class UNet(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unet = UNet2DConditionModel.from_config(dict(config))

            def forward(
                self,
                sample: torch.Tensor,
                timestep: torch.Tensor,
                encoder_hidden_states: torch.Tensor,
                text_embeds: torch.Tensor,
                time_ids: torch.Tensor,
            ) -> torch.Tensor:
                added = {"text_embeds": text_embeds, "time_ids": time_ids}
                return self.unet(sample, timestep.float(), encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]

        with torch.device("meta"):
            return UNet()

    return Component(
        name="unet",
        part="unet",
        config=config,
        inputs=(
            Input("sample", "float32", (None, config["in_channels"], None, None), (2, *sides)),
            Input("timestep", "int64", (None,)),  # GenAI feeds i64; the runtime retypes it to f32
            Input("encoder_hidden_states", "float32", (None, None, cross)),
            Input("text_embeds", "float32", (None, pooled)),
            Input("time_ids", "float32", (None, time_ids)),
        ),
        outputs=("out_sample",),
        dynamic_axes={
            "sample": latent_axes,
            "encoder_hidden_states": {0: "batch_size", 1: "sequence_length"},
            "text_embeds": {0: "batch_size"},
            "time_ids": {0: "batch_size"},
            "out_sample": latent_axes,
        },
        build=build,
        root="unet",
        kept=KEPT["unet"],
    )


def _vae(checkpoint: Checkpoint) -> tuple[Component, Component]:
    config = checkpoint.config("vae")
    latent_channels = config["latent_channels"]
    factor, levels = vae_factor(config), len(config["block_out_channels"])

    def build(half: str) -> torch.nn.Module:
        import torch
        from diffusers import AutoencoderKL

        class Decoder(torch.nn.Module):
            def __init__(self, vae: AutoencoderKL) -> None:
                super().__init__()
                self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

            def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
                return self.decoder(latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample))

        class Encoder(torch.nn.Module):
            def __init__(self, vae: AutoencoderKL) -> None:
                super().__init__()
                self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

            def forward(self, sample: torch.Tensor) -> torch.Tensor:
                moments = self.encoder(sample)
                return moments if self.quant_conv is None else self.quant_conv(moments)

        with torch.device("meta"):
            vae = AutoencoderKL.from_config(dict(config))
        return Decoder(vae) if half == "decoder" else Encoder(vae)

    encoder = Component(
        name="vae_encoder",
        part="vae",
        config=config,
        inputs=(Input("sample", "float32", (None, config["in_channels"], None, None), (2, *_sides(levels, up=False))),),
        outputs=("latent_parameters",),
        dynamic_axes={
            "sample": {0: "batch_size", 2: "sample_height", 3: "sample_width"},
            "latent_parameters": {0: "batch_size", 2: f"sample_height / {factor}", 3: f"sample_width / {factor}"},
        },
        build=lambda: build("encoder"),
        owns=("encoder.", "quant_conv."),
        aliases=_ATTENTION_ALIASES,
        kept=KEPT["vae_encoder"],
        fragile=True,
    )
    decoder = Component(
        name="vae_decoder",
        part="vae",
        config=config,
        inputs=(Input("latent_sample", "float32", (None, latent_channels, None, None)),),
        outputs=("sample",),
        dynamic_axes={
            "latent_sample": {0: "batch_size", 2: "latent_height", 3: "latent_width"},
            "sample": {0: "batch_size", 2: f"latent_height * {factor}", 3: f"latent_width * {factor}"},
        },
        build=lambda: build("decoder"),
        owns=("decoder.", "post_quant_conv."),
        aliases=_ATTENTION_ALIASES,
        kept=KEPT["vae_decoder"],
        fragile=True,
    )
    return encoder, decoder


def _number(config: Mapping[str, Any], key: str, checkpoint: Checkpoint, part: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        source = checkpoint.folder / part / "config.json"
        raise ModelError(f"{key} is {value!r}, expected a positive integer", source=source, remedy="give an SDXL base model")
    return value


def sample_inputs(component: Component, seed: int, side: int) -> dict[str, np.ndarray]:
    """Inputs of realistic statistics for one component, batch 1, by input name.

    side: latent height and width; pictures are larger by the VAE's factor, prompts have 2 * side tokens, at most 77 and as
    many as there are positions, the token that ends a prompt among them.
    Odd seeds are smooth (a low-resolution field, enlarged), even seeds are white noise. Latents have unit variance
    before they are divided by `scaling_factor`.
    """
    random = np.random.default_rng([seed, *component.name.encode()])

    def field(channels: int, size: int, coarse: int) -> np.ndarray:
        if seed % 2 == 0:
            return random.standard_normal((1, channels, size, size), dtype=np.float32)
        low = random.standard_normal((1, channels, -(-size // coarse), -(-size // coarse)), dtype=np.float32)
        return low.repeat(coarse, axis=2).repeat(coarse, axis=3)[:, :, :size, :size]

    inputs: dict[str, np.ndarray] = {}
    config, factor = component.config, component.picture.factor
    pixels = factor * side
    tokens = min(config.get("max_position_embeddings", 77), 77, 2 * side)
    for item in component.inputs:
        if item.name == "input_ids":
            inputs[item.name] = random.integers(0, config["vocab_size"], (1, tokens))
            inputs[item.name][0, random.integers(tokens)] = min(config["eos_token_id"], config["vocab_size"] - 1)
        elif item.name == "timestep":
            inputs[item.name] = random.integers(1, 1000, (1,))
        elif item.name == "time_ids":
            inputs[item.name] = np.array([[pixels, pixels, 0, 0, pixels, pixels]], dtype=np.float32)
        elif item.name == "latent_sample":
            inputs[item.name] = field(item.shape[1] or 4, side, 4) / np.float32(config["scaling_factor"])
        elif component.part == "vae":
            inputs[item.name] = np.clip(field(item.shape[1] or 3, pixels, 4 * factor) / 2, -1, 1)
        elif item.name == "sample":
            inputs[item.name] = random.standard_normal((1, item.shape[1] or 4, side, side), dtype=np.float32)
        else:
            shape = (1, *(tokens for _ in item.shape[1:-1]), item.shape[-1] or 1)
            inputs[item.name] = random.standard_normal(shape, dtype=np.float32)
    return inputs
