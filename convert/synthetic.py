"""A whole SDXL of any size with seeded random weights, written as a diffusers folder one tensor at a time.

Files, keys, configs and tokenizers are those of the published SDXL base, at fp16. Its VAE is ill in the way the real one
is: the residual streams of encoder and decoder are inflated by a power of two, so their peaks lie far beyond the 65504
that fp16 can hold. A checkpoint cannot store a per-layer epsilon, so the weights are chosen to make it vanish: with latents
and pictures of ordinary scale, every GroupNorm that reads a stream finds a variance above 10^4, beside which 1e-6 is a
thousandth of a float32 rounding step. The healthy twin, whose streams are not inflated, therefore computes the same
float32 outputs bit for bit.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .families.sdxl import as_published
from .synthetic_tokenizer import TOKENIZER_FILES, tokenizer_files
from .synthetic_weights import random_tensor

if TYPE_CHECKING:
    from torch import nn

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_TEXT_WEIGHTS = "model.safetensors"
_TOKENIZER_PAD = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}

FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{folder}/{name}" for folder in _TOKENIZER_PAD for name in TOKENIZER_FILES),
    *(f"{folder}/{name}" for folder in ("text_encoder", "text_encoder_2") for name in ("config.json", _TEXT_WEIGHTS)),
    *(f"{folder}/{name}" for folder in ("unet", "vae") for name in ("config.json", _WEIGHTS)),
)


@dataclass(frozen=True)
class SdxlSize:
    """The widths and depths that make an SDXL small or large; the topology is fixed.

    text_*: for text_encoder and text_encoder_2: hidden size, layers, attention heads.
    unet_channels, unet_heads, unet_depth: per level; `unet_depth` counts transformer layers.
    vae_channels: of the four levels. sample_size: of the latent, in latent pixels.
    guidance_embedding: length of the vector in which the UNet of a latent consistency model is told the guidance.
    """

    vocabulary: int = 49408
    text_hidden: tuple[int, int] = (768, 1280)
    text_layers: tuple[int, int] = (12, 32)
    text_heads: tuple[int, int] = (12, 20)
    unet_channels: tuple[int, int, int] = (320, 640, 1280)
    unet_heads: tuple[int, int, int] = (5, 10, 20)
    unet_depth: tuple[int, int, int] = (1, 2, 10)
    time_embedding: int = 256
    vae_channels: tuple[int, int, int, int] = (128, 256, 512, 512)
    norm_groups: int = 32
    sample_size: int = 128
    guidance_embedding: int | None = None


def ensure_sdxl(folder: Path, size: SdxlSize, *, healthy: bool = False, trained_like: bool = False) -> Path:
    """Write the model to `folder` unless all of `FILES` are there; returns `folder`.

    healthy: its VAE does not overflow in float16.
    trained_like: encoders and UNet have weights with the statistics of trained ones, see `synthetic_weights`.
    Several processes may call it at once: the folder appears under its final name complete or not at all.
    """
    if _complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        staged = Path(staging) / folder.name
        write_sdxl(staged, size, healthy=healthy, trained_like=trained_like)
        if folder.exists() and not _complete(folder):
            shutil.rmtree(folder)
        try:
            staged.rename(folder)
        except OSError:
            if not _complete(folder):  # else another process was faster; its bytes are the same
                raise
    return folder


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


def write_sdxl(folder: Path, size: SdxlSize, *, seed: int = 0, healthy: bool = False, trained_like: bool = False) -> None:
    """Write the files named by `FILES` into `folder`; the same arguments, see `ensure_sdxl`, give the same bytes.

    Memory: the largest single tensor in float32. Imports torch, diffusers and transformers for the names and shapes.
    """
    _write_json(folder / "model_index.json", _MODEL_INDEX)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    for name, pad in _TOKENIZER_PAD.items():
        for file_name, text in tokenizer_files(size.vocabulary, pad).items():
            _write_text(folder / name / file_name, text)
    make = partial(random_tensor, seed=seed, healthy=healthy, trained_like=trained_like)
    for name, config, module in _components(size):
        _write_json(folder / name / "config.json", config)
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        file = folder / name / (_TEXT_WEIGHTS if name.startswith("text") else _WEIGHTS)
        _write_weights(file, name, shapes, make)


def _components(size: SdxlSize) -> Iterator[tuple[str, dict[str, Any], nn.Module]]:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        for index, (name, kind) in enumerate(
            (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection))
        ):
            config = _text_config(size, index) | {"architectures": [kind.__name__]}
            yield name, config, as_published(kind(CLIPTextConfig.from_dict(config)))
        unet, vae = _unet_config(size), _vae_config(size)
        yield "unet", unet, UNet2DConditionModel.from_config(unet)
        yield "vae", vae, AutoencoderKL.from_config(vae)


def _write_weights(file: Path, component: str, shapes: Mapping[str, tuple[int, ...]], make: Callable[..., NDArray]) -> None:
    """make: component, key, shape -> float16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            out.write(make(component, key, shape).data)


# ---------------------------------------------------------------------------------------------------------- configs

_MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0.dev0",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


def _text_config(size: SdxlSize, index: int) -> dict[str, Any]:
    hidden = size.text_hidden[index]
    return {
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,  # as published, although the tokenizer's is the last of the vocabulary
        "hidden_act": ("quick_gelu", "gelu")[index],
        "hidden_size": hidden,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * hidden,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": size.text_heads[index],
        "num_hidden_layers": size.text_layers[index],
        "pad_token_id": 1,
        "projection_dim": hidden,
        "torch_dtype": "float16",
        "vocab_size": size.vocabulary,
    }


def _unet_config(size: SdxlSize) -> dict[str, Any]:
    guided = {} if size.guidance_embedding is None else {"time_cond_proj_dim": size.guidance_embedding}
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0.dev0",
        "act_fn": "silu",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": size.time_embedding,
        "attention_head_dim": list(size.unet_heads),  # in diffusers' SDXL configs: the number of heads
        "block_out_channels": list(size.unet_channels),
        "center_input_sample": False,
        "cross_attention_dim": sum(size.text_hidden),
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": size.norm_groups,
        "out_channels": 4,
        "projection_class_embeddings_input_dim": size.text_hidden[1] + 6 * size.time_embedding,
        "sample_size": size.sample_size,
        "transformer_layers_per_block": list(size.unet_depth),
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
        **guided,
    }


def _vae_config(size: SdxlSize) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.19.0.dev0",
        "act_fn": "silu",
        "block_out_channels": list(size.vae_channels),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": size.norm_groups,
        "out_channels": 3,
        "sample_size": 8 * size.sample_size,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    _write_text(file, json.dumps(content, indent=2) + "\n")


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
