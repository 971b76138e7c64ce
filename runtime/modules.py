"""Drop-in text encoder, UNet and VAE for a diffusers pipeline: torch tensors outside, a `Session` inside.

Each imitates what the SDXL pipelines touch of the original: its config, its device and float32, its call and its outputs.
Tensors come back to the device that they came from, wherever the session wants them, so that components on several devices
work together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from transformers import CLIPTextConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from .defaults import completed
from .errors import RequestError
from .guard import require_latents, require_pictures
from .memory import TILE
from .session import Session
from .session_module import SessionModule
from .tiles import decode_in_tiles, encode_in_tiles

_ADDED = ("text_embeds", "time_ids")
_LATENTS_REMEDY = (
    "the UNet or a text encoder overflowed: run them in 32 bits (device 'CPU'), or convert with --precision unet=fp32"
)
_F16_REMEDY = (
    "decode in 32 bits (device vae_decoder=CPU), or convert the model again with the repair on (--repair auto), "
    "or with --precision vae_decoder=fp32"
)
_F32_REMEDY = "32 bits do not overflow here: the weights are at fault, so compare the artifact with its model (vaefix-validate)"


class TextEncoder(SessionModule):
    """A CLIP text encoder, with or without a projection."""

    def __init__(self, config: Mapping[str, Any], session: Session, device: str | None = None) -> None:
        super().__init__(CLIPTextConfig.from_dict(dict(config)), session, device)

    def forward(
        self,
        input_ids: torch.Tensor,
        output_hidden_states: bool = True,  # noqa: ARG002 (the graph computes them anyway)
    ) -> BaseModelOutputWithPooling | CLIPTextModelOutput:
        """input_ids: int64 [B, tokens]. The output holds the hidden states, as SDXL asks for."""
        outputs = _run(self.session, {"input_ids": input_ids})
        hidden_states = tuple(value for name, value in outputs.items() if name.startswith("hidden_states."))
        if "text_embeds" in outputs:
            return CLIPTextModelOutput(
                text_embeds=outputs["text_embeds"],
                last_hidden_state=outputs["last_hidden_state"],
                hidden_states=hidden_states,
            )
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs["last_hidden_state"],
            pooler_output=outputs["pooler_output"],
            hidden_states=hidden_states,
        )


class UNet(SessionModule):
    """The denoiser of SDXL.

    split: each sample of a batch is computed alone, so that guidance takes no more memory than none.
    """

    def __init__(self, config: Mapping[str, Any], session: Session, device: str | None = None, *, split: bool = False) -> None:
        super().__init__(FrozenDict(completed(config, "unet")), session, device)
        self._split = split
        self.add_embedding = SimpleNamespace(
            linear_1=SimpleNamespace(in_features=self.config.projection_class_embeddings_input_dim)
        )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        *,
        added_cond_kwargs: Mapping[str, torch.Tensor],
        timestep_cond: torch.Tensor | None = None,
        return_dict: bool = True,
        **unsupported: Any,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predict the noise (or the velocity).

        sample: float32 [B, 4, H/8, W/8].  timestep: one number for all, or float [B] (ONNX: all equal); fractions are kept.
        encoder_hidden_states: float32 [B, tokens, 2048].  added_cond_kwargs: `text_embeds` [B, 1280], `time_ids` [B, 6].
        timestep_cond: the embedded guidance of a latent consistency model, float32 [B, time_cond_proj_dim]; others have none.
        Raises RequestError for inputs that the graph does not have (LoRA scale, ControlNet residuals, IP-Adapter).
        """
        length = self.config.time_cond_proj_dim
        _refuse(unsupported if length is not None else {**unsupported, "timestep_cond": timestep_cond})
        _refuse({name: value for name, value in added_cond_kwargs.items() if name not in _ADDED})
        feeds = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep, dtype=torch.float32).reshape(-1),
            "encoder_hidden_states": encoder_hidden_states,
            **{name: added_cond_kwargs[name] for name in _ADDED},
        }
        if length is not None:  # it is projected without a bias, so that zeros are what diffusers computes without one
            feeds["timestep_cond"] = torch.zeros(1, length) if timestep_cond is None else timestep_cond
        parts = _samples(feeds) if self._split else [feeds]
        prediction = torch.cat([_run(self.session, part)["out_sample"] for part in parts])
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)


class Vae(SessionModule):
    """Both halves of the autoencoder; every decode passes the guard.

    open_encoder: loads the encoder, called on the first `encode`: drawing from text needs none.
    tile: decode and encode in tiles of this side, in latent pixels, see `tiles`.

    As in diffusers: use_tiling, use_slicing (one picture at a time), tile_latent_min_size (the side of a tile: 64, or the
    model's own size if that is less) and tile_sample_min_size (the same in pixels).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        decoder: Session,
        open_encoder: Callable[[], Session],
        device: str | None = None,
        *,
        tile: int | None = None,
    ) -> None:
        super().__init__(FrozenDict(completed(config, "vae")), decoder, device)
        self._open_encoder = open_encoder
        self._encoder: Session | None = None
        self._factor = 2 ** (len(self.config.block_out_channels) - 1)
        self.use_tiling, self.use_slicing = tile is not None, False
        side = int(np.min(self.config.sample_size or self._factor * TILE))  # one number, or height and width
        self.tile_latent_min_size = tile or min(TILE, side // self._factor)

    @property
    def tile_sample_min_size(self) -> int:
        """The side of a tile, in pixels of the picture."""
        return self._factor * self.tile_latent_min_size

    @tile_sample_min_size.setter
    def tile_sample_min_size(self, pixels: int) -> None:
        self.tile_latent_min_size = pixels // self._factor

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Decode and encode what is larger than a tile in tiles."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Decode and encode pictures whole."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Decode and encode a batch one picture at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode and encode a batch at once."""
        self.use_slicing = False

    def decode(
        self,
        z: torch.Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,  # noqa: ARG002 (some pipelines pass it; a decode draws no numbers)
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """z: float32 [B, 4, H/8, W/8], divided by the scaling factor -> pictures float32 [B, 3, H, W] in about [-1, 1].

        Raises PictureError when the latents or a picture are not finite, or a picture is one constant colour.
        """
        require_latents(_array(z), remedy=_LATENTS_REMEDY)
        sample = torch.cat([self._decoded(part) for part in self._slices(z)])
        where = f"vae_decoder in {self.session.precision} on {self.session.device}"
        require_pictures(_array(sample), source=where, remedy=_F32_REMEDY if self.session.precision == "f32" else _F16_REMEDY)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """x: pictures float32 [B, 3, H, W] in [-1, 1] -> the distribution of their latents, not yet scaled.

        Raises ArtifactError when the artifact has no `vae_encoder`.
        """
        distribution = DiagonalGaussianDistribution(torch.cat([self._encoded(part) for part in self._slices(x)]))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def _slices(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        return batch.split(1) if self.use_slicing else [batch]

    def _decoded(self, z: torch.Tensor) -> torch.Tensor:
        def decode(latents: torch.Tensor) -> torch.Tensor:
            return _run(self.session, {"latent_sample": latents})["sample"]

        return decode_in_tiles(decode, z, self._tile()) if self.use_tiling else decode(z)

    def _encoded(self, x: torch.Tensor) -> torch.Tensor:
        encoder = self._encoder = self._encoder or self._open_encoder()

        def encode(pictures: torch.Tensor) -> torch.Tensor:
            return _run(encoder, {"sample": pictures})["latent_parameters"]

        return encode_in_tiles(encode, x, self._tile(), self._factor) if self.use_tiling else encode(x)

    def _tile(self) -> int:
        if self.tile_latent_min_size < 2:
            remedy = "set tile_latent_min_size to 2 or more"
            raise RequestError(f"tiles of {self.tile_latent_min_size} latent pixels", source="vae", remedy=remedy)
        return self.tile_latent_min_size


def _run(session: Session, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run on tensors of any device and floating type; the outputs are where the first of them is.

    A tensor that is already as the session wants it is handed over itself, so that the session knows it again.
    """
    home = next(iter(feeds.values())).device
    placed = {
        name: tensor.to(session.tensor_device, torch.float32 if tensor.is_floating_point() else torch.int64)
        for name, tensor in feeds.items()
    }
    return {name: tensor.to(home) for name, tensor in session.run_tensors(placed).items()}


def _samples(feeds: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The feeds of each sample of a batch; what is one for all of them goes to each."""
    count = max(len(tensor) for tensor in feeds.values())
    return [{name: tensor if len(tensor) == 1 else tensor[n : n + 1] for name, tensor in feeds.items()} for n in range(count)]


def _array(tensor: torch.Tensor) -> np.ndarray:
    """For the guard, which counts on the CPU."""
    array: np.ndarray = tensor.detach().to("cpu", torch.float32).numpy()
    return array


def _refuse(arguments: Mapping[str, Any]) -> None:
    """None and empty containers ask for nothing; anything else would be ignored in silence."""
    if asked := sorted(name for name, value in arguments.items() if value is not None and value != {}):
        raise RequestError(
            f"the converted graph has no input for {', '.join(asked)}",
            source="unet",
            remedy="leave it out, or run the original model with diffusers",
        )
