"""The pipeline of diffusers, over components that are sessions: what takes weights that torch can see is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, Self

import diffusers
import torch

from .errors import RequestError


def _refused(reason: str, remedy: str) -> Callable[..., NoReturn]:
    def refuse(_pipeline: Any, *_: Any, **__: Any) -> NoReturn:
        raise RequestError(f"its components are compiled graphs: {reason}", source="pipeline", remedy=remedy)

    return refuse


_no_lora = _refused(
    "a LoRA cannot be added to them or taken out",
    "merge it into the original model (fuse_lora, unload_lora_weights and save_pretrained of diffusers), and convert that",
)
_no_ip_adapter = _refused(
    "an IP-Adapter changes the UNet, which cannot be changed", "draw with the original model, loaded by diffusers"
)
_no_textual_inversion = _refused(
    "an embedding cannot be added to a text encoder", "draw with the original model, loaded by diffusers"
)
_no_offload = _refused(
    "torch cannot move them between devices",
    "to need less memory, load with thrift=Thrift(one_at_a_time=True), or run vaefix-run --memory",
)
_no_copy = _refused("there are no weights to save", "copy the folder that the pipeline was loaded from: it is complete")


class StableDiffusionXLPipeline(diffusers.StableDiffusionXLPipeline):  # type: ignore[misc]
    """Named as the original, by which diffusers finds its siblings: `AutoPipelineForImage2Image.from_pipe(pipeline)`.

    What is not here, and what would only change how PyTorch computes (attention slicing), is that of diffusers.
    """

    load_lora_weights = load_lora_into_unet = load_lora_into_text_encoder = unload_lora_weights = _no_lora
    fuse_lora = unfuse_lora = set_adapters = delete_adapters = enable_lora = disable_lora = _no_lora
    get_active_adapters = get_list_adapters = set_lora_device = enable_lora_hotswap = _no_lora
    load_ip_adapter = set_ip_adapter_scale = unload_ip_adapter = prepare_ip_adapter_image_embeds = _no_ip_adapter
    load_textual_inversion = unload_textual_inversion = _no_textual_inversion
    enable_model_cpu_offload = enable_sequential_cpu_offload = enable_group_offload = _no_offload
    save_pretrained = push_to_hub = _no_copy

    @wraps(diffusers.StableDiffusionXLPipeline.__call__)
    def __call__(
        self,
        prompt: Any = None,
        prompt_2: Any = None,
        height: int | None = None,
        width: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in diffusers, where the model's own size is square; here it may have two sides."""
        native = self.unet.config.sample_size
        sides = native if isinstance(native, list) else (native, native)
        height, width = height or self.vae_scale_factor * sides[0], width or self.vae_scale_factor * sides[1]
        return super().__call__(prompt, prompt_2, height, width, *args, **kwargs)

    def to(self, *args: Any, silence_dtype_warnings: bool = False, **kwargs: Any) -> Self:  # noqa: ARG002 (nothing warns)
        """Nothing, where all components are there in float32 already. Raises RequestError for another device or dtype."""
        for component in self.components.values():
            if isinstance(component, torch.nn.Module):
                component.to(*args, **kwargs)
        return self

    def encode_prompt(self, *args: Any, lora_scale: float | None = None, **kwargs: Any) -> Any:
        """As in diffusers. Raises RequestError for a LoRA's scale, from `cross_attention_kwargs`."""
        if lora_scale is not None:
            _no_lora(self)
        return super().encode_prompt(*args, **kwargs)

    def enable_vae_tiling(self) -> None:
        """Decode and encode large pictures in overlapping tiles, which takes less memory."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode and encode pictures whole."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Decode and encode a batch one picture at a time, which takes less memory."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode and encode a batch at once."""
        self.vae.disable_slicing()
