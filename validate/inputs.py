"""What a comparison feeds its two sides: seeded, with the statistics that a component meets in a pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaefix.convert.checkpoint import Checkpoint
from vaefix.runtime.arguments import fit_fields
from vaefix.runtime.needs import vae_factor
from vaefix.runtime.tokenizers import load_tokenizer

_WORDS = "a photo of the red blue old quiet harbour mountain forest cat robot street at dawn in rain with light, film".split()


@dataclass(frozen=True)
class PictureSize:
    """In pixels; both are multiples of the VAE's factor, and of 8, see `runtime.needs.step`."""

    height: int
    width: int

    def __post_init__(self) -> None:
        fit_fields(self)


@dataclass(frozen=True)
class Prompt:
    """One short generation: the noise comes from `seed`, guidance above 1 runs the negative prompt too."""

    text: str
    seed: int
    steps: int
    size: PictureSize
    guidance: float = 5.0


def prompt_text(seed: int) -> str:
    """A seeded sentence of everyday words."""
    return " ".join(np.random.default_rng(seed).choice(_WORDS, 12))


def sample_inputs(checkpoint: Checkpoint, component: str, seed: int, size: PictureSize) -> dict[str, NDArray]:
    """Seeded inputs, batch 1, with the statistics the component meets in a pipeline.

    Token ids are those of a sentence, padded to 77; latents are half smooth, half noise, with unit variance before the
    division by `scaling_factor`; pictures are smooth in -1..1; the timestep is a whole number as float32; the guidance of a
    latent consistency model is a vector of sines.
    """
    random = np.random.default_rng([seed, *component.encode()])
    factor = vae_factor(checkpoint.config("vae"))
    height, width = size.height // factor, size.width // factor
    if component in ("text_encoder", "text_encoder_2"):
        tokenizer = load_tokenizer(checkpoint.folder / component.replace("text_encoder", "tokenizer"))
        return {"input_ids": tokenizer(prompt_text(seed), padding="max_length", truncation=True, return_tensors="np").input_ids}
    if component == "vae_decoder":
        config = checkpoint.config("vae")
        latents = _field(random, config["latent_channels"], height, width)
        return {"latent_sample": latents / np.float32(config["scaling_factor"])}
    if component == "vae_encoder":
        return {"sample": np.tanh(_field(random, checkpoint.config("vae")["in_channels"], size.height, size.width))}
    config = checkpoint.config("unet")
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    inputs = {
        "sample": _field(random, config["in_channels"], height, width),
        "timestep": random.integers(1, 1000, 1).astype(np.float32),
        "encoder_hidden_states": random.standard_normal((1, 77, config["cross_attention_dim"]), dtype=np.float32),
        "text_embeds": random.standard_normal((1, pooled), dtype=np.float32),
        "time_ids": np.array([[size.height, size.width, 0, 0, size.height, size.width]], dtype=np.float32),
    }
    if (length := config.get("time_cond_proj_dim")) is not None:
        inputs["timestep_cond"] = np.sin(random.uniform(-np.pi, np.pi, (1, length))).astype(np.float32)
    return inputs


def _field(random: np.random.Generator, channels: int, height: int, width: int) -> NDArray:
    """float32 [1, channels, height, width] of unit variance: a low-resolution field enlarged, plus white noise."""
    coarse = random.standard_normal((1, channels, -(-height // 4), -(-width // 4)), dtype=np.float32)
    smooth = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    noise = random.standard_normal((1, channels, height, width), dtype=np.float32)
    return (smooth + noise) / np.float32(np.sqrt(2))
