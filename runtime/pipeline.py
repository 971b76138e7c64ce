"""An artifact as a real diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import fit_fields, fitted
from .artifact import Artifact
from .configs import require_configs
from .documents import read_object
from .errors import ArtifactError
from .libraries import quiet, refusals
from .needs import latent_size
from .schedulers import load_scheduler
from .session import Device, EngineOptions, Session, check_devices, check_options, open_session
from .tokenizers import load_tokenizer
from .turns import Turns

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline

_NEEDED = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
_RECONVERT = "convert the model again with vaefix-convert"
_DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class Thrift:
    """What is given up so that a pipeline needs less memory; see `EngineOptions.low_memory` for the engines.

    one_at_a_time: a component is loaded when it runs, and the others are released. Each is loaded once at the start as well;
        a negative prompt loads the text encoders again.
    tile: the VAE decodes and encodes in tiles of this side, in latent pixels; None takes pictures whole.
    split_cfg: the UNet computes one sample at a time, the guided and the unguided prediction apart.
    """

    one_at_a_time: bool = False
    tile: int | None = None
    split_cfg: bool = False

    def __post_init__(self) -> None:
        fit_fields(self)


_LAVISH = Thrift()


def load_pipeline(
    folder: str | Path,
    device: Device = "CPU",
    *,
    verify: bool = False,
    options: EngineOptions = _DEFAULTS,
    thrift: Thrift = _LAVISH,
    on_load: Callable[[str], None] | None = None,
) -> StableDiffusionXLPipeline:
    """Load an artifact as a `diffusers.StableDiffusionXLPipeline` whose modules run on `device`.

    device: for all (`"GPU"`, `"CUDA:1"`) or by component (`{"*": "GPU", "vae_decoder": "CPU"}`).
    verify: check the sha256 of every file, not only its size.
    options: cached graphs, CUDA graphs, falling back to the CPU, little memory, and the engine's own settings.
    thrift: what is given up for memory.
    on_load: called with each component's name before it is loaded.
    What diffusers draws with works: every argument of a call but `cross_attention_kwargs` and an IP-Adapter's, schedulers,
    callbacks, VAE tiling and slicing, `from_pipe` for pictures from pictures and inpainting; every decode passes the guard.
    What would change the networks is refused with a RequestError that says what to do instead: another device or precision,
    LoRA, textual inversion, IP-Adapter, FreeU, offloading, `save_pretrained`. What only changes how PyTorch computes
    (attention slicing, xformers, memory formats) does nothing.
    Latents, embeddings and the scheduler live where the UNet's session wants its tensors.
    Raises ArtifactError for a damaged or incomplete artifact, DeviceError for a device that cannot run it, RequestError
    for options that its engine or device does not have, UsageError for an argument of a wrong type.
    """
    folder, device = fitted(folder, Path, "folder"), fitted(device, Device, "device")
    verify, options, thrift = (
        fitted(verify, bool, "verify"),
        fitted(options, EngineOptions, "options"),
        fitted(thrift, Thrift, "thrift"),
    )
    artifact = Artifact.load(folder, verify=verify)
    require_drawing(artifact)
    index = _model_index(artifact)
    if not options.allow_fallback:
        check_devices(artifact, _NEEDED, device)
    check_options(artifact, _NEEDED, device, options)
    with quiet():  # not at the top: these import torch, and importing this file must stay light
        from .modules import TextEncoder, UNet, Vae
        from .session_pipeline import StableDiffusionXLPipeline

    scheduler = load_scheduler(
        artifact.folder / "scheduler", index.scheduler, ArtifactError, source=index.path, remedy=_RECONVERT
    )

    def opened(name: str) -> Session:
        if on_load is not None:
            on_load(name)
        return open_session(artifact, name, device, options)

    take = Turns(opened).session if thrift.one_at_a_time else opened
    order = reversed(_NEEDED) if thrift.one_at_a_time else _NEEDED  # the last one stays open, and is the first to run
    sessions = {name: take(name) for name in order}
    home = sessions["unet"].tensor_device
    encoder = partial(take, "vae_encoder")

    def text_encoder(name: str) -> TextEncoder:
        return TextEncoder(artifact.config(name), sessions[name], home)

    with refusals(ArtifactError, "the library cannot hold this pipeline", source=artifact.folder, remedy=_RECONVERT):
        return StableDiffusionXLPipeline(
            text_encoder=text_encoder("text_encoder"),
            text_encoder_2=text_encoder("text_encoder_2"),
            tokenizer=load_tokenizer(artifact.folder / "tokenizer"),
            tokenizer_2=load_tokenizer(artifact.folder / "tokenizer_2"),
            unet=UNet(_with_side(artifact.config("unet")), sessions["unet"], home, split=thrift.split_cfg),
            vae=Vae(artifact.config("vae_decoder"), sessions["vae_decoder"], encoder, home, tile=thrift.tile),
            scheduler=scheduler,
            force_zeros_for_empty_prompt=index.force_zeros_for_empty_prompt,
        )


def require_drawing(artifact: Artifact) -> None:
    """Raises ArtifactError for an artifact that lacks a component that drawing takes, or whose configs have a fault."""
    if missing := [name for name in _NEEDED if name not in artifact.components]:
        raise ArtifactError(
            f"drawing a picture takes {', '.join(missing)}, which it does not have",
            source=artifact.folder,
            remedy="convert the whole model (vaefix-convert without --components)",
        )
    require_configs(artifact)


def _with_side(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The config with one number for the latent's side, with which diffusers reckons; a picture that is not square has none."""
    height, width = latent_size(unet)
    return {**unet, "sample_size": height if height == width else [height, width]}


@dataclass(frozen=True)
class _ModelIndex:
    path: Path
    scheduler: str
    force_zeros_for_empty_prompt: bool


def _model_index(artifact: Artifact) -> _ModelIndex:
    path = artifact.folder / "model_index.json"
    index = read_object(path, ArtifactError, remedy=_RECONVERT)
    try:
        pipeline, (_, scheduler) = index["_class_name"], index["scheduler"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"unreadable ({error!r})", source=path, remedy=_RECONVERT) from None
    if pipeline != "StableDiffusionXLPipeline":
        raise ArtifactError(f"a {pipeline}, not a StableDiffusionXLPipeline", source=path, remedy=_RECONVERT)
    return _ModelIndex(path, str(scheduler), bool(index.get("force_zeros_for_empty_prompt", True)))
